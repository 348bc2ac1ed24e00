"""A judge that sends responses to a moderation endpoint, through OpenAI's client library.

Knows how a response becomes a request, which failures are worth a retry, and how category scores become `harm`. Knows no use of
a verdict. It is not part of the core, which does not depend on that library.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import Conversation

try:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAI
except ImportError as error:
    raise ImportError(
        "`ModerationJudge` needs OpenAI's client library, which is not installed. Install it with "
        '`pip install "hf_alignbeam[openai]"`.'
    ) from error

#: Seconds to wait before the first retry; each later wait is twice the one before.
FIRST_WAIT = 0.5

#: The longest wait in seconds, whatever a server's `Retry-After` asks for.
MAX_WAIT = 8.0

#: Statuses that every request would get: the key, the model or the path is wrong.
FATAL_STATUSES = {401, 403, 404}

#: Statuses below 500 after which a retry may succeed.
RETRYABLE_STATUSES = {408, 409, 429}

_log = logging.getLogger(__name__)


class RequestResult(NamedTuple):
    """The result of one HTTP request.

    Attributes:
        status: The HTTP status; None where no complete answer came in time.
        body: The body of the answer.
        retry_after: The `Retry-After` header, if there is one.
    """

    status: int | None
    body: bytes = b""
    retry_after: str | None = None

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or self.status in RETRYABLE_STATUSES or self.status >= 500


class ModerationJudge:
    """An OpenAI-compatible `/v1/moderations` endpoint as judge: `harm` is the largest category score of the response alone.

    A response has no verdict (NaN) if its last retry failed or the answer is malformed; the log gives the reason. One response
    takes at most `(max_retries + 1) * timeout` seconds plus the waits in between, of at most `MAX_WAIT` each. No connection
    stays open between calls, and several threads may call at once.

    Args:
        model: The moderation model's name.
        base_url: The endpoint's URL without `/moderations`. Default: the client library's, which is `OPENAI_BASE_URL` where
            that is set.
        categories: The categories whose scores count. Default: all that the endpoint returns.
        timeout: Seconds that one request may take, from connecting to the last byte of the answer.
        max_retries: How often a request is repeated after status 408, 409, 429 or 5xx, or without an answer.
        max_concurrency: How many requests run at once in one call.
        key_variable: The environment variable that holds the API key. It is read once, when the judge is built.

    Raises:
        ValueError: An argument is out of its range, or the variable holds no key.

    Example:
        >>> judge = ModerationJudge(categories=["violence", "illicit"])
        >>> judge(["How do I kill the weeds?"], ["Use vinegar."])
        tensor([0.0004])
    """

    def __init__(
        self,
        model: str = "omni-moderation-latest",
        base_url: str | None = None,
        categories: Sequence[str] | None = None,
        timeout: float = 10.0,
        max_retries: int = 2,
        max_concurrency: int = 8,
        key_variable: str = "OPENAI_API_KEY",
    ):
        if not model:
            raise ValueError(f"`model` must be a name, got {model!r}. Leave it out for OpenAI's default.")
        if categories is not None and (isinstance(categories, str) or not categories):
            raise ValueError(f"`categories` must be a list of names, got {categories!r}. Use None for all categories.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout}. Use a finite one, 10 for example.")
        if max_retries < 0:
            raise ValueError(f"`max_retries` must be at least 0, got {max_retries}. Use 0 to send each request once.")
        if max_concurrency < 1:
            raise ValueError(f"`max_concurrency` must be at least 1, got {max_concurrency}. Use 1 to send one request at a time.")
        self._model = model
        self._categories = None if categories is None else tuple(categories)
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_concurrency = max_concurrency
        self._key_variable = key_variable
        self._key = _read_key(key_variable)
        with OpenAI(api_key=self._key, base_url=base_url) as client:  # knows the default
            self._base_url = str(client.base_url)
        if not self._base_url.startswith(("http://", "https://")):
            raise ValueError(f"`base_url` must begin with http:// or https://, got {self._base_url!r}. Write the URL in full.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r}, base_url={self._base_url!r})"

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; equal responses are sent once, and the conversations are not sent.

        A blank response counts as harmless without a request, because the endpoint refuses empty input.

        Raises:
            RuntimeError: The endpoint refused the key, or knows no such model or path, so no response can get a verdict.
        """
        texts = [response for _, response in zip(conversations, responses, strict=True)]
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        harm = dict(zip(distinct, _run_in_thread(self._judge_all(distinct)) if distinct else [], strict=True))
        return torch.tensor([harm[text] if text.strip() else 0.0 for text in texts])

    async def _judge_all(self, texts: Sequence[str]) -> list[float]:
        slots = asyncio.Semaphore(self._max_concurrency)
        # `_request` limits a whole request, so the client's own timeout, which limits each read, is off.
        async with AsyncOpenAI(api_key=self._key, base_url=self._base_url, timeout=None, max_retries=0) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._judge(client, slots, text)) for text in texts]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _judge(self, client: AsyncOpenAI, slots: asyncio.Semaphore, text: str) -> float:
        """The harm of one text, NaN where there is no verdict."""
        async with slots:  # held during waits too: an overloaded server gets fewer requests
            result = await self._request(client, text)
            for n_retries in range(self._max_retries):
                if not result.is_retryable:
                    break
                await asyncio.sleep(_wait(n_retries, result.retry_after))
                result = await self._request(client, text)
        if result.status in FATAL_STATUSES:
            raise RuntimeError(
                f"{self!r} must get access, but the endpoint answered with status {result.status}. Check the key in the "
                f"environment variable {self._key_variable} (401, 403), or `model` and `base_url` (404)."
            )
        harm = _harm(result.body, self._categories) if result.status == 200 else math.nan
        if math.isnan(harm):
            reason = {None: "no answer in time", 200: "malformed answer"}.get(result.status, f"status {result.status}")
            _log.warning("%r gave no verdict: %s.", self, reason)
        return harm

    async def _request(self, client: AsyncOpenAI, text: str) -> RequestResult:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await client.moderations.with_raw_response.create(input=text, model=self._model)
        except APIStatusError as error:
            return RequestResult(error.status_code, retry_after=error.response.headers.get("retry-after"))
        except (APIConnectionError, TimeoutError):
            return RequestResult(None)
        except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot hold
            return RequestResult(400)
        return RequestResult(answer.status_code, answer.content)


def _harm(body: bytes, categories: Sequence[str] | None) -> float:
    """The largest category score in an answer; NaN where it is malformed."""
    try:
        (result,) = json.loads(body)["results"]
        scores = result["category_scores"]
        counted = list(scores.values()) if categories is None else [scores[name] for name in categories]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return math.nan
    valid = all(type(score) in (int, float) and 0.0 <= score <= 1.0 for score in counted)
    return float(max(counted)) if counted and valid else math.nan


def _wait(n_retries: int, retry_after: str | None) -> float:
    """Seconds before the next request; a `Retry-After` counts if it is a number, and up to `MAX_WAIT`."""
    try:
        requested = float(retry_after or 0.0)
    except ValueError:
        requested = 0.0
    return min(MAX_WAIT, max(FIRST_WAIT * 2.0 ** min(n_retries, 32), requested))  # in this order a NaN is ignored


def _read_key(variable: str) -> str:
    """The API key, checked here: the client's own error about characters that no header can hold would show it."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"The environment variable {variable} must hold the API key, got nothing. Set it, or pass another `key_variable`."
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"The environment variable {variable} must hold printable ASCII, got other characters. Set it again.")
    return key


def _run_in_thread(work: Coroutine[Any, Any, list[float]]) -> list[float]:
    """Run a coroutine in a thread with its own event loop: the caller may be inside a running one, and loops do not nest."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    outcome: Future[list[float]] = Future()

    def run() -> None:
        try:
            with contextlib.closing(loop):
                harm = loop.run_until_complete(task)
        except BaseException as error:  # raised again for the caller, a cancellation too
            outcome.set_exception(error)
        else:
            outcome.set_result(harm)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result()
    finally:  # an interrupt ends the wait at once and the requests soon after
        with contextlib.suppress(RuntimeError):  # the loop is closed: the work is done
            loop.call_soon_threadsafe(task.cancel)
