"""A judge that lets a causal language model write before it reads the verdict.

Knows how long a model may write, and where in its text the verdict stands. Knows no cache, and no use of a verdict.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, as_messages
from hf_alignbeam.chat.templates import special_token_names
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import input_device, max_positions
from hf_alignbeam.inference.incremental import IncrementalScorer
from hf_alignbeam.inference.precise_logits import precise_logits
from hf_alignbeam.judges.base import as_exchanges, batches, check_model
from hf_alignbeam.judges.calibration import check_threshold, known_verdicts, own_threshold, shifted
from hf_alignbeam.judges.known_exchanges import EXCHANGES, PROBES
from hf_alignbeam.judges.profile import GuardProfile, check_judges_responses
from hf_alignbeam.judges.profiles.known import as_profile
from hf_alignbeam.judges.reading.readings import worst_of_readings
from hf_alignbeam.judges.rendering import GuardPrompt
from hf_alignbeam.judges.verdicts import MAX_TOKENS, VerdictReader
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: How many tokens of what a model writes instead of a verdict are shown.
N_SHOWN_TOKENS = 24
_PROBE = (as_messages(PROBES[0].question), PROBES[0].response)

_log = logging.getLogger(__name__)


class GeneratingJudge:
    """A causal language model that writes before its verdict, as guards that reason or answer in several lines do.

    It is much slower than `LLMJudge`: the model generates up to `max_new_tokens` tokens for each response. It writes greedily.
    The probabilities of the verdict texts are read after the last `verdict_after` that it writes; where it writes none, there is
    no verdict. A growing response is read anew at every call.

    Args:
        model: Any causal model, in evaluation mode.
        tokenizer: Its tokenizer.
        profile: How it is asked and answers, with `verdict_after` and `max_new_tokens`: a `GuardProfile`, its values as a
            mapping, or a known one's name.
        threshold: Its own threshold, in (0, 1): the harm that is reported as .5. Default: the profile's, or for
            a profile without one the threshold that tells the package's known exchanges apart, found now.
        batch_size: Responses per batch.
        probe: Whether to ask it about a known exchange now, so that a model that gives no verdicts is an error.

    Attributes:
        profile: The profile in use.
        threshold: The threshold in use.

    Raises:
        ValueError: An argument is out of its range, the profile names nothing to generate, or the model answers the known
            exchange with something that is no verdict.
    """

    is_deterministic = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        profile: GuardProfile | Mapping[str, Any] | str,
        threshold: float | None = None,
        batch_size: int = 8,
        probe: bool = True,
    ):
        profile = as_profile(profile)
        check_model(model, batch_size)
        check_judges_responses(profile)
        if profile.verdict_after is None:
            raise ValueError(f"`profile` must have `verdict_after`, but {profile.name} has none. Use the faster `LLMJudge`.")
        self.profile = profile
        own = profile.threshold if threshold is None else threshold
        self.threshold = 0.5 if own is None else check_threshold(own)
        self._has_warned = False
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._n_positions = max_positions(model)
        self._tokens = token_bytes(tokenizer)
        names = special_token_names(tokenizer)
        self._written = [token or names.get(i, b"") for i, token in enumerate(self._tokens)]  # a marker may hold special tokens
        self._marker = profile.verdict_after.lower().encode()
        self._prompt = GuardPrompt(tokenizer, profile)
        self._reader = VerdictReader(self._tokens, profile.verdicts)
        self._scorer = IncrementalScorer(
            model, choose_engine(model, self._tokens), partial(precise_logits, model, self._reader.first_ids)
        )
        configured = model.generation_config.eos_token_id if model.generation_config is not None else None
        eos = [configured] if isinstance(configured, int) else list(configured or [])
        self._eos = sorted({*eos, *({tokenizer.eos_token_id} - {None})})
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (self._eos or [0])[0]
        if probe and self._judge_all([_PROBE]).isnan().all():
            raise ValueError(f"`model` must answer with verdicts. {self.describe_missing()}")
        if own is None:
            self.threshold = check_threshold(own_threshold(known_verdicts(self, EXCHANGES)))

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides its verdicts, for a search that is resumed."""
        return self._model, self._tokenizer, self.profile, self.threshold

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._model.config._name_or_path!r}, profile={self.profile.name!r})"

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; a conversation may also be a plain string."""
        pairs = as_exchanges(conversations, responses)
        harm = shifted(worst_of_readings(pairs, self._judge_all), self.threshold)
        if harm.isnan().any() and not self._has_warned:
            self._has_warned = True
            _log.warning("%s", self.describe_missing())
        return harm

    def describe_missing(self) -> str:
        """What the model writes about a known harmless exchange, where its profile expects a verdict, and what to do."""
        (written,) = self._write([self._prompt.ids(*_PROBE)])
        texts = ", ".join(map(repr, self.profile.verdicts))
        return (
            f"{self!r} is asked for one of {texts} after {self.profile.verdict_after!r}, within {self.profile.max_new_tokens} "
            f"tokens. After a known harmless exchange it wrote, at last, "
            f"{decode(self._written, written[-N_SHOWN_TOKENS:]).decode(errors='replace')!r}. Name the guard's profile "
            "(`profile=`, --judge-profile), or give it a larger `max_new_tokens`."
        )

    def _write(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """The ids that the model writes after each of B lists of ids."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(each)) + each for each in prompts])  # (B, T)
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        config = GenerationConfig(
            max_new_tokens=self.profile.max_new_tokens,
            do_sample=False,
            eos_token_id=self._eos or None,
            pad_token_id=self._pad,
        )
        device = input_device(self._model)
        with torch.no_grad():
            output = self._model.generate(  # type: ignore[operator]
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        return [row.tolist() for row in output[:, width:].cpu()]

    def _judge_all(self, pairs: Sequence[tuple[list[Message], str]]) -> Tensor:
        harm = torch.full((len(pairs),), torch.nan, dtype=torch.float64)
        readable, reasons = self._prompt.readable(pairs, self._n_positions, self.profile.max_new_tokens + MAX_TOKENS)
        if reasons and not self._has_warned:
            self._has_warned = True
            _log.warning("%r gives no verdict on an exchange: %s", self, reasons[0])
        places = list(readable)
        for batch in batches([len(ids) for ids in readable.values()], self._batch_size):
            prompts = {places[n]: readable[places[n]] for n in batch}
            written = [self._before_verdict(ids) for ids in self._write(list(prompts.values()))]
            rows = {n: [*ids, *text] for (n, ids), text in zip(prompts.items(), written, strict=True) if text is not None}
            if rows:
                harm[list(rows)] = self._reader.read(list(rows.values()), self._next_logp).harm
        return harm

    def _before_verdict(self, ids: Sequence[int]) -> list[int] | None:
        """The ids up to the end of the last marker; None where there is no marker."""
        text = decode(self._written, ids).lower()
        if self._marker not in text:
            return None
        ends = accumulate(len(decode(self._written, [i])) for i in ids)
        n_bytes = text.rindex(self._marker) + len(self._marker)
        return list(ids[: 1 + next(n for n, end in enumerate(ends) if end >= n_bytes)])

    def _next_logp(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return self._scorer.next_logp(rows, [1] * len(rows))
