"""HttpClient: JSON requests to one endpoint, with all that judges behind one share.

Knows retries, time limits and sizes, and that neither a key nor a text may go anywhere but to the endpoint. Knows no judge, and
not what a request or an answer means.

Requests go through the library's transport and not through its client, which follows redirects and logs whole URLs.
"""

import asyncio
import contextlib
import json
import math
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from ssl import SSLContext
from typing import Any, NamedTuple

import httpx

from hf_alignbeam.judges.base import EndpointError
from hf_alignbeam.judges.remote.endpoint import find_endpoint
from hf_alignbeam.utils.checks import is_number, is_whole_number

#: Seconds to wait before the first retry; each later wait is twice the one before.
FIRST_WAIT = 0.5

#: The longest wait in seconds, whatever a server's `Retry-After` asks for.
MAX_WAIT = 8.0

#: The largest answer in bytes; of a longer one no more is read.
MAX_ANSWER = 2**20

#: Statuses that every request would get: the key, the model or the path is wrong.
FATAL_STATUSES = {401, 404}

#: The status of a key without access, and of a firewall's answer to a single text: every request of a call must get it.
FORBIDDEN = 403

#: Statuses below 500 after which a retry may succeed.
RETRYABLE_STATUSES = {408, 409, 429}


class Answer(NamedTuple):
    """The answer to one HTTP request.

    Attributes:
        status: The HTTP status; None where there was no connection, or no complete answer in time.
        body: The body; None where it is larger than `MAX_ANSWER` or compressed.
        retry_after: The `Retry-After` header, if there is one.
        is_connected: Whether there was a connection.
    """

    status: int | None
    body: bytes | None = None
    retry_after: str | None = None
    is_connected: bool = True

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status is None or self.status in RETRYABLE_STATUSES or self.status >= 500

    @property
    def is_redirect(self) -> bool:
        """Whether the endpoint names another URL."""
        return self.status is not None and 300 <= self.status < 400

    @property
    def problem(self) -> str:
        """Why there is no verdict in it, without a word of it."""
        if self.status is None:
            return "no connection, or no answer in time"
        if self.status != 200:
            return f"status {self.status}"
        return "too large or compressed an answer" if self.body is None else "an answer without one"

    def json(self) -> Any:
        """The value of a successful answer; None where it is none, or no JSON."""
        if self.status != 200 or self.body is None:
            return None
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class HttpClient:
    """Sends JSON to one endpoint. No connection stays open between calls, and several threads may call at once.

    Redirects are never followed: they would carry the key and the text away. Proxies are taken from the environment. Nothing
    that is sent is logged, and errors and `url` show the URL without its query.

    Args:
        base_url: The endpoint's URL before the path of each request. It may have a query, which is sent with each request.
            Default: `OPENAI_BASE_URL` where that is set, else OpenAI's.
        timeout: Seconds that one request may take, from connecting to the last byte of the answer.
        max_retries: How often a request is repeated after status 408, 409, 429 or 5xx, or without an answer.
        max_concurrency: How many requests run at once in one call.
        key_variable: The environment variable that holds the API key, read once, now. None: no key is sent.

    Attributes:
        url: The URL without its query.

    Raises:
        ValueError: An argument is out of its range, or the variable holds no key.
    """

    def __init__(
        self, base_url: str | None, timeout: float, max_retries: int, max_concurrency: int, key_variable: str | None
    ) -> None:
        if not is_number(timeout) or not 0 < timeout < math.inf:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {timeout!r}. Use a finite one, 10 for example.")
        if not is_whole_number(max_retries) or max_retries < 0:
            raise ValueError(
                f"`max_retries` must be a whole number from 0 on, got {max_retries!r}. Use 0 to send each request once."
            )
        if not is_whole_number(max_concurrency) or max_concurrency < 1:
            raise ValueError(
                f"`max_concurrency` must be a whole number from 1 on, got {max_concurrency!r}. Use 1 for one at a time."
            )
        self._endpoint = find_endpoint(base_url, key_variable)
        self.url = self._endpoint.url
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_concurrency = max_concurrency

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def post_all(self, path: str, values: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Post values as JSON; equal ones are sent once.

        Args:
            path: The path after the base URL.
            values: n values.

        Returns:
            n answers, in order.

        Raises:
            EndpointError: The endpoint cannot be reached, refused the key, forbids every value, knows no such model or path, or
                redirects, as it would every time.
        """
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        distinct = list(dict.fromkeys(texts))
        answers = dict(zip(distinct, _run_in_thread(self._post_all(path, distinct)) if distinct else [], strict=True))
        return [answers[text] for text in texts]

    async def _post_all(self, path: str, texts: Sequence[str]) -> list[Answer]:
        slots = asyncio.Semaphore(self._max_concurrency)
        async with self._transport() as transport:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._post(transport, slots, path, text)) for text in texts]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        answers = [task.result() for task in tasks]
        if all(answer.status == FORBIDDEN for answer in answers):
            raise self._no_access(path, FORBIDDEN)
        return answers

    def _transport(self) -> httpx.AsyncHTTPTransport:
        try:
            return httpx.AsyncHTTPTransport(verify=_ssl_context(), proxy=self._endpoint.proxy())
        except (httpx.InvalidURL, ValueError, ImportError) as error:  # a proxy may hold a password: it is not shown
            missing = " SOCKS needs `pip install socksio`." if isinstance(error, ImportError) else ""
            raise EndpointError(
                f"The proxy that the environment names for {self.url} must be a URL that httpx can use, got another.{missing} "
                "Correct it, or except the host by NO_PROXY."
            ) from None

    async def _post(self, transport: httpx.AsyncHTTPTransport, slots: asyncio.Semaphore, path: str, text: str) -> Answer:
        try:
            content = text.encode()
        except UnicodeEncodeError:  # a lone surrogate, which UTF-8 cannot hold
            return Answer(400)
        async with slots:  # held during waits too: an overloaded server gets fewer requests
            answer = await self._request(transport, path, content)
            for n_retries in range(self._max_retries):
                if not answer.is_retryable:
                    break
                await asyncio.sleep(_wait(n_retries, answer.retry_after))
                answer = await self._request(transport, path, content)
        if not answer.is_connected:
            raise EndpointError(
                f"{self.url + path} must be reachable, but {1 + self._max_retries} attempts failed to connect. Check "
                "`base_url`, and that the server runs."
            )
        if answer.status in FATAL_STATUSES:
            raise self._no_access(path, answer.status)
        if answer.is_redirect:
            raise EndpointError(
                f"{self.url + path} must answer itself, but answered with status {answer.status}. Redirects are not followed, "
                "because they would carry the key and the text elsewhere: write the final URL in `base_url`."
            )
        return answer

    def _no_access(self, path: str, status: int) -> EndpointError:
        return EndpointError(
            f"{self.url + path} must give access, but answered with status {status}. Check {self._endpoint.key_place} "
            "(401, 403), or `model` and `base_url` (404)."
        )

    async def _request(self, transport: httpx.AsyncHTTPTransport, path: str, content: bytes) -> Answer:
        request = httpx.Request("POST", self._endpoint.full_url(path), headers=self._endpoint.headers(), content=content)
        try:
            async with asyncio.timeout(self._timeout):
                response = await transport.handle_async_request(request)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except (httpx.TransportError, TimeoutError) as error:
            return Answer(None, is_connected=not isinstance(error, httpx.ConnectError))
        return Answer(response.status_code, body, response.headers.get("retry-after"))


def check_model_name(model: str) -> str:
    """The name of a model at an endpoint, as it is.

    Raises:
        ValueError: It is empty.
    """
    if not model:
        raise ValueError(f"`model` must be a name, got {model!r}. Write it as the endpoint does.")
    return model


def counted(problems: Iterable[str]) -> str:
    """Reasons with how often each occurs."""
    return ", ".join(f"{problem} ({n})" for problem, n in sorted(Counter(problems).items()))


def describe_problems(judge: object, problems: Iterable[str], advice: str) -> str:
    """Why a judge gave no verdicts, as the endpoint's answers tell, and what to do."""
    return f"{judge!r} gave no verdict: {counted(problems) or 'it was asked nothing'}. {advice}"


async def _read(response: httpx.Response) -> bytes | None:
    """The body, or None where it is compressed, in spite of the request, or too large."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER:
            return None
    return bytes(body)


def _wait(n_retries: int, retry_after: str | None) -> float:
    """Seconds before the next request; a `Retry-After` counts if it is a number, and up to `MAX_WAIT`."""
    try:
        requested = float(retry_after or 0.0)
    except ValueError:
        requested = 0.0
    return min(MAX_WAIT, max(FIRST_WAIT * 2.0 ** min(n_retries, 32), requested))  # in this order a NaN is ignored


@cache
def _ssl_context() -> SSLContext:
    """The certificates to trust; they take long to load."""
    return httpx.create_ssl_context()


def _run_in_thread(work: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
    """Run a coroutine in a thread with its own event loop: the caller may be inside a running one, and loops do not nest."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    outcome: Future[list[Answer]] = Future()

    def run() -> None:
        try:
            with contextlib.closing(loop):
                try:
                    answers = loop.run_until_complete(task)
                finally:  # an answer that was not read to its end leaves generators open
                    loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as error:  # raised again for the caller, a cancellation too
            outcome.set_exception(error)
        else:
            outcome.set_result(answers)

    try:
        threading.Thread(target=run, daemon=True).start()
        return outcome.result()
    finally:  # an interrupt ends the wait at once and the requests soon after
        with contextlib.suppress(RuntimeError):  # the loop is closed: the work is done
            loop.call_soon_threadsafe(task.cancel)
