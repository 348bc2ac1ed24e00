"""A judge of one's own in a protected copy: it is pinned with all that it is loaded from."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers.entries import ANCHOR, COMMAND, JUDGE, TARGET, TRUSTED
from helpers.variety import mostly_slow
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_alignbeam import testbed
from hf_alignbeam.hub.judge_loading import models_beside
from hf_alignbeam.hub.loading_files import folder_sha256
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.judges.known_exchanges import EXCHANGES
from hf_alignbeam.judges.probes import probe_judge
from hf_alignbeam.judges.probes.known_probes import KnownProbes
from hf_alignbeam.judges.probes.linear_probe import LinearProbe, fit_probe
from hf_alignbeam.judges.probes.saved_probes import SavedProbes, save_probes

JUDGE_FOLDER = Path(JUDGE)
PROTECT = (COMMAND, "protect", "--model", TARGET, "--anchor", ANCHOR, "--judge")
GRADIENT_WARNING = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers', as peft asks


@cache
def known_probes():
    """Probes of the states of three layers of the testbed's judge: they tell the known exchanges apart, and nothing else."""
    width = json.loads((JUDGE_FOLDER / "config.json").read_text())["hidden_size"]
    nothing = LinearProbe(torch.zeros(3 * width, dtype=torch.float64), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_judge, "MIN_SEPARATION", 0.0)
        judge = probe_judge.ProbeJudge(*testbed.load("judge-lm"), KnownProbes(nothing, nothing, 1.0))
    states = judge._read([ids for ids, _ in judge._examples(EXCHANGES)])
    harmful = torch.tensor([each.harmful for each in EXCHANGES])
    request = fit_probe(torch.stack([each.request for each in states]), harmful)
    n_parts = torch.tensor([len(each.response) for each in states])
    return KnownProbes(request, fit_probe(torch.cat([e.response for e in states]), harmful.repeat_interleave(n_parts)), 1.0)


def write_probes(folder, model, revision=None, bias=0.0):
    probes = known_probes()
    probes = probes._replace(request=probes.request._replace(bias=probes.request.bias + bias))
    save_probes(SavedProbes(probes, None if model is None else str(model), revision), folder)


@pytest.fixture
def base(tmp_path):
    """The folder of the model that probes read."""
    return shutil.copytree(JUDGE, tmp_path / "base")


@pytest.fixture
def judge(base, tmp_path):
    write_probes(tmp_path / "judge", base)
    return tmp_path / "judge"


def protect(judge, folder, **more):
    write_protected(TARGET, folder, {"anchor": ANCHOR, "judge": str(judge), **more})
    return json.loads((folder / "generation_config.json").read_text())["alignbeam"]


EDITS = {
    "its probes": lambda judge, base: write_probes(judge, base, bias=-1000.0),
    "the model that they read": lambda judge, base: (base / "chat_template.jinja").write_text("safe"),
    "the model that they name": lambda judge, base: write_probes(judge, shutil.copytree(base, base.with_name("other"))),
    "no model any more": lambda judge, base: shutil.rmtree(base),
}


@pytest.mark.parametrize("edit", mostly_slow(EDITS, ["its probes", "the model that they read"]))
def test_a_protected_copy_does_not_load_once_its_own_judge_has_changed(edit, judge, base, tmp_path):
    protect(judge, tmp_path / "made")
    AutoModelForCausalLM.from_pretrained(tmp_path / "made", **TRUSTED)
    EDITS[edit](judge, base)
    with pytest.raises((ValueError, OSError), match="must not change|there is no such folder"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "made", **TRUSTED)


@GRADIENT_WARNING
def test_an_adapter_with_probes_is_pinned_with_its_base(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).save_pretrained(tmp_path / "judge")
    write_probes(tmp_path / "judge", None)
    assert models_beside(str(tmp_path / "judge")) == [(str(base), None)]
    stored = protect(tmp_path / "judge", tmp_path / "made")
    AutoModelForCausalLM.from_pretrained(tmp_path / "made", **TRUSTED)
    assert stored["judge_sha256"] != folder_sha256(tmp_path / "judge")
    (base / "chat_template.jinja").write_text("safe")
    with pytest.raises(ValueError, match="`judge` of a protected model must not change"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "made", **TRUSTED)


@pytest.mark.parametrize(
    "said", [{"judge_rubric": "yes-no"}, {"judge_labels": {"unsafe": 1.0}}, {"judge_profile": "llama-guard"}]
)
def test_a_copy_whose_own_judge_would_be_asked_something_is_not_written(said, judge, tmp_path):
    with pytest.raises(ValueError, match="must be used as it is, for it holds probes of hidden states"):
        protect(judge, tmp_path / "made", **said)
    assert not (tmp_path / "made").exists()


@GRADIENT_WARNING
def test_an_adapter_without_probes_is_refused(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).save_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match="`judge` must be a whole model"):
        protect(tmp_path / "judge", tmp_path / "made")


def test_a_judge_on_the_hub_is_pinned_where_its_model_is(hub, in_a_process, tmp_path):
    """Its repository need not hold anything but the probes."""
    sha = hub.commit_folder("org/guard", JUDGE_FOLDER)
    write_probes(tmp_path / "files", "org/guard", sha)
    commit = hub.commit_folder("me/own-judge", tmp_path / "files")
    result = in_a_process(*PROTECT, "me/own-judge", "--to", tmp_path / "made")
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "made" / "generation_config.json").read_text())["alignbeam"]
    assert (stored["judge"], stored["judge_revision"]) == ("me/own-judge", commit)


@pytest.mark.parametrize(("name", "revision"), [("org/guard", None), ("org/guard", "main")])
def test_a_model_whose_commit_is_not_named_is_refused(name, revision, hub, in_a_process, tmp_path):
    hub.commit_folder("org/guard", JUDGE_FOLDER)
    write_probes(tmp_path / "judge", name, revision)
    result = in_a_process(*PROTECT, tmp_path / "judge", "--to", tmp_path / "made")
    assert result.returncode == 2
    assert f"names {name} with the revision {revision}, which could change" in " ".join(result.stderr.split())


def test_a_model_at_a_relative_path_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_probes(tmp_path / "judge", "base")
    with pytest.raises(ValueError, match="names base with the revision None, which could change"):
        protect(tmp_path / "judge", tmp_path / "made")


def test_a_judge_on_the_hub_may_not_name_a_folder(hub, in_a_process, base, tmp_path):
    write_probes(tmp_path / "files", base)
    hub.commit_folder("me/own-judge", tmp_path / "files")
    result = in_a_process(*PROTECT, "me/own-judge", "--to", tmp_path / "made")
    assert result.returncode == 2
    assert "`judge` must name the model that it reads by a commit on the Hub" in " ".join(result.stderr.split())


def test_a_folder_without_a_model_has_no_hash(tmp_path):
    with pytest.raises(ValueError, match="A folder must hold the files of a model"):
        folder_sha256(tmp_path)
