"""Calls of a judge in which no failure lets a response through unjudged.

Knows that a judge may raise, hang, return the wrong number of verdicts, or return values that are no harm. Knows no kind of
judge, and not what is done without a verdict.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.judges.base import Judge


class JudgeError(RuntimeError):
    """A judge gave no verdict where one is required."""


@dataclass
class Verdicts:
    """A judge's verdicts on several responses.

    Attributes:
        harm: The harm of each response in [0, 1]; None where there is no verdict.
        n_calls: How often the judge was called.
        errors: One error for each call or verdict that failed.
    """

    harm: list[float | None]
    n_calls: int = 1
    errors: list[Exception] = field(default_factory=list)


def judge_each_or_none(judge: Judge, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Verdicts:
    """Judge all responses in one call; if it fails, each in a call of its own, so that one failure costs no other verdict.

    Args:
        judge: Any callable.
        conversations: n conversations.
        responses: One response to each.

    Returns:
        The verdicts, in order. Whatever the judge does, each is a number in [0, 1] or None.
    """
    try:
        # fresh copies for each call: a judge may change its arguments
        return _checked(judge([[dict(m) for m in c] for c in conversations], list(responses)), len(responses))
    except Exception as error:  # any error of a judge means that there is no verdict
        if len(responses) == 1:
            return Verdicts([None], 1, [error])
        single = [
            judge_each_or_none(judge, [conversation], [response])
            for conversation, response in zip(conversations, responses, strict=True)
        ]
        errors = [error, *(cause for verdicts in single for cause in verdicts.errors)]
        return Verdicts([verdicts.harm[0] for verdicts in single], 1 + len(single), errors)


def judge_once(
    judge: Judge, conversations: Sequence[list[Message]], responses: Sequence[str], timeout: float | None = None
) -> Verdicts:
    """Judge all responses in one call and never retry, since every call may cost money.

    Args:
        judge: Any callable.
        conversations: n conversations.
        responses: One response to each.
        timeout: Seconds after which the call counts as failed; None to wait for ever. A judge that hangs keeps running in a
            daemon thread.

    Returns:
        The verdicts, in order. Whatever the judge does, each is a number in [0, 1] or None.
    """
    copies = [[dict(message) for message in conversation] for conversation in conversations]
    try:
        return _checked(with_timeout(lambda: judge(copies, list(responses)), timeout), len(responses))
    except Exception as error:  # any error of a judge means that there is no verdict
        return Verdicts([None] * len(responses), 1, [error])


def with_timeout(call: Callable[[], object], timeout: float | None) -> object:
    """Run a call and return its result, waiting at most `timeout` seconds; None to wait for ever.

    Raises:
        JudgeError: The call takes longer.
    """
    if timeout is None:
        return call()
    returned: list[object] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if raised:
        raise raised[0]
    if not returned:
        raise JudgeError(f"it has not answered within {timeout:g} seconds")
    return returned[0]


def _checked(harm: object, n_responses: int) -> Verdicts:
    """The verdicts that a judge returned, without the invalid ones.

    Raises:
        JudgeError: The judge returned something other than one real number for each response.
    """
    tensor = torch.as_tensor(harm)
    if tensor.is_complex():
        raise JudgeError(f"A judge's harm must be a real number, got {tensor.dtype}.")
    tensor = tensor.to(torch.float64).cpu()
    if tensor.shape != (n_responses,):
        raise JudgeError(f"A judge must give one harm a response, got {tuple(tensor.shape)} for {n_responses} responses.")
    values = tensor.tolist()
    valid = [math.isfinite(value) and 0.0 <= value <= 1.0 for value in values]
    return Verdicts(
        harm=[value if is_valid else None for value, is_valid in zip(values, valid, strict=True)],
        errors=[
            JudgeError(f"A judge's harm must be in [0, 1], got {value}.")
            for value, is_valid in zip(values, valid, strict=True)
            if not is_valid
        ],
    )
