"""What commands print and write: no control character, no answer lost to a locale, a prompt or Ctrl-C."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from helpers.commands import run
from rich.console import Console
from transformers import AutoTokenizer

from hf_alignbeam.cli import demo, doctor, evaluate, generate, publish, steer
from hf_alignbeam.cli.app import app
from hf_alignbeam.cli.judges import calibrate
from hf_alignbeam.console import OBEYED, printable, tell
from hf_alignbeam.testbed.model_store import WEIGHTS

ANCHOR, TARGET, THIN, JUDGE = (str(WEIGHTS / name) for name in ("anchor", "specialist", "thin", "judge-cls"))
GENERATE = ("generate", "--model", TARGET, "--anchor", ANCHOR, "--max-new-tokens", 3)
ODD = "\x1b[2J\x1b]0;title\x07 \x9b31m a\rb\x08c \u202egnp.exe \u2028 \x7f"
PICKY = (
    "{% for m in messages %}"
    "{% if m['role'] != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('Roles!') }}{% endif %}{% endfor %}"
)


@pytest.fixture
def picky(tmp_path):
    """The folder of a target whose chat template refuses a system message and two turns of a user."""
    return picky_copy(TARGET, tmp_path / "picky")


def picky_copy(source, folder):
    folder.mkdir()
    for file in os.scandir(source):
        os.symlink(file.path, folder / file.name)
    tokenizer = AutoTokenizer.from_pretrained(source)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    tokenizer.chat_template = PICKY + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


def chats(folder):
    """A file with a prompt that every template renders on lines 2 and 4."""
    user, system = {"role": "user", "content": "How can I thank the baker?"}, {"role": "system", "content": "Be brief."}
    file = folder / "chats.jsonl"
    conversations = [[system, user], [user], [user, user], [user]]
    file.write_text("".join(json.dumps({"messages": each, "harmful": False}) + "\n" for each in conversations))
    return file


#: Every command that reads a file of prompts or labels, without its name.
READERS = {
    "generate": ["--model", "none", "--anchor", "none", "--file"],
    "steer": ["--model", "none", "--judge", "none", "--to", "none", "--file"],
    "evaluate": ["--model", "none", "--systems", "plain", "--prompts"],
    "calibrate": ["--judge", "none", "--file"],
    "doctor": ["none", "none", "none", "--pairs"],
}
UNREADABLE = {
    "x.jsonl": (b'[{"prompt": "a"}, {"prompt": "b"}]', "Line 1 of {} must be a JSON object"),
    "x.txt": (b"prompt,response,harmful\na,b,no", "Line 1 of {} must be a prompt, got"),
    "x.csv": (b"prompt,response,harmful\n\na,b,no,c\n", "Row 1 of {} (up to line 3) must have 3 cells"),
    "x.json": (b'[{"prompt": "\\ud800"}]', "Item 1 of {} must hold text that UTF-8 can encode"),
    "x.jsonl.gz": (b'{"prompt": "a"}', "{} must be a complete gzip file"),
    "x.pdf": (b"%PDF-1.7", "{} must be a table (.csv, .tsv)"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("command", READERS)
def test_no_command_answers_a_file_that_it_cannot_read(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(contents)
    result = run(command, *READERS[command], tmp_path / name)
    assert result.exit_code == 2
    assert result.output.startswith("Error: " + message.format(tmp_path / name)), result.output
    assert result.output.count("\n") == 1


def test_printable_text_is_shown_and_not_obeyed():
    assert not OBEYED.search(printable(ODD))
    assert printable(ODD).startswith(r"\x1b[2J\x1b]0;title\x07 \x9b31m a\rb\x08c \u202egnp")
    kept = "Wie heißt er?\n\t👨‍👩‍👧 می‌خواهم — 日本"
    assert printable(kept) == kept


def test_lines_are_told_as_they_are(capsys):
    line = "[bold]x[/] :bug: [/y]" + " long" * 60
    tell(Console(width=40), line)
    assert capsys.readouterr().out == f"{line}\n"


@pytest.mark.parametrize("case", ["answer", "error", "system"])
def test_no_control_character_of_a_file_reaches_the_terminal(case, tmp_path):
    file = tmp_path / "odd\x1b[31m.jsonl"
    file.write_text(json.dumps({"prompt": ODD, "harmful": False} if case != "error" else {ODD: 1}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": "testbed:thin", "prompts": str(file), "systems": {"system": "plain", "name": ODD}}))
    result = run("evaluate", recipe, "--max-new-tokens", 2) if case == "system" else run(*GENERATE, "--file", file)
    assert result.exit_code == (2 if case == "error" else 0), result.output
    shown = result.stderr if case == "error" else result.stdout
    assert re.search(r"\\(x|u00)1b\[2J\\(x|u00)1b\]0;title\\(x|u00)07", shown)
    assert not OBEYED.search(shown)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_a_terminal_shows_what_its_encoding_lacks(encoding, monkeypatch):
    prompt = "Wie heißt 日本?"
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    app([*map(str, GENERATE), "--prompt", prompt], standalone_mode=False)
    terminal.flush()
    assert terminal.buffer.getvalue().splitlines()[0] == prompt.encode(encoding, "backslashreplace")


@pytest.mark.slow
def test_files_are_in_utf_8_whatever_the_locale(tmp_path):
    prompt, to = "Wie heißt 日本?", tmp_path / "answers.jsonl"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "prompts.txt").write_text(prompt, "utf-8")
    command = [sys.executable, "-m", "hf_alignbeam", *map(str, GENERATE), "--file", str(tmp_path / "prompts.txt")]
    written = subprocess.run([*command, "--to", str(to)], env=environment, capture_output=True, timeout=120)
    assert written.returncode == 0, written.stderr
    assert json.loads(to.read_text("utf-8"))["messages"][0]["content"] == prompt


@pytest.mark.parametrize("to", [True, False])
def test_generate_answers_the_prompts_that_a_template_renders(to, picky, tmp_path):
    file, answers = chats(tmp_path), tmp_path / "answers.jsonl"
    command = ("generate", "--model", picky, "--anchor", ANCHOR, "--file", file, "--max-new-tokens", 8)
    result = run(*command, *(["--to", answers] if to else []))
    assert result.exit_code == 1, result.output
    assert [line for line in result.output.splitlines() if line.startswith("Error")] == [
        f"Error: Line {line} of {file}: The target's chat template refuses a conversation with the roles {roles}: Roles!. "
        "Pass `conversations` with the roles and the order that it knows."
        for line, roles in ((1, "system, user"), (3, "user, user"))
    ]
    assert "2 of 4 prompts were left out" in result.output
    if to:
        records = [json.loads(line) for line in answers.read_text().splitlines()]
        assert ["answer" in record for record in records] == [False, True, False, True]
        assert ["error" in record for record in records] == [True, False, True, False]
        assert records[1]["answer"] == records[3]["answer"]
    else:
        assert result.output.count("How can I thank the baker?") == 2


def test_a_prompt_that_is_too_long_costs_no_other_its_answer(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"Hello there\n{'a ' * 600}\n")
    result = run(*GENERATE, "--file", file, "--to", tmp_path / "answers.jsonl")
    assert result.exit_code == 1, result.output
    assert f"Error: Line 2 of {file}: " in result.output
    assert [("answer" in json.loads(line)) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == [True, False]


def test_a_written_line_is_a_line_for_every_reader(tmp_path):
    result = run(*GENERATE, "--prompt", ODD, "--prompt", "a\x85b", "--to", tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "answers.jsonl").read_text("utf-8")
    assert not OBEYED.search(text)
    assert [json.loads(line)["messages"][0]["content"] for line in text.splitlines()] == [ODD, "a\x85b"]


def test_answers_go_to_a_file_and_not_to_a_folder(tmp_path):
    result = run("generate", "--model", "none", "--anchor", "none", "--prompt", "x", "--to", tmp_path)
    assert result.exit_code == 2
    assert "--to must name a file, got the folder" in result.output


def test_without_any_answer_no_file_is_replaced(picky, tmp_path):
    earlier = '{"messages": [], "answer": "An earlier one."}\n'
    (tmp_path / "answers.jsonl").write_text(earlier)
    (tmp_path / "x.jsonl").write_text('{"messages": [{"role": "system", "content": "x"}]}')
    result = run(
        "generate", "--model", picky, "--anchor", ANCHOR, "--file", tmp_path / "x.jsonl", "--to", tmp_path / "answers.jsonl"
    )
    assert result.exit_code == 2
    assert "Error: Line 1 of " in result.output
    assert (tmp_path / "answers.jsonl").read_text() == earlier


def test_steer_searches_for_the_prompts_that_a_template_renders(tmp_path):
    file, thin = chats(tmp_path), picky_copy(THIN, tmp_path / "thin")
    result = run("steer", "--model", thin, "--judge", JUDGE, "--file", file, "--to", tmp_path / "to", "--max-new-tokens", 8)
    assert result.exit_code == 1, result.output
    assert f"Error: Line 1 of {file}: The target's chat template refuses" in result.output
    assert f"Error: Line 3 of {file}: The target's chat template refuses" in result.output
    assert "| clean | 1 |" in result.output


def test_evaluate_leaves_out_what_a_template_refuses_for_all_systems(picky, tmp_path):
    file, to = chats(tmp_path), tmp_path / "to"
    systems = ["plain", {"system": "anchor-logits", "alpha": 0.3}]
    recipe = {"model": str(picky), "anchor": ANCHOR, "prompts": str(file), "systems": systems, "max_new_tokens": 8}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    result = run("evaluate", tmp_path / "recipe.yaml", "--to", to)
    assert result.exit_code == 1, result.output
    report = json.loads((to / "report.json").read_text())
    assert [each.partition(": ")[0] for each in report["left_out"]] == [f"Line 1 of {file}", f"Line 3 of {file}"]
    assert f"* Line 3 of {file}: The target's chat template refuses" in (to / "report.md").read_text()
    answered = [json.loads(line) for line in (to / "answers-0.jsonl").read_text().splitlines()]
    assert [(each["system"], each["case"]) for each in answered if "system" in each] == [
        (name, case) for name in ("plain", "anchor-logits") for case in ("2", "4")
    ]


#: Where each command is stopped, what it was asked, and what it says remains.
STOPPED = {
    "demo": (demo, "load", [], "Nothing was kept but what is printed above."),
    "doctor": (doctor, "load_causal", ["m", "a"], "Nothing was kept but what is printed above."),
    "calibrate": (
        calibrate,
        "read_labeled_responses",
        ["--judge", "j", "--file", "f"],
        "Nothing was kept but what is printed above.",
    ),
    "generate": (generate, "_load", ["--model", "m", "--anchor", "a", "--prompt", "x"], "with --to, it could be resumed."),
    "generate --to": (
        generate,
        "_load",
        ["--model", "m", "--anchor", "a", "--prompt", "x", "--to", "answers.jsonl"],
        "The same command resumes from answers.jsonl.parts.",
    ),
    "steer": (
        steer,
        "read_prompts",
        ["--model", "m", "--judge", "j", "--file", "f", "--to", "folder"],
        "The same command resumes from folder.",
    ),
    "evaluate": (evaluate, "read_recipe", ["--to", "folder"], "The same command resumes from folder."),
    "evaluate alone": (evaluate, "read_recipe", [], "With --to FOLDER, it could be resumed."),
    "publish": (publish, "write_strategy", ["alignbeam", "--to", "folder"], "folder may be incomplete: delete it."),
    "publish --push": (
        publish,
        "push",
        ["alignbeam", "--to", "me/x", "--push"],
        "A push is one commit: me/x has all of it or nothing.",
    ),
    "protect": (
        publish,
        "write_protected",
        ["--model", "m", "--anchor", "a", "--judge", "j", "--to", "folder"],
        "folder may be incomplete: delete it.",
    ),
}


@pytest.mark.parametrize("case", STOPPED)
def test_every_command_says_after_ctrl_c_what_remains(case, monkeypatch):
    module, where, arguments, sentence = STOPPED[case]

    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, where, stop)
    result = run(case.split()[0], *arguments)
    assert result.exit_code == 130
    assert result.output.count("Stopped. ") == 1
    assert result.output.rstrip().endswith(sentence)


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_help_cuts_no_name_and_no_sentence(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in ("generate", "steer", "evaluate", "calibrate", ""):
        app([*filter(None, [command]), "--help"], prog_name="alignbeam", standalone_mode=False)
        words = capsys.readouterr().out.partition("\n")[2]
        assert "…" not in words
        assert "..." not in words
        assert max(map(len, words.splitlines())) <= max(columns, 50)
        assert not command or "--judge-threshold " in words
