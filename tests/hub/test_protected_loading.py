"""What a caller says when a protected copy is loaded reaches its target, and no other class finds the target's weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.entries import GUARD, TARGET, TRUSTED
from helpers.strategies import chats_of
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **TRUSTED, **options)


def refuses(model, tokenizer):
    """Whether a model refuses a harmful prompt, as its guard would."""
    inputs = encode(chats_of("harmful", 1), tokenizer)
    output = model.generate(**inputs, max_new_tokens=40)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return GroundTruth(stored_language()).refusal(answer)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": "eager", "output_attentions": True},
        {"output_hidden_states": True},
        {"use_cache": False},
        {"rms_norm_eps": 0.5},
        {"dtype": torch.bfloat16},
        {"num_labels": 3},
    ],
    ids=str,
)
def test_arguments_for_the_configuration_reach_the_target(options, protected_folder):
    plain, model = AutoModelForCausalLM.from_pretrained(TARGET, **options), load(protected_folder, **options)
    for name in options:
        name = {"attn_implementation": "_attn_implementation"}.get(name, name)
        assert getattr(model.config, name) == getattr(plain.config, name)
    assert model.dtype == plain.dtype
    assert type(model.generate).__name__ == "ProtectedGenerate"


def test_a_changed_configuration_reaches_the_target(protected_folder):
    config = AutoConfig.from_pretrained(protected_folder, attn_implementation="eager", **TRUSTED)
    config.use_cache = False
    model = load(protected_folder, config=config)
    assert (model.config._attn_implementation, model.config.use_cache, model.config.model_type) == ("eager", False, "llama")
    assert type(model.generate).__name__ == "ProtectedGenerate"


def test_arguments_that_the_target_refuses_are_refused(protected_folder):
    with pytest.raises(ValueError, match='attn_implementation="nonsense"'):
        load(protected_folder, attn_implementation="nonsense")
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        load(protected_folder, foo=1)
    with pytest.raises(ValueError, match="`variant` must be left out for a protected model, .* got 'fp16'"):
        load(protected_folder, variant="fp16")


def test_loading_information_comes_with_a_guarded_model(protected_folder, protected):
    model, information = load(protected_folder, output_loading_info=True)
    assert not information["missing_keys"]
    assert refuses(model, protected[1])


def test_a_given_generation_config_holds_and_changes_nothing_of_the_guard(protected_folder, protected):
    own = protected[0].generation_config
    given = GenerationConfig(max_new_tokens=7, eos_token_id=own.eos_token_id, pad_token_id=3, alignbeam={"anchor": "x"})
    model = load(protected_folder, generation_config=given)
    assert model.generation_config.max_new_tokens == 7
    assert model.generation_config.alignbeam == own.alignbeam
    assert given.alignbeam == {"anchor": "x"}
    assert refuses(model, protected[1])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers', as peft asks
def test_an_adapter_trained_on_a_copy_is_loaded_on_the_guarded_copy(protected_folder, protected, tmp_path):
    model = load(protected_folder)
    assert model.name_or_path == model.config.name_or_path == protected_folder
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora", **TRUSTED)
    assert refuses(loaded, protected[1])


class SameSizes(LlamaConfig):
    """A configuration whose default sizes are the target's: a class of it starts from them where there is no `config.json`."""

    def __init__(self, **values):
        super().__init__(**{**json.loads((Path(TARGET) / "config.json").read_text()), **values})


class SameSizesForCausalLM(LlamaForCausalLM):
    config_class = SameSizes


def test_a_class_of_the_targets_own_default_sizes_finds_no_weights(protected_folder, tmp_path):
    folder = Path(shutil.copytree(protected_folder, tmp_path / "protected"))
    for place, options in ((folder / "target", {}), (folder, {"subfolder": "target"})):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            SameSizesForCausalLM.from_pretrained(place, **options)
    (folder / "target" / "model.protected.safetensors").rename(folder / "target" / "model.safetensors")
    SameSizesForCausalLM.from_pretrained(folder, subfolder="target")  # by their usual name, they would load without a guard


@pytest.mark.parametrize("form", ["in parts", "in parts, as pickles", "a pickle", "of another name"])
def test_weights_of_every_form_load(form, specialist, protected, tmp_path):
    model, source = specialist[0], Path(shutil.copytree(TARGET, tmp_path / "source"))
    weights = source / "model.safetensors"
    if form == "of another name":
        weights.rename(source / "mine.safetensors")
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "transformers_weights": "mine.safetensors"}))
    else:
        weights.unlink()
    if form == "in parts":
        model.save_pretrained(source, max_shard_size="500KB")
    if "pickle" in form:
        torch.save(model.state_dict(), source / "pytorch_model.bin")
    if form == "in parts, as pickles":
        (source / "pytorch_model.bin").rename(source / "part.bin")
        names = dict.fromkeys(model.state_dict(), "part.bin")
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    write_protected(str(source), tmp_path / "made", GUARD)
    loaded, information = load(tmp_path / "made", output_loading_info=True)
    assert not information["missing_keys"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(OSError, match="no file named"):
        SameSizesForCausalLM.from_pretrained(tmp_path / "made" / "target")


def test_a_target_without_a_generation_config_ends_its_answers(specialist, tmp_path):
    """Its configuration says where, as it does for transformers."""
    source = Path(shutil.copytree(TARGET, tmp_path / "source"))
    (source / "generation_config.json").unlink()
    plain = AutoModelForCausalLM.from_pretrained(source)
    write_protected(str(source), tmp_path / "made", GUARD)
    model = load(tmp_path / "made")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ends = [getattr(model.generation_config, name) for name in names]
    assert ends == [getattr(plain.generation_config, name) for name in names]
    assert None not in ends
    inputs = encode(chats_of("general", 1), specialist[1])
    options = {"max_new_tokens": 60, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
