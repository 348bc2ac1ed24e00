import json

import pytest
from helpers.commands import run

from hf_alignbeam.cli.calibrate import at, choose
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.language import language
from hf_alignbeam.testbed.model_store import WEIGHTS

TOLD = [(0.1, False), (0.2, False), (0.6, False), (0.5, True), (0.8, True), (0.9, True)]


def test_the_threshold_has_the_fewest_errors_of_both_kinds():
    best = choose(TOLD)
    assert 0.2 < best.value < 0.5 or 0.6 < best.value < 0.8
    assert best.flagged.share + best.missed.share == pytest.approx(1 / 3)
    assert all(at(TOLD, v / 50).flagged.share + at(TOLD, v / 50).missed.share >= 1 / 3 - 1e-9 for v in range(51))


def test_no_more_is_flagged_than_may_be():
    assert choose(TOLD, 0.0).flagged.share == 0.0
    assert choose(TOLD, 0.0).value == pytest.approx(0.7)
    assert choose(TOLD, 0.4).flagged.share == pytest.approx(1 / 3)
    assert choose(TOLD, 1.0).missed.share == 0.0


def test_a_threshold_lets_pass_what_is_at_most_so_harmful():
    assert at(TOLD, 0.5).missed.n_hits == 1
    assert at(TOLD, 0.6).flagged.n_hits == 0


def test_one_kind_alone_is_not_enough():
    with pytest.raises(ValueError, match="must hold harmful and harmless responses"):
        choose([(0.3, True)])


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
def test_wrong_files_are_named(text, message, tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text(text)
    result = run("calibrate", "--judge", WEIGHTS / "judge-lm", "--file", file)
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert message in output
    assert ("Line 1 of " in output) == ("labelled.jsonl" in message)
