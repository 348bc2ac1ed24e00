"""Stopping criteria that work with any rows, made of criteria that keep a verdict for each row of one batch.

Knows criteria. Knows no strategy and no search.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList


class _StatelessCriterion(StoppingCriteria):
    """Makes a criterion that keeps one verdict per row of a batch usable with any rows.

    Each call starts with new verdicts: while candidates are tried an answer has several rows, and a rollback withdraws tokens
    that a verdict was about.

    Args:
        criterion: The criterion.
        names: Its attributes that hold the verdicts.
    """

    def __init__(self, criterion: Any, names: Sequence[str]):
        self._criterion = criterion
        self._names = names

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Whether each row of `input_ids` (B, length) stops, (B,)."""
        criterion = copy.copy(self._criterion)
        for name in self._names:
            value = getattr(criterion, name)
            new = [False] * len(input_ids) if isinstance(value, list) else value.new_zeros(len(input_ids))
            setattr(criterion, name, new)
        result = criterion(input_ids, scores, **kwargs)
        return result if isinstance(result, Tensor) else torch.tensor(getattr(criterion, self._names[0]), device=input_ids.device)


def stateless_criteria(criteria: Sequence[Any] | None, n_rows: int) -> StoppingCriteriaList:
    """The caller's criteria for a batch of `n_rows`, without per-row state: such as lm_eval's (0.4.13) know only those rows."""
    result = StoppingCriteriaList()
    for each in criteria or []:
        names = [name for name, value in vars(each).items() if _holds_verdicts(value, n_rows)]
        result.append(_StatelessCriterion(each, names) if names else each)
    return result


def _holds_verdicts(value: Any, n_rows: int) -> bool:
    """Whether an attribute holds a verdict for each row, none of which stops yet."""
    if isinstance(value, Tensor):
        return value.dtype == torch.bool and value.shape == (n_rows,) and not value.any()
    return isinstance(value, list) and value == [False] * n_rows
