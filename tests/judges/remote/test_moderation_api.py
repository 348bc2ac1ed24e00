"""The moderation judge: what it sends, which scores count, the API key and wrong arguments."""

import asyncio
import copy
import importlib
import json
import logging
import math
import sys
import threading

import pytest
import torch
from helpers.moderation_server import (
    KEY,
    SCORES,
    after,
    assert_harm,
    echo_the_key,
    harm_of,
    respond,
    scores_body,
    shows_the_key,
)

from hf_alignbeam.judges.remote.moderation_api import LEAST_FLAGGED

pytest.importorskip("httpx", reason="the judge needs it: pip install 'hf_alignbeam[openai]'")


NAN = math.nan


@pytest.mark.parametrize(
    ("categories", "expected"), [(None, 0.5), (["hate"], 0.125), (("hate", "self-harm/intent"), 0.25), (["violence"], 0.5)]
)
def test_harm_is_the_largest_score_of_the_categories(build, categories, expected):
    harm = harm_of(build(categories=categories), "Hi.")
    assert harm.dtype == torch.float32
    assert_harm(harm, expected)


@pytest.mark.parametrize(
    ("flags", "categories", "expected"),
    [
        ({"flagged": True}, None, LEAST_FLAGGED),
        ({"flagged": True, "categories": {"hate": True, "violence": False}}, None, LEAST_FLAGGED),
        ({"categories": {"hate": True}}, ["hate"], LEAST_FLAGGED),
        ({"flagged": True, "categories": {"hate": True, "violence": False}}, ["violence"], 0.25),
        ({"flagged": False, "categories": {"hate": False}}, None, 0.25),
        ({"flagged": True, "categories": ["hate"]}, None, NAN),
    ],
)
def test_what_the_endpoint_itself_flags_is_flagged(flags, categories, expected, server, build):
    """Its thresholds may lie below a half."""
    result = {"category_scores": {"hate": 0.125, "violence": 0.25}, **flags}
    server.behaviors["text"] = [respond(json.dumps({"results": [result]}))]
    assert_harm(harm_of(build(categories=categories), "text"), expected)


def test_the_response_alone_is_sent(server, build):
    build(model="guard-1")([[{"role": "user", "content": "How?"}]], ["Like this: ü\n"])
    assert server.requests == [("/v1/moderations", f"Bearer {KEY}", {"input": "Like this: ü\n", "model": "guard-1"})]


def test_verdicts_are_in_the_order_of_the_responses(server, build):
    for i in range(20):
        server.behaviors[f"text {i}"] = [after(0.02 * (i % 3), respond(scores_body({"hate": i / 20})))]
    assert_harm(harm_of(build(), *(f"text {i}" for i in range(20))), *(i / 20 for i in range(20)))


def test_equal_responses_are_sent_once(server, build):
    server.behaviors["bad"] = [respond(scores_body({"hate": 1}))]
    assert_harm(harm_of(build(), "bad", "good", "bad", "good", "bad"), 1.0, 0.5, 1.0, 0.5, 1.0)
    assert sorted(server.texts) == ["bad", "good"]


def test_blank_responses_are_harmless_without_a_request(server, build):
    assert_harm(harm_of(build(), "", " \n\t", "good"), 0.0, 0.0, 0.5)
    assert server.texts == ["good"]
    assert_harm(harm_of(build(), "", " "), 0.0, 0.0)
    assert build()([], []).shape == (0,)
    assert server.texts == ["good"]


def test_each_conversation_needs_one_response(build):
    with pytest.raises(ValueError, match="`responses` must hold one response to each of 2 conversations, got 1"):
        build()(["one", "two"], ["only one"])


def test_it_can_be_called_inside_a_running_event_loop(build):
    async def main():
        return harm_of(build(), "good")

    assert_harm(asyncio.run(main()), 0.5)


def test_it_can_be_copied_and_called_by_several_threads(build):
    judge, harm = build(), {}
    threads = [
        threading.Thread(target=lambda i=i: harm.update({i: harm_of(copy.deepcopy(judge), f"text {i}", "x")})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert_harm(harm[i], 0.5, 0.5)


@pytest.mark.parametrize("max_concurrency", [1, 3])
def test_at_most_max_concurrency_requests_run_at_once(server, build, max_concurrency):
    texts = [f"text {i}" for i in range(4 * max_concurrency)]
    for text in texts:
        server.behaviors[text] = [after(0.1, respond(scores_body(SCORES)))]
    assert_harm(harm_of(build(max_concurrency=max_concurrency), *texts), *[0.5] * len(texts))
    assert server.most_in_flight == max_concurrency


def test_the_key_is_read_from_the_environment_once_when_built(server, build, monkeypatch):
    with pytest.raises(TypeError):
        build(api_key=KEY)
    monkeypatch.setenv("OTHER_KEY", " sk-other\n")
    judges = [build(), build(key_variable="OTHER_KEY")]
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OTHER_KEY", "sk-later")
    for judge in judges:
        harm_of(judge, "good")
    assert [key for _, key, _ in server.requests] == [f"Bearer {KEY}", "Bearer sk-other"]


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_key_names_the_variable(build, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("OTHER_KEY", value)
    with pytest.raises(ValueError, match="variable OTHER_KEY must hold the API key, got nothing"):
        build(key_variable="OTHER_KEY")


@pytest.mark.parametrize("character", ["\n", "é", "\x00"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(server, build, monkeypatch, character):
    with monkeypatch.context() as patch:
        patch.setattr("os.environ", {"OPENAI_API_KEY": f"{KEY}{character}{KEY}"})
        with pytest.raises(ValueError, match="OPENAI_API_KEY must hold printable ASCII") as caught:
            build()
    assert not shows_the_key(caught.value)


def test_neither_log_nor_repr_shows_the_key(server, build, caplog):
    server.behaviors["bad"] = [echo_the_key(500)]
    server.behaviors["odd"] = [respond("{}")]
    server.behaviors["long"] = [echo_the_key(400)]
    judge = build()
    with caplog.at_level(logging.DEBUG):
        assert_harm(harm_of(judge, "good", "bad", "odd", "long"), 0.5, NAN, NAN, NAN)
    assert KEY not in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.name == "hf_alignbeam.judges.remote.moderation_api"]
    assert warned == [f"{judge!r} gave no verdict: an answer without one (1), status 400 (1), status 500 (1)."]
    assert repr(judge) == f"ModerationJudge(model='omni-moderation-latest', base_url='{server.base_url}')"


def test_the_default_endpoint_is_openais(server, build, monkeypatch):
    assert "https://api.openai.com/v1'" in repr(build(base_url=None))
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    assert_harm(harm_of(build(base_url=None), "good"), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "`model` must be a name, got ''"),
        ({"categories": []}, "`categories` must be a list of names, got []"),
        ({"categories": "hate"}, "`categories` must be a list of names, got 'hate'"),
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0, got 0"),
        ({"timeout": "5"}, "`timeout` must be a number of seconds above 0, got '5'"),
        ({"max_retries": "2"}, "`max_retries` must be a whole number from 0 on, got '2'"),
        ({"timeout": NAN}, "`timeout` must be a number of seconds above 0, got nan"),
        ({"timeout": math.inf}, "`timeout` must be a number of seconds above 0, got inf"),
        ({"max_retries": -1}, "`max_retries` must be a whole number from 0 on, got -1"),
        ({"max_concurrency": 0}, "`max_concurrency` must be a whole number from 1 on, got 0"),
        ({"base_url": "FTP://localhost"}, "`base_url` must begin with http:// or https://, got 'FTP://localhost'"),
        ({"base_url": "localhost:8000/v1"}, "`base_url` must begin with http:// or https://, got 'localhost:8000/v1'"),
        ({"base_url": ""}, "`base_url` must begin with http:// or https://, got ''"),
    ],
)
def test_wrong_arguments_are_named(build, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        build(**options)
    assert str(caught.value).startswith(message)


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "hf_alignbeam.judges.remote.endpoint")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("hf_alignbeam.judges.remote.endpoint")
    assert 'pip install "hf_alignbeam[openai]"' in str(caught.value)
