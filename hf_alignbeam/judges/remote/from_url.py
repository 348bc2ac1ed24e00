"""The judge behind a URL, by the kind of its endpoint.

Knows which judge asks which endpoint. Knows nothing of how they ask.
"""

from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import CalibratedJudge
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.remote.moderation_api import ModerationJudge

#: The kinds of endpoints.
APIS = ("moderations",)


def judge_from_url(
    url: str,
    api: str | None = None,
    model: str | None = None,
    profile: GuardProfile | None = None,
    threshold: float | None = None,
) -> Judge:
    """A judge behind an endpoint.

    Args:
        url: Its URL, up to and with `/v1`.
        api: One of `APIS`. Default: `"moderations"`.
        model: The model's name there. Default: the endpoint's own.
        profile: How a guard model is asked and answers.
        threshold: Its own threshold: the harm that is reported as .5. Default: as it is.

    Raises:
        ValueError: `api` is unknown, or it does not go together with `profile`.
        ImportError: A library that it needs is not installed.
    """
    if api not in (None, *APIS):
        raise ValueError(f"`judge_api` must be {' or '.join(APIS)}, got {api!r}. This version asks no other endpoint.")
    if profile is not None:
        raise ValueError(
            f"`judge_profile` must be left out for a moderation endpoint, which has its own form, got {profile.name!r}."
        )
    judge = ModerationJudge(base_url=url) if model is None else ModerationJudge(model, url)
    return judge if threshold is None else CalibratedJudge(judge, threshold)
