"""Pins the anchor and the judge of a protected copy, so that neither can come to mean something else.

Knows commits of the Hub, hashes of folders, and which models may guard. Loads no model.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import PreTrainedConfig

from hf_alignbeam.hub.judge_loading import (
    JudgeSettings,
    check_probe_settings,
    find_probes,
    judge_settings,
    loaded_sha256,
    models_beside,
)
from hf_alignbeam.hub.loading_files import weights_files
from hf_alignbeam.hub.model_loading import adapter_config, explain_load_errors
from hf_alignbeam.hub.protected.checks import check_kind, check_weights
from hf_alignbeam.judges.profiles.known import find_profile

#: What names one state of a repository for ever.
COMMIT = re.compile("[0-9a-f]{40}")


def pinned(kind: str, protection: Mapping[str, Any]) -> dict[str, str]:
    """What pins an anchor or a judge: its commit on the Hub, or its absolute path and a hash.

    A name alone could come to mean something else: another folder, another commit, a repository of a folder's name.
    """
    name, revision = str(protection[kind]), protection.get(f"{kind}_revision")
    with explain_load_errors(name):
        probes = find_probes(name, revision) if kind == "judge" else None
        if probes is None and adapter_config(name, revision) is not None:
            raise ValueError(f"`{kind}` must be a whole model, but {name} is an adapter. Merge it into its base.")
        for beside, commit in models_beside(name, revision) if probes else ():
            _check_fixed(name, beside, commit)
        if probes is None:
            check_kind(kind, name, PreTrainedConfig.get_config_dict(name, revision=revision)[0])
            check_weights(Path(name, file) for file in weights_files(Path(name)))  # of a folder: the Hub's are whole
        else:
            check_probe_settings(name, judge_settings(protection))
        if os.path.isdir(name):
            folder = Path(name).resolve()
            named = {} if kind == "anchor" or probes else _named_profile(name, folder, judge_settings(protection))
            return {kind: str(folder), f"{kind}_sha256": loaded_sha256(folder), **named}
        file = probes or hf_hub_download(name, "config.json", revision=revision)
    return {f"{kind}_revision": Path(file).parent.name}


def _named_profile(name: str, folder: Path, settings: JudgeSettings) -> dict[str, str]:
    """The judge's profile, where its name tells it and nothing else is said, but not the name of the folder that it links to."""
    profile = find_profile(name, None)
    is_said = settings.profile is not None or settings.rubric is not None
    return {} if profile is None or is_said or profile == find_profile(str(folder), None) else {"judge_profile": profile.name}


def _check_fixed(judge: str, name: str, revision: str | None) -> None:
    """Raise ValueError unless the model that a judge names is a commit on the Hub or, for a judge in a folder, a whole path."""
    is_commit = not os.path.isdir(name) and COMMIT.fullmatch(revision or "")
    is_whole_path = os.path.isdir(name) and os.path.isabs(name) and os.path.isdir(judge)
    if not is_commit and not is_whole_path:
        raise ValueError(
            "`judge` must name the model that it reads by a commit on the Hub or, in a folder, by an absolute path, "
            f"but {judge} names {name} with the revision {revision}, which could change. Fit it anew on a model of the Hub, or "
            "write the commit into its adapter_config.json as `revision`."
        )
