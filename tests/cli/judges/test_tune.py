"""`alignbeam tune` says how many answers the strategy flags: exactly those that it does not leave as they are."""

import json
import re

import pytest
from helpers.commands import run
from helpers.pages import tables
from helpers.strategies import chats_of

from hf_alignbeam import AlignBeam
from hf_alignbeam.evaluation.generation import Responder
from hf_alignbeam.testbed.model_store import WEIGHTS

KINDS = {"harmless": "general", "harmful": "late"}
N, CHECKS = 10, {"judge_after": 6, "judge_every": 8}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    files = []
    for option, kind in KINDS.items():
        file = folder / f"{option}.jsonl"
        file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats_of(kind, N)))
        files += [f"--{option}", file]
    options = ["--max-new-tokens", 40, "--judge-after", CHECKS["judge_after"], "--judge-every", CHECKS["judge_every"]]
    result = run("tune", "--model", WEIGHTS / "specialist", "--judge", WEIGHTS / "judge-lm", *files, *options)
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_flagged_is_what_the_strategy_does_not_leave_as_it_is(output, anchor, specialist, judge_lm):
    rows = {row[0]: row[1:] for row in tables(output)[0][2:]}
    assert f"{N} harmless prompts and {N} harmful prompts" in output
    for row in (rows["the default"], rows["10 %"]):
        strategy = AlignBeam(*anchor, specialist[1], judge_lm, threshold=float(row[0]), **CHECKS)
        for kind, cell in zip(KINDS.values(), row[1:], strict=True):
            chats = chats_of(kind, N)
            answers = Responder(*specialist, 40)(chats, custom_generate=strategy.for_call(conversations=chats))
            n_changed = sum(answer.chosen != 0 for answer in answers)
            assert cell.startswith(f"{100 * n_changed / N:.1f} %")
    assert rows["the default"][2] != rows["the default"][1]


def test_the_threshold_keeps_to_the_wanted_rate(output):
    rows = {row[0]: row[1:] for row in tables(output)[0][2:]}
    assert float(rows["chosen: 2 %"][1].split(" ")[0]) <= 2.0
    assert re.search(rf"--threshold {re.escape(rows['chosen: 2 %'][0])} ", output)
    assert f"It flags {rows['chosen: 2 %'][2]} of the harmful prompts; the default flags {rows['the default'][2]}." in output


def test_prompts_that_cannot_be_read_are_named(tmp_path):
    result = run("tune", "--model", "x", "--judge", "y", "--harmless", tmp_path / "a.txt", "--harmful", tmp_path / "b.txt")
    assert result.exit_code == 2
    assert "a.txt" in result.output


def files_of(folder, **kinds):
    """The options that name files of these conversations."""
    options = []
    for option, chats in kinds.items():
        (folder / f"{option}.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
        options += [f"--{option}", folder / f"{option}.jsonl"]
    return options


def test_a_prompt_of_both_kinds_is_an_error(tmp_path):
    chats = chats_of("harmful", 2)
    files = files_of(tmp_path, harmless=[*chats_of("general", 2), chats[1]], harmful=chats)
    result = run("tune", "--model", WEIGHTS / "specialist", "--judge", WEIGHTS / "judge-lm", *files)
    assert result.exit_code == 2
    words = " ".join(result.output.split())
    assert "--harmless and --harmful must hold different prompts, but share 1, the first of which is" in words
    assert chats[1][-1]["content"][:20] in words


def test_no_threshold_is_recommended_that_lets_the_harm_pass(tmp_path):
    """Six harmful prompts among the harmless ones push the threshold over nearly all harm."""
    harmful = chats_of("harmful", 12)
    files = files_of(tmp_path, harmless=[*chats_of("domain", 8), *harmful[:6]], harmful=harmful[6:])
    options = ["--max-new-tokens", 16, "--max-flagged", 0]
    result = run("tune", "--model", WEIGHTS / "specialist", "--judge", WEIGHTS / "judge-lm", *files, *options)
    assert result.exit_code == 1
    assert "Do not use 0.99" in result.output
    assert "Use it" not in result.output
