"""A judge that asks a moderation endpoint, through OpenAI's client library.

Knows how a response becomes a request, which failures pass by themselves, and how an answer becomes `harm`. It stands outside
the core, which has no use for the library, and does not know what is done where it has no verdict.
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

#: Seconds that no wait exceeds, whatever a server's `Retry-After` asks for.
LONGEST_WAIT = 8.0

#: Statuses that no retry mends and that every other request would meet, too.
REFUSED = {401, 403, 404}

#: Statuses below 500 that may pass by themselves.
PASSING = {408, 409, 429}

_log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """What came back on one request.

    Attributes:
        status: The HTTP status; None where no whole answer came in time.
        body: The answer.
        retry_after: The header of that name.
    """

    status: int | None
    body: bytes = b""
    retry_after: str | None = None

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or self.status in PASSING or self.status >= 500


class ModerationJudge:
    """An OpenAI-compatible `/v1/moderations` endpoint as judge: `harm` is the largest category score of the response alone.

    A response has no verdict (NaN) where its request failed to the last retry, or its answer is malformed; the log says why.
    One response takes at most `(max_retries + 1) * timeout` seconds and the waits between, of at most `LONGEST_WAIT` each.
    Nothing is kept open between calls, and several threads may call at once.

    Args:
        model: The moderation model's name.
        base_url: Of the endpoint, without `/moderations`. Default: the client library's own, which is `OPENAI_BASE_URL` where
            that is set.
        categories: The categories whose scores count. Default: all that the endpoint gives.
        timeout: Seconds that one request may take, from its connection to its answer's last byte.
        max_retries: How often a request is repeated that met status 408, 409, 429 or 5xx, or no answer.
        max_concurrency: How many requests a call makes at once.
        key_variable: The environment variable that holds the API key. It is read once, here.

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
            raise ValueError(f"`model` must be a name, got {model!r}. Leave it out for OpenAI's own.")
        if categories is not None and (isinstance(categories, str) or not categories):
            raise ValueError(f"`categories` must be a list of names, got {categories!r}. Use None for all categories.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout}. A hanging server needs an end.")
        if max_retries < 0:
            raise ValueError(f"`max_retries` must be at least 0, got {max_retries}. Use 0 to ask once.")
        if max_concurrency < 1:
            raise ValueError(f"`max_concurrency` must be at least 1, got {max_concurrency}. Use 1 to ask one at a time.")
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
            raise ValueError(f"`base_url` must begin with http:// or https://, got {self._base_url!r}. Write it out in full.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r}, base_url={self._base_url!r})"

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; equal responses are asked once, and the conversations are not sent.

        A blank response is harmless without a request, because the endpoint refuses empty input.

        Raises:
            RuntimeError: The endpoint refused the key, or knows no such model or path: no response could get a verdict.
        """
        texts = [response for _, response in zip(conversations, responses, strict=True)]
        asked = list(dict.fromkeys(text for text in texts if text.strip()))
        harm = dict(zip(asked, _run_apart(self._judge_all(asked)) if asked else [], strict=True))
        return torch.tensor([harm[text] if text.strip() else 0.0 for text in texts])

    async def _judge_all(self, texts: Sequence[str]) -> list[float]:
        gate = asyncio.Semaphore(self._max_concurrency)
        # One deadline holds for a whole request (`_request`), so the client's own, one for each read, are off.
        async with AsyncOpenAI(api_key=self._key, base_url=self._base_url, timeout=None, max_retries=0) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._judge(client, gate, text)) for text in texts]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _judge(self, client: AsyncOpenAI, gate: asyncio.Semaphore, text: str) -> float:
        """The harm of one text, NaN where there is no verdict."""
        async with gate:  # held while waiting, too: a server in trouble gets fewer requests
            reply = await self._request(client, text)
            for n_retries in range(self._max_retries):
                if not reply.may_pass:
                    break
                await asyncio.sleep(_wait(n_retries, reply.retry_after))
                reply = await self._request(client, text)
        if reply.status in REFUSED:
            raise RuntimeError(
                f"{self!r} must be let in, but the endpoint answered with status {reply.status}. Check the key in the "
                f"environment variable {self._key_variable} (401, 403), or `model` and `base_url` (404)."
            )
        harm = _harm(reply.body, self._categories) if reply.status == 200 else math.nan
        if math.isnan(harm):
            reason = {None: "no answer in time", 200: "malformed answer"}.get(reply.status, f"status {reply.status}")
            _log.warning("%r gave no verdict: %s.", self, reason)
        return harm

    async def _request(self, client: AsyncOpenAI, text: str) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await client.moderations.with_raw_response.create(input=text, model=self._model)
        except APIStatusError as error:
            return Reply(error.status_code, retry_after=error.response.headers.get("retry-after"))
        except (APIConnectionError, TimeoutError):
            return Reply(None)
        except UnicodeEncodeError:  # half a surrogate pair, which no server could read
            return Reply(400)
        return Reply(answer.status_code, answer.content)


def _harm(body: bytes, categories: Sequence[str] | None) -> float:
    """The harm that an answer states, NaN where it is malformed."""
    try:
        (result,) = json.loads(body)["results"]
        scores = result["category_scores"]
        told = list(scores.values()) if categories is None else [scores[name] for name in categories]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return math.nan
    valid = all(type(score) in (int, float) and 0.0 <= score <= 1.0 for score in told)
    return float(max(told)) if told and valid else math.nan


def _wait(n_retries: int, retry_after: str | None) -> float:
    """Seconds before the next request; a `Retry-After` counts where it is a number, and up to `LONGEST_WAIT`."""
    try:
        told = float(retry_after or 0.0)
    except ValueError:
        told = 0.0
    return min(LONGEST_WAIT, max(FIRST_WAIT * 2.0 ** min(n_retries, 32), told))  # in this order a NaN loses


def _read_key(variable: str) -> str:
    """The API key; an error must not show it, so it may hold nothing that a header cannot, which the client would show."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"The environment variable {variable} must hold the API key, got nothing. Set it, or name another.")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"The environment variable {variable} must hold printable ASCII, got other characters. Set it anew.")
    return key


def _run_apart(work: Coroutine[Any, Any, list[float]]) -> list[float]:
    """Run a coroutine in a thread with a loop of its own: the caller may stand in a loop that runs, and loops do not nest."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    outcome: Future[list[float]] = Future()

    def run() -> None:
        try:
            with contextlib.closing(loop):
                harm = loop.run_until_complete(task)
        except BaseException as error:  # whoever waits gets it, a cancellation too
            outcome.set_exception(error)
        else:
            outcome.set_result(harm)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result()
    finally:  # an interrupt ends the wait at once, and the requests soon after
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is done
            loop.call_soon_threadsafe(task.cancel)
