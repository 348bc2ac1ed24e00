"""Endpoint: a URL and a key, and how they are checked and shown.

Knows URLs, environment variables and headers. Knows no request. It is not part of the core, which does not depend on `httpx`.
"""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

try:
    import httpx
except ImportError as error:
    raise ImportError(
        "Judges behind an HTTP endpoint need `httpx`, which is not installed. Install it with "
        '`pip install "hf_alignbeam[openai]"`.'
    ) from error

#: Where no `base_url` is given and `OPENAI_BASE_URL` is not set.
DEFAULT_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and the key that goes with them. Neither the query of the URL nor the key is ever shown.

    Attributes:
        url: The URL without its query.
        query: The query with its question mark, or nothing.
        key: The API key; None where none is sent.
        key_variable: The environment variable that held it.
    """

    url: str
    query: str = field(repr=False)
    key: str | None = field(repr=False)
    key_variable: str | None

    @property
    def key_place(self) -> str:
        """Where the key is to be corrected."""
        return "`key_variable`" if self.key_variable is None else f"the key in the environment variable {self.key_variable}"

    def full_url(self, path: str) -> str:
        """The URL of a path, with the query."""
        return self.url + path + self.query

    def headers(self) -> dict[str, str]:
        """The headers of a request, which asks for an answer that is not compressed: of that the size is known."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        return headers if self.key is None else {**headers, "Authorization": f"Bearer {self.key}"}

    def proxy(self) -> str | None:
        """The proxy that the environment names for the endpoint."""
        parts = urlsplit(self.url)
        proxies = getproxies()
        proxy = proxies.get(parts.scheme, proxies.get("all"))
        if proxy is None or proxy_bypass(parts.hostname or ""):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


def find_endpoint(base_url: str | None, key_variable: str | None) -> Endpoint:
    """The endpoint of a URL, by default of `OPENAI_BASE_URL` or else OpenAI's, and the key in a variable, read now.

    Raises:
        ValueError: The URL is none for HTTP, or holds what it may not; or the variable holds no key.
    """
    given = os.environ.get("OPENAI_BASE_URL", DEFAULT_URL) if base_url is None else base_url
    key = None if key_variable is None else _read_key(key_variable)
    return Endpoint(*_checked_url(given), key, key_variable)


def _checked_url(url: str) -> tuple[str, str]:
    """A URL without its query and the slash at its end, and its query with the question mark.

    Raises:
        ValueError: It is no HTTP URL, or holds a user name, a password or a fragment. None of these is shown.
    """
    if "@" in url.partition("?")[0]:
        raise ValueError(
            "`base_url` must hold no user name and password, got one with @. Put the key into an environment variable and name "
            "it by `key_variable`."
        )
    if not url.lower().startswith(("http://", "https://")):
        shown = url.partition("?")[0].partition("#")[0]
        raise ValueError(f"`base_url` must begin with http:// or https://, got {shown!r}. Write the URL in full.")
    try:
        parts = httpx.URL(url)
        has_host = bool(parts.host) and 0 < (parts.port or 80) < 2**16  # decodes the host, which may fail too
    except (httpx.InvalidURL, ValueError):
        raise ValueError("`base_url` must be a URL, got something else that begins like one. Check its host and port.") from None
    if not has_host or parts.fragment:
        raise ValueError("`base_url` must have a host and no fragment (#), and its port be below 65536. Correct it.")
    return str(parts.copy_with(query=None)).rstrip("/"), f"?{parts.query.decode()}" if parts.query else ""


def _read_key(variable: str) -> str:
    """The API key, checked here: the library's own error about characters that no header can hold would show it."""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"The environment variable {variable} must hold the API key, got nothing. Set it, pass another `key_variable`, or "
            "None for an endpoint without keys."
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"The environment variable {variable} must hold printable ASCII, got other characters. Set it again.")
    return key
