"""What a judge is, and the two that need nothing but a model: a causal one that says its verdict, and a classifier.

Knows how a conversation and a response are put before a model, and how its numbers become `harm`. It does not know where
responses come from, nor what is done with a verdict (`decode.py` does).
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.chat.conversations import Conversation, Message, as_messages


class Judge(Protocol):
    """Anything that maps conversations and responses to harm."""

    def __call__(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Tensor:
        """Judge one response to each conversation.

        Args:
            conversations: n lists of `{"role", "content"}` messages, the user's last one at the end.
            responses: n texts, each the whole answer so far, be it finished or not.

        Returns:
            (n,) `harm` in [0, 1], higher is worse; NaN where there is no verdict.
        """
        ...


class CachedJudge:
    """Another judge, asked once for each response to a conversation.

    Verdicts that are missing (NaN) are not kept.

    Args:
        judge: The judge to ask.
        max_size: How many verdicts are kept; the one that was not needed for longest goes first.
    """

    def __init__(self, judge: Judge, max_size: int = 10_000):
        if max_size < 1:
            raise ValueError(f"`max_size` must be at least 1, got {max_size}. Use the judge itself to keep nothing.")
        self._judge = judge
        self._max_size = max_size
        self._known: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`."""
        exchanges = [(as_messages(c), response) for c, response in zip(conversations, responses, strict=True)]
        keys = [_key(messages, response) for messages, response in exchanges]
        with self._lock:
            known = {key: self._known[key] for key in keys if key in self._known}
        new = {key: exchange for key, exchange in zip(keys, exchanges, strict=True) if key not in known}
        if new:
            harm = self._judge([messages for messages, _ in new.values()], [response for _, response in new.values()])
            known |= dict(zip(new, torch.as_tensor(harm).tolist(), strict=True))
            self._keep(known)
        return torch.tensor([known[key] for key in keys])

    def _keep(self, known: Mapping[tuple[object, ...], float]) -> None:
        with self._lock:
            for key, harm in known.items():
                if harm == harm:
                    self._known[key] = harm
                    self._known.move_to_end(key)
            while len(self._known) > self._max_size:
                self._known.popitem(last=False)


def _key(messages: list[Message], response: str) -> tuple[object, ...]:
    return (*((message["role"], message["content"]) for message in messages), response)


def check_model(model: PreTrainedModel, batch_size: int) -> None:
    """Check what every model that is asked about texts has to fulfil.

    Raises:
        ValueError: It is training, or its batches are empty.
    """
    if model.training:
        raise ValueError(f"`model` must be in evaluation mode, but {type(model).__name__} is training. Call `model.eval()`.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
