"""What was measured, compared with what its commands print."""

import re
import subprocess
import sys

import pytest
from helpers.pages import RESULTS, ROOT, section, tables


@pytest.mark.slow
def test_the_table_of_all_systems_is_what_its_command_prints(tmp_path):
    """Rates, differences, refusals, choices and sweeps to the last digit; of costs, what the machine has no part in."""
    text = section(RESULTS, "All systems")
    command = re.search(r"`alignbeam (evaluate [^`]*)`", text).group(1).split()
    command[command.index("--to") + 1] = str(tmp_path)
    subprocess.run([sys.executable, "-m", "hf_alignbeam", *command], check=True, capture_output=True)
    printed, shown = (tables(each) for each in ((tmp_path / "report.md").read_text(), text))
    assert len(shown) == len(printed) == 8
    for ours, theirs in zip(shown, printed, strict=True):
        if ours[0][0] == "cost a prompt":
            speed = [ours[0].index(column) for column in ("answer tokens a second", "wall time, times plain")]
            ours, theirs = ([[c for n, c in enumerate(row) if n not in speed] for row in rows] for rows in (ours, theirs))
        assert ours == theirs
    assert {path.name for path in tmp_path.glob("*.png")} == set(re.findall(r"pictures/(\w+\.png)", text))


def test_what_a_guard_costs_is_a_part_of_what_was_measured():
    (shown,) = tables(section(ROOT / "examples" / "guides" / "limitations.md", "What it costs"))
    (measured,) = [rows for rows in tables(section(RESULTS, "The strategy")) if rows[0][0] == "batch"]
    columns = [4, 7, 9, 11]
    assert [measured[0][n] for n in columns] == ["times plain", "times plain", "anchor forwards", "judge calls"]
    ours = {row[1]: [row[n] for n in columns] for row in measured[2:] if (row[0], row[2]) == ("1", "ours")}
    assert [row[1:] for row in shown[2:]] == [ours[prompts] for prompts in ("unflagged", "flagged", "nothing passes")]
