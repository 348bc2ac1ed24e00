"""What a Hub folder's `generate` is given: which arguments are whose.

Knows `generate`'s arguments. Knows no strategy by name."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

#: The loader's own arguments, which `generate` hands on to whatever it loads.
LOADER = ("revision", "code_revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "trust_remote_code")


#: The tokenizers of models that are given loaded.
LOADED = ("anchor_tokenizer", "judge_tokenizer")


#: Arguments that say how a judge is read.
JUDGING = ("judge_revision", "judge_labels", "judge_template", "judge_tokenizer")


#: The same, and which anchor is meant.
NAMING = ("anchor_revision", "anchor_tokenizer", *JUDGING)


#: What a call of a protected model may still say: nothing that changes what passes.
OPEN_SETTINGS = ("conversations", "streamer")


def setting_names(made: type) -> set[str]:
    """The settings that a guard or a strategy takes, its models aside."""
    return set(inspect.signature(made).parameters) - {"anchor", "anchor_tokenizer", "tokenizer", "judge", "accept", "model"}


def split_settings(kwargs: Mapping[str, Any], made: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of what is to be made, and what `generate` gets."""
    names = setting_names(made)
    settings = {name: value for name, value in kwargs.items() if name in names and value is not None}
    rest = {name: value for name, value in kwargs.items() if name not in names and name not in LOADER}
    return settings, rest


def preset_settings(name: str | None, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if name is not None and name not in known:
        raise ValueError(f"`preset` must be {', '.join(map(repr, known))} or left out, got {name!r}.")
    return dict(known[name]) if name else {}


class _ForAnyRows(StoppingCriteria):
    """A criterion that keeps its verdicts in `done_tracker`, one for each row of the batch it was made for, asked about any rows.

    Each time it begins with a new list: an answer has several rows while candidates are tried, and what a row said may be taken
    back.
    """

    def __init__(self, criterion: Any):
        self._criterion = criterion

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row of `input_ids` (B, length) stops, (B,)."""
        criterion = copy.copy(self._criterion)
        criterion.done_tracker = [False] * len(input_ids)
        criterion(input_ids, scores, **kwargs)
        return torch.tensor(criterion.done_tracker, device=input_ids.device)


def for_any_rows(criteria: Sequence[Any] | None) -> StoppingCriteriaList:
    """A caller's criteria, fit for any rows: those of lm_eval (0.4.13) know only the rows of its own batch."""
    return StoppingCriteriaList(
        [_ForAnyRows(each) if isinstance(getattr(each, "done_tracker", None), list) else each for each in criteria or []]
    )


def generate_with_class(model: PreTrainedModel, args: Sequence[Any], kwargs: dict[str, Any], tokenizer: Any) -> Any:
    """`generate` as the model's class has it, stop strings turned into a criterion."""
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError('`cache_implementation="paged"` leaves guards out inside transformers, and must not be used, got it.')
    config = kwargs.get("generation_config")
    stop_strings = kwargs.pop("stop_strings", None) or getattr(config, "stop_strings", None)
    if "custom_generate" in kwargs:
        kwargs["stopping_criteria"] = criteria = for_any_rows(kwargs.get("stopping_criteria"))
        if stop_strings:  # for which `generate` gives a strategy no tokenizer (transformers 5.23)
            criteria.append(StopStringCriteria(tokenizer, stop_strings))
            kwargs["stop_strings"] = None
    elif stop_strings:
        kwargs |= {"stop_strings": stop_strings, "tokenizer": tokenizer}
    target: Any = type(model)
    return target.generate(model, *args, **kwargs)
