"""The settings of a judge that options describe, with the files that they name.

Knows option texts, YAML and JSON. Knows no kind of judge and no command.
"""

import json
from pathlib import Path
from typing import Any

import torch

from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.console import check_encodable
from hf_alignbeam.evaluation.devices import check_named_judge, load_named_judge
from hf_alignbeam.evaluation.files.text import read_text
from hf_alignbeam.evaluation.files.values import check_value, parse_json, parse_yaml
from hf_alignbeam.hub.judge_loading import JudgeSettings
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.probes.probe_judge import HIDDEN_STATES
from hf_alignbeam.judges.profile import profile_from_mapping
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, YES_NO

#: The suffixes of files that hold a profile.
PROFILE_SUFFIXES = (".yaml", ".yml", ".json")
RUBRICS = (HIDDEN_STATES, YES_NO.name, ONE_TO_FIVE.name)


def judge_settings(options: JudgeOptions) -> JudgeSettings:
    """The settings that options describe, checked as far as they can be without the judge.

    Raises:
        ValueError: An option has a wrong value, or a file does not hold what it should.
        OSError: A file cannot be read.
    """
    settings = JudgeSettings(**judge_values(options))
    settings.resolved()
    return settings


def judge_values(options: JudgeOptions) -> dict[str, Any]:
    """The fields of `JudgeSettings` that options give, as values that JSON can hold.

    Raises:
        ValueError: An option has a wrong value, or a file does not hold what it should.
        OSError: A file cannot be read.
    """
    for name in ("profile", "rubric", "template", "model"):
        check_encodable(f"--judge-{name}", getattr(options, name))
    for pair in options.labels or ():
        check_encodable("--judge-labels", pair)
    threshold = options.threshold
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise ValueError(f"--judge-threshold must be between 0 and 1, got {threshold}. `alignbeam calibrate` finds one.")
    values = {
        "profile": None if options.profile is None else _profile(options.profile),
        "rubric": None if options.rubric is None else _rubric(options.rubric),
        "template": None if options.template is None else _template(options.template),
        "labels": _labels(options.labels) if options.labels else None,
        "threshold": threshold,
        "revision": options.revision,
    }
    return {name: value for name, value in values.items() if value is not None}


def judge_spec_values(options: JudgeOptions) -> dict[str, Any]:
    """The fields of a recipe's judge that options give."""
    endpoint = {"api": options.api, "model": options.model}
    return judge_values(options) | {name: value for name, value in endpoint.items() if value is not None}


def check_optioned_judge(name: str, options: JudgeOptions) -> None:
    """Check a command's options before its models, which may be large, are loaded.

    Raises:
        ValueError: An option has a wrong value, does not go with the others, or the name cannot be a judge's.
        OSError: A file cannot be read.
    """
    check_named_judge(name, judge_settings(options), options.api, options.model)


def load_optioned_judge(name: str, options: JudgeOptions, device: torch.device) -> Judge:
    """The judge that a command's options name: a Hub id, a folder or a URL."""
    return load_named_judge(name, judge_settings(options), device, options.api, options.model)


def read_profile(path: Path) -> dict[str, Any]:
    """The values of a profile in a YAML or JSON file, checked.

    Raises:
        ValueError: The file holds no profile; the message names the file and the key.
        OSError: The file cannot be read.
    """
    place, text = f"The profile {path}", read_text(path)
    try:
        values = parse_json(text, place) if path.suffix == ".json" else parse_yaml(text, place)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} must be JSON, as its suffix says: {error}.") from error
    check_value(values, place)
    if not isinstance(values, dict):
        raise ValueError(f"--judge-profile must name a file with the keys of a profile, got {values!r} from {path}.")
    try:
        profile_from_mapping(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {str(name): value for name, value in values.items()}


def _profile(value: str) -> str | dict[str, Any]:
    path = Path(value)
    return read_profile(path) if path.suffix in PROFILE_SUFFIXES or _is_file(value) else value


def _rubric(value: str) -> str:
    if value in RUBRICS or "{" in value:
        return value
    text = read_text(Path(value)) if _is_file(value) else ""
    if "{" not in text:
        raise ValueError(
            f"--judge-rubric must be {', '.join(RUBRICS)}, a text with {{conversation}} or {{response}}, or a file of such a "
            f"text, got {value!r}."
        )
    return text


def _template(value: str) -> str:
    text = read_text(Path(value)) if "{" not in value and _is_file(value) else value
    if "{" not in text:
        raise ValueError(f"--judge-template must be a Jinja chat template, or a file of one, got {value!r}.")
    return text


def _labels(pairs: list[str]) -> dict[str, float]:
    labels: dict[str, float] = {}
    for pair in pairs:
        label, separator, number = pair.rpartition("=")
        try:
            harm = float(number)
        except ValueError:
            harm = -1.0
        if not separator or not label.strip() or not 0.0 <= harm <= 1.0:
            raise ValueError(f"--judge-labels must be a label and its harm in [0, 1], such as unsafe=1, got {pair!r}.")
        if label in labels:
            raise ValueError(f"--judge-labels must give each label one harm, got {label!r} twice.")
        labels[label] = harm
    return labels


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # a text too long for a name, or with a null character
        return False
