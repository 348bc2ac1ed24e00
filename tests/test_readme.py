"""The README's promises, held against the disk."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_file_tree_is_the_disk():
    block = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    listed = set()
    folder = []
    for line in block.splitlines():
        match = re.match(r"(\s*)([\w./-]+)", line)
        if match:
            depth = len(match.group(1)) // 2
            name = match.group(2)
            folder = [*folder[:depth], name.rstrip("/")]
            if not name.endswith("/"):
                listed.add("/".join(folder))
    patterns = ("hf_alignbeam/**/*.py", "tests/*.py", "examples/*.py", "model_cards/*.md", ".ci/*")
    on_disk = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    on_disk |= {"pyproject.toml", "LICENSE", "README.md"}
    assert listed - {"py.typed"} == on_disk


def test_the_two_commands_are_the_ones_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -c .ci/constraints.txt -e . && alignbeam demo" in README
    assert 'pip install -c .ci/constraints.txt -e ".[test]" && pytest' in README
    assert '-c .ci/constraints.txt -e ".[test]"' in ci
    assert "\npytest\n" in ci
    assert "\nalignbeam demo\n" in ci


def test_every_tree_line_explains_itself():
    block = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    lines = [line for line in block.splitlines() if line.strip() and not line.endswith("/")]
    assert all(len(line.split(None, 1)) == 2 for line in lines)


RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_every_example_runs(example, in_a_process):
    done = in_a_process(RUN, ROOT, ROOT / "examples" / example)
    assert done.returncode == 0, done.stderr
    assert "guarded" in done.stdout


def tables(lines):
    """The tables among some lines of Markdown, each as its rows of cells."""
    found, inside = [], False
    for line in lines:
        if line.startswith("|"):
            found.append([*(found.pop() if inside else []), [cell.strip() for cell in line.strip().strip("|").split("|")]])
        inside = line.startswith("|")
    return found


@pytest.mark.slow
def test_the_table_of_all_systems_is_what_its_command_prints(tmp_path):
    """Rates, differences, refusals, choices and sweeps to the last digit; of costs, what the machine has no part in."""
    section = README.partition("### All systems\n")[2].partition("\n### ")[0]
    command = re.search(r"`alignbeam (evaluate [^`]*)`", section).group(1).split()
    command[command.index("--to") + 1] = str(tmp_path)
    subprocess.run([sys.executable, "-m", "hf_alignbeam", *command], check=True, capture_output=True)
    printed, shown = (tables(text.splitlines()) for text in ((tmp_path / "report.md").read_text(), section))
    assert len(shown) == len(printed) == 6
    for ours, theirs in zip(shown, printed, strict=True):
        if ours[0][0] == "cost a prompt":
            speed = [ours[0].index(column) for column in ("answer tokens a second", "wall time, times plain")]
            ours, theirs = ([[c for n, c in enumerate(row) if n not in speed] for row in rows] for rows in (ours, theirs))
        assert ours == theirs
    assert {path.name for path in tmp_path.glob("*.png")} == set(re.findall(r"pictures/(\w+\.png)", section))
