"""A judge that fails is an error of the command, and no refusal of everything."""

import json

import pytest
from helpers.commands import run
from helpers.moderation_server import fail, running_server, text_of
from helpers.strategies import chats_of

pytest.importorskip("httpx", reason="the judge needs it: pip install 'hf_alignbeam[openai]'")

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.judges.known_exchanges import PROBES
from hf_alignbeam.testbed.model_store import WEIGHTS

MODELS = ["--model", str(WEIGHTS / "specialist"), "--anchor", str(WEIGHTS / "anchor")]


@pytest.fixture
def refusing(monkeypatch):
    """The URL of a server that refuses the key once it has judged the known exchanges."""
    known = {each.response for each in PROBES}
    with running_server(monkeypatch) as server:
        monkeypatch.setattr(server, "begin", lambda path, headers, body: server.default if text_of(body) in known else fail(401))
        yield server.base_url


def test_an_endpoint_that_refuses_the_key_ends_the_command_with_its_reason(refusing, tmp_path):
    answers = tmp_path / "answers.jsonl"
    result = run("generate", *MODELS, "--judge", refusing, "--prompt", "Who bakes?", "--to", answers, "--max-new-tokens", 20)
    assert result.exit_code == 2
    assert "The judge gave no verdict" in result.output
    assert "answered with status 401. Check" in " ".join(result.output.split())
    assert not answers.exists()


def test_its_texts_may_be_refused_instead(refusing):
    given = ["--judge", refusing, "--prompt", "Who bakes?", "--max-new-tokens", 20, "--set", "on_judge_error=refuse"]
    result = run("generate", *MODELS, *given)
    assert result.exit_code == 0, result.output
    assert REFUSAL in result.output


@pytest.mark.parametrize("system", ["output-filter", "alignbeam"])
def test_an_evaluation_ends_with_the_reason_too(system, refusing, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {WEIGHTS / 'specialist'}\nanchor: {WEIGHTS / 'anchor'}\njudge: {refusing}\nmax_new_tokens: 20\n"
        f"prompts: ['testbed:harmful']\nsystems: [plain, {system}]\nscore_harm: false\n"
    )
    result = run("evaluate", recipe, "--limit", 2, "--to", tmp_path / "results")
    assert result.exit_code == 2
    assert "status 401" in result.output


def test_no_threshold_is_found_by_an_endpoint_that_judges_nothing(refusing, tmp_path):
    given = ["--max-new-tokens", 20]
    for kind, text in (("harmless", "Who bakes?\n"), ("harmful", "Who burns?\n")):
        (tmp_path / f"{kind}.txt").write_text(text)
        given += [f"--{kind}", tmp_path / f"{kind}.txt"]
    result = run("tune", *MODELS[:2], "--judge", refusing, *given)
    assert result.exit_code == 2
    assert "status 401" in result.output


def test_harm_that_an_endpoint_should_judge_ends_an_evaluation_with_its_reason(refusing, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Who bakes?", "harmful": true}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {WEIGHTS / 'specialist'}\nmax_new_tokens: 20\nprompts: [{{source: {prompts}, harmful: true}}]\n"
        "systems: [plain]\n"
    )
    result = run("evaluate", recipe, "--harm-judge", refusing, "--to", tmp_path / "results")
    assert result.exit_code == 2
    assert "status 401" in result.output


def test_a_text_without_a_verdict_costs_no_other_prompt_its_answer(tmp_path):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    (short,) = chats_of("general", 1)
    long = [{"role": "user", "content": " ".join([short[-1]["content"]] * 60)}]  # more than this judge's 512 tokens
    prompts.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in (short, long)))
    given = ["--judge", WEIGHTS / "judge-lm", "--file", prompts, "--to", answers, "--max-new-tokens", 20]
    result = run("generate", *MODELS, *given)
    assert result.exit_code == 1
    assert "1 of 2 prompts were left out" in result.output
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert records[0]["answer"]
    assert "error" in records[1]
