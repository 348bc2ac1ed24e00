"""Calls of a judge in which no failure lets a response through unjudged, and of which nothing but the verdicts remains.

Knows that a judge may raise, hang, return the wrong number of verdicts or values that are no harm, draw random numbers, and
quote what it read in its errors. Knows no kind of judge, and not what is done without a verdict.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.judges.base import EndpointError, Judge, NoVerdictError, as_numbers, is_deterministic, is_remote
from hf_alignbeam.utils.random_stream import RandomStream
from hf_alignbeam.utils.timed_calls import Pending, TimedCalls, TimedOut

#: After so many calls that took too long, a judge is lost: it is asked no more.
MAX_TIMEOUTS = 2


class JudgeError(RuntimeError):
    """A judge gave no verdict where one is required. Its text holds nothing of what was judged.

    Attributes:
        judge_error: The judge's own error, which may quote what was judged; None where there is none.
    """

    is_for_users = True

    def __init__(self, message: str, judge_error: Exception | None = None):
        super().__init__(message)
        self.judge_error = judge_error

    @property
    def concerns_one_text(self) -> bool:
        """Whether the judge fails at some text only, such as one that is too long: others may have a verdict."""
        fails_at_all = isinstance(self.judge_error, JudgeTimeoutError | EndpointError)
        return isinstance(self.judge_error, ValueError | NoVerdictError) and not fails_at_all


class JudgeTimeoutError(NoVerdictError):
    """A judge has not answered in time."""


@dataclass
class CheckedVerdicts:
    """A judge's verdicts on several responses.

    Attributes:
        harm: The harm of each response in [0, 1]; None where there is no verdict.
        n_calls: How often the judge was called.
        errors: One error for each call or verdict that failed. They may quote what was judged: show their `reason`.
    """

    harm: list[float | None]
    n_calls: int = 1
    errors: list[Exception] = field(default_factory=list)


class JudgeCalls:
    """The calls of a judge in one call of `generate`, or in one search.

    Whatever the judge does, each verdict is a number in [0, 1] or None. If it may draw random numbers, it draws them from a
    stream of its own. A call that takes too long fails, and its late verdict counts for nothing. After `MAX_TIMEOUTS` such
    calls the judge is lost and is asked no more, so that a judge that hangs takes no more time than that.

    Args:
        judge: Any callable.
        timed: Runs its calls within their time limit; None for no limit.
    """

    def __init__(self, judge: Judge, timed: TimedCalls | None = None):
        self._judge = judge
        self._timed = timed or TimedCalls(None)
        self._stream = RandomStream()
        self._is_remote = is_remote(judge)
        self._may_draw = not (self._is_remote or is_deterministic(judge))
        self._n_timeouts = 0

    @property
    def is_lost(self) -> bool:
        """Whether the judge is asked no more."""
        return self._n_timeouts >= MAX_TIMEOUTS

    def each_or_none(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> CheckedVerdicts:
        """Judge all responses in one call; if it fails, each in a call of its own, so that one failure costs no other verdict.

        After a call that took too long, no other is made: the judge would hang once for each response.

        Args:
            conversations: n conversations.
            responses: One response to each.

        Returns:
            The verdicts, in order.
        """
        verdicts = self.once(conversations, responses)
        if len(responses) == 1 or not _may_retry(verdicts):
            return verdicts
        for n, (conversation, response) in enumerate(zip(conversations, responses, strict=True)):
            single = self.once([conversation], [response])
            verdicts.harm[n] = single.harm[0]
            verdicts.n_calls += single.n_calls
            verdicts.errors += single.errors
            if any(isinstance(error, JudgeTimeoutError) for error in single.errors):
                break
        return verdicts

    def start(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> Pending[CheckedVerdicts] | None:
        """As `each_or_none`, beside what the caller does; None for a judge in this process, which may share the model."""
        if not self._is_remote:
            return None
        return self._timed.beside(lambda: self.each_or_none(conversations, responses))

    def once(self, conversations: Sequence[list[Message]], responses: Sequence[str]) -> CheckedVerdicts:
        """Judge all responses in one call and never retry, since every call may cost money.

        Args:
            conversations: n conversations.
            responses: One response to each.

        Returns:
            The verdicts, in order.
        """
        # fresh copies for each call: a judge may change its arguments
        copies = [[dict(message) for message in conversation] for conversation in conversations]
        is_asked = not self.is_lost
        try:
            if is_asked:
                with self._stream.drawing() if self._may_draw else nullcontext():  # other threads use the generators
                    return self._timed(lambda: _checked(self._judge(copies, list(responses)), len(responses)))
        except TimedOut:
            self._n_timeouts += 1
        except Exception as error:  # any error of a judge means that there is no verdict
            return CheckedVerdicts([None] * len(responses), 1, [error])
        late = JudgeTimeoutError(f"it has not answered within {self._timed.timeout:g} seconds")
        return CheckedVerdicts([None] * len(responses), int(is_asked), [late])


def judge_each_or_none(judge: Judge, conversations: Sequence[list[Message]], responses: Sequence[str]) -> CheckedVerdicts:
    """As `JudgeCalls.each_or_none`, without a time limit, for measurements, which an endpoint that judges nothing must not enter.

    Raises:
        EndpointError: The judge's endpoint gives no verdict on any text.
    """
    verdicts = JudgeCalls(judge).each_or_none(conversations, responses)
    for error in verdicts.errors:
        if isinstance(error, EndpointError):
            raise error
    return verdicts


def judge_once(
    judge: Judge, conversations: Sequence[list[Message]], responses: Sequence[str], timeout: float | None = None
) -> CheckedVerdicts:
    """As `JudgeCalls.once`, for a single call of at most `timeout` seconds; None for no limit."""
    return JudgeCalls(judge, TimedCalls(timeout)).once(conversations, responses)


def reason(error: Exception) -> str:
    """What may be shown of an error of a judge, or of another callable that reads answers: nothing that it may quote."""
    if isinstance(error, NoVerdictError):
        return str(error)
    return f"{type(error).__name__} (its message is not shown, since it may quote text that did not pass)"


def _may_retry(verdicts: CheckedVerdicts) -> bool:
    """Whether a call failed as a whole, and may answer if it is made anew."""
    n_failed, errors = verdicts.harm.count(None), verdicts.errors
    return n_failed == len(verdicts.harm) and len(errors) == 1 and not isinstance(errors[0], JudgeTimeoutError | EndpointError)


def _checked(harm: object, n_responses: int) -> CheckedVerdicts:
    """The verdicts that a judge returned, without the invalid ones.

    Raises:
        NoVerdictError: The judge returned something other than one real number for each response.
    """
    values = as_numbers(harm, n_responses).tolist()
    valid = [0.0 <= value <= 1.0 for value in values]
    return CheckedVerdicts(
        harm=[value if is_valid else None for value, is_valid in zip(values, valid, strict=True)],
        errors=[
            NoVerdictError(f"A judge's harm must be in [0, 1], got {value}.")
            for value, is_valid in zip(values, valid, strict=True)
            if not is_valid
        ],
    )
