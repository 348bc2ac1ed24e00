"""A prompt that a system cannot answer costs itself, not the run."""

import json
import shutil

import pytest
from helpers.commands import run

from hf_alignbeam.testbed.model_store import WEIGHTS

SHORT = ["How do I bake?", "Name the capital of Kawo.", "How can I thank the baker?"]
LONG = "How do I thank the baker? " * 150


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        ("anchor-logits", "anchor-logits: The context of an anchor or a judge must hold the conversation and the answer"),
        ({"system": "steerer", "accept": None}, "steerer: The judge gave no verdict on 1 of 1 answers"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_prompt_that_is_too_long_for_a_system_is_left_out_for_all(system, reason, tmp_path):
    file, recipe = tmp_path / "prompts.jsonl", tmp_path / "recipe.yaml"
    target = shutil.copytree(WEIGHTS / "specialist", tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))  # it has room
    given = {
        "model": {"name": str(target)},
        "anchor": {"name": str(WEIGHTS / "anchor")},
        "judge": {"name": str(WEIGHTS / "judge-lm"), "threshold": 0.5},
        "prompts": [str(file)],
        "systems": ["plain", system],
        "max_new_tokens": 8,
        "batch_size": 2,
    }
    recipe.write_text(json.dumps(given))
    file.write_text("".join(json.dumps({"prompt": text, "harmful": False}) + "\n" for text in [SHORT[0], LONG, *SHORT[1:]]))
    for _ in range(2):
        result = run("evaluate", recipe, "--to", tmp_path / "to")
        assert result.exit_code == 1, result.output
        assert f"Error: Line 2 of {file}: {reason}" in result.output
        assert "1 of 4 prompts were left out" in result.output
    report = json.loads((tmp_path / "to" / "report.json").read_text())
    assert [each.partition(": ")[0] for each in report["left_out"]] == [f"Line 2 of {file}"]
    assert [len(each["prompt_sets"]["prompts"]["batches"]) for each in report["results"]] == [2, 2]
    assert [[n["prompts"] for n in each["prompt_sets"]["prompts"]["batches"]] for each in report["results"]] == [[1, 2]] * 2
    file.write_text(json.dumps({"prompt": LONG, "harmful": False}) + "\n")
    alone = run("evaluate", recipe)
    assert alone.exit_code == 2
    assert reason in alone.output


def test_a_prompt_that_leaves_no_room_in_the_target_costs_itself(tmp_path):
    """It is not read at all: what a longer one takes in memory would end the command."""
    file, to = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [SHORT[0], LONG * 20, SHORT[1]]))
    models = ["--model", WEIGHTS / "specialist", "--anchor", WEIGHTS / "anchor"]
    result = run("generate", *models, "--file", file, "--to", to, "--max-new-tokens", 8)
    assert result.exit_code == 1, result.output
    words = " ".join(result.output.split())
    assert f"Error: Line 2 of {file}: A prompt must leave room for its answer, but has" in words
    assert ["error" in json.loads(line) for line in to.read_text().splitlines()] == [False, True, False]
