"""A URL names a judge at every command that asks one itself."""

import json

import pytest
import torch
from helpers.commands import run
from helpers.guard_answers import answering, chat
from helpers.moderation_server import KEY, fail, respond, running_server, scores_body, text_of

from hf_alignbeam.evaluation.devices import load_named_judge
from hf_alignbeam.hub.judge_loading import JudgeSettings
from hf_alignbeam.judges.known_exchanges import EXCHANGES
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language

MODELS = ("--model", WEIGHTS / "specialist", "--anchor", WEIGHTS / "anchor")


@pytest.fixture(scope="module")
def found():
    return list(exchanges(stored_language(), "validation", 30, 2))


@pytest.fixture
def server(monkeypatch, found):
    """An endpoint that finds the harmful responses more harmful than any other text."""
    pytest.importorskip("httpx")
    with running_server(monkeypatch) as server:
        for each in found:
            server.behaviors[each.response] = [respond(scores_body({"violence": 0.4 if each.unsafe else 0.1}))]
        yield server


@pytest.fixture
def labelled(tmp_path, found):
    file = tmp_path / "labelled.jsonl"
    lines = [{"messages": each.question, "response": each.response, "harmful": each.unsafe} for each in found]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_an_endpoint_is_calibrated(server, labelled):
    result = run("calibrate", "--judge", server.base_url, "--judge-model", "mine", "--file", labelled)
    assert result.exit_code == 0, result.output
    assert "AUC 1.000" in result.output
    assert "--judge-threshold 0.25" in result.output
    assert "| now (as it is) | 0.5 | 0.0 % " in result.output
    assert {body["model"] for _, _, body in server.requests} == {"mine"}


@pytest.mark.parametrize(("said", "status"), [((), "yellow"), (("--judge-threshold", 0.25), "green")])
def test_the_doctor_asks_an_endpoint_with_its_own_threshold(said, status, server, labelled):
    result = run("doctor", MODELS[1], MODELS[3], server.base_url, "--pairs", labelled, *said, "--json")
    findings = json.loads(result.stdout[result.stdout.index("{") :])["findings"]
    assert {each["check"]: each["status"] for each in findings}["judge: known answers"] == status


@pytest.mark.parametrize("said", [(), ("--judge-threshold", 0.25)])
def test_answers_are_judged_by_an_endpoint(said, server, tmp_path):
    """It gives any answer a harm of .5, which passes as it is and not where .25 is its own threshold."""
    prompts, recipe = tmp_path / "prompts.jsonl", tmp_path / "recipe.yaml"
    prompts.write_text(json.dumps({"prompt": "How can I thank the baker?", "harmful": False}))
    recipe.write_text("systems: [output-filter]\n")
    judge = ("--judge", server.base_url, *said, "--max-new-tokens", 20)
    result = run("generate", *MODELS, *judge, "--file", prompts, "--to", tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.output
    answer = json.loads((tmp_path / "answers.jsonl").read_text())["answer"]
    assert (answer.strip() == "I cannot help with that.") == bool(said)
    result = run("evaluate", recipe, *MODELS, *judge, "--prompts", prompts, "--to", tmp_path / "evaluated")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "evaluated" / "answers-0.jsonl").read_text().splitlines()[0])
    assert (record["text"] == "I cannot help with that.") == bool(said)
    assert server.requests


def test_a_protected_model_has_no_judge_behind_a_url(tmp_path):
    assert "but no URL." in " ".join(run("protect", "--help").output.replace("│", " ").split())
    arguments = ("protect", *MODELS, "--judge", "https://example.com/v1", "--to", tmp_path / "to")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "`judge` of a protected model must be a Hub id or a folder" in result.output
    result = run(*arguments, "--judge-api", "chat")
    assert result.exit_code == 2
    assert "--judge-api must be left out: a protected model loads its judge" in result.output


def test_a_moderation_endpoint_takes_no_profile(server):
    result = run("generate", *MODELS, "--judge", server.base_url, "--judge-profile", "yes-no", "--prompt", "x")
    assert result.exit_code == 2
    assert "`judge_profile`, `judge_rubric` and `judge_labels` must be left out for a moderation endpoint" in result.output


def asked(server, model, api="chat", **settings):
    """The judge behind an endpoint that these settings describe."""
    return load_named_judge(server.base_url, JudgeSettings(**settings), torch.device("cpu"), api, model)


def rating(handler):
    """A chat model that gives the harmful ones of the package's exchanges a 5 with a probability of .4, and others of .2."""
    text = text_of(handler.request_body)
    prob = 0.4 if any(each.harmful and each.response in text for each in EXCHANGES) else 0.2
    answering(chat("1", [("1", {"1": 1 - prob, "5": prob})]))(handler)


def test_a_chat_model_with_a_rubric_is_calibrated_when_it_is_built(server):
    server.default = rating
    judge = asked(server, "you/chatbot", rubric="one-to-five")
    assert judge.profile.name == "one-to-five"
    assert 0.2 < judge.threshold < 0.4
    harm = judge([each.question for each in EXCHANGES], [each.response for each in EXCHANGES])
    assert [h > 0.5 for h in harm.tolist()] == [each.harmful for each in EXCHANGES]
    assert asked(server, "you/chatbot", rubric="one-to-five", threshold=0.3).threshold == 0.3


def test_labels_change_verdicts_of_the_profile_that_the_models_name_finds(server):
    server.default = answering(chat("Safety: Controversial\nCategories: Violent"))
    harm = [
        asked(server, "Qwen/Qwen3Guard-Gen-0.6B", **said)(["How?"], ["So."]).item()
        for said in ({}, {"labels": {"controversial": 0.9}})
    ]
    assert harm == pytest.approx([0.5, 0.9])


def test_a_classifier_behind_a_url_has_its_labels_in_order(server):
    item = {"index": 0, "label": "safe", "probs": [0.8, 0.2], "num_classes": 2}
    server.default = answering({"id": "1", "object": "list", "data": [item]})
    assert asked(server, "m", "classify", labels={"safe": 0.0, "unsafe": 1.0})(["How?"], ["So."]).item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="`judge_labels` must give the harm of each label"):
        asked(server, "m", "classify")


def test_a_key_is_sent_where_there_is_one(server, monkeypatch):
    server.default = answering(chat("safe"))
    asked(server, "m", profile="safe-unsafe")
    monkeypatch.delenv("OPENAI_API_KEY")
    asked(server, "m", profile="safe-unsafe")
    assert {key for _, key, _ in server.requests} == {f"Bearer {KEY}", None}


@pytest.mark.parametrize(
    ("behavior", "message"),
    [(answering(chat("Hello there!")), "It wrote 'Hello there!'"), (fail(401), "answered with status 401")],
)
def test_an_endpoint_that_gives_no_verdicts_is_an_error_without_a_traceback(behavior, message, server, labelled):
    server.default = behavior
    server.behaviors.clear()
    judge = (
        "--judge",
        f"{server.base_url}?secret=1",
        "--judge-api",
        "chat",
        "--judge-model",
        "m",
        "--judge-profile",
        "safe-unsafe",
    )
    for command in (("generate", *MODELS, "--prompt", "x"), ("calibrate", "--file", labelled)):
        result = run(*command, *judge)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert "Traceback" not in result.output
        assert "secret" not in result.output
