"""AlignBeam: the decoding strategy that `generate` calls: a judge reads the target's answers and replaces those that it flags.

Knows the user's settings, and what `generate` gives to a strategy and expects back. Does not know how answers come about
(`judged_decoding`).
"""

import copy
import inspect
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import BaseStreamer

from hf_alignbeam.chat.conversations import Conversation, ParsedPrompt, as_message_lists
from hf_alignbeam.chat.refusal import REFUSAL, Refusal, first_invisible
from hf_alignbeam.decoding.candidates import CandidateGenerator
from hf_alignbeam.decoding.fallback import Fallback, OnFail
from hf_alignbeam.decoding.judged_answers import JudgedAnswers
from hf_alignbeam.decoding.judged_decoding import JudgedDecoding
from hf_alignbeam.decoding.policy import Choice, Escalation, checked_settings
from hf_alignbeam.decoding.records import (
    AlignBeamOutput,
    Answer,
    alignbeam_output,
    audit_record,
    padded_sequences,
    prompt_sha256,
)
from hf_alignbeam.decoding.rollback import Rollback
from hf_alignbeam.decoding.row_writer import RowWriter
from hf_alignbeam.decoding.target_rows import TargetRows
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.failsafe import JudgeCalls
from hf_alignbeam.steering.anchor_steering import AnchorSteering
from hf_alignbeam.steering.ledger import Ledger
from hf_alignbeam.steering.mixing import MixingRule
from hf_alignbeam.steering.refused_arguments import check_prompts_are_whole, check_strategy_call, check_tokenizer_settings
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.tokenization.vocabulary import token_bytes
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator
from hf_alignbeam.utils.jsonl_log import append_shared
from hf_alignbeam.utils.stopping_criteria import stateless_criteria
from hf_alignbeam.utils.streaming import check_streamer, streaming
from hf_alignbeam.utils.timed_calls import TimedCalls

#: The default threshold: the highest harm that passes where none was calibrated.
THRESHOLD = 0.5


class AlignBeam:
    """A decoding strategy for `generate(..., custom_generate=strategy)` that returns only text that a judge has passed.

    The target writes as in plain `generate`, token for token. A judge reads its answer after `judge_after` tokens, after
    every `judge_every` more and at its end. If the answer passes, nothing else happens. If it is flagged, it is judged again
    at every `judge_after` tokens since the last check that passed, and rolls back to the last of these points before the
    first that fails. From there `num_candidates` continuations steered by the anchor are judged: of those that pass, the one
    that the target itself finds likeliest continues the answer. If none passes, the refusal text ends it.

    Args:
        anchor: The safe model; or `"base"`, with the adapted target as `model`.
        anchor_tokenizer: Its tokenizer.
        tokenizer: The target's tokenizer.
        judge: Any callable of conversations and responses that returns `harm` (see `Judge`).
        num_candidates: How many continuations a flagged answer gets.
        threshold: The highest `harm` that passes, in [0, 1].
        judge_after: After how many tokens an answer is first judged, and how far apart the points are to which it may roll
            back; None to judge only finished answers.
        judge_every: After how many more tokens it is judged again; None for its end.
        choice: `"likeliest"`: the passing candidate with the highest mean log-probability under the target;
            `"safest"`: the one with the least harm.
        escalation: `"flagged"`: candidates only for flagged answers; `"always"`: for every prompt, in place of the target's
            own first tokens.
        refusal: The text that ends an answer of which nothing passes.
        on_fail: Is called before that with conversations, each ending in the committed part of its answer; returns a
            continuation of each, or None. It is judged too. `EmbeddingSteerer(...).answers` is such a callable.
        on_judge_error: `"refuse"`: a text without a verdict does not pass; `"raise"`: it ends the call with a `JudgeError`. Of
            the judge's own error, which may quote the text, it shows the kind only; the error itself is its `judge_error`.
        judge_timeout: Seconds to wait for the judge; None to wait forever. Texts that it has not judged in time have no
            verdict. When this happens a second time within one call of `generate`, the judge is asked no more there, and every
            answer that is not finished ends in the refusal. A judge that hangs keeps running in a daemon thread.
        min_start: The least probability of a candidate's first token, relative to the most likely one, both in the mixture
            and for the anchor alone.
        candidate_threshold: The highest `harm` that passes in an answer of which text was flagged, if that is less than
            `threshold`: of candidates, and of what follows. A flag makes it likelier that the prompt asks for harm.
        streamer: Gets the committed tokens of a batch of one; `generate` does not pass its own streamer to a strategy.
        audit: A file that gets one line of JSON for each answer, or a callable that gets the record. A streamed answer has a
            record before its first token leaves, with the same `id` as the one at its end. A call that fails has records too,
            with the kind of its `error`. Where no record can be written, no text is returned.
        alpha, n_steps, n_watch, conversations, mixing, translation, n_lookahead, template, model: As in
            `AnchorLogitsProcessor`; `n_steps` counts from the tokens that a rollback keeps.

    One object serves any number of calls and threads. It cannot be copied deeply or pickled.

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
        judge_timeout: float | None = None,
        min_start: float = 0.1,
        candidate_threshold: float = 0.25,
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
        self._policy, settings = checked_settings(locals())
        if not callable(judge):
            raise ValueError(f"`judge` must be callable with conversations and responses, got {judge!r}. Use LLMJudge(...).")
        self._timed = TimedCalls(judge_timeout, "judge_timeout")  # first: it stops a deep copy before the anchor is copied
        self._steering = AnchorSteering(anchor, anchor_tokenizer, tokenizer, settings, model)
        self._judge = judge
        self._refusal = refusal
        self._on_fail = on_fail
        self._streamer = streamer
        self._audit = audit
        self._explain: Callable[[Answer], None] | None = None
        self._tokenizer = tokenizer
        self._conversations = None if conversations is None else as_message_lists(conversations)
        self._token_bytes = token_bytes(tokenizer)

    @classmethod
    def check_settings(cls, **settings: Any) -> None:
        """Raise ValueError for settings that the constructor refuses, before a model is loaded for them."""
        given = inspect.signature(cls).bind_partial(**settings)
        given.apply_defaults()
        checked_settings(given.arguments)

    @property
    def ledger(self) -> Ledger:
        """What steering and judging have cost."""
        return self._steering.ledger

    @property
    def translator(self) -> VocabularyTranslator:
        """The translator from the anchor's vocabulary to the target's; other strategies for the same models may share it."""
        return self._steering.translator

    @property
    def _is_traced(self) -> bool:
        return self._explain is not None

    def for_call(
        self,
        conversations: Sequence[Conversation] | None = None,
        streamer: BaseStreamer | None = None,
        explain: Callable[[Answer], None] | None = None,
    ) -> "AlignBeam":
        """The same strategy for other prompts or another streamer: it shares models, judge and ledger with this one.

        Args:
            conversations, streamer: As in the constructor.
            explain: Gets each answer when all are finished, with its trace: the texts that were judged, the rollbacks, and
                how far steering moved each token. Without it, no trace is recorded.
        """
        check_streamer(streamer)
        other = copy.copy(self)
        other._conversations = None if conversations is None else as_message_lists(conversations)
        other._streamer = streamer
        other._explain = explain
        return other

    def __getattr__(self, name: str) -> Any:
        """No further attribute; `generate` asks for the signature before it looks for a tokenizer that it has taken away."""
        if name == "__signature__":
            check_tokenizer_settings()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        stop_strings: str | list[str] | None = None,
        **model_kwargs: Any,
    ) -> AlignBeamOutput | Tensor:
        """Write answers; `generate` calls this with arguments that it has prepared.

        `stop_strings` is named, so that `generate` passes it on: itself, it finds no tokenizer for it (transformers 5.23).

        Returns:
            (B, length) prompts and answers; an `AlignBeamOutput` if `return_dict_in_generate` is set.
        """
        start = time.perf_counter()
        with streaming(self._streamer, input_ids):
            check_strategy_call(model, logits_processor, generation_config, model_kwargs)
            if self._conversations is None:
                check_prompts_are_whole(input_ids, generation_config, model_kwargs)
            stopping_criteria = stateless_criteria(stopping_criteria, len(input_ids))
            if stop_strings:
                stopping_criteria = StoppingCriteriaList([*stopping_criteria, StopStringCriteria(self._tokenizer, stop_strings)])
            prompts, _ = self._steering.prompt_reader.read(input_ids, self._conversations, model_kwargs.get("attention_mask"))
            target = TargetRows(model, input_ids, generation_config, model_kwargs)
            answers = self._judged_answers(prompts, generation_config)
            writer = RowWriter(self._steering, input_ids, logits_processor, stopping_criteria, generation_config, self._is_traced)
            candidates = CandidateGenerator(writer, self._steering, self._policy, answers.keeps_steps)
            max_length = None if stopping_criteria.max_length is None else stopping_criteria.max_length - input_ids.shape[-1]
            rollback = Rollback(answers, candidates, self._fallback(generation_config, max_length), self._policy)
            audited = {answer.number: uuid.uuid4().hex for answer in answers.answers} if self._audit is not None else {}
            if self._audit is not None:
                self._begin_audit(answers.answers, audited)
            try:
                JudgedDecoding(target, writer, answers, rollback, self._policy).run()
            except BaseException as failure:
                self._end(target, answers, audited, start, failure)
                raise
            self._end(target, answers, audited, start, None)
            if self._explain is not None:
                for answer in answers.answers:
                    self._explain(answer)
            return _result(input_ids, answers, target, generation_config, self._pads(generation_config))

    def _judged_answers(self, prompts: Sequence[ParsedPrompt], config: GenerationConfig) -> JudgedAnswers:
        """The answers of one call, all of them empty."""
        return JudgedAnswers(
            prompts,
            JudgeCalls(self._judge, self._timed),
            self._policy,
            tokenizer=self._tokenizer,
            token_bytes=self._token_bytes,
            emit=self._emit,
            is_traced=self._is_traced,
            keeps_scores=bool(config.return_dict_in_generate and config.output_scores),
            keeps_logits=bool(config.return_dict_in_generate and config.output_logits),
        )

    def _fallback(self, config: GenerationConfig, max_length: int | None) -> Fallback:
        """The fallback of one call, whose answers may have `max_length` tokens."""
        eos_ids = [] if config._eos_token_tensor is None else config._eos_token_tensor.flatten().tolist()
        eos = first_invisible(self._tokenizer, eos_ids)
        return Fallback(Refusal(self._tokenizer, self._token_bytes, self._refusal, eos), self._on_fail, max_length)

    def _pads(self, config: GenerationConfig) -> tuple[int, int]:
        """The id that pads the target's own answers, and the one that pads answers whose end was replaced."""
        pad = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)
        own = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        unseen = first_invisible(self._tokenizer, [pad, *(i for i in own if i is not None)])
        return pad, pad if unseen is None else unseen

    def _emit(self, ids: list[int]) -> None:
        if self._streamer is not None and ids:
            self._streamer.put(torch.tensor(ids))

    def _begin_audit(self, answers: Sequence[Answer], audited: Mapping[int, str]) -> None:
        """Begin the record of a streamed answer, or find out that records cannot be written, before anything is generated."""
        if self._streamer is not None:
            for answer in answers:
                self._write_audit({"id": audited[answer.number], "begun": True, "prompt_sha256": prompt_sha256(answer)})
        elif not callable(self._audit):
            Path(cast(str, self._audit)).open("ab").close()

    def _end(
        self, target: TargetRows, judged: JudgedAnswers, audited: Mapping[int, str], start: float, failure: BaseException | None
    ) -> None:
        """Add to the ledger what a call has cost, and then write the records of its answers.

        Every record is tried. If one cannot be written, the call fails: with its own `failure` if it had one. Only an interrupt,
        such as `KeyboardInterrupt`, is raised in the place of another error.
        """
        self._steering.ledger.add(
            target_forwards=target.cost.n_forwards,
            target_tokens=target.cost.n_tokens,
            judge_calls=judged.n_judge_calls,
            judged=sum(answer.n_judged for answer in judged.answers),
            seconds=time.perf_counter() - start,
        )
        errors: list[BaseException] = []
        kind = None if failure is None else type(failure).__name__
        for answer in judged.answers if audited else []:
            try:
                self._write_audit(audit_record(answer, audited[answer.number], self._policy.limit(answer.was_flagged), kind))
            except BaseException as error:
                errors.append(error)
        if errors:
            known = errors if failure is None else [failure, *errors]
            first = next((error for error in known if not isinstance(error, Exception)), known[0])
            first.add_note(f"{len(errors)} of {len(audited)} audit records could not be written: {errors[0]!r}")
            try:
                if first is not failure:
                    raise first
            finally:
                del errors, known, first, failure  # an error's traceback must not keep this frame, which keeps the error

    def _write_audit(self, record: dict[str, Any]) -> None:
        if callable(self._audit):
            self._audit(record)
        else:
            append_shared(Path(cast(str, self._audit)), record)


def _result(
    input_ids: Tensor, judged: JudgedAnswers, target: TargetRows, config: GenerationConfig, pads: tuple[int, int]
) -> AlignBeamOutput | Tensor:
    """What `generate` returns."""
    sequences = padded_sequences(input_ids, judged.answers, *pads)
    is_plain = all(answer.chosen == 0 for answer in judged.answers)
    if not is_plain:
        target.crop_users_cache(sequences)
    if not config.return_dict_in_generate:
        return sequences
    n_written = max(len(answer.ids) for answer in judged.answers)
    scores, logits = (None if history is None else tuple(history.steps[:n_written]) for history in (judged.scores, judged.logits))
    return alignbeam_output(sequences, judged.answers, scores, logits, target.cache if is_plain else None)
