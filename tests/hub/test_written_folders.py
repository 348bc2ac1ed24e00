"""What is written into a folder: of a target only what loading needs, whole or not at all, and never over another's file."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.commands import run
from helpers.entries import ANCHOR, GUARD, JUDGE, TARGET, TRUSTED, files_of
from transformers import AutoModelForCausalLM

from hf_alignbeam.hub import publish
from hf_alignbeam.hub.publish import ENTRIES, write_protected, write_strategy
from hf_alignbeam.testbed.model_store import WEIGHTS


@pytest.fixture
def target(tmp_path):
    """A copy of the target's folder."""
    return Path(shutil.copytree(TARGET, tmp_path / "source"))


def written(folder, made):
    write_protected(str(folder), made, GUARD)
    return sorted(name.removeprefix("target/") for name in files_of(made) if name.startswith("target/"))


LOADED = ["chat_template.jinja", "generation_config.json", "model.protected.safetensors", "protected_config.json"]
LOADED += ["tokenizer.json", "tokenizer_config.json"]


def test_only_what_loading_needs_is_copied(target, tmp_path):
    others = [
        "checkpoint-500/config.json",
        "checkpoint-500/model.safetensors",
        "original/consolidated.00.pth",
        ".env",
        ".git/config",
    ]
    others += [
        "optimizer.pt",
        "training_args.bin",
        "model.Q4.gguf",
        "notes.txt",
        "custom_generate/generate.py",
        "modeling.py",
        ".tokenizer",
    ]
    others += ["pytorch_model.bin", "consolidated.safetensors", "tokenizer/secret.json", "README.md", "runs/events.out"]
    for name in others:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((target / "model.safetensors").read_bytes() if name.endswith("safetensors") else b"SECRET")
    (target / "checkpoint-500" / "config.json").write_bytes((target / "config.json").read_bytes())
    (target / "LICENSE.txt").write_text("Own terms")
    assert written(target, tmp_path / "made") == sorted([*LOADED, "LICENSE.txt"])
    assert not any(data == b"SECRET" for data in files_of(tmp_path / "made").values())
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "made", subfolder="target/checkpoint-500")


def test_a_checkpoint_in_parts_and_other_tokenizers_are_copied(target, tmp_path):
    weights = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").unlink()
    (target / "part-1.safetensors").write_bytes(weights)
    (target / "unused.safetensors").write_bytes(weights)
    names = dict.fromkeys(["x", "y"], "part-1.safetensors")
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for name in ("tokenizer.model", "spiece.model", "tekken.json", "preprocessor_config.json", "qwen.tiktoken"):
        (target / name).write_text("{}")
    found = written(target, tmp_path / "made")
    assert {"part-1.safetensors", "model.safetensors.index.protected.json", "spiece.model", "preprocessor_config.json"} < set(
        found
    )
    assert "unused.safetensors" not in found
    assert {"spiece.model", "tekken.json", "qwen.tiktoken"} < set(os.listdir(tmp_path / "made"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "LICENSE"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name, target, tmp_path):
    outside = tmp_path / "outside"
    shutil.copy(target / name, outside) if (target / name).is_file() else outside.write_text("SECRET")
    (target / name).unlink(missing_ok=True)
    (target / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"must hold its own files, but .*{name} is a link to .*outside. Put a copy"):
        write_protected(str(target), tmp_path / "made", GUARD)
    assert not (tmp_path / "made").exists()


def test_a_part_outside_of_the_folder_is_refused(target, tmp_path):
    shutil.move(target / "model.safetensors", tmp_path / "part.safetensors")
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../part.safetensors"}}))
    with pytest.raises(ValueError, match="must hold its own files"):
        write_protected(str(target), tmp_path / "made", GUARD)


def test_links_inside_a_folder_and_of_the_hubs_cache_are_followed(target, tmp_path):
    snapshot, blobs = tmp_path / "models--you--m" / "snapshots" / "abc", tmp_path / "models--you--m" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(target.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert written(snapshot, tmp_path / "made") == LOADED
    assert not any(path.is_symlink() for path in (tmp_path / "made").rglob("*"))


def test_an_edit_of_the_source_leaves_the_copy_as_it_was(target, tmp_path):
    written(target, tmp_path / "made")
    before = files_of(tmp_path / "made")
    for file in target.iterdir():
        with file.open("r+b") as opened:
            opened.write(b"edited")
    assert files_of(tmp_path / "made") == before
    (tmp_path / "made" / "target" / "model.protected.safetensors").write_bytes(b"other")
    assert (target / "model.safetensors").read_bytes() != b"other"


def test_a_target_with_an_adapter_beside_it_or_without_weights_is_refused(target, tmp_path):
    (target / "adapter_config.json").write_text('{"base_model_name_or_path": "you/other"}')
    with pytest.raises(ValueError, match="is an adapter"):
        write_protected(str(target), tmp_path / "made", GUARD)
    (target / "adapter_config.json").unlink()
    (target / "model.safetensors").rename(target / "weights.safetensors")
    with pytest.raises(ValueError, match="`model` must hold weights that transformers finds"):
        write_protected(str(target), tmp_path / "made", GUARD)
    with pytest.raises(ValueError, match="`revision` must be left out for a folder, got 'main'"):
        write_protected(str(target), tmp_path / "made", GUARD, revision="main")


def test_a_protected_folder_is_whole_or_not_there(target, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    empty = tmp_path / "empty"
    empty.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_flat", full)
        for made in (tmp_path / "made", empty):
            with pytest.raises(OSError, match="No space left"):
                write_protected(str(target), made, GUARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "source"]
    assert not list(empty.iterdir())
    assert written(target, empty) == LOADED
    AutoModelForCausalLM.from_pretrained(empty, **TRUSTED)


def test_a_strategy_may_be_written_again_and_over_another_one(tmp_path):
    for strategy in (*ENTRIES, "anchor-logits"):
        write_strategy(strategy, tmp_path / "made")
        (tmp_path / "made" / "custom_generate" / "__pycache__").mkdir(exist_ok=True)
    write_strategy("anchor-logits", tmp_path / "new")
    assert files_of(tmp_path / "made") == files_of(tmp_path / "new")


FOREIGN = ["README.md", "custom_generate/generate.py", "custom_generate/mine.py", "custom_generate/hub_anchor_logits.py"]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", ["mine", "edited", "link"])
@pytest.mark.parametrize("is_adapter", [False, True])
def test_no_file_of_another_is_replaced(name, kind, is_adapter, tmp_path):
    """A card of an adapter is its author's, and gets a section."""
    folder, other = tmp_path / "made", tmp_path / "other"
    if is_adapter:
        shutil.copytree(WEIGHTS / "specialist-lora", folder)
    file = folder / name
    if kind != "mine":
        write_strategy("anchor-logits", folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        other.write_text(file.read_text() if file.is_file() else "mine")
        file.unlink(missing_ok=True)
        file.symlink_to(other)
    else:
        file.write_text((file.read_text() if kind == "edited" and file.is_file() else "") + "# mine\n")
    before = files_of(folder), other.read_bytes() if kind == "link" else None
    done = run("publish", "anchor-logits", "--to", folder)
    if is_adapter and name == "README.md" and kind != "link":
        assert done.exit_code == 0, done.output
        assert "# mine\n" in (folder / "README.md").read_text()
        return
    assert done.exit_code == 2
    assert str(file) in done.output.replace("\n", "")
    assert (files_of(folder), other.read_bytes() if kind == "link" else None) == before
    assert kind != "link" or file.is_symlink()


def test_the_guards_files_do_not_depend_on_where_they_are_written(tmp_path):
    """The record of what was written is the same for the same files."""
    for name in ("a", "b"):
        write_protected(TARGET, tmp_path / name, {"anchor": ANCHOR, "judge": JUDGE}, repo="you/it")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
