"""Judges and acceptance checks, loaded by name or wrapped around loaded models.

Knows Hub ids, folders, models and labels, and the arguments that name a judge.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_alignbeam.hub.model_loading import auto_class_of, cache_key, explain_load_errors, get_or_build, load_once
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.classifier_judge import ClassifierJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.plausibility import PlausibleAnswer

#: Labels of classifiers that mean harm, in lower case.
HARMFUL_LABELS = ("unsafe", "harmful", "toxic", "toxicity", "hate", "hateful", "offensive")


def load_accept(accept: Any, revision: str | None, model: PreTrainedModel, anchor_tokenizer: Any = None) -> Any:
    """An acceptance check: a `PlausibleAnswer` for a safe model, given by name or loaded; a callable or None as it is.

    Raises:
        ValueError: `accept` is a model, and its tokenizer is missing.
    """
    if accept is None or not isinstance(accept, str | PreTrainedModel):
        return accept
    if isinstance(accept, str):
        accept, anchor_tokenizer = load_once(AutoModelForCausalLM, accept, revision, input_device(model))
    elif anchor_tokenizer is None:
        raise ValueError("`anchor_tokenizer` must be given with a loaded `accept`, got None. Or name it by its id.")
    return get_or_build(accept, ("plausible", id(anchor_tokenizer)), lambda: PlausibleAnswer(accept, anchor_tokenizer))


def load_judge(
    judge: Any,
    revision: str | None = None,
    labels: Mapping[str, float] | None = None,
    template: str | None = None,
    device: torch.device | None = None,
    judge_tokenizer: Any = None,
) -> Judge:
    """A judge: loaded once by its Hub id or folder, or built from a loaded model; any other callable is returned as it is.

    Args:
        judge: A Hub id, a folder, a model, or any callable of conversations and responses.
        revision: The branch, tag or commit of the Hub repository.
        labels: For a classifier, the harm of each label by name; by default 1 for each label in `HARMFUL_LABELS`.
        template: As in `LLMJudge` and `ClassifierJudge`.
        device: Where the judge goes; by default the CPU.
        judge_tokenizer: The tokenizer of a loaded model.

    Raises:
        ValueError: `judge` is a model, and its tokenizer is missing.
        OSError: The judge cannot be loaded.
    """
    if isinstance(judge, str):
        with explain_load_errors(judge):
            auto = auto_class_of(judge, revision)
        network, judge_tokenizer = load_once(auto, judge, revision, device or torch.device("cpu"))
    elif isinstance(judge, PreTrainedModel):
        network = judge
        if judge_tokenizer is None:
            raise ValueError("`judge_tokenizer` must be given with a loaded judge, got None. Or pass an LLMJudge.")
    else:
        return cast(Judge, judge)

    def build() -> Judge:
        if "SequenceClassification" not in type(network).__name__:
            return LLMJudge(network, judge_tokenizer, template or "guard")
        names = (network.config.id2label or {}).values()
        harm_by_label = labels or {name: 1.0 for name in names if name.lower() in HARMFUL_LABELS}
        return ClassifierJudge(network, judge_tokenizer, harm_by_label, template)

    return cast(Judge, get_or_build(network, ("judge", id(judge_tokenizer), template, *cache_key(labels or {})), build))


def judge_from_arguments(judge: Any, arguments: Mapping[str, Any], model: PreTrainedModel) -> Judge:
    """The judge that an entry's `judge_...` arguments describe, on the target's device."""
    labels, template = arguments["judge_labels"], arguments["judge_template"]
    return load_judge(judge, arguments["judge_revision"], labels, template, input_device(model), arguments["judge_tokenizer"])
