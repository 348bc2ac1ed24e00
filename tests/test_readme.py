"""The README's promises, held against the disk."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_file_tree_is_the_disk():
    block = re.search(r"```text\n(.*?)```", README, re.S).group(1)
    listed = set()
    folder = []
    for line in block.splitlines():
        match = re.match(r"(\s*)([\w./]+)", line)
        if match:
            depth = len(match.group(1)) // 2
            name = match.group(2)
            folder = [*folder[:depth], name.rstrip("/")]
            if not name.endswith("/"):
                listed.add("/".join(folder))
    on_disk = {
        str(path.relative_to(ROOT)) for pattern in ("hf_alignbeam/**/*.py", "tests/*.py", ".ci/*") for path in ROOT.glob(pattern)
    } | {"pyproject.toml", "LICENSE", "README.md"}
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
    assert all(len(line.split(None, 1)) == 2 for line in block.splitlines() if line.strip())
