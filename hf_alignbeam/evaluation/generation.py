"""Answers of a model to a batch of conversations, through `generate`.

Knows how a batch of conversations is encoded and how its answers are decoded. Knows no guard by name and no score.
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
from hf_alignbeam.chat.target_prompts import render_target_prompt
from hf_alignbeam.chat.templates import encode_with_one_bos
from hf_alignbeam.embedding_search.embeddings import padded_ids
from hf_alignbeam.inference.engines import input_device, max_positions
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes


@dataclass(frozen=True)
class Response:
    """One answer.

    Attributes:
        text: The whole answer, with a prefill of the prompt.
        ids: The generated tokens, without the end token.
        chosen: For a strategy, the number of the chosen candidate (0: the target's own answer, -1: the refusal text).
        harm: The harm by the strategy's judge.
    """

    text: str
    ids: list[int]
    chosen: int | None = None
    harm: float | None = None


def encode(conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Encode conversations as one left-padded batch; an assistant message at the end is left open, to be continued.

    Raises:
        ValueError: The chat template refuses one of them.
    """
    rows = [_encoded(conversation, tokenizer) for conversation in conversations]
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return BatchEncoding(padded_ids(rows, int(next(i for i in pads if i is not None)), torch.device("cpu")))


def encode_for(
    model: PreTrainedModel, conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase
) -> BatchEncoding:
    """As `encode`, on the device of a model that is to continue the batch.

    Raises:
        ValueError: The chat template refuses a conversation, or one leaves no room for an answer in the model's context.
    """
    inputs, limit = encode(conversations, tokenizer), max_positions(model)
    n_tokens = int(inputs["attention_mask"].sum(-1).max())
    if limit is not None and n_tokens >= limit:  # transformers reads it all the same, in memory that grows with its square
        name = model.config._name_or_path or type(model).__name__
        raise ValueError(
            f"A prompt must leave room for its answer, but has {n_tokens} tokens, and the target {name} takes {limit}."
        )
    return inputs.to(input_device(model))


def why_refused(conversation: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Why a target's chat template refuses a conversation; empty where it does not."""
    try:
        _encoded(conversation, tokenizer)
    except ValueError as error:
        return str(error)
    return ""


def _encoded(conversation: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return encode_with_one_bos(tokenizer, render_target_prompt(tokenizer, conversation))


def without_prefill(conversation: list[Message]) -> list[Message]:
    """A conversation without an assistant message at its end, which belongs to the answer."""
    return conversation[:-1] if conversation[-1]["role"] == "assistant" else conversation


class Responder:
    """A model that answers conversations through `generate`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        max_new_tokens: The largest number of tokens in an answer.
        temperature: Above 0, answers are sampled with torch's global generator.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 0.0):
        self.model = model
        self.tokenizer = tokenizer
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        self.generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "return_dict_in_generate": True, **sampling}
        self._token_bytes = token_bytes(tokenizer)
        eos = model.generation_config.eos_token_id if model.generation_config is not None else None
        self._end_ids = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}

    @torch.no_grad()
    def __call__(self, conversations: Sequence[list[Message]], **generate_arguments: Any) -> list[Response]:
        """Answer conversations in one call of `generate`, with further arguments for it."""
        inputs = encode_for(self.model, conversations, self.tokenizer)
        output = self.model.generate(**inputs, **self.generation, **generate_arguments)  # type: ignore[operator]
        return self.read(conversations, output, inputs["input_ids"].shape[-1])

    def width(self, conversations: Sequence[list[Message]]) -> int:
        """The number of ids in each row of an encoded batch, with padding."""
        return int(encode(conversations, self.tokenizer)["input_ids"].shape[-1])

    def read(self, conversations: Sequence[list[Message]], output: Any, n_prompt: int) -> list[Response]:
        """The answers in the output of `generate`, each after `n_prompt` ids of the prompt."""
        chosen, harm = output.get("chosen"), output.get("harm")
        responses = []
        for row, (conversation, ids) in enumerate(zip(conversations, output.sequences[:, n_prompt:].tolist(), strict=True)):
            end = next((n for n, i in enumerate(ids) if i in self._end_ids), len(ids))
            prefill = conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""
            written = decode(self._token_bytes, ids[:end])
            responses.append(
                Response(
                    (prefill + written.decode(errors="replace")).strip(),
                    ids[:end],
                    None if chosen is None else int(chosen[row]),
                    None if harm is None or math.isnan(harm[row]) else float(harm[row]),
                )
            )
        return responses


@contextmanager
def count_forwards(model: torch.nn.Module) -> Iterator[list[int]]:
    """Count a model's forwards, with or without adapters; the list holds one number, the count so far."""
    count = [0]

    def add(*_: object) -> None:
        count[0] += 1

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    hook = inner.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        hook.remove()
