"""The judge behind a URL, by the kind of its endpoint.

Knows which judge asks which endpoint. Knows nothing of how they ask.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast

from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import CalibratedJudge
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.remote.chat_api import ChatJudge
from hf_alignbeam.judges.remote.classify_api import ClassifyJudge
from hf_alignbeam.judges.remote.moderation_api import ModerationJudge

#: The kinds of endpoints.
APIS = ("moderations", "chat", "classify")
KEY_VARIABLE = "OPENAI_API_KEY"


def judge_from_url(
    url: str,
    api: str | None = None,
    model: str | None = None,
    profile: GuardProfile | None = None,
    threshold: float | None = None,
    labels: Mapping[str, float] | None = None,
) -> Judge:
    """A judge behind an endpoint. It is asked about known exchanges now, so that one without verdicts is an error.

    The key in `OPENAI_API_KEY` is sent where there is one: a server of one's own needs none.

    Args:
        url: Its URL, without the path of the kind: up to and with `/v1`, or for `"classify"` the server's own.
        api: One of `APIS`; `"chat"` asks `/completions` where the profile has a whole prompt text. Default: `"moderations"`.
        model: The model's name there. Default, for a moderation endpoint: its own.
        profile: How a guard model is asked and answers. Default: the one of a published guard by its name.
        threshold: Its own threshold: the harm that is reported as .5. Default: the profile's, or one found now.
        labels: For `"classify"`, the harm of each label, all of them in the order of the model's `id2label`. Whether they exclude
            each other is seen in the probabilities.

    Raises:
        ValueError: `api` is unknown, the arguments do not go together, or there is no verdict on known exchanges.
        RuntimeError: The endpoint refuses every request.
    """
    check_endpoint(api, model, profile, labels)
    key = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None
    if api in (None, "moderations"):
        build = ModerationJudge if model is None else partial(ModerationJudge, model)
        moderation = build(base_url=url, key_variable=key, probe=True)
        return moderation if threshold in (None, 0.5) else CalibratedJudge(moderation, threshold)
    model = cast(str, model)  # checked
    if api == "classify":
        labels = cast(Mapping[str, float], labels)
        form = labels if profile is None else replace(profile, verdicts=labels)
        classify = partial(ClassifyJudge, model, form, url, list(labels), key_variable=key)
        if threshold is None and profile is not None and profile.threshold is None:
            threshold = CalibratedJudge(classify(probe=True)).threshold
        return classify(threshold=threshold, probe=True)
    judge = ChatJudge(model, url, profile, threshold, probe=True, key_variable=key)
    if threshold is None and judge.profile.threshold is None:
        found = CalibratedJudge(judge).threshold
        return ChatJudge(model, url, judge.profile, found, key_variable=key)
    return judge


def check_endpoint(
    api: str | None = None,
    model: str | None = None,
    profile: GuardProfile | None = None,
    labels: Mapping[str, float] | None = None,
) -> None:
    """Check these arguments of `judge_from_url` as far as they can be checked before the endpoint is asked.

    Raises:
        ValueError: `api` is unknown, or the arguments do not go together.
    """
    if api not in (None, *APIS):
        raise ValueError(f"`judge_api` must be {', '.join(APIS)}, got {api!r}.")
    if api in (None, "moderations"):
        if profile is not None or labels is not None:
            raise ValueError(
                "`judge_profile`, `judge_rubric` and `judge_labels` must be left out for a moderation endpoint, which has "
                'its own form. Use `judge_api` "chat" for a guard or an instruct model, "classify" for a classifier.'
            )
        return
    if model is None:
        raise ValueError(f"`judge_model` must name the model at a {api} endpoint, got None. Give the name that its server knows.")
    if api == "classify" and labels is None:
        raise ValueError("`judge_labels` must give the harm of each label in the model's order for a classifier, got None.")
