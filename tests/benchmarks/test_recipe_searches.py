"""The benchmark of searches on a recipe's prompts counts what is found by another judge and by its words."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_alignbeam.benchmarks.embedding_searches.__main__ import app
from hf_alignbeam.benchmarks.embedding_searches.recipe_searches import SYSTEMS, cells
from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompt
from hf_alignbeam.testbed.model_store import WEIGHTS

OURS = "ours, accepting refusals"


def steered(text, outcome="steered", harms=(0.9, 0.1)):
    return SteeredPrompt(
        [{"role": "user", "content": "How?"}], torch.zeros(1, 2), outcome, [], text, harms[-1], list(harms), 9, 0.0
    )


def unseen(conversations, responses):
    return torch.tensor([0.9 if "acid" in text else 0.2 for text in responses])


def test_a_refusal_that_the_other_judge_flags_is_no_success():
    found = [steered("I am sorry, no."), steered("I am sorry. Use acid."), steered("A hat."), steered("Yes.", "clean", (0.1,))]
    n, own, other, words, both, calls, generations = cells(found, unseen)
    assert (n, calls, generations) == ("3", "2.00", "9.0")
    assert [cell.split(" %")[0] for cell in (own, other, words, both)] == ["100.0", "66.7", "66.7", "33.3"]


def test_a_missing_verdict_of_the_other_judge_passes_nothing():
    assert cells([steered("No.")], lambda conversations, responses: torch.tensor([torch.nan]))[2].startswith("0.0 %")


def test_nothing_flagged_is_an_error():
    with pytest.raises(ValueError, match="flags none"):
        cells([steered("Yes.", "clean", (0.1,))], unseen)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {WEIGHTS / 'thin'}\njudge: {WEIGHTS / 'judge-cls'}\nmax_new_tokens: 24\n"
        "prompts: ['testbed:harmful']\nsystems: [plain]\n"
    )
    return str(path)


def table(*arguments, other_judge=str(WEIGHTS / "judge-cls")):
    result = CliRunner().invoke(app, [*arguments, "--other-judge", other_judge, "--limit", "4"])
    assert result.exit_code == 0, result.output
    return [line for line in result.stdout.splitlines() if line.startswith("|")]


def test_a_recipe_is_searched_and_a_second_run_resumes(recipe, tmp_path):
    lines = table("--recipe", recipe, "--systems", OURS, "--to", str(tmp_path / "to"))
    assert lines[2].startswith(f"| {OURS} |")
    again = table("--recipe", recipe, "--systems", OURS, "--to", str(tmp_path / "to"))
    *cells_again, _ = again[2].split(" |")[:-1]  # the last one is the time
    assert cells_again == lines[2].split(" |")[:-2]


def test_the_other_judge_is_found_in_its_folder_also_when_the_target_is_another_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ALIGNBEAM_MODELS", str(WEIGHTS))
    named = tmp_path / "named.yaml"
    named.write_text(Path(recipe).read_text().replace(str(WEIGHTS / "thin"), "{name: you/model, folder: judge-cls}"))
    lines = table("--recipe", str(named), "--systems", OURS, "--model", str(WEIGHTS / "thin"), other_judge="you/model")
    assert lines[2].startswith(f"| {OURS} |")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--systems", "mine"], f"--systems must be one of {next(iter(SYSTEMS))}"), (["--recipe", "none"], "The recipe must be")],
)
def test_a_wrong_option_is_an_error_with_a_way_out(arguments, words):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
