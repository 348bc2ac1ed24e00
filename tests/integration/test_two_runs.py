"""Two processes that write to one place at the same time: one of them does so, whole, and the other one says why it did not."""

import json
import subprocess
import sys

import pytest

from hf_alignbeam.testbed.model_store import WEIGHTS
from hf_alignbeam.utils.written_files import whole_folder

GUARD = ("--anchor", WEIGHTS / "anchor", "--judge", WEIGHTS / "judge-cls")
GENERATE = ("generate", "--model", WEIGHTS / "specialist", *GUARD, "--max-new-tokens", 8, "--prompt", "How do I bake?")
SEARCHES = ("--model", WEIGHTS / "thin", "--judge", WEIGHTS / "judge-cls", "--max-calls", 2, "--max-new-tokens", 30)
STEER = ("steer", *SEARCHES, "--file", "prompts.jsonl")
#: By name: a command, and the option that names the place.
COMMANDS = {
    "publish": (("publish", "anchor-logits"), "--to"),
    "protect": (("protect", "--model", WEIGHTS / "specialist", *GUARD), "--to"),
    "generate": (GENERATE, "--to"),
    "steer": (STEER, "--to"),
    "evaluate": (("evaluate", "--split", "validation", "--limit", 1, "--systems", "specialist alone"), "--to"),
}


def start(command, folder):
    words = [sys.executable, "-m", "hf_alignbeam", *map(str, command)]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files(place):
    return [place.suffix] if place.is_file() else sorted(path.name for path in place.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_runs_in_one_place_one_writes_it_whole(name, tmp_path):
    command, option = COMMANDS[name]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "How do I bake?"}]}) + "\n")
    runs = [start((*command, option, tmp_path / "place"), tmp_path) for _ in range(2)]
    outputs = [(run.communicate(timeout=120)[0], run.returncode) for run in runs]
    failed = [output for output, status in outputs if status]
    assert len(failed) < 2, outputs
    assert all("must be of one run at a time" in output or "must be new or empty" in output for output in failed), failed
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".place")]
    alone = start((*command, option, tmp_path / "alone"), tmp_path)
    assert alone.communicate(timeout=120)[0] is not None
    assert alone.returncode == 0
    assert files(tmp_path / "place") == files(tmp_path / "alone")


@pytest.mark.slow
def test_two_runs_append_to_one_audit(tmp_path):
    runs = [start((*GENERATE, "--audit", tmp_path / "audit.jsonl"), tmp_path) for _ in range(2)]
    assert [(run.communicate(timeout=120), run.returncode)[1] for run in runs] == [0, 0]
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()]
    assert len(records) == 2
    assert records[0].keys() == records[1].keys()


def test_a_new_folder_that_another_run_has_filled_is_left_to_it(tmp_path):
    folder = tmp_path / "place"

    def write():
        with whole_folder(folder) as made:
            (made / "ours").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(ValueError, match="one run at a time, but another one filled .*place meanwhile"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["place", "theirs"]
