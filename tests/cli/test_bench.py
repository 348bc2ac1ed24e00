"""`alignbeam bench`: what each measurement prints."""

import pytest
from helpers.commands import run

from hf_alignbeam import testbed
from hf_alignbeam.benchmarks import memory, step_cost, strategy_cost
from hf_alignbeam.benchmarks.pairs import build_cost, steered_steps
from hf_alignbeam.benchmarks.realistic_models import Shape
from hf_alignbeam.benchmarks.tiny_families import FAMILIES
from hf_alignbeam.build_cache.disk import FOLDER_VARIABLE
from hf_alignbeam.testbed.model_store import WEIGHTS

ANCHOR, TARGET = str(WEIGHTS / "anchor"), str(WEIGHTS / "specialist")


def table_of(output):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line.startswith("| ")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.fixture
def decoding_rows(monkeypatch, capsys, tmp_path):
    """The lines of `bench --decoding` for a batch, by prompts and system, on models too small for its times to mean anything."""

    def run_batch(n_rows):
        small = Shape(32, 48, 2, 2, 1, 16)
        for name, value in {"BATCH_SIZES": (n_rows,), "N_CONTEXT": 24, "N_NEW_TOKENS": 24, "N_RUNS": 1, "LATENCY": 0.02}.items():
            monkeypatch.setattr(strategy_cost, name, value)
        text = tmp_path / "text.txt"
        text.write_text(" ".join(prompt.text for prompt in testbed.prompts("train", "general")[:300]))
        strategy_cost.run(TARGET, ANCHOR, text, "cpu", "float32", (small, small, small))
        return {(row["prompts"], row["system"]): row for row in table_of(capsys.readouterr().out)}

    return run_batch


def test_decoding_counts_the_tokens_that_every_system_feeds(decoding_rows):
    rows = decoding_rows(2)
    plain, unflagged = rows["-", "plain generate"], rows["unflagged", "ours"]
    assert unflagged["target row-tokens"] == plain["target row-tokens"]
    assert unflagged["anchor forwards"] == "0"
    assert int(unflagged["judge calls"]) == 2
    assert int(unflagged["judge forwards"]) <= 4 * 2  # and none for what its random weights would rather write
    early = rows["unflagged", f"ours, judged after {strategy_cost.EARLY}"]
    assert {row["first text, s"] for row in rows.values()} == {"-"}  # a batch is not streamed
    assert early["target row-tokens"] == plain["target row-tokens"]
    flagged = rows["flagged", "ours"]
    assert (
        int(plain["target row-tokens"])
        < int(flagged["target row-tokens"])
        < int(rows["unflagged", "as printed"]["target row-tokens"])
    )
    for away in ("ours, judge 0.02 s away", "the same, waited for"):  # what is written ahead is not written twice
        assert rows["unflagged", away]["target row-tokens"] == plain["target row-tokens"]
    assert int(rows["nothing passes", "ours"]["target forwards"]) < int(plain["target forwards"]) + 16


def test_decoding_shows_when_the_first_text_is_streamed(decoding_rows):
    rows = decoding_rows(1)
    assert len(rows) == 8
    for row in rows.values():
        assert 0.0 <= float(row["first text, s"]) <= float(row["seconds"]) + 0.1


def test_fidelity_prints_every_pair_and_rule():
    result = run("bench", "--fidelity", "--split", "validation", "--contexts", 4)
    assert result.exit_code == 0, result.output
    for pair in ("anchor | specialist", "specialist | anchor", "anchor-letters | specialist", "anchor | specialist-letters"):
        assert f"| {pair} | all |" in result.output
    assert "| exact | drop | first | bytes, 0 |" in result.output
    assert "nan" not in result.output


def test_speed_counts_the_tokens_that_every_system_feeds(monkeypatch, capsys, tmp_path):
    """On models too small for its times to mean anything."""
    small = Shape(32, 48, 2, 2, 1, 16)
    for name, value in {"CONTEXTS": (24,), "BATCH_SIZES": (1, 2), "N_STEPS": 3, "N_STEPS_OF_OTHERS": 3}.items():
        monkeypatch.setattr(step_cost, name, value)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(prompt.text for prompt in testbed.prompts("train", "general")[:300]))
    step_cost.run(TARGET, ANCHOR, text, "cpu", "float32", (small, small))
    rows = table_of(capsys.readouterr().out)
    assert [row["system"] for row in rows] == ["ours", "ours, the same words again", "naive bridge", "anchor recomputed"] * 2
    for row in rows:
        assert all(float(row[name]) > 0.0 for name in ("target, ms", "anchor, ms", "own, ms"))
        assert float(row["anchor forwards a step"]) >= 1.0
    ours, recomputed = rows[0], rows[3]
    assert float(recomputed["tokens fed a step"]) > 5 * float(ours["tokens fed a step"])
    assert ours["one translation"].endswith("%")


def test_fidelity_of_a_real_pair_is_against_both_halves_of_an_estimate():
    result = run("bench", "--fidelity", "--model", TARGET, "--anchor", ANCHOR, "--contexts", 4)
    assert result.exit_code == 0, result.output
    (row,) = table_of(result.output)
    assert int(row["contexts"]) + int(row["left out"]) == 4
    distance = {name: float(row[name].split()[0]) for name in ("between two halves", "first", "bytes, 4")}
    assert distance["bytes, 4"] <= distance["between two halves"] + 0.1 < distance["first"]


def test_speed_of_a_real_pair_is_against_both_models_alone(monkeypatch, capsys):
    for name, value in {"BATCH_SIZES": (1, 2), "N_STEPS": 3, "N_PROMPTS": 2}.items():
        monkeypatch.setattr(steered_steps, name, value)
    steered_steps.run(TARGET, ANCHOR, "cpu", "float32")
    rows = table_of(capsys.readouterr().out)
    assert [(row["batch"], row["words"]) for row in rows] == [(n, words) for n in "12" for words in ("first use", "known")]
    for row in rows:
        both = float(row["target alone, ms"]) + float(row["anchor alone, ms"])
        assert float(row["times target + anchor"]) == pytest.approx(float(row["step, ms"]) / both, rel=0.1)
        assert float(row["anchor forwards a step"]) >= 1.0
    assert run("bench", "--speed", "--model", TARGET).exit_code == 2
    assert run("bench", "--speed", "--compiled").exit_code == 2


def test_build_measures_two_guards_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    costs = build_cost.measured_costs(str(TARGET), str(ANCHOR), "cpu", "float32", Shape(32, 48, 2, 2, 1, 16))
    assert [len(cells) + 1 for cells in costs] == [len(build_cost.COLUMNS)] * 2
    assert all(float(most) >= float(kept) for _, _, kept, most in costs)


@pytest.mark.slow
def test_build_measures_a_guard_first_again_and_in_a_later_process(capsys):
    build_cost.run(TARGET, ANCHOR, "cpu", "float32", Shape(32, 48, 2, 2, 1, 16))
    output = capsys.readouterr().out
    rows = table_of(output)
    assert [row["guard"] for row in rows] == [name for names in build_cost.GUARDS for name in names]
    assert float(rows[1]["CPU seconds"]) < float(rows[0]["CPU seconds"])
    assert all(float(row["memory at most, MiB"]) >= float(row["memory kept, MiB"]) for row in rows)
    assert "1,264 tokens, the anchor 760" in " ".join(output.split())
    assert "Kept on disk: 0 KiB" not in output


@pytest.mark.parametrize("what", ["--speed", "--memory", "--build"])
def test_an_error_names_an_unknown_dtype(what):
    result = run("bench", what, "--tokenizer", TARGET, "--anchor-tokenizer", ANCHOR, "--dtype", "int8")
    assert result.exit_code == 2
    assert "`dtype` must name one of torch's floating-point types, got 'int8'" in " ".join(result.output.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_memory_of_the_testbeds_target(monkeypatch, capsys):
    monkeypatch.setattr(memory, "CONTEXTS", ())
    memory.run(str(TARGET), "cpu", "float32")
    (row,) = table_of(capsys.readouterr().out.partition("| a forward of one token")[0])
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
def test_bench_needs_exactly_one_measurement(arguments):
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert "--translation A --translation B" in " ".join(result.output.replace("│", " ").split())
