"""What models say to conversations, through `generate`, and what that takes.

Knows how a batch of conversations is put before a model and how its answers are read. Knows no guard by name and no score.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.templates import encode_with_one_bos, render_target_prompt
from hf_alignbeam.embedding_search.embeddings import padded_ids
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes


@dataclass(frozen=True)
class Response:
    """One answer.

    Attributes:
        text: All of it, what the prompt begins of it included.
        ids: Its own tokens, up to its end.
        chosen: By a strategy, which candidate it is (0: the target's own, -1: the refusal text).
        harm: The harm that the strategy's judge saw in it.
    """

    text: str
    ids: list[int]
    chosen: int | None = None
    harm: float | None = None


def encode(conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """One batch of conversations, padded on the left; one that ends in an answer is to be continued."""
    rows = [encode_with_one_bos(tokenizer, render_target_prompt(tokenizer, conversation)) for conversation in conversations]
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return BatchEncoding(padded_ids(rows, int(next(i for i in pads if i is not None)), torch.device("cpu")))


def without_answer(conversation: list[Message]) -> list[Message]:
    """What is asked: a conversation without the start of an answer, which is part of that answer."""
    return conversation[:-1] if conversation[-1]["role"] == "assistant" else conversation


class Responder:
    """A model that answers conversations through `generate`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        max_new_tokens: Of each answer.
        temperature: Above 0, answers are sampled, from torch's global generator.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 0.0):
        self.model = model
        self.tokenizer = tokenizer
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        self.generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "return_dict_in_generate": True, **sampling}
        self._pieces = token_bytes(tokenizer)
        eos = model.generation_config.eos_token_id if model.generation_config is not None else None
        self._ends = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}

    @torch.no_grad()
    def __call__(self, conversations: Sequence[list[Message]], **how: Any) -> list[Response]:
        """Answer conversations, in one call of `generate` that gets `how` too."""
        inputs = encode(conversations, self.tokenizer).to(input_device(self.model))
        output = self.model.generate(**inputs, **self.generation, **how)  # type: ignore[operator]
        return self.read(conversations, output, inputs["input_ids"].shape[-1])

    def width(self, conversations: Sequence[list[Message]]) -> int:
        """How many ids a batch of conversations takes, padding included."""
        return int(encode(conversations, self.tokenizer)["input_ids"].shape[-1])

    def read(self, conversations: Sequence[list[Message]], output: Any, n_prompt: int) -> list[Response]:
        """The answers in what `generate` returned, each behind `n_prompt` ids."""
        chosen, harm = output.get("chosen"), output.get("harm")
        found = []
        for row, (conversation, ids) in enumerate(zip(conversations, output.sequences[:, n_prompt:].tolist(), strict=True)):
            end = next((n for n, i in enumerate(ids) if i in self._ends), len(ids))
            begun = conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""
            written = decode(self._pieces, ids[:end])
            found.append(
                Response(
                    (begun + written.decode(errors="replace")).strip(),
                    ids[:end],
                    None if chosen is None else int(chosen[row]),
                    None if harm is None or math.isnan(harm[row]) else float(harm[row]),
                )
            )
        return found


@contextmanager
def forwards_counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """One number, the forwards of a model so far, adapters or not."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = inner.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()
