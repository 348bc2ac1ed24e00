"""Judges and acceptance checks, loaded by name or wrapped around loaded models.

Knows Hub ids, folders, models and labels, and the arguments that name a judge.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os.path import isabs, isdir
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, is_offline_mode, try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_alignbeam.chat.refusal_words import accept_refusals
from hf_alignbeam.chat.templates import check_template, default_template
from hf_alignbeam.hub.loading_files import folder_sha256
from hf_alignbeam.hub.model_loading import adapter_config, base_of_adapter, explain_load_errors, get_or_build, load_once
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import CalibratedJudge, check_threshold
from hf_alignbeam.judges.classifier_judge import ClassifierJudge
from hf_alignbeam.judges.generating_judge import GeneratingJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.plausibility import PlausibleAnswer
from hf_alignbeam.judges.probes.probe_judge import HIDDEN_STATES, ProbeJudge
from hf_alignbeam.judges.probes.saved_probes import PROBES_FILE, read_probes
from hf_alignbeam.judges.profile import GuardProfile, check_judges_responses
from hf_alignbeam.judges.profiles.general import SAFE_UNSAFE, YES_NO
from hf_alignbeam.judges.profiles.known import as_profile, find_profile, named_profile
from hf_alignbeam.tokenization.backends import OTHER_BACKENDS
from hf_alignbeam.tokenization.mistral_backends import read_mistral
from hf_alignbeam.utils.checks import is_number

OTHER_BACKENDS[:] = [read_mistral]  # in a folder of the Hub too, where the packages' own `__init__` files are not

#: What the Hub answers for what does not exist or may not be read.
_MISSING = (errors.EntryNotFoundError, errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
#: As `accept`: answers that refuse by their words.
REFUSAL = "refusal"
#: Labels of classifiers that mean harm, in lower case.
HARMFUL_LABELS = ("unsafe", "harmful", "toxic", "toxicity", "hate", "hateful", "offensive")


#: Arguments, beside `judge`, that say which judge is loaded and how its output is read.
JUDGE_ARGUMENTS = (
    "judge_profile",
    "judge_rubric",
    "judge_template",
    "judge_labels",
    "judge_threshold",
    "judge_revision",
    "judge_tokenizer",
)


def load_accept(accept: Any, revision: str | None, model: PreTrainedModel, anchor_tokenizer: Any = None) -> Any:
    """An acceptance check: a `PlausibleAnswer` for a safe model, given by name or loaded; `accept_refusals` for "refusal"; a
    callable or None as it is.

    Raises:
        ValueError: `accept` is a model, and its tokenizer is missing.
    """
    if isinstance(accept, str) and accept == REFUSAL:
        return accept_refusals
    if not isinstance(accept, str) and not is_model(accept):
        return accept
    if isinstance(accept, str):
        accept, own_tokenizer = load_once(AutoModelForCausalLM, accept, revision, input_device(model))
        anchor_tokenizer = own_tokenizer if anchor_tokenizer is None else anchor_tokenizer
    elif anchor_tokenizer is None:
        raise ValueError("`anchor_tokenizer` must be given with a loaded `accept`, got None. Or name it by its id.")
    return get_or_build(accept, ("plausible", id(anchor_tokenizer)), lambda: PlausibleAnswer(accept, anchor_tokenizer))


def auto_class_of(name: str | Path, revision: str | None = None) -> Any:
    """The auto class for a checkpoint: a sequence classifier's where its configuration says so, else a causal model's."""
    if (adapter := adapter_config(name, revision)) is not None:
        if adapter.get("task_type") == "SEQ_CLS":
            return AutoModelForSequenceClassification
        name, revision = base_of_adapter(name, adapter)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return AutoModelForSequenceClassification if "SequenceClassification" in str(config.architectures) else AutoModelForCausalLM


def is_model(value: object) -> bool:
    """Whether a value is a loaded model, with or without peft's wrapper around it."""
    return isinstance(value, PreTrainedModel) or hasattr(value, "get_base_model")


@dataclass(frozen=True)
class JudgeSettings:
    """What may be said of a judge beside its name. Every way to name a judge takes all of these.

    Attributes:
        profile: How it is asked and answers: a `GuardProfile`, its values as a mapping, or the name of a known one. Default: as
            `LLMJudge` finds it.
        rubric: How an instruction-tuned model judges: by its `"hidden-states"`, the default; or asked by `"yes-no"` or
            `"one-to-five"`, or by a text with `{conversation}`, or with `{user}` and `{response}`, which is
            answered as `labels` says, by default with yes (harm) or no.
        template: A Jinja chat template to use in place of the tokenizer's.
        labels: The harm in [0, 1] of verdict texts: of some of the profile's own, or of others in place of all of them. Of a
            classifier, the harm of each label; those left out count as harmless.
        threshold: Its own threshold: the harm that is reported as .5. Default: the profile's, or one found on known exchanges.
        revision: The branch, tag or commit of the Hub repository.
    """

    profile: GuardProfile | Mapping[str, Any] | str | None = None
    rubric: str | None = None
    template: str | None = None
    labels: Mapping[str, float] | None = None
    threshold: float | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.profile is not None and self.rubric is not None:
            raise ValueError(
                f"`judge_profile` must be left out with `judge_rubric`, got {self.profile!r}. A rubric is a profile."
            )

        for name, text in (("rubric", self.rubric), ("template", self.template)):
            if not isinstance(text, str | None):
                raise ValueError(f"`judge_{name}` must be a text, got {text!r}.")
        check_template(self.template, "judge_template")
        if self.rubric == HIDDEN_STATES and (self.labels, self.template) != (None, None):
            raise ValueError(f"`judge_labels` and `judge_template` must be left out with the rubric {HIDDEN_STATES!r}.")
        if self.labels is not None and not _are_labels(self.labels):
            raise ValueError(
                f'`judge_labels` must give each label its harm in [0, 1], got {self.labels!r}. Write {{"unsafe": 1.0}}.'
            )
        if self.threshold is not None:
            check_threshold(self.threshold)

    def resolved(self, found: GuardProfile | None = None) -> GuardProfile | None:
        """The profile that these settings describe; None where they name none.

        Args:
            found: The judge's own profile, by its id or template.

        Raises:
            ValueError: A name is unknown, or a value is out of its range.
        """
        profile = found if self.profile is None else as_profile(self.profile)
        if self.rubric not in (None, HIDDEN_STATES):
            is_text = "{" in self.rubric
            profile = replace(YES_NO, name="rubric", prompt=self.rubric) if is_text else named_profile(self.rubric)
        if self.template is not None:
            profile = replace(profile or SAFE_UNSAFE, name="template", prompt=None, as_message=True, chat_template=self.template)
        return profile if profile is None or self.labels is None else _with_labels(profile, self.labels)


def check_judge(judge: str, settings: JudgeSettings) -> None:
    """Raise ValueError, before anything is loaded, for a name that cannot be a judge's, and for settings that are wrong."""
    if settings.revision is not None and Path(judge).is_dir():
        raise ValueError(
            f"`judge_revision` must be left out for a folder, got {settings.revision!r} for {judge}, which is the folder "
            f"{Path(judge).resolve()} here. A folder has one version; for the Hub's model of its name, start elsewhere."
        )
    profile = replace(settings, template=None).resolved(find_profile(judge, None))
    if profile is not None:
        check_judges_responses(profile)


def load_judge(
    judge: Any,
    settings: JudgeSettings | None = None,
    device: torch.device | None = None,
    judge_tokenizer: Any = None,
) -> Judge:
    """A judge: loaded once by its Hub id or folder, or built from a loaded model; any other callable is returned as it is.

    Args:
        judge: A Hub id, a folder, a model, or any callable of conversations and responses.
        settings: What is said of it.
        device: Where the judge goes; by default the CPU.
        judge_tokenizer: The tokenizer of a model; needed for a loaded one.

    Raises:
        ValueError: `judge` is a model, and its tokenizer is missing; the settings do not fit; or it gives no verdicts.
        OSError: The judge cannot be loaded.
    """
    settings = settings or JudgeSettings()
    name = judge if isinstance(judge, str) else None
    if name is None and settings.revision is not None:
        raise ValueError(f"`judge_revision` must be left out for a loaded judge, got {settings.revision!r}. Load that revision.")
    if isinstance(judge, str):
        check_judge(judge, settings)
        if (file := find_probes(judge, settings.revision)) is not None:
            return _load_probed(judge, file, settings, device or torch.device("cpu"))
        with explain_load_errors(judge):
            auto = auto_class_of(judge, settings.revision)
        network, own_tokenizer = load_once(auto, judge, settings.revision, device or torch.device("cpu"))
        judge_tokenizer = own_tokenizer if judge_tokenizer is None else judge_tokenizer
    elif is_model(judge):
        network = judge
        if judge_tokenizer is None:
            raise ValueError("`judge_tokenizer` must be given with a loaded judge, got None. Or pass an LLMJudge.")
    else:
        if replace(settings, threshold=None) != JudgeSettings():
            raise ValueError(
                f"A judge must be a model, or named, to be asked by a profile, a rubric, a template or labels, got {judge!r}. "
                "Leave these out, or build the judge with them."
            )
        return cast(Judge, judge) if settings.threshold is None else CalibratedJudge(judge, settings.threshold)
    key = ("judge", id(judge_tokenizer), repr(settings), name)
    return cast(Judge, get_or_build(network, key, lambda: _build(network, judge_tokenizer, settings, name)))


def find_probes(judge: str, revision: str | None = None) -> Path | None:
    """The file of probes in a folder or a repository; None where there is none. Raises OSError where this cannot be found out."""
    if Path(judge).is_dir():
        return file if (file := Path(judge) / PROBES_FILE).is_file() else None
    with explain_load_errors(judge):
        try:
            return Path(hf_hub_download(judge, PROBES_FILE, revision=revision))
        except errors.LocalEntryNotFoundError:  # offline, or the Hub did not answer: the cache may know that there is none
            if is_offline_mode() or try_to_load_from_cache(judge, PROBES_FILE, revision=revision) is _CACHED_NO_EXIST:
                return None
            raise
        except _MISSING:  # named where the model is loaded
            return None


def models_beside(name: str, revision: str | None = None) -> list[tuple[str, str | None]]:
    """The models outside its own folder or repository that a judge is loaded from, each with its revision.

    They are the one whose hidden states its probes read, and the base of an adapter. Raises OSError where a folder is missing.
    """
    found: list[tuple[str, str | None]] = []
    file = find_probes(name, revision)
    if file is not None and (saved := read_probes(file)).model is not None:
        found.append((saved.model, saved.revision))
    last = found[-1] if found else (name, revision)
    while True:
        if isabs(last[0]) and not isdir(last[0]):
            raise OSError(f"{name} reads the model {last[0]}, but there is no such folder, and nothing is guarded without it.")
        if (adapter := adapter_config(*last)) is None:
            return found
        found.append(last := base_of_adapter(last[0], adapter))


def check_probe_settings(judge: str, settings: JudgeSettings) -> None:
    """Raise ValueError where something is said of how a judge of saved probes is asked."""
    if replace(settings, threshold=None, revision=None) not in (JudgeSettings(), JudgeSettings(rubric=HIDDEN_STATES)):
        raise ValueError(f"{judge} must be used as it is, for it holds probes of hidden states and is asked nothing.")


def loaded_sha256(folder: Path) -> str:
    """A hash of all files that an anchor or a judge in a folder is loaded from, those of other folders included."""
    folders = [folder, *(Path(name) for name, _ in models_beside(str(folder)) if Path(name).is_dir())]
    parts = [folder_sha256(each) for each in folders]
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def judge_settings(arguments: Mapping[str, Any]) -> JudgeSettings:
    """The settings among an entry's `judge_...` arguments."""
    return JudgeSettings(**{each.name: arguments.get(f"judge_{each.name}") for each in fields(JudgeSettings)})


def judge_from_arguments(judge: Any, arguments: Mapping[str, Any], model: PreTrainedModel) -> Judge:
    """The judge that an entry's `judge_...` arguments describe, on the target's device."""
    return load_judge(judge, judge_settings(arguments), input_device(model), arguments["judge_tokenizer"])


def _build(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: JudgeSettings, name: str | None) -> Judge:
    found = find_profile(name, None) or find_profile(network.config._name_or_path, default_template(tokenizer))
    inner = network.get_base_model() if hasattr(network, "get_base_model") else network  # type: ignore[operator]
    classifies = "SequenceClassification" in type(inner).__name__
    profile = (replace(settings, template=None) if classifies else settings).resolved(found)  # it says nothing of labels
    if profile is not None:
        check_judges_responses(profile)
    if classifies and settings.rubric is not None:
        raise ValueError(
            f"`judge_rubric` must be left out for a classifier, got {settings.rubric!r}: a rubric is a question for an "
            "instruction-tuned model. Say which labels mean harm: `judge_labels` (--judge-labels LABEL=1)."
        )
    if classifies:
        judge = _classifier(network, tokenizer, profile, settings)
        own = 0.5 if profile is None else profile.threshold
        own = own if settings.threshold is None else settings.threshold
        return judge if own == 0.5 else CalibratedJudge(judge, own)
    if profile is None and settings.labels is not None:
        profile = _with_labels(SAFE_UNSAFE, settings.labels)
    if profile is not None and profile.verdict_after is not None:
        return GeneratingJudge(network, tokenizer, profile, settings.threshold)
    if profile is not None and settings.rubric != HIDDEN_STATES:
        return LLMJudge(network, tokenizer, profile, settings.threshold)
    if settings.rubric != HIDDEN_STATES:
        guard = LLMJudge(network, tokenizer, SAFE_UNSAFE, settings.threshold, probe=False)
        if not guard.gives_no_verdict():  # it answers so of itself
            return guard
    try:
        probed = ProbeJudge(network, tokenizer)
    except ValueError as error:
        if settings.rubric == HIDDEN_STATES:
            raise
        raise ValueError(f"{error} Nor does it answer as guards do: {guard.describe_missing()}") from error
    return probed if settings.threshold is None else CalibratedJudge(probed, settings.threshold)


def _load_probed(judge: str, file: Path, settings: JudgeSettings, device: torch.device) -> Judge:
    """A judge of saved probes, with the model that they were fitted on.

    Raises:
        ValueError: The settings say how it is asked, or the file holds no probes.
    """
    check_probe_settings(judge, settings)
    saved = read_probes(file)
    name, revision = (judge, settings.revision) if saved.model is None else (saved.model, saved.revision)
    network, tokenizer = load_once(AutoModelForCausalLM, name, revision, device)
    key = ("probes", str(file.resolve()))
    probed = get_or_build(network, key, lambda: ProbeJudge(network, tokenizer, saved.probes))
    return cast(Judge, probed) if settings.threshold is None else CalibratedJudge(probed, settings.threshold)


def _are_labels(labels: object) -> bool:
    return isinstance(labels, Mapping) and all(isinstance(text, str) and is_number(harm) for text, harm in labels.items())


def _with_labels(profile: GuardProfile, labels: Mapping[str, float]) -> GuardProfile:
    """A profile with another harm of its verdict texts; labels that are none of these take the place of all."""
    own = {text.lower() for text in profile.verdicts}
    if not {text.lower() for text in labels} <= own:
        return replace(profile, verdicts=labels)
    given = {text.lower(): harm for text, harm in labels.items()}
    return replace(profile, verdicts={text: given.get(text.lower(), harm) for text, harm in profile.verdicts.items()})


def _classifier(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, profile: GuardProfile | None, settings: JudgeSettings
) -> ClassifierJudge:
    known = (network.config.id2label or {}).values()
    labels = profile.verdicts if settings.labels is None and profile is not None else settings.labels
    if labels is None:
        labels = {name: 1.0 for name in known if name.lower() in HARMFUL_LABELS}
    if not labels:
        raise ValueError(
            f"A classifier must have a label that means harm, but {network.config._name_or_path} has {', '.join(known)}, whose "
            "meaning is not known. Say which mean harm: `judge_labels` (--judge-labels LABEL=1)."
        )
    prompt = None if profile is None or settings.template is not None else profile.prompt
    return ClassifierJudge(network, tokenizer, labels, settings.template, prompt)
