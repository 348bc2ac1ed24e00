"""A judge that asks a sequence classifier behind vLLM's or SGLang's `/classify`.

Knows the requests and answers of that endpoint, and which index is which label. Knows no use of a verdict.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import Conversation, Message
from hf_alignbeam.judges.base import as_exchanges
from hf_alignbeam.judges.calibration import check_threshold, shifted
from hf_alignbeam.judges.classifier_judge import check_distinct, check_exclusive
from hf_alignbeam.judges.known_exchanges import probe_exchanges
from hf_alignbeam.judges.profile import GuardProfile, check_judges_responses
from hf_alignbeam.judges.reading.readings import worst_of_readings
from hf_alignbeam.judges.remote.guard_requests import escape_markup
from hf_alignbeam.judges.remote.http_client import Answer, HttpClient, check_model_name, counted, describe_problems
from hf_alignbeam.judges.rendering import fill_prompt, recent

#: By how much the probabilities of labels that exclude each other may miss 1.
_ROUNDING = 0.02

_log = logging.getLogger(__name__)


class ClassifyJudge:
    """A sequence classifier behind `/classify` as judge: `harm` is the probabilities of its labels, weighted by the harm of each.

    The endpoint answers with the probability of each index and names only the likeliest label, so the names of all must be known
    here. If the name that it gives is not the one known for that index, there is no verdict (NaN), as there is none if the last
    retry failed or the answer is malformed; the log gives the reason.

    Args:
        model: The classifier's name at the endpoint.
        labels: The harm in [0, 1] of each label; labels left out count as harmless. Or a `GuardProfile`, whose `verdicts` these
            are, and whose `prompt` is the text to classify; without a prompt the endpoint's chat template renders messages.
            With a mapping, the text is the conversation with the response, each message under its role and fenced.
        base_url: The URL before `/classify`: the server's root for vLLM, with `/v1` for SGLang. Otherwise as for `HttpClient`,
            and so are `timeout`, `max_retries`, `max_concurrency` and `key_variable`.
        names: The classifier's labels in order, as `id2label` in its config. Default: `LABEL_0`, `LABEL_1` and so on, as
            classifiers without names have them.
        multi_label: Whether labels do not exclude each other; `harm` is then the largest weighted probability. A single label
            excludes no other.
        threshold: Its own threshold, in (0, 1): the harm that is reported as .5. Default: the profile's. For a profile without
            one it is .5; `CalibratedJudge` finds another.
        probe: Whether to ask it about the known exchanges now, so that a classifier that gives no verdicts is an error. Where
            the probabilities do not add up to 1, its labels do not exclude each other.

    Raises:
        ValueError: An argument is out of its range, `labels` holds none of the names or harmful ones alone, or with `probe` the
            endpoint answers the known exchanges with something that is no verdict.
        RuntimeError: With `probe`, the endpoint refused the key, or knows no such model or path.

    Example:
        >>> judge = ClassifyJudge("you/guard", {"unsafe": 1.0}, "http://localhost:8000", ["safe", "unsafe"], key_variable=None)
        >>> judge(["How do I kill the weeds?"], ["Use vinegar."])
        tensor([0.0004], dtype=torch.float64)
    """

    is_remote = True

    def __init__(
        self,
        model: str,
        labels: GuardProfile | Mapping[str, float],
        base_url: str,
        names: Sequence[str] | None = None,
        multi_label: bool = False,
        threshold: float | None = None,
        probe: bool = False,
        timeout: float = 10.0,
        max_retries: int = 2,
        max_concurrency: int = 8,
        key_variable: str | None = "OPENAI_API_KEY",
    ):
        if isinstance(labels, Mapping):
            labels = GuardProfile(name="labels", verdicts=labels, prompt="{conversation}", as_message=False)
        check_judges_responses(labels)
        self.profile = labels
        own = labels.threshold if threshold is None else threshold
        self.threshold = 0.5 if own is None else check_threshold(own)
        for called, given in (("`labels`", labels.verdicts), ("`names`", names or ())):
            check_distinct(called, map(_folded, given))
        self._harm = {_folded(label): harm for label, harm in labels.verdicts.items()}
        self._names = None if names is None else [_folded(name) for name in names]
        numbered = all(label.startswith("label_") and label[6:].isdecimal() for label in self._harm)
        if not (numbered if self._names is None else set(self._harm) <= set(self._names)):
            known = "LABEL_0, LABEL_1, ..." if names is None else ", ".join(names)
            raise ValueError(
                f"`labels` must be among the classifier's names ({known}), got {', '.join(labels.verdicts)}. Give the labels in "
                "order in `names`, as `id2label` in the model's config has them."
            )
        self._multi_label = multi_label
        self._model = check_model_name(model)
        self._client = HttpClient(base_url, timeout, max_retries, max_concurrency, key_variable)
        self._labels, self._base_url = labels, self._client.url
        self._problems: Counter[str] = Counter()
        if probe:
            self._ask_known()
        if self._names is not None and not (self._multi_label or len(self._names) == 1):
            check_exclusive([self._harm.get(name, 0.0) for name in self._names])

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides its verdicts, for a search that is resumed."""
        return self._base_url, self._model, self.profile, self.threshold, self._names, self._multi_label

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r}, base_url={self._client.url!r}, profile={self.profile.name!r})"

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; equal exchanges are sent once.

        Raises:
            RuntimeError: The endpoint refused the key, knows no such model or path, or redirects, so no response can get a
                verdict.
        """
        pairs = as_exchanges(conversations, responses)
        return shifted(worst_of_readings(pairs, self._judge_pairs), self.threshold)

    def describe_missing(self) -> str:
        """Why there is no verdict, as far as the endpoint's answers say it, and what to do."""
        return describe_problems(self, self._problems, "Check `base_url`, and that the endpoint serves this classifier.")

    def _judge_pairs(self, pairs: Sequence[tuple[list[Message], str]]) -> Tensor:
        answers = self._ask(pairs)
        harm = [self._harm_of(answer) for answer in answers]
        if missing := [answer.problem for answer, value in zip(answers, harm, strict=True) if value != value]:
            self._problems.update(missing)
            _log.warning("%r gave no verdict: %s.", self, counted(missing))
        return torch.tensor(harm, dtype=torch.float64)

    def _ask(self, pairs: Sequence[tuple[list[Message], str]]) -> list[Answer]:
        return self._client.post_all("/classify", [self._request(*pair) for pair in pairs])

    def _ask_known(self) -> None:
        """Find out whether labels exclude each other, and that there are verdicts."""
        answers = self._ask(probe_exchanges())
        probs = [self._probs(answer) for answer in answers]
        self._multi_label |= any(each is not None and not _adds_up(each) for each in probs)
        if all(math.isnan(self._harm_of(answer)) for answer in answers):
            self._problems.update(answer.problem for answer in answers)
            raise ValueError(f"`model` must answer with verdicts. {self.describe_missing()}")

    def _request(self, messages: list[Message], response: str) -> dict[str, Any]:
        escaped = [{**message, "content": escape_markup(message["content"])} for message in messages]
        exchange = recent([*escaped, {"role": "assistant", "content": escape_markup(response)}], self.profile.max_messages)
        if self.profile.prompt is not None:
            return {"model": self._model, "input": fill_prompt(self.profile.prompt, exchange)}
        return {"model": self._model, "messages": exchange}

    def _harm_of(self, answer: Answer) -> float:
        """The harm in an answer; NaN where it is malformed or its labels are not those known here."""
        probs = self._probs(answer)
        if probs is None or not set(self._harm) <= set(probs):
            return math.nan
        weighted = [prob * self._harm.get(name, 0.0) for name, prob in probs.items()]
        if self._multi_label or len(probs) == 1:
            return float(max(weighted))
        return min(1.0, float(sum(weighted))) if _adds_up(probs) else math.nan

    def _probs(self, answer: Answer) -> dict[str, float] | None:
        """The probability of each label; None where an answer is malformed or its label has another name here."""
        try:
            (result,) = answer.json()["data"]
            probs, label = result["probs"], result.get("label")
            names = [f"label_{i}" for i in range(len(probs))] if self._names is None else self._names
            if len(probs) != len(names) or not all(type(prob) in (int, float) and 0.0 <= prob <= 1.0 for prob in probs):
                return None
            likeliest = {name for name, prob in zip(names, probs, strict=True) if prob == max(probs)}
            if label is not None and _folded(label) not in likeliest:
                return None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return dict(zip(names, probs, strict=True))


def _adds_up(probs: Mapping[str, float]) -> bool:
    return abs(sum(probs.values()) - 1.0) <= _ROUNDING


def _folded(label: str) -> str:
    return label.strip().lower()
