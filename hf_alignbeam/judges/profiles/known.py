"""All known profiles, found by a model's id, by its chat template or by their name.

Knows ids, folders and template texts, and which guards cannot be judges here. Knows no model, no tokenizer and no verdict.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from hf_alignbeam.judges.profile import GuardProfile, profile_from_mapping
from hf_alignbeam.judges.profiles.classifiers import (
    DYNABENCH_HATE,
    GRANITE_GUARDIAN_HAP,
    ROBERTA_TOXICITY,
    TEXT_MODERATION,
    TOXIC_BERT,
    TOXIC_COMMENT,
    UNBIASED_TOXIC_ROBERTA,
)
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, SAFE_UNSAFE, YES_NO
from hf_alignbeam.judges.profiles.gpt_oss_safeguard import GPT_OSS_SAFEGUARD
from hf_alignbeam.judges.profiles.granite_guardian import GRANITE_GUARDIAN_3, GRANITE_GUARDIAN_3_3, GRANITE_GUARDIAN_4_1
from hf_alignbeam.judges.profiles.llama_guard import LLAMA_GUARD, LLAMA_GUARD_3_1B, LLAMA_GUARD_4
from hf_alignbeam.judges.profiles.nemotron import NEMOGUARD, NEMOTRON_CONTENT_SAFETY, NEMOTRON_REASONING
from hf_alignbeam.judges.profiles.prompt_guard import PROMPT_GUARD, PROMPT_GUARD_2
from hf_alignbeam.judges.profiles.qwen3guard import QWEN3GUARD_GEN
from hf_alignbeam.judges.profiles.shieldgemma import SHIELDGEMMA
from hf_alignbeam.judges.profiles.wildguard import POLYGUARD, WILDGUARD

#: Where a template has the marks of several, the first one is meant.
PROFILES: tuple[GuardProfile, ...] = (
    SAFE_UNSAFE,
    YES_NO,
    ONE_TO_FIVE,
    LLAMA_GUARD_3_1B,
    LLAMA_GUARD,
    LLAMA_GUARD_4,
    QWEN3GUARD_GEN,
    SHIELDGEMMA,
    GRANITE_GUARDIAN_3_3,
    GRANITE_GUARDIAN_3,
    GRANITE_GUARDIAN_4_1,
    WILDGUARD,
    POLYGUARD,
    NEMOGUARD,
    NEMOTRON_CONTENT_SAFETY,
    NEMOTRON_REASONING,
    GPT_OSS_SAFEGUARD,
    PROMPT_GUARD_2,
    PROMPT_GUARD,
    TOXIC_BERT,
    UNBIASED_TOXIC_ROBERTA,
    ROBERTA_TOXICITY,
    DYNABENCH_HATE,
    TEXT_MODERATION,
    TOXIC_COMMENT,
    GRANITE_GUARDIAN_HAP,
)

#: Guards that are no judges here, and why.
UNSUPPORTED = {
    "Qwen/Qwen3Guard-Stream-*": "classifies tokens by code of its own; use Qwen/Qwen3Guard-Gen-0.6B",
    "google/shieldgemma-2-*": "classifies images; use google/shieldgemma-2b",
    "PKU-Alignment/beaver-dam-7b": "needs a model class that transformers lacks; use Qwen/Qwen3Guard-Gen-0.6B",
}


def find_profile(model_id: str | None, chat_template: str | None) -> GuardProfile | None:
    """The profile of a published guard; None where there is none.

    The id comes first. It may be a Hub id, a copy of one under another owner, or a local folder: of its cache, or named
    `org--name` or like the model.

    Args:
        model_id: The Hub id or folder.
        chat_template: The tokenizer's chat template, whose texts tell a copy under another name.

    Raises:
        ValueError: It is a guard that cannot be a judge here.
    """
    refuse_unsupported(model_id)
    for candidate, is_whole in _candidates(model_id):
        for profile in PROFILES:
            if any(_matches(candidate, pattern, is_whole) for pattern in profile.model_ids):
                return profile
    return next((profile for profile in PROFILES if chat_template and profile.has_template(chat_template)), None)


def named_profile(name: str) -> GuardProfile:
    """The known profile of a name.

    Raises:
        ValueError: There is none of this name.
    """
    for profile in PROFILES:
        if profile.name == name.lower():
            return profile
    raise ValueError(
        f"`profile` must be one of {', '.join(profile.name for profile in PROFILES)}, got {name!r}. "
        "One of your own is given by its values, or at the command line by its YAML or JSON file."
    )


def as_profile(profile: GuardProfile | Mapping[str, Any] | str) -> GuardProfile:
    """A profile, given as it is, by its values, or by the name of a known one.

    Raises:
        ValueError: There is none of this name, or a value is wrong.
    """
    if isinstance(profile, str):
        return named_profile(profile)
    return profile if isinstance(profile, GuardProfile) else profile_from_mapping(profile)


def refuse_unsupported(model_id: str | None) -> None:
    """Raise ValueError, by its name, for a guard that cannot be a judge here."""
    for candidate, is_whole in _candidates(model_id):
        for pattern, reason in UNSUPPORTED.items():
            if _matches(candidate, pattern, is_whole):
                raise ValueError(f"A judge must read whole responses, but {candidate} {reason}.")


def _candidates(model_id: str | None) -> list[tuple[str, bool]]:
    """What a Hub id or a folder may be the id of, the likeliest first, and whether each is a whole id or a name without owner."""
    parts = [part for part in re.split(r"[/\\]", (model_id or "").partition("@")[0]) if part]
    pairs = [f"{owner}/{name}" for owner, name in pairwise(parts)]
    unpacked = [part.removeprefix("models--").replace("--", "/", 1) for part in parts]
    whole = [*reversed(pairs), *(each for each in reversed(unpacked) if "/" in each)]
    named = [*unpacked[-1:], *(each for part, each in zip(parts, unpacked, strict=True) if part.startswith("models--"))]
    return [(each, True) for each in whole] + [(each.rpartition("/")[2], False) for each in named]


def _matches(candidate: str, pattern: str, is_whole: bool) -> bool:
    return fnmatchcase(candidate.lower(), (pattern if is_whole else pattern.rpartition("/")[2]).lower())
