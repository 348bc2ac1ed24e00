"""Accepts answers that a safe model finds probable.

Knows a model and how it reads a conversation. Knows no judge, no harm and no search.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message
from hf_alignbeam.chat.templates import encode_prompt
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import as_exchanges, check_model
from hf_alignbeam.tokenization.vocabulary import token_bytes

#: The default `least_logp`. On the testbed's validation split every refusal had at least -0.13, and every other answer that
#: a search produced at most -0.23.
LEAST_LOGP = -0.2


class PlausibleAnswer:
    """Accepts answers that a safe model finds likely, for `EmbeddingSteerer(accept=...)`.

    A judge of harm also passes answers that are off the topic or garbled. A safe model, of any family and tokenizer, finds a
    fluent refusal likely and both of those unlikely.

    Args:
        anchor: The safe model, in evaluation mode.
        anchor_tokenizer: Its tokenizer.
        least_logp: The mean log-probability per byte (natural logarithm) that an answer needs to be accepted.
        batch_size: Answers per forward pass.

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
            raise ValueError(f"`least_logp` must be at most 0, got {least_logp}. Start with {LEAST_LOGP}.")
        check_model(anchor, batch_size)
        self._anchor = anchor
        self._anchor_tokenizer = anchor_tokenizer
        self._tokens = token_bytes(anchor_tokenizer)
        self._least_logp = least_logp
        self._batch_size = batch_size

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides which answers it accepts, for a search that is resumed."""
        return self._anchor, self._anchor_tokenizer, self._least_logp

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """Whether each of n responses is accepted: (n,), True or False."""
        return self.logp(conversations, responses) >= self._least_logp

    def logp(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """The mean log-probability per byte of each response (n,), natural logarithm; minus infinity for an empty one."""
        pairs = as_exchanges(conversations, responses)
        parts = [self._logp(pairs[start : start + self._batch_size]) for start in range(0, len(pairs), self._batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0)

    @torch.no_grad()
    def _logp(self, pairs: Sequence[tuple[list[Message], str]]) -> Tensor:
        rows = [self._ids(*pair) for pair in pairs]
        lengths = [len(prompt) + len(response) for prompt, response in rows]
        width = max(lengths)
        ids = torch.tensor(
            [[*prompt, *response] + [0] * (width - n) for (prompt, response), n in zip(rows, lengths, strict=True)]
        )
        mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])  # (B, T)
        device = input_device(self._anchor)
        logits = self._anchor(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()
        logp = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (B, T - 1)
        sums = [row[len(prompt) - 1 : n - 1].sum() for row, (prompt, _), n in zip(logp, rows, lengths, strict=True)]
        n_bytes = torch.tensor([len(response.encode()) for _, response in pairs])
        return torch.where(n_bytes > 0, torch.stack(sums) / n_bytes.clamp_min(1), -torch.inf)

    def _ids(self, messages: list[Message], response: str) -> tuple[list[int], list[int]]:
        """The ids of the prompt, and those of the response."""
        prompt, leading_whitespace = encode_prompt(self._anchor_tokenizer, self._tokens, messages)
        encoded: Any = self._anchor_tokenizer(leading_whitespace.decode() + response, add_special_tokens=False)
        return prompt, list(encoded.input_ids)
