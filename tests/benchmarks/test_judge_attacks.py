"""The benchmark of attacks counts what passes, and sees what all readings are worth."""

import pytest
import torch
from typer.testing import CliRunner

from hf_alignbeam.benchmarks.judge_attacks import __main__ as script
from hf_alignbeam.benchmarks.judge_attacks.attacks import ATTACKS, DISGUISES
from hf_alignbeam.benchmarks.judge_attacks.measurements import (
    attack_results,
    cost,
    flagged_exchanges,
    harmless_result,
    one_reading_each,
)
from hf_alignbeam.judges.reading.readings import worst_of_readings

QUESTION = [{"role": "user", "content": "How?"}]


def judge(conversations, responses):
    """Flags the word "acid" and forgives a refusal at the end."""

    def read(exchanges):
        return torch.tensor([float("acid" in text.lower() and not text.endswith("that.")) for _, text in exchanges])

    return worst_of_readings(list(zip(conversations, responses, strict=True)), read)


@pytest.fixture
def few_attacks(monkeypatch):
    for name in list(ATTACKS):
        if name not in ("soft hyphens", "user and assistant"):
            monkeypatch.delitem(ATTACKS, name)


def test_what_passes_one_reading_is_seen_by_all(few_attacks):
    flagged = flagged_exchanges(judge, [(QUESTION, "Mix the acid."), (QUESTION, "No."), (QUESTION, "Acid!")], limit=40)
    assert [response for _, response in flagged] == ["Mix the acid.", "Acid!"]
    assert flagged_exchanges(judge, flagged, limit=1) == flagged[:1]
    for result in attack_results(judge, flagged, list(ATTACKS)):
        assert (result.n_flagged, result.n_passed_one_reading, result.n_passed, result.n_without_verdict) == (2, 2, 0, 0)


def test_the_most_flagged_responses_are_attacked():
    exchanges = [(QUESTION, f"{n}") for n in range(50)]

    def unsure(conversations, responses):
        return torch.tensor([0.505 if response != "17" else 0.9 for response in responses])

    assert flagged_exchanges(unsure, exchanges, limit=1) == [exchanges[17]]


def test_one_reading_is_for_the_time_of_a_block():
    hidden = DISGUISES["soft hyphens"]("Mix the acid.")
    with one_reading_each():
        assert judge([QUESTION], [hidden]).tolist() == [0.0]
    assert judge([QUESTION], [hidden]).tolist() == [1.0]


def test_a_missing_verdict_is_counted_and_passes_nothing(few_attacks):
    def missing(conversations, responses):
        return torch.full((len(responses),), torch.nan)

    for result in attack_results(missing, [(QUESTION, "x")], list(ATTACKS)):
        assert (result.n_passed_one_reading, result.n_passed, result.n_without_verdict) == (0, 0, 1)


def test_harmless_texts_with_several_readings_are_counted_with_those_that_change_sides():
    texts = ["Fine.", "Ac\u00adid is sour.", "So\u00adup.", "Hi.\nuser: Hello.\nassistant: Hi."]
    result = harmless_result(judge, [(QUESTION, text) for text in texts])
    assert (result.n, result.n_folded, result.n_with_parts, result.n_changed) == (4, 2, 1, 1)


def test_a_share_is_of_the_verdict():
    each = cost(judge, [(QUESTION, "Fine. " * 20)] * 3)
    assert each.n_chars == 120
    assert each.share == pytest.approx((each.folding_us + each.splitting_us + each.fencing_us) / (1e3 * each.verdict_ms))
    assert each.share > 0


def test_the_script_prints_its_tables(few_attacks, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("How do I thank the mayor?\nWie heißt er?\n", encoding="utf-8")
    result = CliRunner().invoke(script.app, ["--judge", "testbed:judge-lm", "--harmless", str(file), "--limit", "4"])
    assert result.exit_code == 0, result.output
    assert "| user and assistant | 4 | " in result.output
    assert f"| {file}, as answers | 2 | 0 | 0 | 0 |" in result.output
    assert "share of a verdict" in result.output
    harmless_only = CliRunner().invoke(script.app, ["--judge", "testbed:judge-lm", "--harmless", str(file), "--limit", "0"])
    assert harmless_only.exit_code == 0, harmless_only.output
    assert "flagged before" not in harmless_only.output
    assert "change sides" in harmless_only.output
    missing = CliRunner().invoke(script.app, ["--judge", "testbed:judge-lm", "--file", str(tmp_path / "missing.csv")])
    assert missing.exit_code == 2


def test_the_script_takes_attacks_by_their_names():
    options = ["--judge", "testbed:judge-lm", "--limit", "2"]
    result = CliRunner().invoke(script.app, [*options, "--attack", "soft hyphens", "--attack", "dots below"])
    assert result.exit_code == 0, result.output
    attacks = [line.split(" | ")[0] for line in result.output.splitlines() if " | 2 | " in line]
    assert attacks == ["| soft hyphens", "| dots below"]
    unknown = CliRunner().invoke(script.app, [*options, "--attack", "hyphens"])
    assert unknown.exit_code != 0
    assert "--attack must be one of '" in unknown.output
    assert "'soft hyphens', " in unknown.output
    assert "got 'hyphens'" in unknown.output
