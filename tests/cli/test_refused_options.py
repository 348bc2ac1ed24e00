"""Options that are wrong are refused by name before any model is loaded for them."""

import json

import pytest
from helpers.commands import run

from hf_alignbeam.testbed.model_store import WEIGHTS

#: No such models: an error about anything else comes before they are loaded.
NOWHERE = ["--model", "nowhere", "--judge", "nowhere"]
GUARDED = ["--prompt", "x", "--anchor", "nowhere"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", 2], "`threshold` must be in [0, 1], got 2.0"),
        (["--alpha", "nan"], "`alpha` must be in [0, 1] for the rule 'log_linear', got nan"),
        (["--mixing", "sum"], "`mixing` must be one of"),
        (["--n-steps", 0], "`alpha` and `n_steps` must be above 0"),
        (["--refusal", " "], "`refusal` must hold some text"),
        (["--set", "refusal=3"], "`refusal` must hold some text, got 3"),
        (["--audit", __file__], "`audit` must be new, or as this wrote it before"),
        (["--to", __file__], "--to must be new, or as this wrote it before"),
        (
            ["--anchor", WEIGHTS / "anchor", "--to", WEIGHTS / "anchor" / "new.jsonl"],
            "--to must lie outside the folder of --anchor",
        ),
        (["--num-candidates", 0], "`num_candidates` must be a whole number of at least 1, got 0"),
        (["--audit", WEIGHTS], "`audit` must name a file, got the folder"),
        (["--set", "judge_after=x"], "`judge_after` must be a whole number of at least 1, got 'x'"),
        (["--set", "judge_timeout=0"], "`judge_timeout` must be above 0 seconds and finite, got 0"),
        (["--set", "template={{ bad"], "`template` must be a Jinja template"),
        (["--set", "on_fail=x"], "`on_fail` must be callable"),
        (["--set", "nothing=1"], "--set must name a setting of AlignBeam"),
        (["--sample", "--seed", -5], "Invalid value for '--seed'"),
        (["--sample", "--seed", 2**32], "Invalid value for '--seed'"),
    ],
)
def test_generate_refuses_wrong_settings_before_it_loads(options, message):
    result = run("generate", *NOWHERE, *GUARDED, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_generate_does_not_write_its_answers_over_its_prompts(tmp_path):
    """A file of earlier answers may be one of prompts."""
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "x"}], "answer": "y"}) + "\n")
    before = (tmp_path / "own.jsonl").read_bytes()
    result = run("generate", *NOWHERE, *GUARDED, "--file", tmp_path / "own.jsonl", "--to", tmp_path / "own.jsonl")
    assert result.exit_code == 2
    assert "--to must name another file than --file" in " ".join(result.output.split())
    assert (tmp_path / "own.jsonl").read_bytes() == before


@pytest.mark.parametrize(("one", "other"), [("--to", "--audit"), ("--audit", "--explain"), ("--to", "--explain")])
def test_generate_does_not_write_two_things_into_one_file(one, other, tmp_path):
    result = run("generate", *NOWHERE, *GUARDED, one, tmp_path / "x.png", other, tmp_path / "x.png")
    assert result.exit_code == 2
    assert f"{other} must name another file than {one}" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["report.md", "report.json"])
def test_evaluate_does_not_write_over_a_report_that_no_run_wrote(name, tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello\n")
    recipe = {"model": "nowhere", "prompts": [{"source": str(tmp_path / "prompts.txt"), "harmful": False}], "systems": ["plain"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / name).write_text("My thesis.")
    result = run("evaluate", tmp_path / "recipe.yaml", "--to", tmp_path)
    assert result.exit_code == 2
    assert f"holds {name} without answers. Name another one." in " ".join(result.output.split())
    assert (tmp_path / name).read_text() == "My thesis."


def test_generate_without_a_judge_refuses_wrong_settings_before_it_loads():
    result = run("generate", "--model", "nowhere", *GUARDED, "--alpha", 3)
    assert result.exit_code == 2
    assert "`alpha` must be in [0, 1] for the rule 'log_linear', got 3.0" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mu", -1], "`mu` must be at least 0, got -1.0"),
        (["--threshold", 2], "`threshold` must be in [0, 1), got 2.0"),
        (["--max-calls", 0], "`max_calls` must be a whole number of at least 1"),
        (["--set", "n_probes=x"], "`n_probes` must be a whole number of at least 1, got 'x'"),
        (["--set", "first=false"], "`first` must be True if the search's center does not move"),
        (["--set", "seed=x"], "`seed` must be a whole number, got 'x'"),
    ],
)
def test_steer_refuses_wrong_settings_before_it_loads(options, message, tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello\n")
    result = run("steer", *NOWHERE, "--file", tmp_path / "prompts.txt", "--to", tmp_path / "to", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_steer_checks_settings_together_with_those_of_its_preset(tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello\n")
    given = ["--file", tmp_path / "prompts.txt", "--to", tmp_path / "to", "--preset", "tsa"]
    moved = run("steer", *NOWHERE, *given, "--set", "first=false")
    assert moved.exit_code == 2
    assert "`first`" not in moved.output  # the preset's `eta` moves the center: only the model is missing
    assert "`first` must be True" in run("steer", *NOWHERE, *given, "--eta", 0).output


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"system": "anchor-logits", "alpha": 2.0}, "`alpha` must be in [0, 1]"),
        ({"system": "anchor-logits", "preset": "none"}, "`preset` must be one of paper, safe_decoding, contrastive, got 'none'"),
        ({"system": "alignbeam", "judge_after": "x"}, "`judge_after` must be a whole number of at least 1, got 'x'"),
        ({"system": "alignbeam", "nothing": 1}, "The settings of the system 'alignbeam' must be arguments of its class"),
        ({"system": "alignbeam", "guard": {}}, "The settings of the system 'alignbeam' must be arguments of its class"),
        ({"system": "alignbeam", "on_fail": {"mu": -1.0}}, "`mu` must be at least 0, got -1.0"),
        ({"system": "alignbeam", "on_fail": "x"}, "`on_fail` must hold the settings of a system of the kind steerer, got 'x'"),
        ({"system": "steerer", "preset": "tsa", "eta": 0.0}, "`first` must be True if the search's center does not move"),
        ({"system": "output-filter", "threshold": True}, "`threshold` must be in [0, 1], got True"),
        ({"system": "output-filter", "guard": {"n_steps": -1}}, "`n_steps` must be a whole number of at least 0, got -1"),
        ({"system": "plain", "alpha": 0.5}, "A system of this kind must have no settings but none, got `alpha`"),
    ],
)
def test_evaluate_refuses_wrong_settings_before_it_loads(system, message, tmp_path):
    named = dict.fromkeys(("model", "anchor", "judge"), "nowhere")
    (tmp_path / "recipe.yaml").write_text(json.dumps({**named, "prompts": ["nowhere.jsonl"], "systems": [system]}))
    result = run("evaluate", tmp_path / "recipe.yaml")
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--threshold", 2], "`threshold` must"),
        (["--set", "n_steps=x"], "`n_steps` must"),
        (["--set", "refusal=3"], "`refusal` must"),
        (["--set", "foo=1"], "--set must name a setting of AlignBeam (num_candidates, threshold, judge_after,"),
        (["--set", "judge_revision=x"], "--set must name a setting of AlignBeam"),
        (["--anchor", "base"], "`anchor` of a protected model must be a Hub id or a folder, got 'base'"),
        (["--private"], "--private must come with --push"),
    ],
)
def test_protect_refuses_wrong_settings_before_it_writes(option, message, tmp_path):
    result = run("protect", *NOWHERE, "--anchor", "nowhere", "--to", tmp_path / "to", *option)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "to").exists()


def test_publish_refuses_private_without_a_push(tmp_path):
    result = run("publish", "alignbeam", "--to", tmp_path / "to", "--private")
    assert result.exit_code == 2
    assert "--private must come with --push" in result.output
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("place", ["--model", "--anchor"])
def test_a_classifier_in_place_of_a_decoder_is_named_in_one_line(place):
    named = {"--model": WEIGHTS / "specialist", "--anchor": WEIGHTS / "anchor", place: WEIGHTS / "judge-cls"}
    result = run("generate", "--prompt", "x", *(part for pair in named.items() for part in pair))
    assert result.exit_code == 2
    _, _, error = result.output.partition("Error: ")
    assert error.startswith(f"{WEIGHTS / 'judge-cls'} must be a decoder that generates text, got another kind of model.")
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--model", "--anchor"])
def test_a_model_that_is_not_there_is_named(option, tmp_path):
    models = {"--model": WEIGHTS / "specialist", "--anchor": WEIGHTS / "anchor", option: tmp_path / "none"}
    result = run("generate", *(part for pair in models.items() for part in pair), "--prompt", "x")
    assert result.exit_code == 2
    assert f"{tmp_path / 'none'} could not be loaded, and nothing is guarded without it" in result.output.replace("\n", "")
