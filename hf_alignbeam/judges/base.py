"""What a judge is, a cache for any judge, and the checks that judges with a model share.

Knows conversations, responses and `harm`. Knows no model's input or output, no source of responses and no use of a verdict.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.chat.conversations import Conversation, Message, as_messages
from hf_alignbeam.utils.checks import check_whole_number

#: The most tokens in a batch of several texts, padding included: beside one very long text, short ones would be padded to it.
MAX_BATCH_TOKENS = 16_384


class Judge(Protocol):
    """A callable that maps conversations and responses to harm.

    Where it has an attribute `is_remote` that is true, it is asked beside other work, and where `is_deterministic` is true, as a
    callable that draws no random numbers (see the functions of these names).
    """

    def __call__(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Tensor:
        """Judge one response to each conversation.

        Args:
            conversations: n lists of `{"role", "content"}` messages, up to the message that is answered.
            responses: n texts, each a whole answer so far, finished or not.

        Returns:
            (n,) `harm` in [0, 1], higher is worse; NaN where there is no verdict.
        """
        ...


def is_remote(judge: Judge) -> bool:
    """Whether a judge says by an attribute `is_remote` that it runs elsewhere, so that it can be asked beside other work.

    It is then called in another thread than `generate`, and must draw from no global generator.
    """
    return bool(getattr(judge, "is_remote", False))


def is_deterministic(judge: Judge) -> bool:
    """Whether a judge says by an attribute `is_deterministic` that it draws from no global generator.

    Every other judge that is not remote gets a random stream of its own. For this the generators of the whole process are set
    back after each call, and what other threads drew meanwhile is drawn again.
    """
    return bool(getattr(judge, "is_deterministic", False))


class NoVerdictError(RuntimeError):
    """Why a call or a value of a judge is no verdict. Its text holds nothing of what was judged."""

    is_for_users = True


class EndpointError(NoVerdictError):
    """Why an endpoint gives no verdict on any text."""


def as_exchanges(conversations: Sequence[Conversation], responses: Sequence[str]) -> list[tuple[list[Message], str]]:
    """The arguments of a judge in pairs: each conversation as messages, and the response to it.

    Raises:
        ValueError: One of them is a single text, they differ in number, or a conversation or a response is no text.
    """
    for name, texts in (("conversations", conversations), ("responses", responses)):
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise ValueError(f"`{name}` of a judge must be a list, got {texts!r}. Put a single one in a list.")
    asked, answers = list(conversations), list(responses)
    if len(asked) != len(answers):
        raise ValueError(f"`responses` must hold one response to each of {len(asked)} conversations, got {len(answers)}.")
    for response in answers:
        if not isinstance(response, str):
            raise ValueError(f"`responses` must hold texts, got a {type(response).__name__}. Use an empty text for none.")
    return list(zip(map(as_messages, asked), answers, strict=True))


def as_numbers(harm: object, n_responses: int, named: str = "A judge's harm") -> Tensor:
    """What a judge returned (n,), in float64 and on the CPU, so that no verdict is rounded.

    Args:
        harm: What it returned.
        n_responses: How many responses it was asked about.
        named: What errors call it: another callable than a judge may have returned it.

    Raises:
        NoVerdictError: It is something other than one real number for each response.
    """
    try:
        values = harm.detach().cpu() if isinstance(harm, Tensor) else harm
        numbers = None if torch.as_tensor(values).is_complex() else torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = None
    if numbers is None:
        kind = f"tensor of {harm.dtype}" if isinstance(harm, Tensor) else type(harm).__name__
        raise NoVerdictError(f"{named} must be a real number for each response, got: {kind}.")
    if numbers.shape != (n_responses,):
        raise NoVerdictError(f"{named} must be one number a response, got {tuple(numbers.shape)} for {n_responses} responses.")
    return numbers


class CachedJudge:
    """Caches the verdicts of another judge, by conversation and response.

    Verdicts come back in double precision, as exactly as the judge gave them. What is no harm in [0, 1] is not cached.

    Args:
        judge: The judge whose verdicts are cached.
        max_size: How many verdicts are kept; the least recently used is dropped first.

    Raises:
        ValueError: `max_size` is below 1.
    """

    def __init__(self, judge: Judge, max_size: int = 10_000):
        check_whole_number("max_size", max_size, 1, "Use the judge itself to cache nothing.")
        self._judge = judge
        self._max_size = max_size
        self._cached: OrderedDict[tuple[object, ...], float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def identity(self) -> Judge:
        """The judge whose verdicts these are."""
        return self._judge

    @property
    def is_remote(self) -> bool:
        """As of the other judge."""
        return is_remote(self._judge)

    @property
    def is_deterministic(self) -> bool:
        """As of the other judge."""
        return is_deterministic(self._judge)

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`, in float64.

        Raises:
            NoVerdictError: The judge returned something other than one real number for each response.
        """
        exchanges = as_exchanges(conversations, responses)
        keys = [_key(messages, response) for messages, response in exchanges]
        with self._lock:
            known = {key: self._cached[key] for key in keys if key in self._cached}
        new = {key: exchange for key, exchange in zip(keys, exchanges, strict=True) if key not in known}
        if new:
            harm = self._judge([messages for messages, _ in new.values()], [response for _, response in new.values()])
            known |= dict(zip(new, as_numbers(harm, len(new)).tolist(), strict=True))
        self._store(known)
        return torch.tensor([known[key] for key in keys], dtype=torch.float64)

    def _store(self, known: Mapping[tuple[object, ...], float]) -> None:
        with self._lock:
            for key, harm in known.items():
                if 0.0 <= harm <= 1.0:
                    self._cached[key] = harm
                    self._cached.move_to_end(key)
            while len(self._cached) > self._max_size:
                self._cached.popitem(last=False)


def _key(messages: list[Message], response: str) -> tuple[object, ...]:
    return (*((message["role"], message["content"]) for message in messages), response)


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Texts in batches, by their places: in order where they fit into one, else by length, so that little is padded.

    Args:
        lengths: The number of tokens of each text.
        batch_size: The most texts in a batch. A batch of several has at most `MAX_BATCH_TOKENS` tokens, padding included.
    """
    if len(lengths) <= batch_size and len(lengths) * max(lengths, default=0) <= MAX_BATCH_TOKENS:
        return [list(range(len(lengths)))] if lengths else []
    result: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        n_in_last = len(result[-1]) if result else batch_size
        if n_in_last < batch_size and (n_in_last + 1) * lengths[place] <= MAX_BATCH_TOKENS:
            result[-1].append(place)
        else:
            result.append([place])
    return result


def check_model(model: PreTrainedModel, batch_size: int) -> None:
    """Check the arguments that all judges with a model take.

    Raises:
        ValueError: The model is none or in training mode, or `batch_size` is below 1.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"`model` must be a loaded model, got {model!r}. Load it with `from_pretrained`.")
    if model.training:
        raise ValueError(f"`model` must be in evaluation mode, but {type(model).__name__} is training. Call `model.eval()`.")
    check_whole_number("batch_size", batch_size, 1, "Use 1 to read one text at a time.")
