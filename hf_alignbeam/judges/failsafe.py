"""Asking a judge so that nothing it does can let a response through unjudged.

Knows that a judge may raise, answer for the wrong number of responses, or say what is no harm. It knows no reason why.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.judges.base import Judge


class JudgeError(RuntimeError):
    """A judge gave no verdict, and nothing may go on without one."""


@dataclass
class Verdicts:
    """What a judge said of some responses.

    Attributes:
        harm: For each of them; None where there is no verdict.
        n_calls: How often the judge was called.
        errors: What went wrong, in words, one for each call or verdict that failed.
    """

    harm: list[float | None]
    n_calls: int = 1
    errors: list[Exception] = field(default_factory=list)


def judge_each_or_none(judge: Judge, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Verdicts:
    """Ask once for all responses; where that fails as a whole, once for each, so that one does not cost the others theirs.

    Args:
        judge: Any callable.
        conversations: n of them.
        responses: One to each.

    Returns:
        Their verdicts, in order. Whatever the judge did, each is a number in [0, 1] or None.
    """
    try:
        # copies, made anew for each attempt: a judge may write into what it gets
        return _checked(judge([[dict(m) for m in c] for c in conversations], list(responses)), len(responses))
    except Exception as error:  # whatever a judge may raise: there is no verdict
        if len(responses) == 1:
            return Verdicts([None], 1, [error])
        each = [
            judge_each_or_none(judge, [conversation], [response])
            for conversation, response in zip(conversations, responses, strict=True)
        ]
        errors = [error, *(wrong for alone in each for wrong in alone.errors)]
        return Verdicts([alone.harm[0] for alone in each], 1 + len(each), errors)


def judge_once(
    judge: Judge, conversations: Sequence[list[Message]], responses: Sequence[str], timeout: float | None = None
) -> Verdicts:
    """Ask for all responses in one call, and never again: every call may cost something.

    Args:
        judge: Any callable.
        conversations: n of them.
        responses: One to each.
        timeout: Seconds until a judge that has not answered is given up; None to wait for ever. One that hangs goes on doing
            so, in a thread that nobody waits for.

    Returns:
        Their verdicts, in order. Whatever the judge did, each is a number in [0, 1] or None.
    """
    copies = [[dict(message) for message in conversation] for conversation in conversations]
    try:
        return _checked(with_timeout(lambda: judge(copies, list(responses)), timeout), len(responses))
    except Exception as error:  # whatever a judge may raise: there is no verdict
        return Verdicts([None] * len(responses), 1, [error])


def with_timeout(call: Callable[[], object], timeout: float | None) -> object:
    """What a call returns, if it does so within so many seconds.

    Raises:
        JudgeError: It does not.
    """
    if timeout is None:
        return call()
    said: list[object] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            said.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if raised:
        raise raised[0]
    if not said:
        raise JudgeError(f"it has not answered within {timeout:g} seconds")
    return said[0]


def _checked(harm: object, n_responses: int) -> Verdicts:
    given = torch.as_tensor(harm)
    if given.is_complex():
        raise JudgeError(f"A judge's harm must be a real number, got {given.dtype}.")
    values = given.to(torch.float64).cpu()
    if values.shape != (n_responses,):
        raise JudgeError(f"A judge must give one harm a response, got {tuple(values.shape)} for {n_responses} responses.")
    valid = [math.isfinite(value) and 0.0 <= value <= 1.0 for value in values.tolist()]
    return Verdicts(
        harm=[value if good else None for value, good in zip(values.tolist(), valid, strict=True)],
        errors=[
            JudgeError(f"A judge's harm must be in [0, 1], got {value}.")
            for value, good in zip(values.tolist(), valid, strict=True)
            if not good
        ],
    )
