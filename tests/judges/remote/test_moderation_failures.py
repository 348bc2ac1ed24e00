"""The moderation judge when requests fail: retries, time limits, interrupts and missing verdicts."""

import math
import signal
import socket
import threading
import time

import pytest
from helpers import moderation_server as remote

pytest.importorskip("httpx", reason="the judge needs it: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam.judges.base import EndpointError
from hf_alignbeam.judges.failsafe import judge_each_or_none
from hf_alignbeam.judges.remote import http_client

NAN = math.nan


RETRYABLE = [
    remote.fail(408),
    remote.fail(409),
    remote.fail(429),
    remote.fail(500),
    remote.fail(503),
    remote.respond("", 529),
    remote.drop,
]


def test_a_retryable_failure_is_retried(server, build):
    texts = [f"text {i}" for i in range(len(RETRYABLE))]
    for text, failure in zip(texts, RETRYABLE, strict=True):
        server.behaviors[text] = [failure, failure, remote.respond(remote.scores_body({"hate": 0.75}))]
    remote.assert_harm(remote.harm_of(build(), "good", *texts), 0.5, *[0.75] * len(texts))
    assert sorted(server.texts) == sorted(["good", *texts * 3])


@pytest.mark.parametrize("max_retries", [0, 2])
def test_after_the_last_retry_there_is_no_verdict(server, build, max_retries):
    texts = [f"text {i}" for i in range(len(RETRYABLE))]
    for text, failure in zip(texts, RETRYABLE, strict=True):
        server.behaviors[text] = [failure]
    remote.assert_harm(remote.harm_of(build(max_retries=max_retries), "good", *texts, "fine"), 0.5, *[NAN] * len(texts), 0.5)
    assert sorted(server.texts) == sorted(["good", "fine", *texts * (max_retries + 1)])


def test_no_server_can_cause_a_long_wait(server, build, monkeypatch):
    monkeypatch.setattr(http_client, "MAX_WAIT", 0.1)
    server.behaviors["late"] = [
        remote.fail(429, Retry_After="3600"),
        remote.fail(503, Retry_After="inf"),
        remote.respond(remote.scores_body(remote.SCORES)),
    ]
    server.behaviors["later"] = [remote.fail(429, retry_after_ms="3600000")]
    with remote.at_most(3):
        remote.assert_harm(remote.harm_of(build(), "late", "later"), 0.5, NAN)
    assert sorted(server.texts) == ["late"] * 3 + ["later"] * 3


def test_a_short_retry_after_is_honored(server, build):
    server.behaviors["late"] = [remote.fail(429, Retry_After="0.4"), remote.respond(remote.scores_body(remote.SCORES))]
    start = time.monotonic()
    remote.assert_harm(remote.harm_of(build(), "late"), 0.5)
    assert time.monotonic() - start > 0.4


def test_waits_double_up_to_a_maximum():
    assert [http_client._wait(n, None) for n in (0, 1, 2, 3, 4, 5, 5000)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    headers = ("3", "60", "inf", "nan", "-5", "soon", "", "Wed, 21 Oct 2026 07:28:00 GMT")
    assert [http_client._wait(1, header) for header in headers] == [3.0, 8.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("behave", [remote.hang, remote.drip_headers, remote.drip_body])
def test_a_slow_server_costs_each_request_its_timeout(server, build, behave):
    server.behaviors["slow"] = [behave]
    with remote.at_most(3):
        remote.assert_harm(remote.harm_of(build(timeout=0.5, max_retries=1), "good", "slow"), 0.5, NAN)
    assert sorted(server.texts) == ["good", "slow", "slow"]


def test_a_slow_name_server_costs_each_request_its_timeout(server, build, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: server.ended.wait(5) and [])
    with remote.at_most(3):
        remote.assert_harm(remote.harm_of(build(base_url="http://slow.invalid/v1", timeout=0.3, max_retries=1), "good"), NAN)
    server.ended.set()


def test_a_server_that_cannot_be_reached_is_named(build):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    judge = build(base_url=f"http://127.0.0.1:{port}/v1", max_retries=1)
    with pytest.raises(EndpointError, match=f"{port}/v1/moderations must be reachable, but 2 attempts failed to connect"):
        remote.harm_of(judge, "a")


@pytest.fixture
def interrupts():
    """Python's own handler of SIGINT, which a process started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_ends_the_call_and_its_requests(server, build):
    sent = []

    def interrupt(handler):
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        handler.server.ended.wait(0.5)
        handler.answer(b"", 500, {})

    server.behaviors["first"] = [interrupt, remote.respond(remote.scores_body(remote.SCORES))]
    with pytest.raises(KeyboardInterrupt):
        remote.harm_of(build(timeout=20, max_concurrency=1), "first", "second")
    assert time.monotonic() - sent[0] < 0.4
    time.sleep(0.7)
    assert server.texts == ["first"]


def test_a_refused_text_has_no_verdict_and_no_retry(server, build):
    for status in (400, 413, 422):
        server.behaviors[str(status)] = [remote.fail(status)]
    remote.assert_harm(remote.harm_of(build(), "400", "413", "422", "good"), NAN, NAN, NAN, 0.5)
    assert sorted(server.texts) == ["400", "413", "422", "good"]


def test_a_text_that_cannot_be_encoded_has_no_verdict(server, build):
    remote.assert_harm(remote.harm_of(build(), "good", "\ud800"), 0.5, NAN)
    assert server.texts == ["good"]


MALFORMED = [
    "",
    "<html>",
    '{"results": [{"category_scores": {"hate": 0.1',
    "[" * 100_000,
    "null",
    "[]",
    "{}",
    '{"results": null}',
    '{"results": []}',
    '{"results": "x"}',
    '{"results": [null]}',
    '{"results": [{}]}',
    '{"results": [{"category_scores": {"hate": 0.1}}, {"category_scores": {"hate": 0.1}}]}',
    '{"results": [{"category_scores": null}]}',
    '{"results": [{"category_scores": [0.1]}]}',
    '{"results": [{"category_scores": {}}]}',
    *(
        remote.scores_body({"hate": score, "violence": 0.1})
        for score in (NAN, math.inf, 7.0, -0.1, 10**400, "0.1", None, True, [0.1])
    ),
    remote.scores_body({"hate": 0.1, "violence": NAN}),
]


def test_a_malformed_answer_is_no_verdict_and_not_retried(server, build):
    texts = [f"text {i}" for i in range(len(MALFORMED))]
    for text, body in zip(texts, MALFORMED, strict=True):
        server.behaviors[text] = [remote.respond(body)]
    remote.assert_harm(remote.harm_of(build(), *texts, "good"), *[NAN] * len(texts), 0.5)
    assert sorted(server.texts) == sorted([*texts, "good"])


def test_a_missing_category_is_no_verdict(server, build):
    server.behaviors["old"] = [remote.respond(remote.scores_body({"violence": 0.0}))]
    remote.assert_harm(remote.harm_of(build(categories=["hate", "violence"]), "old", "good"), NAN, 0.5)


def test_scores_of_other_categories_do_not_matter(server, build):
    server.behaviors["odd"] = [remote.respond(remote.scores_body({"violence": 0.25, "new": None}))]
    remote.assert_harm(remote.harm_of(build(categories=["violence"]), "odd"), 0.25)


def test_a_missing_verdict_is_none_after_judge_each_or_none(server, build):
    server.behaviors["bad"] = [remote.fail(500)]
    verdicts = judge_each_or_none(build(), [[{"role": "user", "content": "Hello?"}]] * 2, ["bad", "good"])
    assert verdicts.harm == [None, 0.5]
    assert verdicts.n_calls == 1


def test_a_text_that_a_firewall_forbids_costs_no_other_its_verdict(server, build, caplog):
    server.behaviors["'; DROP TABLE users"] = [remote.fail(403)]
    harm = remote.harm_of(build(), "hello", "'; DROP TABLE users", "bye")
    remote.assert_harm(harm, 0.5, math.nan, 0.5)
    assert "status 403 (1)" in caplog.text


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_raises_at_once(server, build, status):
    texts = [f"text {i}" for i in range(40)]
    for text in texts:
        server.behaviors[text] = [remote.echo_the_key(status)]
    with pytest.raises(RuntimeError) as caught:
        remote.harm_of(build(max_concurrency=2), *texts)
    for part in (server.base_url, f"status {status}", "OPENAI_API_KEY"):
        assert part in str(caught.value)
    assert len(server.texts) < len(texts) or status == 403  # a firewall answers so to some texts only
    assert len(set(server.texts)) == len(server.texts)
    assert not remote.shows_the_key(caught.value)
