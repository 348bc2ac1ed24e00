"""Policy: when the strategy judges an answer, which answers pass, and what it does with the others.

Knows settings and their ranges, and checks all those of a strategy. Knows no answer and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hf_alignbeam.chat.refusal import check_refusal
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.utils.checks import check_whole_number, is_number, refuse_none
from hf_alignbeam.utils.jsonl_log import check_records
from hf_alignbeam.utils.streaming import check_streamer
from hf_alignbeam.utils.timed_calls import check_timeout

Choice = Literal["likeliest", "safest"]
Escalation = Literal["flagged", "always"]


@dataclass(frozen=True)
class Policy:
    """The arguments of `AlignBeam` of the same names.

    Raises:
        ValueError: A value is out of its range.
    """

    num_candidates: int
    threshold: float
    judge_after: int | None
    judge_every: int | None
    choice: Choice
    escalation: Escalation
    on_judge_error: Literal["refuse", "raise"]
    min_start: float
    candidate_threshold: float

    def __post_init__(self) -> None:
        refuse_none(vars(self), "judge_after", "judge_every")
        check_whole_number("num_candidates", self.num_candidates, 1, "To accept every answer, use a threshold of 1.")
        if not is_number(self.threshold) or not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"`threshold` must be in [0, 1], got {self.threshold!r}. `alignbeam calibrate` finds one.")
        if not is_number(self.candidate_threshold) or not 0.0 <= self.candidate_threshold <= 1.0:
            raise ValueError(
                f"`candidate_threshold` must be in [0, 1], got {self.candidate_threshold!r}. Use 1 to judge all by `threshold`."
            )
        if not is_number(self.min_start) or not 0.0 <= self.min_start <= 1.0:
            raise ValueError(f"`min_start` must be in [0, 1], got {self.min_start!r}. Use 0 to allow any first token.")
        for name, otherwise in (("judge_after", "only finished answers"), ("judge_every", "again only at the end")):
            if (number := getattr(self, name)) is not None:
                check_whole_number(name, number, 1, f"Use None to judge {otherwise}.")
        allowed = {"choice": ("likeliest", "safest"), "escalation": ("flagged", "always"), "on_judge_error": ("refuse", "raise")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {', '.join(values)}, got {getattr(self, name)!r}.")

    def next_check(self, n_committed: int | None) -> int | None:
        """The length at which answers are judged next, given how many tokens are committed; None for their ends.

        Before the first check nothing is committed yet, which is None.
        """
        if n_committed is None:
            return self.judge_after
        return None if self.judge_every is None else n_committed + self.judge_every

    def limit(self, was_flagged: bool) -> float:
        """The highest harm that passes in an answer of which text was, or was not, flagged before. NaN never passes."""
        return min(self.threshold, self.candidate_threshold) if was_flagged else self.threshold


def checked_settings(arguments: Mapping[str, Any]) -> tuple[Policy, SteeringSettings]:
    """Check the settings among the arguments of `AlignBeam`, for which no model is needed.

    Args:
        arguments: Its arguments by name, with the defaults of those that are left out.

    Returns:
        The settings of judging, and those of steering.

    Raises:
        ValueError: A value is out of its range.
    """
    policy = Policy(**{field.name: arguments[field.name] for field in fields(Policy)})
    steering = SteeringSettings(**{field.name: arguments[field.name] for field in fields(SteeringSettings)})
    if steering.is_off:
        raise ValueError(
            f"`alpha` and `n_steps` must be above 0 for candidates to differ, got {steering.alpha} and {steering.n_steps}. To "
            "judge without steering, use plain sampling and the judge itself."
        )
    check_refusal(arguments["refusal"])
    check_timeout(arguments["judge_timeout"], "judge_timeout")
    check_streamer(arguments["streamer"])
    on_fail, audit = arguments["on_fail"], arguments["audit"]
    if on_fail is not None and not callable(on_fail):
        raise ValueError(f"`on_fail` must be callable with conversations, got {on_fail!r}. Use `EmbeddingSteerer(...).answers`.")
    if not (audit is None or callable(audit) or isinstance(audit, str | Path)):
        raise ValueError(f"`audit` must be a path or a callable that gets each record, got {audit!r}. Name a file.")
    if isinstance(audit, str | Path) and Path(audit).is_dir():
        raise ValueError(f"`audit` must name a file, got the folder {audit}. Name a file in it.")
    if isinstance(audit, str | Path):
        check_records(Path(audit), "`audit`", {"id", "prompt_sha256"}, torn=b'{"id": "')
    return policy, steering
