"""The README's promises, held against the disk."""

import re
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
