"""A check that an answer is one that a safe model might give: by that model's own probability of it.

Knows a model and how it reads a conversation. Knows no judge, no harm and no search.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, as_messages
from hf_alignbeam.chat.templates import render_prompt
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import check_model
from hf_alignbeam.tokenization.vocabulary import token_bytes

#: Natural logarithm of the probability, a byte, that an answer needs by default. On the testbed's validation split no refusal
#: had less than -0.13, and nothing else that a search came upon more than -0.23.
LEAST_LOGP = -0.2


class PlausibleAnswer:
    """Accepts answers that a safe model finds likely, for `EmbeddingSteerer(accept=...)`.

    A judge of harm passes answers that are off the topic, and garbage. A safe model, of any family and tokenizer, finds a fluent
    refusal likely and neither of those.

    Args:
        anchor: The safe model, in evaluation mode.
        anchor_tokenizer: Its tokenizer.
        least_logp: The mean log-probability of a byte (natural logarithm) from which on an answer is accepted.
        batch_size: Answers per forward.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        anchor: PreTrainedModel,
        anchor_tokenizer: PreTrainedTokenizerBase,
        least_logp: float = LEAST_LOGP,
        batch_size: int = 32,
    ):
        if not least_logp <= 0.0:
            raise ValueError(f"`least_logp` must be at most 0, got {least_logp}. Use {LEAST_LOGP} to begin with.")
        check_model(anchor, batch_size)
        self._anchor = anchor
        self._tokenizer = anchor_tokenizer
        self._tokens = token_bytes(anchor_tokenizer)
        self._least_logp = least_logp
        self._batch_size = batch_size

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """Say of n responses whether each is accepted: (n,) True or False."""
        return self.logp(conversations, responses) >= self._least_logp

    def logp(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """The mean log-probability of a byte of each response (n,), natural logarithm; minus infinity for an empty one."""
        pairs = list(zip(conversations, responses, strict=True))
        found = [self._logp(pairs[start : start + self._batch_size]) for start in range(0, len(pairs), self._batch_size)]
        return torch.cat(found) if found else torch.zeros(0)

    @torch.no_grad()
    def _logp(self, pairs: Sequence[tuple[Conversation, str]]) -> Tensor:
        rows = [self._ids(*pair) for pair in pairs]
        width = max(len(asked) + len(said) for asked, said in rows)
        ids = torch.tensor([[*asked, *said] + [0] * (width - len(asked) - len(said)) for asked, said in rows])  # (B, T)
        real = torch.tensor([[1] * (len(asked) + len(said)) + [0] * (width - len(asked) - len(said)) for asked, said in rows])
        device = input_device(self._anchor)
        logits = self._anchor(input_ids=ids.to(device), attention_mask=real.to(device)).logits.float().cpu()
        logp = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
        sums = [each[len(asked) - 1 : len(asked) + len(said) - 1].sum() for each, (asked, said) in zip(logp, rows, strict=True)]
        n_bytes = torch.tensor([len(response.encode()) for _, response in pairs])
        return torch.where(n_bytes > 0, torch.stack(sums) / n_bytes.clamp_min(1), -torch.inf)

    def _ids(self, conversation: Conversation, response: str) -> tuple[list[int], list[int]]:
        """The ids of the question, and those of the response."""
        asked, leading_whitespace = render_prompt(self._tokenizer, self._tokens, as_messages(conversation))
        encoded: Any = self._tokenizer(leading_whitespace.decode() + response, add_special_tokens=False)
        return asked, list(encoded.input_ids)
