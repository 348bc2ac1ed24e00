"""A URL names a judge at every command that asks one itself."""

import json

import pytest
from helpers.commands import run
from helpers.moderation_server import moderation_server, respond, scores_body

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
    with moderation_server(monkeypatch) as server:
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
    assert "| default (as it is) | 0.5 | 0.0 % " in result.output
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
    assert "`judge_profile` must be left out for a moderation endpoint" in result.output
