"""AlignBeam: the strategy that `generate` calls, in which a judge reads what a target writes and picks among candidates.

Knows the settings, and turns one call of `generate` into a run and a run into what `generate` returns. What happens during
the run is `choosing.py`'s business.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import BaseStreamer
from transformers.utils import ModelOutput

from hf_alignbeam.chat.conversations import Conversation, as_message_lists_or_none, conversation_key
from hf_alignbeam.chat.refusal import REFUSAL, Refusal, check_refusal
from hf_alignbeam.decoding.candidates import Proposer
from hf_alignbeam.decoding.fallback import Fallback, OnFail
from hf_alignbeam.decoding.judged_decoding import History, JudgedDecoding
from hf_alignbeam.decoding.policy import Choice, Escalation, Policy
from hf_alignbeam.decoding.row_batch import Answer, Writer
from hf_alignbeam.decoding.target_rows import Target
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.steering.anchor_steering import AnchorSteering
from hf_alignbeam.steering.generate_loops import N_CALLERS
from hf_alignbeam.steering.ledger import Ledger
from hf_alignbeam.steering.mixing import MixingRule
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.tokenization.vocabulary import token_bytes
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator
from hf_alignbeam.utils.streaming import streaming

#: The harm that passes, where nobody calibrated.
THRESHOLD = 0.5


@dataclass
class AlignBeamOutput(ModelOutput):
    """What `generate(..., return_dict_in_generate=True)` returns; every field is None or has a row for each answer.

    Attributes:
        sequences: (B, length) prompts and answers.
        scores: By step, the processed scores (B, V), where `output_scores` was asked for.
        logits: By step, the target's logits (B, V), where `output_logits` was asked for.
        past_key_values: The target's cache, where every answer is the target's own.
        harm: (B,) the harm of each answer as the judge last saw it; NaN for the refusal text.
        candidate_harm: (B, K + 1) of the target's own text and of each candidate, where they were last compared; NaN where
            there was none or no verdict.
        chosen: (B,) 0 for the target's own answer, k for one that goes on from candidate k, -1 for the refusal text, -2 for
            what `on_fail` said.
        steered: (B,) how many tokens of each answer the anchor was mixed into.
        target_tokens: (B,) tokens that the target was fed for each answer, candidates included.
        judged: (B,) how many texts the judge was asked about for each answer.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    past_key_values: Any = None
    harm: Tensor | None = None
    candidate_harm: Tensor | None = None
    chosen: Tensor | None = None
    steered: Tensor | None = None
    target_tokens: Tensor | None = None
    judged: Tensor | None = None


class AlignBeam:
    """A decoding strategy for `generate(..., custom_generate=strategy)` that lets no unjudged text out.

    The target writes as plain `generate` does, token for token. A judge reads its answer after `judge_after` tokens, after
    every `judge_every` more and at its end. Where it passes, nothing else happens. Where it does not, the answer goes back to
    where it last passed, and `num_candidates` continuations steered by the anchor are judged instead: of those that pass, the
    one that the target itself finds likeliest goes on. Where none passes, the refusal text stands in its place.

    Args:
        anchor: The safe model; or `"base"`, with the adapted target as `model`.
        anchor_tokenizer: Its tokenizer.
        tokenizer: The target's tokenizer.
        judge: Any callable of conversations and responses that returns `harm` (see `Judge`).
        num_candidates: How many continuations a flagged answer gets.
        threshold: The `harm` that still passes, in [0, 1].
        judge_after: After how many tokens an answer is first judged; None: when it is finished.
        judge_every: After how many more it is judged again; None: when it is finished.
        choice: `"likeliest"`: the passing candidate with the highest mean log-probability under the target;
            `"safest"`: the one with the least harm.
        escalation: `"flagged"`: candidates only for what the judge flags; `"always"`: for every prompt, in place of the
            target's own continuation.
        refusal: What stands where nothing passes.
        on_fail: Is asked before that for conversations, each with what has passed of its answer at the end: says how it goes
            on, or None. What it says is judged too. `EmbeddingSteerer(...).answers` is one.
        on_judge_error: `"refuse"`: a text without a verdict does not pass; `"raise"`: it ends the call with a `JudgeError`.
        min_start: A candidate's first token is at least so likely, by the mixture and by the anchor alone, as the likeliest.
        streamer: Gets the tokens of a batch of one as they pass; `generate`'s own argument never reaches a strategy.
        audit: A file that gets one line of JSON for each answer, or a callable that gets the record.
        alpha, n_steps, n_watch, conversations, mixing, translation, n_lookahead, template, model: As in
            `AnchorLogitsProcessor`; `n_steps` counts from where an answer was sent back to.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> strategy = AlignBeam(anchor, anchor_tokenizer, tokenizer, judge)
        >>> model.generate(**inputs, custom_generate=strategy, max_new_tokens=128)
    """

    def __init__(
        self,
        anchor: PreTrainedModel | Literal["base"],
        anchor_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        judge: Judge,
        num_candidates: int = 3,
        threshold: float = THRESHOLD,
        judge_after: int | None = 16,
        judge_every: int | None = 64,
        choice: Choice = "likeliest",
        escalation: Escalation = "flagged",
        refusal: str = REFUSAL,
        on_fail: OnFail | None = None,
        on_judge_error: Literal["refuse", "raise"] = "refuse",
        min_start: float = 0.1,
        streamer: BaseStreamer | None = None,
        audit: str | Path | Callable[[dict[str, Any]], None] | None = None,
        alpha: float = SteeringSettings.alpha,
        n_steps: int | None = SteeringSettings.n_steps,
        n_watch: int | None = SteeringSettings.n_watch,
        conversations: Sequence[Conversation] | None = None,
        mixing: MixingRule = SteeringSettings.mixing,
        translation: TranslationRule | VocabularyTranslator = SteeringSettings.translation,
        n_lookahead: int = SteeringSettings.n_lookahead,
        template: str | Callable[[str], Conversation] | None = SteeringSettings.template,
        model: torch.nn.Module | None = None,
    ):
        if not callable(judge):
            raise ValueError(f"`judge` must be callable with conversations and responses, got {judge!r}. Use LLMJudge(...).")
        check_refusal(refusal)
        if on_fail is not None and not callable(on_fail):
            raise ValueError(
                f"`on_fail` must be callable with conversations, got {on_fail!r}. Use `EmbeddingSteerer(...).answers`."
            )
        self._policy = Policy(num_candidates, threshold, judge_after, judge_every, choice, escalation, on_judge_error, min_start)
        settings = SteeringSettings(alpha, n_steps, n_watch, mixing, translation, n_lookahead, template)
        self._steering = AnchorSteering(anchor, anchor_tokenizer, tokenizer, settings, model)
        if self._steering.settings.is_off:
            raise ValueError(
                f"`alpha` and `n_steps` must be above 0 for candidates to differ, got {alpha} and {n_steps}. To judge without "
                "steering, use plain sampling and the judge itself."
            )
        self._judge = judge
        self._refusal = refusal
        self._on_fail = on_fail
        self._streamer = streamer
        self._audit = audit
        self._explain: Callable[[Answer], None] | None = None
        self._tokenizer = tokenizer
        self._conversations = as_message_lists_or_none(conversations)
        self._pieces = token_bytes(tokenizer)

    @property
    def ledger(self) -> Ledger:
        """What steering has cost."""
        return self._steering.ledger

    @property
    def translator(self) -> VocabularyTranslator:
        """What expresses the anchor in the target's vocabulary; other strategies for the same models may share it."""
        return self._steering.translator

    @property
    def threshold(self) -> float:
        """The `harm` that still passes."""
        return self._policy.threshold

    def for_call(
        self,
        conversations: Sequence[Conversation] | None = None,
        streamer: BaseStreamer | None = None,
        explain: Callable[[Answer], None] | None = None,
    ) -> "AlignBeam":
        """The same strategy for other prompts or another streamer: it shares models, judge and ledger with this one.

        Args:
            conversations, streamer: As when it was built.
            explain: Gets each answer when all are finished, and in it what the judge read, what was tried, and how far each
                token was moved, which is noted for nobody else.
        """
        other = copy.copy(self)
        other._conversations = as_message_lists_or_none(conversations)
        other._streamer = streamer
        other._explain = explain
        return other

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> AlignBeamOutput | Tensor:
        """What `generate` calls; its arguments are as `generate` prepares them.

        Returns:
            (B, length) prompts and answers; an `AlignBeamOutput` where `return_dict_in_generate` is set.
        """
        began = time.perf_counter()
        with streaming(self._streamer, input_ids):
            _check_call(model, logits_processor, generation_config)
            asked, _ = self._steering.prompts.read(input_ids, self._conversations)
            notes = self._explain is not None
            writer = Writer(self._steering, input_ids, logits_processor, stopping_criteria, generation_config, notes)
            proposer = Proposer(writer, self._steering, self._policy.num_candidates, self._policy.min_start)
            target = Target(model, input_ids, generation_config, model_kwargs)
            n_most = None if stopping_criteria.max_length is None else stopping_criteria.max_length - input_ids.shape[-1]
            ends = generation_config._eos_token_tensor
            eos = None if ends is None else int(ends.flatten()[0])
            endings = Fallback(Refusal(self._tokenizer, self._pieces, self._refusal, eos), self._on_fail, n_most)
            run = JudgedDecoding(target, writer, proposer, self._judge, self._policy, asked, self._pieces, endings, self._emit)
            if generation_config.return_dict_in_generate:
                run.scores = History(len(asked)) if generation_config.output_scores else None
                run.logits = History(len(asked)) if generation_config.output_logits else None
            try:
                run.write()
            finally:
                self._steering.add(
                    target_forwards=run.n_forwards,
                    target_tokens=run.n_tokens,
                    judge_calls=run.n_judge_calls,
                    judged=sum(answer.n_judged for answer in run.answers),
                    seconds=time.perf_counter() - began,
                )
            for answer in run.answers:
                self._record(answer)
                if self._explain is not None:
                    self._explain(answer)
            sequences = _sequences(input_ids, run.answers, generation_config)
            if any(answer.chosen != 0 for answer in run.answers):
                target.forget(sequences)
            return _output(run, sequences, target) if generation_config.return_dict_in_generate else sequences

    def _emit(self, ids: list[int]) -> None:
        if self._streamer is not None and ids:
            self._streamer.put(torch.tensor(ids))

    def _record(self, answer: Answer) -> None:
        """Leave an audit record: no words of the prompt or the answer stand in it."""
        if self._audit is None:
            return
        asked = [*answer.asked.messages, {"role": "assistant", "content": answer.asked.prefill.decode(errors="replace")}]
        record = {
            "prompt_sha256": conversation_key(asked),
            "threshold": self._policy.threshold,
            "harm": _number(answer.harm),
            "candidate_harm": [_number(harm) for harm in answer.candidate_harm],
            "chosen": answer.chosen,
            "n_tokens": len(answer.ids),
            "steered_tokens": answer.n_steered,
            "target_tokens": answer.n_fed,
            "judged": answer.n_judged,
        }
        if callable(self._audit):
            self._audit(record)
        else:
            with Path(self._audit).open("a") as file:
                file.write(json.dumps(record) + "\n")


def _lost_streamer() -> bool:
    """Whether `generate` was given a streamer, which it keeps to itself (transformers 5.23): its reader would wait for ever."""
    frame = sys._getframe(1)
    for _ in range(N_CALLERS):
        if frame.f_back is None:
            break
        frame = frame.f_back
        if frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals:
            return frame.f_locals.get("streamer") is not None
    return False


def _check_call(model: PreTrainedModel, logits_processor: LogitsProcessorList, config: GenerationConfig) -> None:
    """Raise ValueError for what a strategy cannot honour, by the name of the argument."""
    if _lost_streamer():
        raise ValueError("`streamer` must be given to AlignBeam: `generate` hands its own to nobody, and would never end it.")
    if model.config.is_encoder_decoder:
        raise ValueError(f"The target must be a decoder, got the encoder-decoder {type(model).__name__}.")
    refused = {
        "num_beams": (config.num_beams or 1) > 1,
        "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens is not None,
        "output_attentions": bool(config.output_attentions),
        "output_hidden_states": bool(config.output_hidden_states),
        "cache_implementation": "offload" in str(config.cache_implementation),
        "watermarking_config": any(isinstance(each, SynthIDTextWatermarkLogitsProcessor) for each in logits_processor),
        "guidance_scale": any(isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor) for each in logits_processor),
        "prefix_allowed_tokens_fn": any(isinstance(each, PrefixConstrainedLogitsProcessor) for each in logits_processor),
    }
    for name in (name for name, is_given in refused.items() if is_given):
        raise ValueError(f"`{name}` must be left out with AlignBeam, whose candidates it does not know, got it set.")
    if any(isinstance(each, AnchorLogitsProcessor) for each in logits_processor):
        raise ValueError("`logits_processor` must not hold an AnchorLogitsProcessor: AlignBeam steers its candidates itself.")


def _sequences(input_ids: Tensor, answers: Sequence[Answer], config: GenerationConfig) -> Tensor:
    """Prompts and answers (B, length), padded on the right."""
    pad = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)
    width = max(len(answer.ids) for answer in answers)
    rows = [answer.ids + [pad] * (width - len(answer.ids)) for answer in answers]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=-1)


def _output(run: JudgedDecoding, sequences: Tensor, target: Target) -> AlignBeamOutput:
    n_written = max(len(answer.ids) for answer in run.answers)
    histories = [None if each is None else tuple(each.steps[:n_written]) for each in (run.scores, run.logits)]

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(answer, name) for answer in run.answers])

    return AlignBeamOutput(
        sequences=sequences,
        scores=histories[0],
        logits=histories[1],
        past_key_values=target.cache if all(answer.chosen == 0 for answer in run.answers) else None,
        harm=column("harm"),
        candidate_harm=column("candidate_harm"),
        chosen=column("chosen"),
        steered=column("n_steered"),
        target_tokens=column("n_fed"),
        judged=column("n_judged"),
    )


def _number(harm: float) -> float | None:
    return None if harm != harm else harm
