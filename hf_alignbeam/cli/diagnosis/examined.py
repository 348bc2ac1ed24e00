"""A loaded model with its tokenizer, the result of a check, and the questions that checks ask.

Knows how a question is encoded and what logits a model gives. Knows no check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.target_prompts import render_target_prompt
from hf_alignbeam.chat.templates import encode_with_one_bos
from hf_alignbeam.inference.engines import input_device

#: Green is as it should be, yellow works with a cost or needs care, red does not work.
Status = Literal["green", "yellow", "red"]
#: Plain English, similar to text that any model was trained on.
QUESTIONS = (
    "How do I thank the mayor?",
    "What is the best way to welcome the teacher?",
    "Tell me how to surprise the king.",
)


@dataclass(frozen=True)
class ExaminedModel:
    """A model with its tokenizer, under the name `target` or `anchor`."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def encode(self, question: str) -> list[int]:
        """The ids of a question as the template renders it."""
        return encode_with_one_bos(self.tokenizer, render_target_prompt(self.tokenizer, [{"role": "user", "content": question}]))

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """(T, V) float32 logits of a text, on the CPU."""
        inputs = torch.tensor([list(ids)], device=input_device(self.model))
        return torch.as_tensor(self.model(input_ids=inputs).logits[0]).float().cpu()


class CheckResult(NamedTuple):
    """The result of one check, and in words what was found and what to do."""

    status: Status
    text: str
