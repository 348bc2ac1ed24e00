"""The arguments that several Hub entries share: which are settings, which are passed on to `generate`, and the call to it.

Knows the arguments of `generate` and of the code that loads a Hub folder. Knows no strategy.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList, StopStringCriteria

#: Arguments that `generate` needs to load a Hub folder and passes on to the folder's own function.
LOADER_ARGUMENTS = (
    "revision",
    "code_revision",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "proxies",
    "trust_remote_code",
)
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


def setting_names(cls: type) -> set[str]:
    """The parameters of a guard's or a strategy's class that are settings, not models or tokenizers."""
    return set(inspect.signature(cls).parameters) - {"anchor", "anchor_tokenizer", "tokenizer", "judge", "accept", "model"}


def split_settings(kwargs: Mapping[str, Any], cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into the settings of a class and the rest; the loader's arguments are dropped.

    None is a value: a setting that is None is given, as it is to the class itself.
    """
    names = setting_names(cls)
    settings = {name: value for name, value in kwargs.items() if name in names}
    rest = {name: value for name, value in kwargs.items() if name not in names and name not in LOADER_ARGUMENTS}
    return settings, rest


def preset_settings(name: str | None, presets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings of a preset; none without a name.

    Raises:
        ValueError: There is no preset of that name.
    """
    if name is not None and name not in presets:
        raise ValueError(f"`preset` must be {', '.join(map(repr, presets))} or left out, got {name!r}.")
    return dict(presets[name]) if name else {}


class _StatelessCriterion(StoppingCriteria):
    """Makes a criterion that keeps one verdict per row of a batch, in `done_tracker`, usable with any rows.

    Each call starts with new verdicts: while candidates are tried an answer has several rows, and a rollback withdraws tokens
    that a verdict was about.
    """

    def __init__(self, criterion: Any):
        self._criterion = criterion

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row of `input_ids` (B, length) stops, (B,)."""
        criterion = copy.copy(self._criterion)
        criterion.done_tracker = [False] * len(input_ids)
        criterion(input_ids, scores, **kwargs)
        return torch.tensor(criterion.done_tracker, device=input_ids.device)


def stateless_criteria(criteria: Sequence[Any] | None) -> StoppingCriteriaList:
    """The caller's criteria without per-row state: those of lm_eval (0.4.13) work only with the rows of their own batch."""
    return StoppingCriteriaList(
        [_StatelessCriterion(each) if isinstance(getattr(each, "done_tracker", None), list) else each for each in criteria or []]
    )


def call_class_generate(model: PreTrainedModel, args: Sequence[Any], kwargs: dict[str, Any], tokenizer: Any) -> Any:
    """Call the `generate` of the model's class; where a strategy decodes, stop strings become a criterion.

    Raises:
        ValueError: The call asks for continuous batching, which ignores guards.
    """
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError(
            '`cache_implementation` must not be "paged", got "paged": continuous batching in transformers ignores guards. '
            "Leave it out."
        )
    config = kwargs.get("generation_config")
    stop_strings = kwargs.pop("stop_strings", None) or getattr(config, "stop_strings", None)
    if "custom_generate" in kwargs:
        kwargs["stopping_criteria"] = criteria = stateless_criteria(kwargs.get("stopping_criteria"))
        if stop_strings:  # `generate` does not pass the tokenizer that they need on to a strategy (transformers 5.23)
            criteria.append(StopStringCriteria(tokenizer, stop_strings))
            kwargs["stop_strings"] = None
    elif stop_strings:
        kwargs |= {"stop_strings": stop_strings, "tokenizer": tokenizer}
    target: Any = type(model)
    return target.generate(model, *args, **kwargs)
