"""Judges behind an endpoint: nothing goes anywhere else, no answer fills the memory, and nothing secret or unjudged is shown."""

import json
import logging
import traceback

import pytest
from helpers.moderation_server import (
    KEY,
    assert_harm,
    at_most,
    bomb,
    drip_body,
    drop,
    echo_the_key,
    endless_body,
    fail,
    harm_of,
    redirect,
    respond,
    running_server,
    shows_the_key,
)

pytest.importorskip("httpx", reason="the judges need it: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam.judges.remote import http_client

KINDS = ("moderation", "chat", "classify")
NAN = float("nan")
TEXT = "Unjudged-words-7d1"
#: Which of a URL's parts are secrets.
QUERY = "?code=secret-query-5f2"


@pytest.fixture
def other_host(monkeypatch):
    with running_server(monkeypatch) as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("place", ["another host", "the same host"])
def test_redirects_are_not_followed_and_say_so(server, other_host, build_any, kind, status, place):
    target = {"another host": other_host, "the same host": server}[place]
    server.default = redirect(status, f"{target.base_url}/elsewhere")
    with pytest.raises(RuntimeError, match="must answer itself, but answered with status 30.*final URL in `base_url`") as caught:
        harm_of(build_any(kind), TEXT)
    assert len(server.requests) == 1
    assert not other_host.requests
    assert TEXT not in str(caught.value)
    assert not shows_the_key(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_of_an_answer_is_read_than_the_limit(server, build_any, kind):
    server.default = endless_body
    with at_most(5):
        assert_harm(harm_of(build_any(kind, max_retries=0), TEXT).float(), NAN)
    assert http_client.MAX_ANSWER <= server.n_bytes < 32 * http_client.MAX_ANSWER  # with what the system buffers


def test_an_answer_may_be_as_large_as_the_limit_and_no_larger(server, build_any, monkeypatch):
    body = '{"results": [{"category_scores": {"hate": 0.5}}]}'
    for size, expected in ((len(body), 0.5), (len(body) - 1, NAN)):
        monkeypatch.setattr(http_client, "MAX_ANSWER", size)
        server.default = respond(body)
        assert_harm(harm_of(build_any("moderation"), TEXT), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_answer_is_not_read(server, build_any, kind, caplog):
    server.default = bomb
    assert_harm(harm_of(build_any(kind, max_retries=0), TEXT).float(), NAN)
    assert "too large or compressed an answer" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behave", [drop, fail(500), drip_body, respond("{not json"), respond("[1]"), respond("null")])
def test_a_failing_endpoint_costs_verdicts_and_no_error(server, build_any, kind, behave):
    server.default = behave
    with at_most(3):
        assert_harm(harm_of(build_any(kind, timeout=0.4, max_retries=1), TEXT).float(), NAN)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_secret_or_unjudged_is_shown(server, build_any, kind, caplog):
    judge = build_any(kind, server.base_url + QUERY, max_retries=0)
    seen = [repr(judge), repr(judge._client)]
    for behave in (
        respond(f'{{"echo": "{TEXT}"}}'),
        echo_the_key(400),
        echo_the_key(500),
        drop,
        echo_the_key(401),
        echo_the_key(404),
    ):
        server.default = behave
        with caplog.at_level(logging.DEBUG):
            try:
                harm_of(judge, TEXT)
            except RuntimeError as error:
                seen += traceback.format_exception(error)
    assert all(path.endswith(QUERY) for path, _, _ in server.requests)
    assert len(caplog.records) > 3
    for secret in (KEY, "secret-query", TEXT):
        assert secret not in caplog.text
        assert secret not in "".join(seen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret-5f2@{host}/v1", "`base_url` must hold no user name and password"),
        ("http://secret-5f2@{host}/v1", "`base_url` must hold no user name and password"),
        ("me:secret-5f2@{host}/v1", "`base_url` must hold no user name and password"),
        ("http://me:secret-5f2?x@{host}/v1", "`base_url` must be a URL"),
        ("{host}/v1?code=secret-5f2", "`base_url` must begin with http:// or https://"),
        ("http://{host}/v1#secret-5f2", "`base_url` must have a host and no fragment"),
        ("http:///v1?code=secret-5f2", "`base_url` must have a host and no fragment"),
    ],
)
def test_a_refused_url_is_not_shown_with_its_secrets(server, build_any, kind, url, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_any(kind, url.format(host=f"127.0.0.1:{server.server_port}"))
    shown = traceback.format_exception(caught.value)
    assert "secret-5f2" not in shown[-1]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_key_variable_no_key_is_sent(server, build_any, kind, monkeypatch):
    harm_of(build_any(kind, key_variable=None, max_retries=0), TEXT)
    assert {key for _, key, _ in server.requests} == {None}
    server.default = fail(401)
    with pytest.raises(RuntimeError, match="Check `key_variable`"):
        harm_of(build_any(kind, key_variable=None), TEXT)


def test_a_proxy_of_the_environment_is_used_but_where_it_is_excluded(server, other_host, build_any, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{other_host.server_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{other_host.server_port}")
    assert_harm(harm_of(build_any("moderation"), TEXT), 0.5)
    assert (len(server.requests), len(other_host.requests)) == (1, 0)
    assert_harm(harm_of(build_any("moderation", "http://endpoint.invalid/v1"), TEXT), 0.5)
    assert [path for path, _, _ in other_host.requests] == ["http://endpoint.invalid/v1/moderations"]


def test_the_whole_conversation_is_sent_beside_the_response_where_wanted(server, build_any):
    scores = [{"category_scores": {"hate": score}} for score in (0.25, 0.75)]
    server.default = respond(json.dumps({"results": scores}))
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Shall I?\n\nassistant: No."}]
    assert_harm(build_any("moderation", whole_conversation=True)([conversation], ["Yes."]), 0.75)
    (body, *_) = server.bodies
    assert body["input"][0] == "Yes."
    assert body["input"][1].count("assistant:\n") == 1
    for text in ("Be brief.", "Shall I?", "Yes."):
        assert text in body["input"][1]
    server.default = respond(json.dumps({"results": scores[:1]}))
    assert_harm(build_any("moderation", whole_conversation=True)([conversation], ["Yes."]), NAN)


@pytest.mark.parametrize("url", ["http://localhost:99999/v1", "http://xn--a/v1"])
def test_a_url_that_no_request_can_have_is_refused_when_the_judge_is_built(build_any, url):
    """Later it was an error about a group of tasks, at every verdict."""
    with pytest.raises(ValueError, match="`base_url` must (be a URL|have a host .*port be below 65536)"):
        build_any("chat", url)


@pytest.mark.parametrize("proxy", ["http://:::secret-5f2", "gopher://secret-5f2:1", "socks5://secret-5f2:1"])
def test_a_proxy_that_cannot_be_used_is_named_and_not_shown(build_any, monkeypatch, proxy):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    judge = build_any("chat", "http://example.invalid/v1", max_retries=0)
    if proxy.startswith("socks5"):
        monkeypatch.setattr(http_client.httpx, "AsyncHTTPTransport", lacks_socks)
    with pytest.raises(
        RuntimeError, match="The proxy that the environment names for http://example.invalid/v1 must be"
    ) as caught:
        harm_of(judge, TEXT)
    assert "secret-5f2" not in "".join(traceback.format_exception(caught.value))


def lacks_socks(**_):
    raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")
