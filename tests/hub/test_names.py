"""A name means what it meant when it was written down: no folder stands in for a pinned model, and no folder changes unseen."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.entries import ANCHOR, GUARD, JUDGE, TARGET, TRUSTED
from helpers.strategies import chats_of, texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_alignbeam.evaluation.devices import load_causal
from hf_alignbeam.evaluation.recipe import parse_recipe
from hf_alignbeam.evaluation.systems import RecipeModels
from hf_alignbeam.hub import alignbeam, embedding_steerer
from hf_alignbeam.hub.model_loading import tokenizer_for
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.testbed.model_store import WEIGHTS


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A folder of a model that is protected with relative paths, from the directory above them."""
    there = tmp_path_factory.mktemp("there")
    for name, model in (("judge", JUDGE), ("anchor", ANCHOR)):
        shutil.copytree(model, there / "models" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(there)
        write_protected(TARGET, Path("made"), {"anchor": "models/anchor", "judge": "models/judge"})
    return there


@pytest.fixture
def made(made_once, tmp_path, monkeypatch):
    """A copy of it, as if it had been made there."""
    there = Path(shutil.copytree(made_once, tmp_path / "there"))
    config = there / "made" / "generation_config.json"
    config.write_text(config.read_text().replace(str(made_once), str(there)))
    monkeypatch.chdir(there)
    return there


def loaded(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, **TRUSTED)
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


def test_relative_paths_are_stored_absolute_with_a_hash(made, tmp_path, monkeypatch, specialist, protected):
    stored = json.loads((made / "made" / "generation_config.json").read_text())["alignbeam"]
    for kind in GUARD:
        assert stored[kind] == str(made / "models" / kind)
        assert len(stored[f"{kind}_sha256"]) == 64
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "models").mkdir(parents=True)
    shutil.copytree(WEIGHTS / "unaligned", elsewhere / "models" / "judge")  # another model of the same relative path
    monkeypatch.chdir(elsewhere)
    chats = chats_of("harmful", 1)
    assert texts(loaded(made / "made"), chats) == texts(protected, chats)


EDITS = {
    "weights": lambda folder: (folder / "model.safetensors").write_bytes((WEIGHTS / "thin" / "model.safetensors").read_bytes()),
    "template": lambda folder: (folder / "chat_template.jinja").write_text("safe"),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "config": lambda folder: (folder / "config.json").write_text("{}"),
    "adapter": lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}'),
    "other weights": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
}


@pytest.mark.parametrize(("edit", "kind"), [*((edit, "judge") for edit in EDITS), ("weights", "anchor")])
def test_an_anchor_or_a_judge_that_has_changed_is_refused(edit, kind, made):
    EDITS[edit](made / "models" / kind)
    with pytest.raises(
        ValueError, match=f"`{kind}` of a protected model must not change, but the files of .*{kind} are not those"
    ):
        loaded(made / "made")


def test_links_are_followed_to_what_they_lead_to(made, tmp_path):
    """A folder of links may be a judge: its hash is of what is loaded."""
    links = tmp_path / "links"
    links.mkdir()
    for file in (made / "models" / "judge").iterdir():
        (links / file.name).symlink_to(file)
    write_protected(TARGET, tmp_path / "linked", {"anchor": ANCHOR, "judge": str(links)})
    loaded(tmp_path / "linked")
    (made / "models" / "judge" / "chat_template.jinja").write_text("safe")
    with pytest.raises(ValueError, match="`judge` of a protected model must not change"):
        loaded(tmp_path / "linked")


def test_files_that_decide_nothing_may_change(made):
    (made / "models" / "judge" / "README.md").write_text("edited")
    (made / "models" / "judge" / "checkpoint-1").mkdir()
    loaded(made / "made")


def test_a_relative_path_in_a_protected_folder_is_refused(made):
    file = made / "made" / "generation_config.json"
    config = json.loads(file.read_text())
    config["alignbeam"]["judge"] = "models/judge"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`judge` of a protected model must be a Hub id or the absolute path of a folder"):
        loaded(made / "made")


@pytest.mark.parametrize("kind", GUARD)
def test_a_folder_has_no_revision_to_pin(kind, made):
    with pytest.raises(ValueError, match="must be left out for a folder, got 'abc'"):
        write_protected(TARGET, Path("other"), {"anchor": "models/anchor", "judge": "models/judge", f"{kind}_revision": "abc"})
    assert not Path("other").exists()


DOORS = {
    "anchor": lambda name, target: alignbeam.alignbeam(
        model=target[0], **GUARD | {"anchor": name}, anchor_revision="abc", tokenizer=target[1]
    ),
    "judge": lambda name, target: alignbeam.alignbeam(
        model=target[0], **GUARD | {"judge": name}, judge_revision="abc", tokenizer=target[1]
    ),
    "accept": lambda name, target: embedding_steerer.embedding_steerer(
        [[5]], model=target[0], judge=JUDGE, accept=name, accept_revision="abc", tokenizer=target[1]
    ),
    "target": lambda name, target: load_causal(name, None, "abc"),
    "recipe": lambda name, target: RecipeModels(recipe := recipe_of(name), recipe.models[0]).responder,
}


def recipe_of(name):
    return parse_recipe({"model": {"name": name, "revision": "abc"}, "prompts": "x", "systems": "plain"})


@pytest.mark.parametrize("door", DOORS)
def test_a_pinned_model_is_not_taken_from_a_folder_of_its_id(door, made, specialist):
    """Transformers looks for a folder first, whatever revision is asked for."""
    with pytest.raises(ValueError, match=r"must be left out for a folder, got 'abc' for models/judge, which is the folder /"):
        DOORS[door]("models/judge", specialist)


def test_a_tokenizer_that_is_not_given_is_the_one_of_the_models_commit(specialist):
    model = AutoModelForCausalLM.from_pretrained(TARGET)
    assert tokenizer_for(model, None).get_vocab() == specialist[1].get_vocab()
    model.config._commit_hash = "abc"  # as of a model of the Hub, whose id is that of a folder
    with pytest.raises(ValueError, match="must be left out for a folder, got 'abc'"):
        tokenizer_for(model, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"anchor": str(WEIGHTS / "judge-cls")}, "`anchor` must be a causal language model, but .*Classification'"),
        ({"anchor": "PROTECTED"}, "`anchor` must be a model without a guard of its own, but .* is a protected copy"),
        ({"judge": "PROTECTED"}, "`judge` must be a model without a guard of its own, but .* is a protected copy"),
        ({"judge_template": "{{ messages["}, "`judge_template` must be a Jinja template"),
    ],
)
def test_a_copy_that_could_not_be_loaded_is_not_written(given, message, protected_folder, tmp_path):
    given = {name: protected_folder if value == "PROTECTED" else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        write_protected(TARGET, tmp_path / "made", {"anchor": ANCHOR, "judge": JUDGE, **given})
    assert not (tmp_path / "made").exists()
