"""A judge's threshold from labeled responses: the tables, the picture, and what is said where there is no verdict."""

import json
import math
import re

import pytest
from helpers.commands import run
from helpers.moderation_server import fail, respond, running_server, scores_body
from helpers.pages import tables

from hf_alignbeam import LLMJudge, testbed
from hf_alignbeam.cli.judges.roc import ALLOWED, curve, rates_at, roc, why_not, written
from hf_alignbeam.judges.calibration import KnownVerdict, best_threshold, error_rates, separation
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.language import language
from hf_alignbeam.testbed.model_store import WEIGHTS

VERDICTS = [KnownVerdict(*each) for each in [(0.1, False), (0.2, False), (0.6, False), (0.5, True), (0.8, True), (0.9, True)]]


@pytest.fixture
def labelled(tmp_path):
    """A file of 60 responses in the testbed's language."""
    file = tmp_path / "labelled.jsonl"
    judged = list(exchanges(language(0), "validation", 60, 2))
    lines = [{"messages": e.question, "response": e.response, "harmful": e.unsafe} for e in judged]
    lines[0] = {"prompt": judged[0].question[0]["content"], "response": judged[0].response, "harmful": judged[0].unsafe}
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return file


def calibrated(*arguments):
    """The rows of both tables that the command prints, by their first cell."""
    result = run("calibrate", *arguments)
    assert result.exit_code == 0, result.output
    curve, thresholds = tables(result.output)
    assert curve[0][0] == "false alarms allowed"
    return {row[0]: row for row in curve[2:]}, {row[0].split(" ")[0]: row for row in thresholds[2:]}, result.output


def test_the_curve_allows_no_more_false_alarms_than_it_says():
    for allowed, threshold in roc(VERDICTS):
        assert rates_at(VERDICTS, threshold)[0].share <= allowed
    assert [allowed for allowed, _ in roc(VERDICTS)] == list(ALLOWED)


def test_false_alarms_and_recall_are_the_error_rates():
    for threshold in (0.0, 0.5, 0.55, 0.6, 1.0):
        false_alarms, recall = rates_at(VERDICTS, threshold)
        assert (false_alarms.share, 1 - recall.share) == pytest.approx(error_rates(VERDICTS, threshold))


def test_the_area_under_the_drawn_curve_is_the_separation():
    tied = [*VERDICTS, KnownVerdict(0.6, True), KnownVerdict(0.1, True)]
    for verdicts in (VERDICTS, tied):
        x, y = curve(verdicts)
        assert (x[0], y[0], x[-1], y[-1]) == (0.0, 0.0, 1.0, 1.0)
        area = sum((x[n + 1] - x[n]) * (y[n + 1] + y[n]) / 2 for n in range(len(x) - 1))
        assert area == pytest.approx(separation(verdicts))


@pytest.mark.parametrize("name", ["judge-lm", "judge-cls"])
def test_a_judge_is_calibrated_from_a_file(name, labelled, tmp_path):
    picture = tmp_path / "roc.png"
    curve, thresholds, output = calibrated("--judge", WEIGHTS / name, "--file", labelled, "--plot", picture)
    assert list(curve) == [f"{100 * allowed:g} %" for allowed in ALLOWED]
    assert list(thresholds) == ["chosen", "now"]
    assert thresholds["now"][1] == "0.5"
    assert re.search(r"^60 responses, \d+ of them harmful; 0 without a verdict\.$", output, re.M)
    assert re.search(r"^AUC 0\.9\d\d \[0\.\d{3}, \d\.\d{3}\]: |^AUC 1\.000 \[0\.\d{3}, 1\.000\]: ", output, re.M)
    assert f"--judge-threshold {thresholds['chosen'][1]}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")
    _, limited, _ = calibrated("--judge", WEIGHTS / name, "--file", labelled, "--max-flagged", 0.0)
    assert limited["chosen"][2].startswith("0.0 % [0.0,")


def test_the_threshold_of_a_classifiers_profile_is_the_one_of_now(labelled, tmp_path):
    profile = tmp_path / "mine.json"
    profile.write_text(json.dumps({"name": "mine", "verdicts": {"unsafe": 1.0}, "threshold": 0.3}))
    _, thresholds, _ = calibrated("--judge", WEIGHTS / "judge-cls", "--judge-profile", profile, "--file", labelled)
    assert thresholds["now"][:2] == ["now (mine)", "0.3"]


def test_the_chosen_threshold_in_use_flags_what_the_table_says(labelled):
    _, thresholds, _ = calibrated("--judge", WEIGHTS / "judge-lm", "--file", labelled, "--max-flagged", 0.1)
    value, recall = float(thresholds["chosen"][1]), float(thresholds["chosen"][3].split(" ")[0])
    judge = LLMJudge(*testbed.load("judge-lm"), threshold=value)
    harmful = [e for e in exchanges(language(0), "validation", 60, 2) if e.unsafe]
    flagged = judge([e.question for e in harmful], [e.response for e in harmful]) > 0.5
    assert 100 * flagged.float().mean() == pytest.approx(recall, abs=0.06)


def test_a_threshold_of_ones_own_is_compared_and_changes_no_verdict(labelled):
    arguments = ("--judge", WEIGHTS / "judge-lm", "--file", labelled)
    curve, thresholds, _ = calibrated(*arguments)
    other_curve, others, _ = calibrated(*arguments, "--judge-threshold", 0.01)
    assert other_curve == curve
    assert others["chosen"] == thresholds["chosen"]
    assert others["now"][:2] == ["now (--judge-threshold)", "0.01"]
    assert "uncalibrated" not in thresholds  # .5 is what it has now
    assert others["uncalibrated"][1:] == thresholds["now"][1:]


def test_no_threshold_is_advised_for_a_judge_that_ranks_the_wrong_way(labelled):
    said = ("--judge-labels", "safe=1", "--judge-labels", "unsafe=0")
    _, _, output = calibrated("--judge", WEIGHTS / "judge-lm", "--file", labelled, *said)
    assert "AUC 0.0" in output
    assert "Use no threshold of this judge: it gives harmful responses no more harm than harmless ones." in output
    assert "Use it:" not in output


def test_a_limit_draws_from_each_file_by_the_seed(labelled, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(labelled.read_text())
    arguments = ("--judge", WEIGHTS / "judge-cls", "--file", labelled, "--file", other, "--limit", 20)
    one, again, another = (calibrated(*arguments, "--seed", seed)[2] for seed in (0, 0, 1))
    assert "\n40 responses, " in one
    assert one == again != another


def test_a_model_that_is_no_guard_is_an_error_that_names_what_it_wrote(labelled, no_guard):
    result = run("calibrate", "--judge", no_guard, "--file", labelled)
    assert result.exit_code == 2
    assert "It would rather write '" in result.output
    assert "profile" in result.output
    assert "Traceback" not in result.output


def test_missing_verdicts_are_counted_and_explained(labelled):
    """A response that is longer than the judge's context gets none."""
    record = json.loads(labelled.read_text().splitlines()[1])
    labelled.write_text(labelled.read_text() + json.dumps({**record, "response": "How " * 4000}) + "\n")
    _, _, output = calibrated("--judge", WEIGHTS / "judge-lm", "--file", labelled)
    assert "61 responses, " in output
    assert "1 responses got no verdict, and count as flagged in use. LLMJudge(" in output
    assert "an exchange that it cannot read: The judge's context takes 512 tokens, but the exchange has " in output
    assert "would rather write" not in output


def test_responses_of_one_kind_are_an_error_before_the_judge_is_loaded(labelled):
    lines = [json.loads(line) for line in labelled.read_text().splitlines() if line]
    labelled.write_text("\n".join(json.dumps(each) for each in lines if not each["harmful"]))
    result = run("calibrate", "--judge", "nowhere", "--file", labelled, "--limit", 5)
    assert result.exit_code == 2
    assert (
        "must hold harmful and harmless responses, got 5 harmless ones only. Add others, or draw more with --limit"
        in result.output
    )


def test_both_kinds_of_responses_are_needed():
    with pytest.raises(ValueError, match="must hold harmful and harmless responses"):
        best_threshold([KnownVerdict(0.3, True)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "labelled.jsonl must have 'prompt' or 'messages', 'response' and 'harmful', got {}"),
        ('{"prompt": "x", "response": "y", "harmful": 7}', "labelled.jsonl must have true or false as 'harmful'"),
        ('{"prompt": "x", "response": 7, "harmful": true}', "labelled.jsonl must have a text as 'response'"),
        ("nonsense", "labelled.jsonl must be a JSON object, got 'nonsense'"),
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


def test_a_picture_needs_a_png_file(labelled, tmp_path):
    result = run("calibrate", "--judge", "none", "--file", labelled, "--plot", tmp_path / "roc.pdf")
    assert result.exit_code == 2
    assert "--plot must name a file that ends in .png" in result.output


def test_a_response_that_the_judge_cannot_read_costs_no_other_its_verdict(labelled, monkeypatch):
    judged, third = LLMJudge.__call__, json.loads(labelled.read_text().splitlines()[2])["response"]

    def picky(self, conversations, responses):
        if third in responses and len(conversations[0]) == 1:
            raise ValueError("The judge's template refuses it.")
        return judged(self, conversations, responses)

    monkeypatch.setattr(LLMJudge, "__call__", picky)
    result = run("calibrate", "--judge", WEIGHTS / "judge-lm", "--file", labelled)
    assert result.exit_code == 0, result.output
    assert f"Line 3 of {labelled}: The judge's template refuses it." in result.output
    assert re.search(r"60 responses, \d+ of them harmful; [12] without a verdict", result.output)


@pytest.mark.parametrize(
    ("harms", "is_used"), [((0.4, 0.6, 0.7, 0.9), True), ((0.4, 0.6, 0.64, 0.9), False), ((0.1, 0.2, 0.3, 0.4), False)]
)
def test_a_threshold_is_not_recommended_where_it_lets_most_harm_pass(harms, is_used):
    """Of four harmful responses two, one or none are above the harmless one with the most harm."""
    verdicts = [KnownVerdict(0.1, False), KnownVerdict(0.65, False), *(KnownVerdict(h, True) for h in harms)]
    advice = why_not(verdicts, best_threshold(verdicts, 0.0), 0.5)
    assert (not advice) is is_used
    assert is_used or "of what is harmful it flags" in advice


@pytest.mark.parametrize("gap", [1e-1, 1e-7, 1e-12, 1e-16])
@pytest.mark.parametrize("top", [0.5, 1.0])
def test_a_threshold_is_written_in_digits_that_flag_the_same_responses(gap, top):
    """Also where a judge's verdicts nearly all lie next to 1, which is no threshold."""
    verdicts = [KnownVerdict(0.01, False), KnownVerdict(top - gap, False), KnownVerdict(math.nextafter(top, 0.0), True)]
    for allowed in (None, 0.0, 0.5):
        chosen = best_threshold(verdicts, allowed)
        text = written(verdicts, chosen)
        assert error_rates(verdicts, float(text)) == error_rates(verdicts, chosen)
        assert (float(text) < 1.0) is (chosen < 1.0)
    assert written(verdicts, 0.25) == "0.25"


def test_responses_without_a_verdict_count_as_flagged(tmp_path, monkeypatch):
    """Ten of twenty harmless ones have none: no threshold flags fewer."""
    with running_server(monkeypatch) as server:
        lines = []
        for n in range(40):
            harm = 0.9 if n < 20 else 0.1
            server.behaviors[f"r{n}"] = [fail(400) if 20 <= n < 30 else respond(scores_body({"violence": harm}))]
            lines.append(json.dumps({"prompt": "q", "response": f"r{n}", "harmful": n < 20}))
        file = tmp_path / "labelled.jsonl"
        file.write_text("\n".join(lines))
        _, thresholds, output = calibrated("--judge", server.base_url, "--file", file)
        _, _, limited = calibrated("--judge", server.base_url, "--file", file, "--max-flagged", 0.01)
    assert thresholds["chosen"][2].startswith("50.0 %")
    assert "40 responses, 20 of them harmful; 10 without a verdict, which count as a harm of 1." in output
    assert "AUC 1.000" in output
    assert "gave no verdict: status 400 (10)." in output
    assert "No threshold below 1 flags so few harmless responses." in limited
