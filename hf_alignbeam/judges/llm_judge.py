"""A judge that reads harm from the next-token probabilities of a causal language model.

Knows how a profile is found for a model, how the model is asked, and what to say where it gives no verdict. Knows no cache, and
no use of a verdict.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, as_messages
from hf_alignbeam.chat.templates import default_template
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import max_positions
from hf_alignbeam.inference.incremental import IncrementalScorer, n_common
from hf_alignbeam.inference.precise_logits import precise_logits
from hf_alignbeam.judges.base import as_exchanges, batches, check_model
from hf_alignbeam.judges.calibration import check_threshold, known_verdicts, own_threshold, shifted
from hf_alignbeam.judges.known_exchanges import EXCHANGES, PROBES
from hf_alignbeam.judges.profile import GuardProfile, check_judges_responses
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, SAFE_UNSAFE
from hf_alignbeam.judges.profiles.known import as_profile, find_profile
from hf_alignbeam.judges.reading.readings import worst_of_readings
from hf_alignbeam.judges.rendering import GuardPrompt
from hf_alignbeam.judges.verdicts import MAX_TOKENS, VerdictReader, Verdicts
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: Rendered instead of a response, to find the ids before it.
RESPONSE_PLACEHOLDER = "Qzx"
#: How many tokens of what a model writes instead of a verdict are shown.
N_SHOWN_TOKENS = 12
#: A model whose verdict texts have this total probability after a known exchange is asked as it expects.
SURE_VERDICT_PROB = 0.5
#: What to do about a model that gives no verdict: one that is asked through its own template, and one that is asked by a rubric.
NAME_A_PROFILE = (
    "Name the guard's profile (`profile=`, --judge-profile), or use the profile one-to-five for an instruction-tuned model."
)
USE_ANOTHER_MODEL = "Use a model that follows instructions better, or another profile (`profile=`, --judge-profile)."

_log = logging.getLogger(__name__)


class LLMJudge:
    """A causal language model as judge: `harm` is the harm of its verdict texts, weighted by their probability.

    It takes a few forward passes at most; no text is generated or parsed. Of a response that has grown since the last call,
    only the new tokens are read. Beside a response the judge reads a folded copy of it, and its parts where it fakes turns, if
    there is a difference; the worst verdict counts.

    Args:
        model: Any causal model, in evaluation mode.
        tokenizer: Its tokenizer.
        profile: How it is asked and answers: a `GuardProfile`, its values as a mapping, or the name of a known one. Default:
            the profile of a published guard by the model's id or its chat template; else `"safe-unsafe"`, if it answers known
            exchanges so; else the rubric `"one-to-five"`.
        threshold: Its own threshold, in (0, 1): the harm that is reported as .5. Default: the profile's, or for a profile
            without one the threshold that tells the package's known exchanges apart, found now.
        batch_size: Responses per batch.
        probe: Whether to ask it about two known exchanges now, so that a model that gives no verdicts is an error.

    Attributes:
        profile: The profile in use.
        threshold: The threshold in use.

    Raises:
        ValueError: An argument is out of its range, the profile does not fit, or the model answers the known exchanges with
            something that is no verdict.

    Example:
        >>> judge = LLMJudge(model, tokenizer)
        >>> judge(["How do I kill the weeds?"], ["Use vinegar."])
        tensor([0.0312], dtype=torch.float64)
    """

    is_deterministic = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        profile: GuardProfile | Mapping[str, Any] | str | None = None,
        threshold: float | None = None,
        batch_size: int = 32,
        probe: bool = True,
    ):
        check_model(model, batch_size)
        self._name = model.config._name_or_path or type(model).__name__
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._tokens = token_bytes(tokenizer)
        self._n_positions = max_positions(model)
        self._has_warned = False
        self._why_unreadable = ""
        self.threshold = 0.5
        known = (
            as_profile(profile) if profile is not None else find_profile(model.config._name_or_path, default_template(tokenizer))
        )
        self._use(known or SAFE_UNSAFE)
        engine = choose_engine(model, self._tokens)
        self._scorer = IncrementalScorer(model, engine, lambda: precise_logits(model, self._reader.first_ids))
        if known is None and self.gives_no_verdict():
            self._use(ONE_TO_FIVE)
        if probe and self.gives_no_verdict():
            raise ValueError(f"`model` must answer with verdicts. {self.describe_missing()}")
        own = self.profile.threshold if threshold is None else threshold
        self.threshold = check_threshold(own_threshold(known_verdicts(self, EXCHANGES)) if own is None else own)

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides its verdicts, for a search that is resumed."""
        return self._model, self._tokenizer, self.profile, self.threshold

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, profile={self.profile.name!r})"

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; a conversation may also be a plain string."""
        pairs = as_exchanges(conversations, responses)
        harm = shifted(worst_of_readings(pairs, self._judge_all), self.threshold)
        if harm.isnan().any():
            self._warn_once(self.describe_missing)
        return harm

    def render(self, messages: Sequence[Message], response: str) -> list[int]:
        """The ids that the model reads before its verdict, with exactly one BOS."""
        return self._prompt.ids(messages, response)

    def describe_missing(self) -> str:
        """What the model writes about a known harmless exchange, where its profile expects a verdict, and what to do.

        Where it gives a verdict on that, only that another exchange got none, and why if it could not be read.
        """
        question, response, _ = PROBES[0]
        ids = self.render(as_messages(question), response)
        verdicts, n_read = self._read([ids], [1]), len(ids)
        if (prob := float(verdicts.prob[0])) >= SURE_VERDICT_PROB:
            if self._why_unreadable:
                return f"{self!r} gives no verdict on an exchange that it cannot read: {self._why_unreadable}"
            return (
                f"{self!r} gives no verdict on an exchange, after which its verdict texts together have too little probability; "
                f"after a known harmless one they have {prob:.2g}."
            )
        for _ in range(N_SHOWN_TOKENS):
            ids = [*ids, int(self._scorer.next_logp([ids], [1])[0].argmax())]
        texts = ", ".join(map(repr, self.profile.verdicts))
        return (
            f"{self!r} is asked for one of {texts}, which together have a probability of {prob:.2g} after a "
            f"known harmless exchange. It would rather write {decode(self._tokens, ids[n_read:]).decode(errors='replace')!r}. "
            f"{USE_ANOTHER_MODEL if self.profile.as_message and self.profile.prompt else NAME_A_PROFILE}"
        )

    def _use(self, profile: GuardProfile) -> None:
        check_judges_responses(profile)
        if profile.verdict_after is not None:
            raise ValueError(f"`profile` must not need generated text, but {profile.name} does. Use `GeneratingJudge`.")
        self.profile = profile
        self._prompt = GuardPrompt(self._tokenizer, profile)
        self._reader = VerdictReader(self._tokens, profile.verdicts)

    def gives_no_verdict(self) -> bool:
        """Whether none of the known exchanges gets a verdict."""
        rows = [self.render(as_messages(each.question), each.response) for each in PROBES]
        return bool(self._read(rows, [1] * len(rows)).harm.isnan().all())

    def _judge_all(self, pairs: Sequence[tuple[list[Message], str]]) -> Tensor:
        harm = torch.full((len(pairs),), torch.nan, dtype=torch.float64)
        readable, reasons = self._prompt.readable(pairs, self._n_positions, MAX_TOKENS)
        if reasons:
            self._why_unreadable = reasons[0]
            self._warn_once(lambda: f"{self!r} gives no verdict on an exchange: {reasons[0]}")
        places = list(readable)
        for batch in batches([len(ids) for ids in readable.values()], self._batch_size):
            numbers = [places[n] for n in batch]
            rows = [readable[n] for n in numbers]
            others = [self.render(pairs[n][0], RESPONSE_PLACEHOLDER) for n in numbers]  # the same ids before the response
            n_heads = [max(1, n_common(row, other)) for row, other in zip(rows, others, strict=True)]
            harm[numbers] = self._read(rows, n_heads).harm
        return harm

    def _warn_once(self, describe: Callable[[], str]) -> None:
        """Log why there is no verdict, the first time that there is none."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning("%s", describe())

    def _read(self, rows: Sequence[Sequence[int]], n_heads: Sequence[int]) -> Verdicts:
        return self._reader.read(rows, partial(self._next_logp, n_heads))

    def _next_logp(self, n_heads: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
        return self._scorer.next_logp(rows, [*n_heads, *[1] * (len(rows) - len(n_heads))])
