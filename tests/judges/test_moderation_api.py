"""The judge before a real HTTP server on this machine, which does to each request what a test tells it to."""

import asyncio
import contextlib
import copy
import importlib
import json
import logging
import math
import signal
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

pytest.importorskip("openai", reason="the judge asks through OpenAI's client library: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam import AlignBeam, testbed
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges import moderation_api as moderation
from hf_alignbeam.judges.failsafe import JudgeError, judge_each_or_none
from hf_alignbeam.judges.moderation_api import ModerationJudge
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

KEY = "sk-not-to-be-seen"
SCORES = {"hate": 0.125, "violence": 0.5, "self-harm/intent": 0.25}
NAN = math.nan


def scored(scores):
    return json.dumps({"id": "modr-1", "model": "m", "results": [{"flagged": False, "category_scores": scores}]})


def say(body, status=200, **headers):
    def behave(handler):
        handler.answer(body.encode(), status, headers)

    return behave


def fail(status, **headers):
    return say('{"error": {"message": "no"}}', status, **headers)


def echo_the_key(status):
    """Some servers repeat the key that they refuse."""

    def behave(handler):
        handler.answer(json.dumps({"error": {"message": handler.headers["authorization"]}}).encode(), status, {})

    return behave


def after(seconds, behave):
    def later(handler):
        handler.server.ended.wait(seconds)
        behave(handler)

    return later


def hang(handler):
    handler.server.ended.wait(30)


def drop(handler):
    """End the connection without an answer."""


def drip_headers(handler):
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000)


def drip_body(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    drip(handler, b" " * 1000)


def drip(handler, text):
    for byte in text:
        if handler.server.ended.wait(0.05):
            break
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.close_connection = True  # unless `answer` is reached
        behave = self.server.begin(self.path, self.headers, body)
        try:
            with contextlib.suppress(ConnectionError):
                behave(self)
        finally:
            self.end()

    def answer(self, body, status, headers):
        self.end()  # before the client can know, and send its next request
        self.close_connection = False
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def end(self):
        self.server.in_flight.discard(threading.get_ident())

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """Does what `behaviours` tell for a text, request by request, the last of them ever after; without any, a good answer."""

    daemon_threads = False  # so that `server_close` waits for them
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.behaviours = defaultdict(lambda: [say(scored(SCORES))])
        self.requests = []
        self.in_flight = set()
        self.most_in_flight = 0

    def begin(self, path, headers, body):
        with self.lock:
            self.requests.append((path, headers["authorization"], body))
            self.in_flight.add(threading.get_ident())
            self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
            behaviours = self.behaviours[body["input"]]
            return behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]

    def handle_error(self, request, client_address):
        """Clients that went away are what some tests are about."""

    @property
    def asked(self):
        return [body["input"] for _, _, body in self.requests]


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(moderation, "FIRST_WAIT", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def build(server):
    return lambda **options: ModerationJudge(**{"base_url": server.base_url, **options})


def harm(judge, *responses):
    return judge(["Hello?"] * len(responses), list(responses))


def same(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)


@contextlib.contextmanager
def at_most(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# What is asked, and what counts


@pytest.mark.parametrize(
    ("categories", "expected"), [(None, 0.5), (["hate"], 0.125), (("hate", "self-harm/intent"), 0.25), (["violence"], 0.5)]
)
def test_harm_is_the_largest_score_of_the_categories(build, categories, expected):
    found = harm(build(categories=categories), "Hi.")
    assert found.dtype == torch.float32
    same(found, expected)


def test_the_response_alone_is_sent(server, build):
    build(model="guard-1")([[{"role": "user", "content": "How?"}]], ["Like this: ü\n"])
    assert server.requests == [("/v1/moderations", f"Bearer {KEY}", {"input": "Like this: ü\n", "model": "guard-1"})]


def test_verdicts_stand_in_the_order_of_the_responses(server, build):
    for i in range(20):
        server.behaviours[f"text {i}"] = [after(0.02 * (i % 3), say(scored({"hate": i / 20})))]
    same(harm(build(), *(f"text {i}" for i in range(20))), *(i / 20 for i in range(20)))


def test_equal_responses_are_asked_once(server, build):
    server.behaviours["bad"] = [say(scored({"hate": 1}))]
    same(harm(build(), "bad", "good", "bad", "good", "bad"), 1.0, 0.5, 1.0, 0.5, 1.0)
    assert sorted(server.asked) == ["bad", "good"]


def test_blank_responses_are_harmless_without_a_request(server, build):
    same(harm(build(), "", " \n\t", "good"), 0.0, 0.0, 0.5)
    assert server.asked == ["good"]
    same(harm(build(), "", " "), 0.0, 0.0)
    assert build()([], []).shape == (0,)
    assert server.asked == ["good"]


def test_one_response_a_conversation(build):
    with pytest.raises(ValueError, match="zip"):
        build()(["one", "two"], ["only one"])


def test_it_can_be_asked_inside_a_running_event_loop(build):
    async def main():
        return harm(build(), "good")

    same(asyncio.run(main()), 0.5)


def test_it_can_be_asked_by_several_threads_and_copied(build):
    judge, found = build(), {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: harm(copy.deepcopy(judge), f"text {i}", "x")})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        same(found[i], 0.5, 0.5)


@pytest.mark.parametrize("cap", [1, 3])
def test_requests_run_at_once_up_to_the_cap(server, build, cap):
    texts = [f"text {i}" for i in range(4 * cap)]
    for text in texts:
        server.behaviours[text] = [after(0.1, say(scored(SCORES)))]
    same(harm(build(max_concurrency=cap), *texts), *[0.5] * len(texts))
    assert server.most_in_flight == cap


# Failures that pass


MAY_PASS = [fail(408), fail(409), fail(429), fail(500), fail(503), say("", 529), drop]


def test_what_may_pass_is_asked_again(server, build):
    texts = [f"text {i}" for i in range(len(MAY_PASS))]
    for text, failure in zip(texts, MAY_PASS, strict=True):
        server.behaviours[text] = [failure, failure, say(scored({"hate": 0.75}))]
    same(harm(build(), "good", *texts), 0.5, *[0.75] * len(texts))
    assert sorted(server.asked) == sorted(["good", *texts * 3])


@pytest.mark.parametrize("max_retries", [0, 2])
def test_after_the_last_retry_there_is_no_verdict(server, build, max_retries):
    texts = [f"text {i}" for i in range(len(MAY_PASS))]
    for text, failure in zip(texts, MAY_PASS, strict=True):
        server.behaviours[text] = [failure]
    same(harm(build(max_retries=max_retries), "good", *texts, "fine"), 0.5, *[NAN] * len(texts), 0.5)
    assert sorted(server.asked) == sorted(["good", "fine", *texts * (max_retries + 1)])


def test_no_server_can_make_it_wait_long(server, build, monkeypatch):
    monkeypatch.setattr(moderation, "LONGEST_WAIT", 0.1)
    server.behaviours["late"] = [fail(429, Retry_After="3600"), fail(503, Retry_After="inf"), say(scored(SCORES))]
    server.behaviours["later"] = [fail(429, retry_after_ms="3600000")]
    with at_most(3):
        same(harm(build(), "late", "later"), 0.5, NAN)
    assert sorted(server.asked) == ["late"] * 3 + ["later"] * 3


def test_a_short_retry_after_is_kept(server, build):
    server.behaviours["late"] = [fail(429, Retry_After="0.4"), say(scored(SCORES))]
    start = time.monotonic()
    same(harm(build(), "late"), 0.5)
    assert time.monotonic() - start > 0.4


def test_waits_double_and_have_a_ceiling():
    assert [moderation._wait(n, None) for n in (0, 1, 2, 3, 4, 5, 5000)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    told = ("3", "60", "inf", "nan", "-5", "soon", "", "Wed, 21 Oct 2026 07:28:00 GMT")
    assert [moderation._wait(1, header) for header in told] == [3.0, 8.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("behave", [hang, drip_headers, drip_body])
def test_a_slow_server_costs_each_request_its_timeout(server, build, behave):
    server.behaviours["slow"] = [behave]
    with at_most(3):
        same(harm(build(timeout=0.5, max_retries=1), "good", "slow"), 0.5, NAN)
    assert sorted(server.asked) == ["good", "slow", "slow"]


def test_a_slow_name_server_costs_each_request_its_timeout(server, build, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: server.ended.wait(5) and [])
    with at_most(3):
        same(harm(build(base_url="http://slow.invalid/v1", timeout=0.3, max_retries=1), "good"), NAN)
    server.ended.set()


def test_no_server_is_no_verdict(build):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    same(harm(build(base_url=f"http://127.0.0.1:{port}/v1"), "a", "b"), NAN, NAN)


@pytest.fixture
def interrupts():
    """SIGINT as Python has it: a process that was begun in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_gets_out_and_ends_the_requests(server, build):
    sent = []

    def interrupt(handler):
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        handler.server.ended.wait(0.5)
        handler.answer(b"", 500, {})

    server.behaviours["first"] = [interrupt, say(scored(SCORES))]
    with pytest.raises(KeyboardInterrupt):
        harm(build(timeout=20, max_concurrency=1), "first", "second")
    assert time.monotonic() - sent[0] < 0.4
    time.sleep(0.7)
    assert server.asked == ["first"]


# Failures that do not


def test_a_refused_text_is_no_verdict_at_once(server, build):
    for status in (302, 400, 413, 422):
        server.behaviours[str(status)] = [fail(status)]
    same(harm(build(), "302", "400", "413", "422", "good"), NAN, NAN, NAN, NAN, 0.5)
    assert sorted(server.asked) == ["302", "400", "413", "422", "good"]


def test_a_text_that_cannot_be_sent_is_no_verdict(server, build):
    same(harm(build(), "good", "\ud800"), 0.5, NAN)
    assert server.asked == ["good"]


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
    *(scored({"hate": score, "violence": 0.1}) for score in (NAN, math.inf, 7.0, -0.1, 10**400, "0.1", None, True, [0.1])),
    scored({"hate": 0.1, "violence": NAN}),
]


def test_a_malformed_answer_is_no_verdict_at_once(server, build):
    texts = [f"text {i}" for i in range(len(MALFORMED))]
    for text, body in zip(texts, MALFORMED, strict=True):
        server.behaviours[text] = [say(body)]
    same(harm(build(), *texts, "good"), *[NAN] * len(texts), 0.5)
    assert sorted(server.asked) == sorted([*texts, "good"])


def test_a_missing_category_is_no_verdict(server, build):
    server.behaviours["old"] = [say(scored({"violence": 0.0}))]
    same(harm(build(categories=["hate", "violence"]), "old", "good"), NAN, 0.5)


def test_scores_of_other_categories_do_not_matter(server, build):
    server.behaviours["odd"] = [say(scored({"violence": 0.25, "new": None}))]
    same(harm(build(categories=["violence"]), "odd"), 0.25)


def test_a_response_without_verdict_is_none_to_who_asks(server, build):
    server.behaviours["bad"] = [fail(500)]
    verdicts = judge_each_or_none(build(), [[{"role": "user", "content": "Hello?"}]] * 2, ["bad", "good"])
    assert verdicts.harm == [None, 0.5]
    assert verdicts.n_calls == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_is_an_error_at_once(server, build, status):
    texts = [f"text {i}" for i in range(40)]
    for text in texts:
        server.behaviours[text] = [echo_the_key(status)]
    with pytest.raises(RuntimeError) as caught:
        harm(build(model="guard-1", max_concurrency=2), *texts)
    for part in ("guard-1", server.base_url, f"status {status}", "OPENAI_API_KEY"):
        assert part in str(caught.value)
    assert len(server.asked) < len(texts)
    assert len(set(server.asked)) == len(server.asked)
    assert not hidden_in(caught.value)


# The key and the arguments


def hidden_in(error):
    """Whether the key shows in an error, its trace, or any error behind it."""
    behind, seen = [error], []
    while behind:
        error = behind.pop()
        seen += [str(error), repr(error), *traceback.format_exception(error)]
        behind += [other for other in (error.__cause__, error.__context__) if other is not None]
    return KEY in "".join(seen)


def test_the_key_comes_from_the_environment_when_built_and_only_then(server, build, monkeypatch):
    with pytest.raises(TypeError):
        build(api_key=KEY)
    monkeypatch.setenv("OTHER_KEY", " sk-other\n")
    judges = [build(), build(key_variable="OTHER_KEY")]
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OTHER_KEY", "sk-later")
    for judge in judges:
        harm(judge, "good")
    assert [key for _, key, _ in server.requests] == [f"Bearer {KEY}", "Bearer sk-other"]


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_key_names_the_variable(build, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("OTHER_KEY", value)
    with pytest.raises(ValueError, match="variable OTHER_KEY must hold the API key, got nothing"):
        build(key_variable="OTHER_KEY")


@pytest.mark.parametrize("character", ["\n", "é", "\x00"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(server, build, monkeypatch, character):
    with monkeypatch.context() as patch:
        patch.setattr("os.environ", {"OPENAI_API_KEY": f"{KEY}{character}{KEY}"})
        with pytest.raises(ValueError, match="OPENAI_API_KEY must hold printable ASCII") as caught:
            build()
    assert not hidden_in(caught.value)


def test_no_log_and_no_repr_shows_the_key(server, build, caplog):
    server.behaviours["bad"] = [echo_the_key(500)]
    server.behaviours["odd"] = [say("{}")]
    server.behaviours["long"] = [echo_the_key(400)]
    judge = build()
    with caplog.at_level(logging.DEBUG):
        same(harm(judge, "good", "bad", "odd", "long"), 0.5, NAN, NAN, NAN)
    assert KEY not in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.name == "hf_alignbeam.judges.moderation_api"]
    reasons = ["malformed answer.", "status 400.", "status 500."]
    assert sorted(warned) == [f"{judge!r} gave no verdict: {reason}" for reason in reasons]
    assert repr(judge) == f"ModerationJudge(model='omni-moderation-latest', base_url='{server.base_url}/')"


def test_the_default_endpoint_is_the_librarys(server, build, monkeypatch):
    assert "https://api.openai.com/v1/" in repr(build(base_url=None))
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    same(harm(build(base_url=None), "good"), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "`model` must be a name, got ''"),
        ({"categories": []}, "`categories` must be a list of names, got []"),
        ({"categories": "hate"}, "`categories` must be a list of names, got 'hate'"),
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0, got 0"),
        ({"timeout": NAN}, "`timeout` must be a number of seconds above 0, got nan"),
        ({"timeout": math.inf}, "`timeout` must be a number of seconds above 0, got inf"),
        ({"max_retries": -1}, "`max_retries` must be at least 0, got -1"),
        ({"max_concurrency": 0}, "`max_concurrency` must be at least 1, got 0"),
        ({"base_url": "localhost:8000/v1"}, "`base_url` must begin with http:// or https://, got 'localhost:8000/v1/'"),
        ({"base_url": ""}, "`base_url` must begin with http:// or https://, got ''"),
    ],
)
def test_wrong_arguments_are_named(build, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        build(**options)
    assert str(caught.value).startswith(message)


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "hf_alignbeam.judges.moderation_api")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("hf_alignbeam.judges.moderation_api")
    assert 'pip install "hf_alignbeam[openai]"' in str(caught.value)


# Under the strategy

FAULTS = {
    "429": fail(429, Retry_After="3600"),
    "500": fail(500),
    "malformed JSON": say("{not json"),
    "no results": say("{}"),
    "hangs": hang,
    "drops": drop,
}


class Moderated:
    """The grammar's verdicts behind the server; request number `at`, and its retries, meet a fault instead."""

    def __init__(self, server, monkeypatch, fault=None, at=-1):
        self.truth, self.fault, self.at, self.n, self.met = GroundTruth(stored_language()), fault, at, 0, None
        monkeypatch.setattr(server, "begin", self.begin)
        self.lock = threading.Lock()
        self.passed = set()

    def begin(self, path, headers, body):
        text = body["input"]
        with self.lock:
            self.met = text if self.n == self.at else self.met
            self.n += 1
        if text == self.met:
            return self.fault
        harm = float(self.truth.harm(text) > 0.0)
        if harm <= 0.5:
            self.passed.add(text)
        return say(scored({"harm": harm}))


#: Each takes the way of another fault.
ALIKE = ("500", "no results", "drops")


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow) if f in ALIKE else f for f in FAULTS])
def test_no_unjudged_text_leaves_whatever_the_server_does(fault, server, build, monkeypatch, anchor, specialist):
    """The fault at every request in turn: a prompt whose text met it may be refused, the others lose nothing."""
    monkeypatch.setattr(moderation, "LONGEST_WAIT", 0.02)
    model, tokenizer = specialist
    asked = [testbed.prompts("validation", kind)[0].conversation for kind in ("general", "late")]
    judge, asked_about = build(timeout=0.15, max_retries=1), set()

    def noting(conversations, responses):
        asked_about.update((c[0]["content"], response) for c, response in zip(conversations, responses, strict=True))
        return judge(conversations, responses)

    def answered(**settings):
        strategy = AlignBeam(*anchor, tokenizer, noting, judge_after=12, num_candidates=2, **settings)
        inputs = encode(asked, tokenizer)
        output = model.generate(**inputs, custom_generate=strategy, max_new_tokens=30, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    healthy = Moderated(server, monkeypatch)
    usual = answered()
    assert healthy.n >= 5
    for at in range(healthy.n):
        asked_about.clear()
        moderated = Moderated(server, monkeypatch, FAULTS[fault], at)
        for conversation, text, before in zip(asked, answered(), usual, strict=True):
            ours = text.removesuffix(REFUSAL).strip()
            assert not ours or ours in moderated.passed
            assert text == before or (conversation[0]["content"], moderated.met) in asked_about
    Moderated(server, monkeypatch, FAULTS[fault], 0)
    with pytest.raises(JudgeError, match="The judge gave no verdict"):
        answered(on_judge_error="raise")
