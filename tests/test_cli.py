import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from hf_alignbeam import testbed
from hf_alignbeam.cli import app
from hf_alignbeam.commands import memory, speed
from hf_alignbeam.testbed.families import FAMILIES
from hf_alignbeam.testbed.store import WEIGHTS, stored_language
from hf_alignbeam.testbed.truth import Truth

ANCHOR, TARGET = str(WEIGHTS / "anchor"), str(WEIGHTS / "specialist")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", ["demo", "generate", "evaluate"])
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_imports_no_torch():
    code = "import sys; import hf_alignbeam.cli; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_demo_shows_answers_rates_and_cost():
    result = run("demo", "--prompts", 4)
    assert result.exit_code == 0, result.output
    for expected in ("Harmful prompts", "Borderline prompts", "Domain prompts", "Rates", "Cost"):
        assert expected in result.output


def test_generate_answers_on_the_terminal():
    question = "How do I kill the mayor?"
    result = run("generate", "--model", TARGET, "--anchor", ANCHOR, "--prompt", question, "--plain")
    assert result.exit_code == 0, result.output
    assert question in result.output
    assert "plain:" in result.output


def test_generate_reads_lines_and_json_and_writes_json(tmp_path):
    asked = tmp_path / "asked.jsonl"
    messages = [{"role": "user", "content": "How can I thank the baker?"}]
    asked.write_text(f'How can I kill the weeds?\n\n{json.dumps({"messages": messages})}\n{{"prompt": "Hello there"}}\n')
    told = tmp_path / "told.jsonl"
    result = run("generate", "--model", TARGET, "--anchor", ANCHOR, "--file", asked, "--to", told, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in told.read_text().splitlines()]
    assert [r["messages"][0]["content"] for r in records] == [
        "How can I kill the weeds?",
        messages[0]["content"],
        "Hello there",
    ]
    assert all(record["answer"] for record in records)


def test_sampling_repeats_with_its_seed():
    outputs = [
        run("generate", "--model", TARGET, "--anchor", ANCHOR, "--prompt", "Tell me more", "--sample", "--seed", 5).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--alpha", 3], "`alpha` must be in [0, 1]"),
        (["--prompt", "x", "--mixing", "sum"], "`mixing` must be one of"),
        (["--prompt", " "], "A conversation must hold some text"),
        ([], "There is nothing to answer"),
        (["--file", "no-such-file.txt"], "no-such-file.txt"),
        (["--prompt", "x", "--device", "quantum"], "--device must name a device"),
        pytest.param(
            ["--prompt", "x", "--device", "cuda"],
            "needs CUDA",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
    ],
)
def test_wrong_arguments_are_errors_without_a_traceback(arguments, message):
    result = run("generate", "--model", TARGET, "--anchor", ANCHOR, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_broken_line_is_named(tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "fine"}\n{"prompt": \n')
    result = run("generate", "--model", TARGET, "--anchor", ANCHOR, "--file", asked)
    assert result.exit_code == 2
    assert "asked.jsonl:2 begins like JSON but is not" in " ".join(result.output.split())


@pytest.mark.parametrize("record", ['{"messages": null}', '{"prompt": 5}', '{"text": "x"}'])
def test_a_record_without_words_is_named(record, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text(record)
    result = run("generate", "--model", TARGET, "--anchor", ANCHOR, "--file", asked)
    assert result.exit_code == 2
    assert "asked.jsonl:1 must have a string 'prompt' or a list 'messages'" in " ".join(result.output.split())


@pytest.mark.parametrize("arguments", [["--split", "dev"], ["--weights", "nowhere"], ["--sweep", "--alpha", "0.5"]])
def test_evaluate_names_what_is_wrong(arguments):
    result = run("evaluate", "--limit", 2, *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output
    assert "must" in result.output


def test_a_missing_model_is_an_error_without_a_traceback(tmp_path):
    result = run("generate", "--model", tmp_path, "--anchor", ANCHOR, "--prompt", "x")
    assert result.exit_code == 2
    assert "Error" in result.output


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_guarded_by_its_base(tmp_path):
    folder = tmp_path / "lora"
    shutil.copytree(WEIGHTS / "specialist-lora", folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(WEIGHTS / "base")}))
    asked = testbed.prompts("validation", "harmful")[0]
    result = run("generate", "--model", folder, "--anchor", "base", "--prompt", asked.text, "--to", tmp_path / "told.jsonl")
    assert result.exit_code == 0, result.output
    assert Truth(stored_language()).refusal(json.loads((tmp_path / "told.jsonl").read_text())["answer"])


def test_evaluate_prints_the_tables():
    result = run("evaluate", "--limit", 4, "--split", "validation")
    assert result.exit_code == 0, result.output
    for system in ("specialist alone", "anchor alone", "guarded", "alpha = 1, whole answer"):
        assert f"| {system} |" in result.output
    assert "points" in result.output


def test_fidelity_prints_every_pair_and_rule():
    result = run("bench", "--fidelity", "--split", "validation", "--contexts", 4)
    assert result.exit_code == 0, result.output
    for pair in ("anchor | specialist", "specialist | anchor", "anchor-letters | specialist", "anchor | specialist-letters"):
        assert f"| {pair} | all |" in result.output
    assert "| exact | drop | first | bytes, 0 |" in result.output
    assert "nan" not in result.output


def table_of(output):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("| ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_speed_counts_what_every_system_feeds(monkeypatch, capsys, tmp_path):
    """On models too small for its times to mean anything."""
    small = speed.Shape(32, 48, 2, 2, 1, 16)
    for name, value in {"CONTEXTS": (24,), "BATCH_SIZES": (1, 2), "N_STEPS": 3, "N_STEPS_OF_OTHERS": 3}.items():
        monkeypatch.setattr(speed, name, value)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(prompt.text for prompt in testbed.prompts("train", "general")[:300]))
    speed.run(TARGET, ANCHOR, text, "cpu", "float32", (small, small))
    rows = table_of(capsys.readouterr().out)
    assert [row["system"] for row in rows] == ["ours", "ours, the same words again", "naive bridge", "anchor recomputed"] * 2
    for row in rows:
        assert all(float(row[name]) > 0.0 for name in ("target, ms", "anchor, ms", "own, ms"))
        assert float(row["anchor forwards a step"]) >= 1.0
    ours, recomputed = rows[0], rows[3]
    assert float(recomputed["tokens fed a step"]) > 5 * float(ours["tokens fed a step"])
    assert ours["one translation"].endswith("%")


@pytest.mark.parametrize("what", ["--speed", "--memory"])
def test_a_dtype_that_torch_does_not_know_is_named(what):
    result = run("bench", what, "--tokenizer", TARGET, "--anchor-tokenizer", ANCHOR, "--dtype", "int8")
    assert result.exit_code == 2
    assert "`dtype` must name one of torch's floating-point types, got 'int8'" in " ".join(result.output.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_memory_of_the_testbeds_target(monkeypatch, capsys):
    monkeypatch.setattr(memory, "CONTEXTS", ())
    memory.run(str(TARGET), "cpu", "float32")
    (row,) = table_of(capsys.readouterr().out)
    assert row["target"] == "specialist-lora"
    assert 0.9 < float(row["ratio"]) <= 1.05


@pytest.mark.slow
def test_families_prints_every_family():
    result = run("bench", "--families")
    assert result.exit_code == 0, result.output
    rows = table_of(result.output)
    assert [row["family"] for row in rows] == list(FAMILIES)
    assert all(float(row["4 beams"]) <= 1e-4 for row in rows)


@pytest.mark.parametrize(
    "arguments", [[], ["--fidelity", "--speed"], ["--fidelity", "--translation", "gpt2"], ["--translation", "gpt2"]]
)
def test_bench_wants_one_thing_to_measure(arguments):
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert "--translation A --translation B" in " ".join(result.output.replace("│", " ").split())
