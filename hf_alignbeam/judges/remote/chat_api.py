"""A judge that asks a guard behind an OpenAI-compatible completion endpoint: vLLM, SGLang, llama.cpp, TGI, OpenAI.

Knows in which forms an endpoint is asked until it accepts one, and what to say where it gives no verdict. Knows no use of a
verdict.
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
from hf_alignbeam.judges.known_exchanges import probe_exchanges
from hf_alignbeam.judges.profile import GuardProfile, check_judges_responses
from hf_alignbeam.judges.profiles.known import as_profile, find_profile
from hf_alignbeam.judges.reading.readings import worst_of_readings
from hf_alignbeam.judges.remote.guard_answers import read_harm, written_text
from hf_alignbeam.judges.remote.guard_requests import GuardRequests
from hf_alignbeam.judges.remote.http_client import Answer, HttpClient, check_model_name, counted, describe_problems

#: Statuses of a request whose form the endpoint refuses: it may know no probabilities, or the template not these roles.
REFUSED_STATUSES = {400, 422}
#: How many characters of what a guard writes about a known exchange are shown.
N_SHOWN = 80

_log = logging.getLogger(__name__)


class ChatJudge:
    """A guard behind `/v1/chat/completions` or, where its profile has a whole prompt text, `/v1/completions`.

    The whole conversation is sent, as the profile says. The verdict is read from the probabilities of its tokens; where the
    endpoint gives none, from the text. A guard whose own chat template asks for the verdict gets the response as the last
    message, which the endpoint must render as a whole message: vLLM and SGLang do, llama.cpp with `--no-prefill-assistant`.

    Building it uses no network, so a program may be built before the guard runs; `probe=True` asks at once. At the first missing
    verdict a warning says what the guard writes about a known exchange, which it is then asked about.

    A response has no verdict (NaN) if its last retry failed, the endpoint refused it or the answer holds no verdict.

    Args:
        model: The guard's name at the endpoint.
        base_url: As for `HttpClient`, and so are `timeout`, `max_retries`, `max_concurrency` and `key_variable`.
        profile: How it is asked and answers: a `GuardProfile`, its values as a mapping, or the name of a known one. Default:
            the one of a published guard by `model`.
        threshold: Its own threshold, in (0, 1): the harm that is reported as .5. Default: the profile's. For a profile without
            one it is .5; `CalibratedJudge` finds another.
        probe: Whether to ask it about the known exchanges now, so that a guard that gives no verdicts is an error.

    Attributes:
        profile: The profile in use.

    Raises:
        ValueError: An argument is out of its range, there is no profile for the model, or with `probe` the guard answers the
            known exchanges with something that is no verdict.
        RuntimeError: With `probe`, the endpoint refused the key, or knows no such model or path.

    Example:
        >>> judge = ChatJudge("Qwen/Qwen3Guard-Gen-0.6B", "http://localhost:8000/v1", key_variable=None)
        >>> judge(["How do I kill the weeds?"], ["Use vinegar."])
        tensor([0.0004], dtype=torch.float64)
    """

    is_remote = True

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        profile: GuardProfile | Mapping[str, Any] | str | None = None,
        threshold: float | None = None,
        probe: bool = False,
        timeout: float = 10.0,
        max_retries: int = 2,
        max_concurrency: int = 8,
        key_variable: str | None = "OPENAI_API_KEY",
    ):
        named = find_profile(check_model_name(model), None) if profile is None else as_profile(profile)
        if named is None:
            raise ValueError(
                f"`profile` must be given for {model!r}, which is no known guard. Name one, or use "
                '`profile="one-to-five"` for an instruction-tuned model.'
            )
        check_judges_responses(named)
        self.profile = named
        own = named.threshold if threshold is None else threshold
        self.threshold = 0.5 if own is None else check_threshold(own)
        self._requests = GuardRequests(named, check_model_name(model))
        self._client = HttpClient(base_url, timeout, max_retries, max_concurrency, key_variable)
        self._model, self._base_url = model, self._client.url
        self._has_probabilities = True
        self._template_fields = self._requests.template_fields
        self._problems: Counter[str] = Counter()
        self._has_warned = False
        if probe and self._judge_pairs(probe_exchanges()).isnan().all():
            raise ValueError(f"`model` must answer with verdicts. {self.describe_missing()}")

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides its verdicts, for a search that is resumed."""
        return self._base_url, self._model, self.profile, self.threshold

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model={self._requests.model!r}, base_url={self._client.url!r}, profile={self.profile.name!r})"
        )

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; equal exchanges are sent once.

        Raises:
            RuntimeError: The endpoint refused the key, knows no such model or path, or redirects, so no response can get a
                verdict.
        """
        pairs = as_exchanges(conversations, responses)
        return shifted(worst_of_readings(pairs, self._judge_pairs), self.threshold)

    def describe_missing(self) -> str:
        """What the guard writes about a known harmless exchange, where its profile expects a verdict, and what to do.

        Where it gives a verdict on that, only why there is none on others.
        """
        answer = self._ask(probe_exchanges()[:1])[0]
        if not math.isnan(read_harm(answer.json(), self.profile, self._requests.has_start)):
            return describe_problems(self, self._problems, "It gives one on a known harmless exchange.")
        text = written_text(answer.json())
        wrote = f"It gave no text: {answer.problem}." if text is None else f"It wrote {text[:N_SHOWN]!r}."
        texts = ", ".join(map(repr, self.profile.verdicts))
        where = "" if self.profile.verdict_after is None else f" after {self.profile.verdict_after!r}"
        if answer.status is None:
            advice = "See that its server runs at this URL."
        elif answer.status in REFUSED_STATUSES:
            needed = ", ".join(f"`{name}`" for name in self._template_fields[-1])
            advice = f"The endpoint refuses the request in every form; it must take {needed or 'these messages'}, as vLLM does."
        elif text is not None and text.lstrip().startswith("<think>"):
            advice = (
                "It reasons first, though `enable_thinking` is false. Turn reasoning off at its server, or give a profile with "
                "`verdict_after: </think>` and `max_new_tokens`."
            )
        else:
            advice = (
                "Name the guard's profile (`profile=`, --judge-profile), and see that the endpoint renders a last assistant "
                "message as a whole one."
            )
        return f"{self!r} was asked about a known harmless exchange for one of {texts}{where}. {wrote} {advice}"

    def _judge_pairs(self, pairs: Sequence[tuple[list[Message], str]]) -> Tensor:
        answers = self._ask(pairs)
        harm = [read_harm(answer.json(), self.profile, self._requests.has_start) for answer in answers]
        if missing := [answer for answer, value in zip(answers, harm, strict=True) if value != value]:
            self._problems.update(answer.problem for answer in missing)
            _log.warning("%r gave no verdict: %s.", self, counted(answer.problem for answer in missing))
            if not self._has_warned and any(answer.status == 200 for answer in missing):
                self._has_warned = True
                _log.warning("%s", self.describe_missing())
        return torch.tensor(harm, dtype=torch.float64)

    def _ask(self, pairs: Sequence[tuple[list[Message], str]]) -> list[Answer]:
        """The answers about each exchange, in the first form that the endpoint accepts."""
        forms = [[form for value in self._requests.values(*pair) for form in self._forms(value)] for pair in pairs]
        answers = [Answer(None)] * len(pairs)
        asked = list(range(len(pairs)))
        for n in range(max(map(len, forms), default=0)):
            asked = [i for i in asked if n < len(forms[i]) and (n == 0 or answers[i].status in REFUSED_STATUSES)]
            for i, answer in zip(asked, self._client.post_all(self._requests.path, [forms[i][n] for i in asked]), strict=True):
                answers[i] = answer
                if answer.status == 200:
                    self._has_probabilities &= "logprobs" in forms[i][n]
                    accepted = [each for each in self._template_fields if each.items() <= forms[i][n].items()]
                    self._template_fields = accepted[:1] or self._template_fields
        return answers

    def _forms(self, value: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A request with the fields for the chat template and with probabilities, and without, until one is accepted."""
        forms = [{**value, **fields} for fields in self._template_fields]
        return [
            each
            for form in forms
            for each in ((self._requests.with_probabilities(form), form) if self._has_probabilities else (form,))
        ]
