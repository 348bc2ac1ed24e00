"""The script for one card: its laws on CUDA where there is one, and all of it in small on the CPU."""

import re

import pytest
import torch
from typer.testing import CliRunner

from hf_alignbeam.benchmarks import strategy_cost
from hf_alignbeam.benchmarks.gpu import __main__ as script
from hf_alignbeam.benchmarks.gpu import laws
from hf_alignbeam.benchmarks.gpu.costs import TINY, choose_shapes
from hf_alignbeam.benchmarks.gpu.laws import LawResult
from hf_alignbeam.testbed.model_store import WEIGHTS


def run(*arguments):
    return CliRunner().invoke(script.app, [str(argument) for argument in arguments])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("check", [laws.processor_laws, laws.strategy_laws, laws.search_laws])
def test_every_law_holds_on_a_card(check, dtype):
    results = list(check(laws.load_testbed(torch.device("cuda"), dtype)))
    assert results
    assert [result for result in results if not result.holds] == []


def test_a_law_holds_where_every_case_does_and_there_is_one():
    assert LawResult("law", "mode", 3, 3).holds
    assert not LawResult("law", "mode", 2, 3).holds
    assert not LawResult("law", "mode", 0, 0).holds


@pytest.mark.slow
def test_a_law_that_is_broken_is_seen(monkeypatch):
    """The refusal that the laws expect is another than the one that is written."""
    monkeypatch.setattr(laws, "REFUSAL", "Another sentence.")
    testbed = laws.load_testbed(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(laws, "STRATEGY_MODES", {"greedy": {}})
    results = {result.law: result for result in laws.strategy_laws(testbed)}
    assert results["with a judge that passes nothing, every answer is the refusal"].n_held == 0
    assert results["with a judge that passes everything, the output is plain generate's"].holds


def test_an_error_in_some_laws_is_a_failure_and_leaves_the_others_their_run(monkeypatch):
    def strategy_laws(testbed):
        raise RuntimeError("two devices")

    held = LawResult("law", "mode", 1, 1)
    monkeypatch.setattr(laws, "load_testbed", lambda device, dtype: None)
    monkeypatch.setattr(laws, "processor_laws", lambda testbed: iter([held]))
    monkeypatch.setattr(laws, "strategy_laws", strategy_laws)
    monkeypatch.setattr(laws, "search_laws", lambda testbed: iter([held]))
    first, failed, last = laws.check_laws(torch.device("cpu"), torch.float32)
    assert (first, last) == (held, held)
    assert not failed.holds
    assert failed.law.startswith("strategy_laws ended with RuntimeError: two devices (test_gpu.py:")


@pytest.mark.parametrize("n_held", [2, 3])
def test_the_exit_status_says_whether_every_law_holds(n_held, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "check_laws", lambda device, dtype: [LawResult("law", "greedy", n_held, 3, 0.25)])
    result = run("--device", "cpu", "--to", tmp_path / "tables.md")
    assert result.exit_code == (0 if n_held == 3 else 1)
    assert f"| law | greedy | {n_held} of 3 | 2.5e-01 |" in result.output
    assert (tmp_path / "tables.md").read_text().startswith("CPU")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--tokenizer", "x"], "must come together"),
        (["--device", "cpu", "--dtype", "int8"], "`dtype` must name one of torch's floating-point types"),
        pytest.param(
            ["--device", "cuda"],
            "needs CUDA",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
    ],
)
def test_wrong_arguments_are_errors_without_a_traceback(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_laws_and_costs_run_on_a_cpu(monkeypatch, tmp_path):
    """Every law holds in 32 bits, and each table has a row for each batch."""
    assert choose_shapes(torch.device("cpu")) == TINY
    monkeypatch.setattr(script, "BATCH_SIZES", (1, 2))
    monkeypatch.setattr(strategy_cost, "N_NEW_TOKENS", 24)
    named = ["--tokenizer", WEIGHTS / "specialist", "--anchor-tokenizer", WEIGHTS / "anchor"]
    result = run("--device", "cpu", "--dtype", "float32", *named, "--to", tmp_path / "tables.md")
    assert result.exit_code == 0, result.output
    written = (tmp_path / "tables.md").read_text()
    assert "does not hold" not in result.output
    for n_rows in (1, 2):
        assert len(re.findall(rf"^\| {n_rows} \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", written, re.M)) == 1
        assert len(re.findall(rf"^\| {n_rows} \| (?:-|flagged|unflagged|nothing passes) \|", written, re.M)) == 4
