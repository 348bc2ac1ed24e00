"""A copy that could not be loaded, or that would refuse every call, is not written; a model that transformers has may be one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.entries import ANCHOR, GUARD, JUDGE, TARGET, TRUSTED
from transformers import AutoModelForCausalLM

from hf_alignbeam.evaluation.devices import load_causal
from hf_alignbeam.hub.alignbeam import alignbeam
from hf_alignbeam.hub.protected.checks import check_kind
from hf_alignbeam.hub.protected.pinning import pinned
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.testbed.model_store import WEIGHTS

#: Code that tells when it is run, and a configuration that names it.
OWN_CODE = "raise SystemExit('Code of the model was run.')\n"
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


@pytest.fixture
def target(tmp_path):
    """A copy of the target's folder."""
    return Path(shutil.copytree(TARGET, tmp_path / "source"))


def edit(file, **values):
    """Set values in a file of JSON."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def bring_own_code(folder):
    """Make a model one of a class of its own."""
    edit(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    (folder / "own.py").write_text(OWN_CODE)


DAMAGE = {
    "code of its own": (bring_own_code, r"`model` must be of a class that transformers has, but .* has the model type 'own'"),
    "no model type": (lambda folder: (folder / "config.json").write_text("{}"), "has the model type None"),
    "another head": (
        lambda folder: edit(folder / "config.json", architectures=["LlamaForSequenceClassification"]),
        "`model` must be a causal language model, but .* has the architectures 'LlamaForSequenceClassification'",
    ),
    "no head": (lambda folder: edit(folder / "config.json", architectures=["LlamaModel"]), "has the architectures 'LlamaModel'"),
    "an encoder-decoder": (
        lambda folder: edit(folder / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "`model` must be a causal language model, but .* the model type 't5'",
    ),
    "a pointer of Git LFS": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "weights must be whole, but .*model.safetensors is cut off, or a pointer of Git LFS",
    ),
    "weights that are cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:9000]),
        "weights must be whole, but .*model.safetensors is cut off",
    ),
    "pickled weights that are cut off": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "weights must be whole, but .*pytorch_model.bin is cut off",
    ),
    "a part that is missing": (
        lambda folder: (
            (folder / "model.safetensors").rename(folder / "unused")
            and (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part-1.safetensors"}}')
        ),
        "part-1.safetensors",
    ),
    "a broken generation config": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "generation_config.json must hold a JSON object",
    ),
    "a tokenizer of its own": (
        lambda folder: (
            (folder / "tokenizer.json").unlink()
            or edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
        ),
        "The tokenizer of .*source must be of a class that transformers has",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_target_that_a_copy_could_not_load_is_refused(kind, target, tmp_path):
    damage, message = DAMAGE[kind]
    damage(target)
    with pytest.raises((OSError, ValueError), match=message):
        write_protected(str(target), tmp_path / "made", GUARD)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"prompt_lookup_num_tokens": 3},
        {"dola_layers": "high"},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"guidance_scale": 1.5},
        {"token_healing": True},
        {"output_hidden_states": True},
        {"cache_implementation": "offloaded"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_with_which_every_call_would_be_refused_are_named(settings, target, tmp_path):
    edit(target / "generation_config.json", **settings)
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"generation_config.json of .*source: `{name}` must be left out with AlignBeam"):
        write_protected(str(target), tmp_path / "made", GUARD)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"judge_labels": {"foo": 1.0}}, "must answer with verdicts"),
        pytest.param({"judge": ANCHOR}, "must tell harmful from harmless exchanges", marks=pytest.mark.slow),
        ({"judge": str(WEIGHTS / "judge-cls"), "judge_rubric": "yes-no"}, "`judge_rubric` must be left out for a classifier"),
        ({"anchor": "OWN"}, "`anchor` must be of a class that transformers has, but .* has the model type 'own'"),
        ({"judge": "OWN"}, "`judge` must be of a class that transformers has, but .* has the model type 'own'"),
        ({"anchor": "BROKEN"}, "weights must be whole, but .*source/model.safetensors is cut off"),
        ({"judge": "BROKEN"}, "weights must be whole, but .*source/model.safetensors is cut off"),
        ({"anchor": "base"}, "`anchor` of a protected model must be a Hub id or a folder, got 'base'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_guard_that_could_not_be_built_is_refused(given, message, target, tmp_path):
    (bring_own_code if "OWN" in given.values() else DAMAGE["weights that are cut off"][0])(target)
    given = {name: str(target) if value in ("OWN", "BROKEN") else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        write_protected(TARGET, tmp_path / "made", {**GUARD, **given})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"auto_map": AUTO_MAP},
        {"architectures": ["GPT2LMHeadModel"]},
        pytest.param({"architectures": ["OwnForCausalLM"]}, marks=pytest.mark.slow),
        pytest.param({"architectures": None}, marks=pytest.mark.slow),
    ],
    ids=lambda values: str(values.get("architectures", "auto_map")),
)
def test_a_model_that_transformers_has_is_protected_whatever_else_its_configuration_says(values, target, specialist, tmp_path):
    edit(target / "config.json", **values)
    (target / "own.py").write_text(OWN_CODE)
    write_protected(str(target), tmp_path / "made", GUARD)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", **TRUSTED)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in specialist[0].state_dict().items())
    assert "auto_map" not in json.loads((tmp_path / "made" / "target" / "protected_config.json").read_text())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3", "mamba"])
def test_models_of_every_kind_that_generate_are_known(model_type):
    check_kind("model", "x", {"model_type": model_type})


def test_code_of_a_model_is_never_run(target, specialist):
    """Nor does anything ask at a terminal whether it may be run."""
    bring_own_code(target)
    message = "source must be of a class that transformers has, for its own code is not run"
    with pytest.raises(ValueError, match=message):
        load_causal(str(target), None)
    with pytest.raises(ValueError, match=message):
        alignbeam([[5]], model=specialist[0], tokenizer=specialist[1], **{**GUARD, "anchor": str(target)})


def test_a_judge_that_a_links_name_tells_keeps_its_profile(tmp_path):
    """The folder that the link leads to has a name that tells nothing."""
    link = tmp_path / "gpt-oss-safeguard-20b"
    link.symlink_to(JUDGE)
    found = pinned("judge", {"judge": str(link)})
    assert (found["judge"], found["judge_profile"]) == (JUDGE, "gpt-oss-safeguard")
    for said in ({"judge_profile": "safe-unsafe"}, {"judge_rubric": "yes-no"}):
        assert "judge_profile" not in pinned("judge", {"judge": str(link), **said})
    assert "judge_profile" not in pinned("judge", {"judge": JUDGE})
