"""On a full disk or in a read-only folder, a command names the file and a way out, loses nothing, and goes on afterwards."""

import json
import os

import pytest
from helpers.commands import run

from hf_alignbeam import SteeredPrompts, testbed
from hf_alignbeam.testbed.model_store import WEIGHTS
from hf_alignbeam.utils.whole_files import replace_together

GUARD = ("--anchor", WEIGHTS / "anchor", "--judge", WEIGHTS / "judge-cls")
GENERATE = ("generate", "--model", WEIGHTS / "specialist", *GUARD, "--max-new-tokens", 8, "--batch-size", 1)
STEER = ("steer", "--model", WEIGHTS / "thin", "--judge", WEIGHTS / "judge-cls", "--max-new-tokens", 30, "--max-calls", 2)
EVALUATE = ("evaluate", "--split", "validation", "--limit", 1, "--systems", "specialist alone")
#: By name: a command that writes, the option that names the place, and how far a file may grow.
COMMANDS = {
    "generate": ((*GENERATE, "--prompt", "How do I bake?", "--prompt", "Why?"), "--to", 100),
    "audit": ((*GENERATE, "--prompt", "Why?"), "--audit", 50),
    "steer": ((*STEER, "--file", "prompts.jsonl"), "--to", 5000),
    "evaluate": (EVALUATE, "--to", 300),
    "publish": (("publish", "anchor-logits"), "--to", 9000),
    "protect": (("protect", "--model", WEIGHTS / "specialist", *GUARD), "--to", 9000),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = [p for p in testbed.prompts("validation", "harmful") if p.framing][:2]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"messages": each.conversation}) + "\n" for each in prompts))
    return tmp_path / "place"


@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_full_disk_a_command_names_the_file_and_goes_on_when_there_is_room(name, place, full_at):
    command, option, limit = COMMANDS[name]
    with full_at(limit):
        result = run(*command, option, place)
    assert result.exit_code == 2, result.output
    assert f"{place}" in result.output
    assert "File too large. Free some space there and run the command again" in result.output
    if name in ("publish", "protect"):
        assert not place.exists()
    assert not [each for each in place.parent.rglob("*") if each.name.endswith(".part") or each.name.startswith(".place")]
    if place.is_dir():
        assert all(each.read_bytes()[-1:] in (b"", b"\n") for each in place.glob("*.jsonl"))
    again = run(*command, option, place)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("name", COMMANDS)
def test_where_nothing_can_be_written_a_command_says_so(name, place):
    place.write_text("a file, below which there can be no other")
    command, option, _ = COMMANDS[name]
    result = run(*command, option, place / "below")
    assert result.exit_code == 2, result.output
    assert f"Error: {place}" in result.output
    assert place.read_text().startswith("a file")


def test_a_read_only_place_is_named_with_a_way_out(place):
    result = run("publish", "anchor-logits", "--to", "/proc/alignbeam")
    assert result.exit_code == 2
    assert "Error: /proc/alignbeam: " in result.output


def test_a_folder_that_was_published_stays_as_it_was(place, full_at):
    assert run("publish", "anchor-logits", "--to", place).exit_code == 0
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with full_at(9000):
        assert run("publish", "alignbeam", "--to", place).exit_code == 2
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert run("publish", "alignbeam", "--to", place).exit_code == 0
    assert (place / "custom_generate" / "hub_alignbeam.py").is_file()
    assert not [name for name in os.listdir(place) if name.startswith(".")]


def test_files_that_belong_together_are_replaced_together_or_not_at_all(place, full_at):
    place.mkdir()
    both = [place / "tensors", place / "records"]
    replace_together([(path, b"old") for path in both])
    for sizes in ((2000, 5), (5, 2000)):
        with full_at(1000), pytest.raises(OSError, match="File too large: ") as caught:
            replace_together([(path, b"x" * size) for path, size in zip(both, sizes, strict=True)])
        assert caught.value.filename == str(both[sizes.index(2000)])
        assert [path.read_bytes() for path in both] == [b"old", b"old"]
    assert sorted(os.listdir(place)) == ["records", "tensors"]


def test_a_collection_that_cannot_be_saved_is_an_error_of_the_system(place, full_at):
    with full_at(5), pytest.raises(OSError, match="steered.safetensors"):
        SteeredPrompts([], "model", "sha256", {}).save_pretrained(place)
