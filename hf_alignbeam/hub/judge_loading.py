"""Judges, and what accepts answers, by their names.

Knows ids, folders, models and labels. Knows no argument of `generate`."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_alignbeam.hub.model_loading import auto_class_of, build_once, explain_load_errors, load_once, settings_key
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.classifier_judge import ClassifierJudge
from hf_alignbeam.judges.llm_judge import LLMJudge
from hf_alignbeam.judges.plausibility import PlausibleAnswer

#: Names by which classifiers call what must not leave.
HARMFUL_LABELS = ("unsafe", "harmful", "toxic", "toxicity", "hate", "hateful", "offensive")


def load_accept(accept: Any, revision: str | None, model: PreTrainedModel, anchor_tokenizer: Any = None) -> Any:
    """What says which answers may be given: a `PlausibleAnswer` of a safe model, or what was given."""
    if accept is None or not isinstance(accept, str | PreTrainedModel):
        return accept
    if isinstance(accept, str):
        accept, anchor_tokenizer = load_once(AutoModelForCausalLM, accept, revision, input_device(model))
    elif anchor_tokenizer is None:
        raise ValueError("`anchor_tokenizer` must be given with a loaded `accept`, got None. Or name it by its id.")
    return build_once(accept, ("plausible", id(anchor_tokenizer)), lambda: PlausibleAnswer(accept, anchor_tokenizer))


def load_judge(
    judge: Any,
    revision: str | None = None,
    labels: Mapping[str, float] | None = None,
    template: str | None = None,
    device: torch.device | None = None,
    judge_tokenizer: Any = None,
) -> Judge:
    """A judge: loaded once by its id or folder, made of a loaded model, or itself where it is one already.

    Args:
        judge: A Hub id, a folder, a model or any callable of conversations and responses.
        revision: Of the Hub's repository.
        labels: Of a classifier, by name their harm; by default those called as in `HARMFUL_LABELS`.
        template: As in `LLMJudge` and `ClassifierJudge`.
        device: Where it goes.
        judge_tokenizer: Of a loaded model.
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
        return ClassifierJudge(
            network, judge_tokenizer, labels or {n: 1.0 for n in names if n.lower() in HARMFUL_LABELS}, template
        )

    return cast(Judge, build_once(network, ("judge", id(judge_tokenizer), template, *settings_key(labels or {})), build))


def load_named_judge(judge: Any, named: Mapping[str, Any], model: PreTrainedModel) -> Judge:
    labels, template = named["judge_labels"], named["judge_template"]
    return load_judge(judge, named["judge_revision"], labels, template, input_device(model), named["judge_tokenizer"])
