"""The README's promises, compared with the disk, with what was measured and with what runs."""

import ast
import re
import tomllib

from helpers.pages import PACKAGE, README, RESULTS, ROOT, blocks, section, tables
from integration.test_layout import ORDER

TEXT = README.read_text()


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 220


def test_the_two_commands_are_the_ones_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -c .ci/constraints.txt -e . && alignbeam demo" in TEXT
    assert 'pip install -c .ci/constraints.txt -e ".[test]" && pytest -n 2' in TEXT
    assert '-c .ci/constraints.txt -e ".[test]"' in ci
    assert "\npytest -n 2\n" in ci
    assert "\nalignbeam demo\n" in ci


def test_the_ten_lines_print_what_stands_below_them(in_a_process):
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.S).groups()
    done = in_a_process("import sys\nsys.path.insert(0, sys.argv[1])\nexec(sys.argv[2])", ROOT, code)
    assert done.stdout == printed, done.stderr


def test_the_table_is_a_part_of_what_was_measured():
    (shown,) = tables(section(README, "What it does"))
    _, first_target, *_ = section(RESULTS, "Small public models").split("\n### ")
    measured = [rows for rows in tables(first_target) if rows[0][0] in ("system", "harmless prompts")]
    cells = {(row[0], column): cell for rows in measured for row in rows[2:] for column, cell in zip(rows[0], row, strict=True)}
    assert {"plain", "anchor alone", "output filter", "processor", "AlignBeam"} <= {row[0] for row in shown[2:]}
    for row in shown[2:]:
        assert row[1:] == [cells[row[0], column] for column in shown[0][1:]]


def test_the_package_map_is_what_the_packages_say_of_themselves():
    """In the order in which they import each other."""
    (shown,) = re.findall(r"```text\n(.*?)```", section(README, "Packages"), re.S)
    packages = [name for name in ORDER if (PACKAGE / name).is_dir()]
    first_lines = [
        ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())).splitlines()[0] for name in packages
    ]
    width = max(map(len, packages)) + 3
    assert shown == "".join(f"{name + '/':<{width}}{line}\n" for name, line in zip(packages, first_lines, strict=True))


def test_every_extra_is_explained():
    rows = tables(section(README, "Where the rest is"))[1][2:]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for row in rows for extra in re.findall(r"`([\w-]+)`", row[0])} == set(extras)


def test_every_page_is_listed():
    listed = {path for row in tables(section(README, "Where the rest is"))[0][2:] for path in re.findall(r"\]\((.*?)\)", row[0])}
    guides = {f"examples/guides/{guide.name}" for guide in (ROOT / "examples" / "guides").glob("*.md")}
    assert listed == guides | {"examples/results.md", ".github/CONTRIBUTING.md", "CHANGELOG.md"}


def test_the_readme_has_one_picture_and_ten_lines():
    assert re.findall(r"!\[.*?\]\((.*?)\)", TEXT) == ["examples/pictures/explain.png"]
    statements = ast.parse(blocks(README, "python")[0])
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(statements)) == 10
