"""What is known of an answer: its tokens and verdicts, the trace of how it came about, and what `generate` returns.

Knows records, and the divergence of two distributions. Does not know who fills them in; no token depends on a trace.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.chat.conversations import ParsedPrompt


@dataclass(frozen=True)
class JudgedPrefix:
    """A text that the judge has read: the first tokens of an answer, or all of them.

    Attributes:
        ids: The tokens of the text.
        harm: The verdict, in [0, 1]; NaN if there was none.
        limit: The highest harm that passed.
    """

    ids: list[int]
    harm: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the text may be returned."""
        return self.harm <= self.limit


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate of a rollback.

    Attributes:
        ids: Its tokens, without those of the answer that were kept.
        divergences: By token, as in `Answer`.
        harm: The verdict, in [0, 1]; NaN if there was none.
        limit: The highest harm that passed.
        logp: The mean log-probability of its tokens under the target.
    """

    ids: list[int]
    divergences: list[float]
    harm: float
    limit: float
    logp: float

    @property
    def passes(self) -> bool:
        """Whether the answer may continue with it."""
        return self.harm <= self.limit


@dataclass(frozen=True)
class RollbackRecord:
    """One rollback of an answer.

    Attributes:
        n_kept: How many of its tokens were kept.
        flagged: The tokens that were taken back; empty where candidates are the first thing written.
        divergences: By flagged token, as in `Answer`.
        candidates: The candidates, number 1 first.
        chosen: The number of the candidate that continues the answer; None if none passed.
    """

    n_kept: int
    flagged: list[int]
    divergences: list[float]
    candidates: list[CandidateRecord]
    chosen: int | None


@dataclass
class Answer:
    """One answer and what it has cost.

    Attributes:
        number: Its row in the batch.
        prompt: The prompt that it answers.
        candidate_harm: The harm of the target's own text and of each candidate, when they were last compared.
        ids: Its committed tokens: all of them were judged and passed.
        text: Their text, the prefill included; None before anything was committed.
        harm: The judge's last verdict on it.
        chosen: 0 for the target's own answer, k for candidate k, -1 for the refusal text, -2 for the answer of `on_fail`.
        is_done: Whether the answer is complete.
        was_flagged: Whether any of its text was flagged.
        n_steered: How many tokens the anchor was mixed into, those of candidates included.
        n_target_tokens: How many tokens were fed to the target.
        n_judged: How many texts were judged.
        judged_prefixes: These texts, in order. This and the following fields are filled in only if the call is traced.
        rollbacks: Its rollbacks, in order.
        divergences: By token, the divergence KL(mixed || target) in nats of the distribution from which it was drawn; NaN where
            it was not steered.
    """

    number: int
    prompt: ParsedPrompt
    candidate_harm: list[float]
    ids: list[int] = field(default_factory=list)
    text: str | None = None
    harm: float = math.nan
    chosen: int = 0
    is_done: bool = False
    was_flagged: bool = False
    n_steered: int = 0
    n_target_tokens: int = 0
    n_judged: int = 0
    judged_prefixes: list[JudgedPrefix] = field(default_factory=list)
    rollbacks: list[RollbackRecord] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)


@dataclass
class AlignBeamOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns; every field is None or has a row for each answer.

    Attributes:
        sequences: (B, length) prompts and answers.
        scores: By step, the processed scores (B, V), if `output_scores` is set.
        logits: By step, the target's logits (B, V), if `output_logits` is set.
        cache: The target's cache, if every answer is the target's own; also named `past_key_values`, as before transformers 5.24.
        harm: (B,) the judge's last verdict on each answer; NaN for the refusal text.
        candidate_harm: (B, K + 1) the harm of the target's own text and of each candidate, when they were last compared; NaN
            for a candidate or a verdict that is missing.
        chosen: (B,) 0 for the target's own answer, k for one that continues candidate k, -1 for the refusal text, -2 for the
            answer of `on_fail`.
        steered: (B,) how many tokens of each answer the anchor was mixed into, those of candidates included.
        target_tokens: (B,) how many tokens the target was fed for each answer, candidates included.
        judged: (B,) how many texts were judged for each answer.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    cache: Any = None
    harm: Tensor | None = None
    candidate_harm: Tensor | None = None
    chosen: Tensor | None = None
    steered: Tensor | None = None
    target_tokens: Tensor | None = None
    judged: Tensor | None = None

    @property
    def past_key_values(self) -> Any:
        """The cache, by its name before transformers 5.24."""
        return self.cache


def alignbeam_output(
    sequences: Tensor,
    answers: Sequence[Answer],
    scores: tuple[Tensor, ...] | None,
    logits: tuple[Tensor, ...] | None,
    cache: Any,
) -> AlignBeamOutput:
    """What `generate` returns of answers, with what is known of each."""

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(answer, name) for answer in answers])

    return AlignBeamOutput(
        sequences=sequences,
        scores=scores,
        logits=logits,
        cache=cache,
        harm=column("harm"),
        candidate_harm=column("candidate_harm"),
        chosen=column("chosen"),
        steered=column("n_steered"),
        target_tokens=column("n_target_tokens"),
        judged=column("n_judged"),
    )


def padded_sequences(input_ids: Tensor, answers: Sequence[Answer], pad: int, pad_after_fallback: int) -> Tensor:
    """Prompts and answers (B, length), padded on the right: with another id where an end was put to an answer."""
    width = max(len(answer.ids) for answer in answers)
    pads = [pad if answer.chosen >= 0 else pad_after_fallback for answer in answers]
    rows = [answer.ids + [own_pad] * (width - len(answer.ids)) for answer, own_pad in zip(answers, pads, strict=True)]
    return torch.cat([input_ids, torch.tensor(rows, dtype=torch.long, device=input_ids.device)], dim=-1)


def divergence(mixed: Tensor, unsteered: Tensor) -> Tensor:
    """How far steering moved each distribution: KL(mixed || unsteered) in nats.

    Args:
        mixed: (N, V) scores after steering.
        unsteered: (N, V) scores before steering.

    Returns:
        (N,) the divergences; NaN where the scores are unchanged, so that nothing was mixed in.
    """
    mixed_logp, unsteered_logp = mixed.float().log_softmax(-1), unsteered.float().log_softmax(-1)
    prob = mixed_logp.exp()
    terms = torch.where(prob > 0.0, prob * (mixed_logp - unsteered_logp), 0.0)  # (N, V)
    return terms.sum(-1).clamp_min(0.0).masked_fill((mixed == unsteered).all(-1), torch.nan)


def prompt_sha256(answer: Answer) -> str:
    """A hash of the conversation that an answer is to, prefill included."""
    prefill = answer.prompt.prefill.decode(errors="replace")
    return conversation_key([*answer.prompt.messages, {"role": "assistant", "content": prefill}])


def audit_record(answer: Answer, own_id: str, limit: float, error: str | None) -> dict[str, Any]:
    """The audit record of an answer, which contains no words of the prompt or the answer.

    Args:
        answer: The answer, as far as it was committed.
        own_id: The record's id.
        limit: The highest `harm` that passed at its end.
        error: The kind of the error that ended the call; None if it did not fail.
    """
    record = {
        "id": own_id,
        "prompt_sha256": prompt_sha256(answer),
        "threshold": limit,
        "harm": _number(answer.harm),
        "candidate_harm": [_number(harm) for harm in answer.candidate_harm],
        "chosen": answer.chosen,
        "n_tokens": len(answer.ids),
        "steered_tokens": answer.n_steered,
        "target_tokens": answer.n_target_tokens,
        "judged": answer.n_judged,
    }
    return record if error is None else {**record, "error": error}


def _number(harm: float) -> float | None:
    return None if harm != harm else harm
