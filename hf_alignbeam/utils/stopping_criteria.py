"""Stopping criteria that work with any rows, made of criteria that keep a verdict for each row of one batch.

Knows criteria. Knows no strategy and no search.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


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
