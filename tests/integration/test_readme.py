"""The README's promises, held against the disk."""

import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from hf_alignbeam.testbed import prompts
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TREE = re.search(r"```text\n(.*?)```", README.partition("\n## Develop\n")[2], re.S).group(1)
MEASURED = (ROOT / "hf_alignbeam" / "evaluation" / "MEASURED.md").read_text()


def test_the_file_tree_is_the_disk():
    listed = set()
    folder = []
    for line in TREE.splitlines():
        match = re.match(r"(\s*)([\w./-]+)", line)
        if match:
            depth = len(match.group(1)) // 2
            name = match.group(2)
            folder = [*folder[:depth], name.rstrip("/")]
            if not name.endswith("/"):
                listed.add("/".join(folder))
    patterns = (
        "hf_alignbeam/**/*.py",
        "hf_alignbeam/evaluation/*.md",
        "tests/*.py",
        "examples/*.py",
        "examples/space/*.*",
        "model_cards/*.md",
        ".ci/*",
    )
    on_disk = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    on_disk |= {"pyproject.toml", "LICENSE", "README.md"}
    assert listed - {"py.typed"} == on_disk


def test_the_two_commands_are_the_ones_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -c .ci/constraints.txt -e . && alignbeam demo" in README
    assert 'pip install -c .ci/constraints.txt -e ".[test]" && pytest -n 2' in README
    assert '-c .ci/constraints.txt -e ".[test]"' in ci
    assert "\npytest -n 2\n" in ci
    assert "\nalignbeam demo\n" in ci


def test_every_tree_line_explains_itself():
    lines = [line for line in TREE.splitlines() if line.strip() and not line.endswith("/")]
    assert all(len(line.split(None, 1)) == 2 for line in lines)


RUN = """
import os, runpy, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
os.environ |= {"OPENAI_BASE_URL": sys.argv[3], "OPENAI_API_KEY": "sk-test", "no_proxy": "*"}
runpy.run_path(sys.argv[2], run_name="__main__")
"""
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


class Moderation(BaseHTTPRequestHandler):
    """The grammar behind the moderation endpoint's protocol."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        truth = GroundTruth(stored_language())
        texts = [asked] if isinstance(asked, str) else asked
        results = [{"category_scores": {"harm": float(truth.harm(text) > 0.0)}} for text in texts]
        body = json.dumps({"id": "modr", "model": "grammar", "results": results}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def endpoint():
    with ThreadingHTTPServer(("127.0.0.1", 0), Moderation) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(example, in_a_process, endpoint):
    done = in_a_process(RUN, ROOT, ROOT / "examples" / example, endpoint)
    assert done.returncode == 0, done.stderr
    assert "guarded" in done.stdout


def test_a_remote_judge_flags_one_answer_and_passes_the_other(in_a_process, endpoint):
    harmful, harmless = in_a_process(RUN, ROOT, ROOT / "examples" / "remote_judge.py", endpoint).stdout.splitlines()
    truth = GroundTruth(stored_language())
    assert truth.refusal(harmful.partition(" -> ")[2])
    assert truth.correct(prompts("test", "domain")[0], harmless.partition(" -> ")[2].partition(" (harm")[0])


def test_the_ten_lines_say_what_stands_below_them(in_a_process):
    code, said = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.S).groups()
    done = in_a_process("import sys\nsys.path.insert(0, sys.argv[1])\nexec(sys.argv[2])", ROOT, code)
    assert done.stdout == said, done.stderr


@pytest.mark.slow
def test_two_processes_say_what_one_says():
    script = str(ROOT / "examples" / "two_processes.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        for command in (
            [sys.executable, script],
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script],
        )
    ]
    one, two = ([line for line in lines if line.startswith("guarded")] for lines in told)
    assert len(one) == 4
    assert one == two


def tables(lines):
    """The tables among some lines of Markdown, each as its rows of cells."""
    found, inside = [], False
    for line in lines:
        if line.startswith("|"):
            found.append([*(found.pop() if inside else []), [cell.strip() for cell in line.strip().strip("|").split("|")]])
        inside = line.startswith("|")
    return found


def test_the_table_is_a_part_of_what_was_measured():
    shown = tables(README.partition("\n## What it does\n")[2].splitlines())[0]
    measured = tables(MEASURED.partition("\n## All systems\n")[2].partition("\n## ")[0].splitlines())
    told = [rows for rows in measured if rows[0][0] in ("system", "cost a prompt")]
    cells = {(row[0], name): cell for rows in told for row in rows[2:] for name, cell in zip(rows[0], row, strict=True)}
    assert [row[0] for row in shown] == ["system", "---", *(row[0] for row in measured[0][2:])]
    for row in shown[2:]:
        assert row[1:] == [cells[row[0], name] for name in shown[0][1:]]


@pytest.mark.parametrize("text", [README, MEASURED], ids=["README", "MEASURED"])
def test_every_link_leads_somewhere(text):
    place = ROOT if text is README else ROOT / "hf_alignbeam" / "evaluation"
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        assert (place / path).exists(), link
        headings = re.findall(r"^#+ (.*)", (place / path).read_text(), re.M) if heading else []
        assert not heading or heading in [each.lower().replace(" ", "-") for each in headings], link


@pytest.mark.slow
def test_the_table_of_all_systems_is_what_its_command_prints(tmp_path):
    """Rates, differences, refusals, choices and sweeps to the last digit; of costs, what the machine has no part in."""
    section = MEASURED.partition("\n## All systems\n")[2].partition("\n## ")[0]
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
