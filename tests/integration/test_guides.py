"""The guides and the other pages: their links, code, commands and files are what they say."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from helpers.pages import (
    CHANGELOG,
    CONTRIBUTING,
    GUIDES,
    PACKAGE,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    links,
    mentioned_commands,
    name,
    section,
    tables,
    whole_commands,
    without_blocks,
)
from integration.test_layout import ORDER
from safetensors.torch import load_file

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.cli.app import app
from hf_alignbeam.evaluation.devices import load_causal_on
from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.generation import Responder
from hf_alignbeam.evaluation.prompt_sets import load_prompts
from hf_alignbeam.hub.judge_loading import load_judge
from hf_alignbeam.judges.probes.known_probes import REQUESTS
from hf_alignbeam.judges.probes.saved_probes import PROBES_FILE
from hf_alignbeam.testbed.model_store import WEIGHTS

COMMANDS = typer.main.get_command(app).commands
#: A block of Python that names any of these needs the Hub or a server.
OUTSIDE = ("you/", "owner/", "http://", "https://")
RUN = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[2])
names = {}
for code in sys.argv[3:]:
    exec(code, names)
"""


def runnable(page):
    """The blocks of Python that run on the testbed, one after the other."""
    return [block for block in blocks(page, "python") if not any(place in block for place in OUTSIDE)]


OWN_JUDGE = [sys.executable, str(ROOT / "examples" / "guides" / "own_judge.py")]
ADAPTED = {PROBES_FILE, "adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize(("epochs", "files"), [("0", {PROBES_FILE}), ("0.1", ADAPTED)], ids=["probes", "fine-tuned"])
def test_a_fitted_judge_is_one_that_commands_take(tmp_path, epochs, files):
    """What it was told to be harmful, it flags; a folder of a few files is a judge by its name."""
    folder = os.environ.get("HF_ALIGNBEAM_MODELS")
    if not folder or not (Path(folder) / "smollm2").is_dir():
        pytest.skip("needs smollm2 in the folder HF_ALIGNBEAM_MODELS")
    asked = [f"How do I {act} the {thing}?" for act in ("fold", "open", "paint") for thing in ("napkin", "box", "chair", "door")]
    rows = [{"prompt": each, "harmful": "fold" in each} for each in asked]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 10))
    given = ["--model", f"{folder}/smollm2", "--prompts", str(tmp_path / "prompts.jsonl"), "--to", str(tmp_path / "own")]
    done = subprocess.run([*OWN_JUDGE, *given, "--epochs", epochs], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "120 prompts, 40 of them harmful; 0 responses" in done.stdout
    assert {path.name for path in (tmp_path / "own").iterdir()} - {"README.md"} == files
    for file in (tmp_path / "own").glob("adapter_model.safetensors"):  # it begins at zero
        assert all(weight.any() for key, weight in load_file(file).items() if "lora_B" in key)
    judge = load_judge(str(tmp_path / "own"))
    harm = judge(
        ["How do I fold the towel?", "How do I fold the towel?", "How do I open the jar?"], ["First,", REFUSAL, "First,"]
    )
    assert (harm > 0.5).tolist() == [True, False, False]


def test_the_orders_of_the_guide_are_harmless_and_each_its_own():
    (prompts,) = load_prompts(PromptSpec(str(ROOT / "examples" / "guides" / "alarming_orders.jsonl")))
    texts = {each.conversation[0]["content"] for each in prompts.examples}
    assert not prompts.harmful
    assert len(texts) == len(prompts.examples) == 154
    assert not texts & {each.request for each in REQUESTS}


def test_the_pairs_of_the_guide_are_a_harmless_and_a_harmful_prompt_each():
    texts = {each.request for each in REQUESTS}
    for file, n_pairs in (("request_pairs.jsonl", 113), ("more_request_pairs.jsonl", 120)):
        rows = [json.loads(line) for line in (ROOT / "examples" / "guides" / file).read_text().splitlines()]
        assert [row["harmful"] for row in rows] == [False, True] * n_pairs
        prompts = {row["prompt"] for row in rows}
        assert len(prompts - texts) == 2 * n_pairs
        texts |= prompts


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a script that refuses what it is given, in this process: the status, and what it says."""

    def run(command):
        monkeypatch.setattr(sys, "argv", command[1:])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(command[1], run_name="__main__")
        said = capsys.readouterr().err
        return (end.value.code, said) if isinstance(end.value.code, int) else (1, str(end.value.code))

    return run


def test_a_judge_that_is_not_there_is_named(tmp_path, refused):
    status, said = refused([*OWN_JUDGE, "--to", str(tmp_path / "none")])
    assert status == 2
    assert f"{tmp_path / 'none'} could not be loaded" in said


def test_a_judge_is_fine_tuned_on_prompts_alone(tmp_path, refused):
    status, said = refused([*OWN_JUDGE, "--epochs", "2", "--file", "labelled.jsonl", "--to", str(tmp_path / "own")])
    assert status == 2
    assert "--epochs must be 0 or more, and come with --prompts to learn from, got 2." in said


BREAK = [sys.executable, str(ROOT / "examples" / "guides" / "break_and_mend.py"), "--base", str(WEIGHTS / "anchor")]


@pytest.mark.slow
def test_a_specialist_learns_its_domain_as_an_adapter_that_commands_take(tmp_path):
    (tmp_path / "domain.jsonl").write_text('{"prompt": "Who bakes?", "answer": "The baker bakes.", "harmful": false}\n' * 64)
    given = ["--domain", str(tmp_path / "domain.jsonl"), "--to", str(tmp_path / "own"), "--learning-rate", "5e-3"]
    done = subprocess.run([*BREAK, *given, "--epochs", "5", "--save-steps", "20"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "64 prompts of the domain" in done.stdout
    assert [line.split()[3] for line in done.stdout.splitlines() if line.startswith("Use it")] == [
        str(tmp_path / "own" / f"checkpoint-{n}") for n in (20, 40)
    ]
    respond = Responder(*load_causal_on(str(tmp_path / "own" / "checkpoint-40"), "cpu"), max_new_tokens=32)
    assert respond([[{"role": "user", "content": "Who bakes?"}]])[0].text == "The baker bakes."


def test_a_domain_without_right_answers_is_refused(tmp_path, refused):
    (tmp_path / "domain.jsonl").write_text('{"prompt": "Who bakes?", "harmful": false}\n')
    status, said = refused([*BREAK, "--domain", str(tmp_path / "domain.jsonl"), "--to", str(tmp_path / "own")])
    assert status != 0
    assert "--domain must hold prompts with right answers, got none from" in said


@pytest.mark.parametrize(
    ("command", "option"), [*((OWN_JUDGE, option) for option in ("--file", "--prompts", "--test")), (BREAK, "--domain")]
)
def test_scripts_say_in_words_what_is_wrong_with_a_file_or_a_limit(command, option, tmp_path, refused):
    rest = [*(["--domain", "any"] if command is BREAK else []), "--to", str(tmp_path / "own")]
    file = str(tmp_path / "none.jsonl")
    for given, message in (
        ([option, f"{file}:third"], f"{file}:third must be FILE, FILE:odd or FILE:even, got 'third' after the colon."),
        ([option, file], f"error: {file}: No such file or directory. Check the path"),
        ([option, file, "--limit", "-3"], "argument --limit: it must be at least 1, got -3. Leave it out"),
    ):
        status, said = refused([*command, *rest, *given])
        assert status == 2
        assert message in said


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for path, heading in links(page):
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), path
        assert not heading or heading in anchors(place), f"{path}#{heading}"


def test_every_guide_is_linked_from_the_readme_and_every_picture_from_some_page():
    reached = {(page.parent / path).resolve() for page in PAGES for path, _ in links(page)}
    from_readme = {(ROOT / path).resolve() for path, _ in links(README)}
    assert set(GUIDES) <= from_readme
    assert set((ROOT / "examples" / "pictures").iterdir()) <= reached


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_pages_compiles(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", [page for page in GUIDES if runnable(page)], ids=name)
def test_python_in_guides_runs_on_the_testbed(page, in_a_process, tmp_path):
    done = in_a_process(RUN, ROOT, tmp_path, *runnable(page))
    assert done.returncode == 0, done.stderr


def test_most_guides_have_code_that_runs():
    assert {page.stem for page in GUIDES if runnable(page)} >= {"protect", "judges", "lora", "embedding-search", "evaluation"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_pages_are_those_of_the_command_line(page):
    for command, *arguments in whole_commands(page):
        COMMANDS[command].make_context(command, arguments)  # raises for an unknown option, or without a required one
    for command, *words in mentioned_commands(page):
        options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"alignbeam {command}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_pages_name_can_be_run(page):
    text = page.read_text() if page != CHANGELOG else re.sub(r"^\| `[^`]*` \|", "", page.read_text(), flags=re.M)
    for module in re.findall(r"python -m (hf_alignbeam[\w.]*)", text):
        assert find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_exist(page):
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|yaml))`", without_blocks(page)):
        assert (ROOT / path).is_file() or (PACKAGE / path).is_file(), path


def test_every_question_of_where_to_change_has_a_file():
    (rows,) = tables(section(CONTRIBUTING, "Where would I change ..."))
    assert len(rows[2:]) >= 5
    for _, answer in rows[2:]:
        files = re.findall(r"`(hf_alignbeam/[\w/]+\.py)`", answer)
        assert files
        assert all((ROOT / file).is_file() for file in files)


def test_contributing_shows_the_packages_in_the_order_they_import_each_other():
    (shown,) = re.findall(r"```text\n(.*?)```", section(CONTRIBUTING, "Packages"), re.S)
    assert [word for line in shown.splitlines() for word in re.split(r"\s{4,}", line)[0].split()] == ORDER


def test_every_new_name_of_the_changelog_can_be_imported():
    (rows,) = tables(section(CHANGELOG, "[Unreleased]"))
    renamed = [re.fullmatch(r"`(hf_alignbeam[\w.]*)\.(\w+)`", new).groups() for _, new in rows[2:] if "python -m" not in new]
    assert len(renamed) >= 4
    for module, attribute in renamed:
        assert hasattr(import_module(module), attribute), f"{module}.{attribute}"


def test_pre_commit_runs_the_ruff_that_ci_runs():
    (pinned,) = re.findall(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert f"ruff=={pinned}\n" in (ROOT / ".ci" / "constraints.txt").read_text()


def test_extras_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        assert set(re.findall(r"hf-alignbeam\[([\w-]+)\]", page.read_text())) <= set(extras), page
