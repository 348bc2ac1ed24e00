"""What is written and pushed loads again and gives the object's tokens; a pinned repository does not follow its branch."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers.entries import CALLS, COMMAND, GENERATE, GREEDY, GUARD, TARGET, TRUSTED, files_of, result_of
from helpers.searches import framed
from helpers.variety import mostly_slow

from hf_alignbeam import AlignBeam
from hf_alignbeam.hub.publish import ENTRIES, write_protected, write_strategy
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges

pytestmark = pytest.mark.usefixtures("hub_models")


def paths(hub, repo, since=0):
    """The paths of the requests for a repository."""
    return [request.path for request in hub.requests[since:] if f"/{repo}/" in f"{request.path}/"]


def on_the_hub(models):
    """Arguments that name the testbed's models on the local hub."""
    return {argument: f"world/{model}" for argument, model in models.items()}


def pushed_commit(done, hub, repo):
    """The commit that a command says it has pushed."""
    assert done.returncode == 0, done.stderr
    sha = re.search(r"revision='(\w{40})'", done.stdout).group(1)
    assert sha == hub.main[repo]
    return sha


def test_folders_in_use_and_unsuitable_targets_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="must be new or empty, but .* holds mine.txt"):
        write_strategy("alignbeam", tmp_path)
    with pytest.raises(ValueError, match="must be new or empty, but .* holds mine.txt"):
        write_protected(TARGET, tmp_path, GUARD)
    with pytest.raises(ValueError, match="must be new or empty, but .* is a file"):
        write_strategy("alignbeam", tmp_path / "mine.txt")
    with pytest.raises(ValueError, match="`strategy` must be one of anchor-logits, alignbeam"):
        write_strategy("steer", tmp_path / "new")
    with pytest.raises(ValueError, match="`model` must be a causal language model, but .* has the architectures 'ModernBert"):
        write_protected(str(WEIGHTS / "judge-cls"), tmp_path / "cls", GUARD)


@pytest.mark.parametrize("strategy", mostly_slow(ENTRIES, ("alignbeam",)))
def test_a_pushed_strategy_gives_the_objects_tokens(strategy, hub, in_a_process, object_outputs, tmp_path):
    """Pushed into a new repository, then loaded with nothing of it in the cache."""
    repo = f"pushed/{strategy}"
    sha = pushed_commit(in_a_process(COMMAND, "publish", strategy, "--to", repo, "--push"), hub, repo)
    write_strategy(strategy, tmp_path / "local", repo)
    assert hub.files(repo, sha) == files_of(tmp_path / "local")
    (target, models), (inputs, expected) = CALLS[strategy], object_outputs[strategy]
    options = json.dumps({"custom_generate": repo, "revision": sha, **on_the_hub(models)})
    since = len(hub.requests)
    assert result_of(in_a_process(GENERATE, f"world/{target}", "{}", json.dumps(inputs), options)) == expected
    assert f"/{repo}/resolve/{sha}/custom_generate/hub_{strategy.replace('-', '_')}.py" in paths(hub, repo, since)


@pytest.mark.parametrize(
    "edited_names",
    [
        pytest.param(("README.md", "custom_generate/generate.py", "custom_generate/mine.py"), marks=pytest.mark.slow),
        ("custom_generate/mine.py",),
    ],
    ids=len,
)
def test_a_second_push_leaves_nothing_of_the_first(edited_names, hub, in_a_process, tmp_path):
    repo = f"again/{len(edited_names)}"
    hub.commit(repo, {".gitattributes": b""})
    push = [COMMAND, "publish", "alignbeam", "--to", repo, "--push"]
    first = pushed_commit(in_a_process(COMMAND, "publish", "anchor-logits", *push[3:]), hub, repo)
    pushed_commit(in_a_process(*push), hub, repo)
    write_strategy("alignbeam", tmp_path / "local", repo)
    assert hub.files(repo, "main") == {".gitattributes": b"", **files_of(tmp_path / "local")}
    assert "custom_generate/hub_anchor_logits.py" in hub.files(repo, first)
    for name in edited_names:  # nothing of another's is replaced
        edited = hub.commit(repo, {name: b"mine"})
        done = in_a_process(*push)
        assert done.returncode == 2
        assert f"{repo}/{name} must be new or as this command wrote it" in done.stderr
        assert hub.main[repo] == edited
        hub.commit_folder(repo, tmp_path / "local")


OTHER = b"def generate(*args, model, **kwargs):\n    return kwargs['input_ids'] * 0\n"


def test_a_pinned_strategy_stays_and_an_unpinned_one_follows_its_branch(hub, in_a_process, object_outputs, tmp_path):
    write_strategy("alignbeam", tmp_path / "local")
    good = hub.commit_folder("moved/alignbeam", tmp_path / "local")
    hub.commit("moved/alignbeam", {"custom_generate/generate.py": OTHER})
    (target, models), (inputs, expected) = CALLS["alignbeam"], object_outputs["alignbeam"]
    generate = [GENERATE, f"world/{target}", "{}", json.dumps(inputs)]
    options, since = {"custom_generate": "moved/alignbeam", **on_the_hub(models)}, len(hub.requests)
    assert result_of(in_a_process(*generate, json.dumps({**options, "revision": good}))) == expected
    requested = paths(hub, "moved/alignbeam", since)
    assert requested
    assert all(good in path for path in requested)
    assert not any(any(row) for row in result_of(in_a_process(*generate, json.dumps(options))))


def test_later_commits_change_nothing_for_a_protected_model(hub, in_a_process, object_outputs, specialist, anchor, tmp_path):
    """Its anchor, its judge and its own repository with the tokenizer's files: all of them are pinned."""
    for name, model in (("anchor", "anchor"), ("judge", "judge-cls")):
        hub.commit_folder(f"moving/{name}", WEIGHTS / model)
    guard, repo = {"anchor": "moving/anchor", "judge": "moving/judge"}, "moving/guarded"
    arguments = [part for name, guarding in guard.items() for part in (f"--{name}", guarding)]
    done = in_a_process(COMMAND, "protect", "--model", "world/specialist", *arguments, "--to", repo, "--push")
    shas = {name: hub.main[guarding] for name, guarding in guard.items()}
    sha = pushed_commit(done, hub, repo)
    revisions = {f"{name}_revision": sha for name, sha in shas.items()}
    assert json.loads(hub.files(repo, sha)["generation_config.json"])["alignbeam"] == {**guard, **revisions}

    inputs = object_outputs["alignbeam"][0]
    strategy = AlignBeam(*anchor, specialist[1], stored_judges()["judge-cls"])
    tensors = {key: torch.tensor(rows) for key, rows in inputs.items()}
    expected = specialist[0].generate(**tensors, custom_generate=strategy, **GREEDY).tolist()
    assert expected != specialist[0].generate(**tensors, **GREEDY).tolist()
    config = json.loads(hub.files("moving/judge", "main")["config.json"])
    hub.commit("moving/judge", {"config.json": json.dumps({**config, "id2label": {"0": "unsafe", "1": "safe"}}).encode()})
    hub.commit_folder("moving/anchor", WEIGHTS / "unaligned")
    hub.commit(repo, {"tokenizer.json": b"{}", "chat_template.jinja": b"", "custom_generate/generate.py": b"1 / 0\n"})
    load, since = json.dumps({"revision": sha, **TRUSTED}), len(hub.requests)
    assert result_of(in_a_process(GENERATE, repo, load, json.dumps(inputs), "{}")) == expected
    for pinned, pin in ((repo, sha), *((guarding, shas[name]) for name, guarding in guard.items())):
        requested = paths(hub, pinned, since)
        assert requested
        assert all(pin in path for path in requested), requested

    write_strategy("alignbeam", tmp_path / "local")
    options = {"custom_generate": str(tmp_path / "local"), **guard}
    generate = [GENERATE, "world/specialist", "{}", json.dumps(inputs)]
    assert result_of(in_a_process(*generate, json.dumps({**options, **revisions}))) == expected
    assert result_of(in_a_process(*generate, json.dumps(options))) != expected  # an inverted judge guards nothing


def test_a_protected_repository_is_guarded_or_not_loaded(hub, in_a_process, object_outputs, protected_folder):
    hub.commit_folder("owner/protected", Path(protected_folder))
    inputs, expected = object_outputs["alignbeam"]
    for load in (TRUSTED, {**TRUSTED, "subfolder": ""}):  # evaluation harnesses always pass a subfolder
        assert result_of(in_a_process(GENERATE, "owner/protected", json.dumps(load), json.dumps(inputs), "{}")) == expected
    without_trust = in_a_process(GENERATE, "owner/protected", "{}", json.dumps(inputs), "{}")
    assert without_trust.returncode != 0
    assert "trust_remote_code=True" in without_trust.stderr


PUSH_PROMPTS = """
import json, sys
from hf_alignbeam import SteeredPrompts, testbed
model, _ = testbed.load("thin")
first, second = (SteeredPrompts.from_pretrained(folder, model) for folder in sys.argv[1:])
pinned = first.push_to_hub("owner/steered").rsplit("/", 1)[-1]
second.push_to_hub("owner/steered")
loaded = [SteeredPrompts.from_pretrained("owner/steered", model, revision=revision) for revision in (pinned, None)]
print("RESULT", json.dumps([[[prompt.text, prompt.embeds.tolist()] for prompt in prompts] for prompts in loaded]))
"""


def test_steered_prompts_are_pushed_pinned_and_loaded(hub, in_a_process, steerer, tmp_path):
    searched = [steerer.precompute(prompts, tmp_path / str(n), **GREEDY) for n, prompts in enumerate((framed(1), framed(2)))]
    loaded = result_of(in_a_process(PUSH_PROMPTS, tmp_path / "0", tmp_path / "1"))
    assert loaded == [[[prompt.text, prompt.embeds.tolist()] for prompt in prompts] for prompts in searched]
    assert set(hub.files("owner/steered", "main")) == {"steered.json", "steered.safetensors"}
