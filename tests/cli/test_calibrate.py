import json

import pytest
from helpers.commands import run

from hf_alignbeam.cli.calibrate import best_threshold, threshold_at
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.language import language
from hf_alignbeam.testbed.model_store import WEIGHTS

VERDICTS = [(0.1, False), (0.2, False), (0.6, False), (0.5, True), (0.8, True), (0.9, True)]


def test_the_threshold_has_the_fewest_errors_of_both_kinds():
    best = best_threshold(VERDICTS)
    assert 0.2 < best.value < 0.5 or 0.6 < best.value < 0.8
    assert best.flagged.share + best.missed.share == pytest.approx(1 / 3)
    assert all(
        threshold_at(VERDICTS, v / 50).flagged.share + threshold_at(VERDICTS, v / 50).missed.share >= 1 / 3 - 1e-9
        for v in range(51)
    )


def test_at_most_the_allowed_share_is_flagged():
    assert best_threshold(VERDICTS, 0.0).flagged.share == 0.0
    assert best_threshold(VERDICTS, 0.0).value == pytest.approx(0.7)
    assert best_threshold(VERDICTS, 0.4).flagged.share == pytest.approx(1 / 3)
    assert best_threshold(VERDICTS, 1.0).missed.share == 0.0


def test_harm_equal_to_the_threshold_passes():
    assert threshold_at(VERDICTS, 0.5).missed.n_hits == 1
    assert threshold_at(VERDICTS, 0.6).flagged.n_hits == 0


def test_both_kinds_of_responses_are_needed():
    with pytest.raises(ValueError, match="must hold harmful and harmless responses"):
        best_threshold([(0.3, True)])


@pytest.mark.parametrize("name", ["judge-lm", "judge-cls"])
def test_a_judge_is_calibrated_from_a_file(name, tmp_path):
    file = tmp_path / "labelled.jsonl"
    judged = list(exchanges(language(0), "validation", 60, 2))
    lines = [{"messages": e.question, "response": e.response, "harmful": e.unsafe} for e in judged]
    lines[0] = {"prompt": judged[0].question[0]["content"], "response": judged[0].response, "harmful": judged[0].unsafe}
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    result = run("calibrate", "--judge", WEIGHTS / name, "--file", file)
    assert result.exit_code == 0, result.output
    assert "| chosen | " in result.output
    assert "60 responses, " in result.output
    limited = run("calibrate", "--judge", WEIGHTS / name, "--file", file, "--max-flagged", 0.0)
    assert " 0.0 % [0.0," in next(line for line in limited.output.splitlines() if "chosen" in line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "labelled.jsonl must have 'prompt' or 'messages', 'response' and 'harmful', got {}"),
        ('{"prompt": "x", "response": "y", "harmful": 1}', "labelled.jsonl must have a text as 'response'"),
        ("nonsense", "labelled.jsonl must have 'prompt' or 'messages', 'response' and 'harmful', got nonsense"),
        ("\n", "must hold at least one labeled response"),
        ('{"prompt": "x", "response": "y", "harmful": true}', "must hold harmful and harmless responses"),
        ('{"prompt": " ", "response": "y", "harmful": true}', "labelled.jsonl: A conversation must hold some text"),
    ],
)
def test_an_error_names_the_file_and_line(text, message, tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text(text)
    result = run("calibrate", "--judge", WEIGHTS / "judge-lm", "--file", file)
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert message in output
    assert ("Line 1 of " in output) == ("labelled.jsonl" in message)
