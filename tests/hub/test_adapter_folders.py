"""An adapter's folder is a model at every door: as target, anchor, judge and acceptance check, with or without a tokenizer."""

import json
import re
from functools import partial
from shutil import copytree

import pytest
import torch
from helpers.entries import ANCHOR, JUDGE, TARGET, TRUSTED
from helpers.strategies import chats_of, generated
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_alignbeam import AnchorLogitsProcessor, PlausibleAnswer, testbed
from hf_alignbeam.evaluation.devices import load_causal
from hf_alignbeam.evaluation.recipe import parse_recipe
from hf_alignbeam.evaluation.systems import RecipeModels, build
from hf_alignbeam.hub.judge_loading import JudgeSettings, load_accept, load_judge
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.judges.profiles.llama_guard import LLAMA_GUARD
from hf_alignbeam.testbed.model_store import WEIGHTS

# peft 0.21 under transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")
LORA = partial(LoraConfig, r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
CASES = {
    "anchor": (AutoModelForCausalLM, LORA),
    "judge-lm": (AutoModelForCausalLM, LORA),
    "judge-cls": (AutoModelForSequenceClassification, partial(LoraConfig, r=2, target_modules=["Wqkv"], task_type="SEQ_CLS")),
    "prompts": (AutoModelForCausalLM, partial(PromptTuningConfig, task_type="CAUSAL_LM", num_virtual_tokens=2)),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of adapters on the testbed's models, none with a tokenizer, and each adapted model."""
    place, models = tmp_path_factory.mktemp("adapters"), {}
    for name, (auto, config) in CASES.items():
        own = str(WEIGHTS / ("anchor" if name == "prompts" else name))
        models[name] = get_peft_model(auto.from_pretrained(own, dtype=torch.float32), config()).eval()
        for parameter in models[name].parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.01 * torch.randn_like(parameter))
        models[name].save_pretrained(place / name)
    config = json.loads((WEIGHTS / "specialist-lora" / "adapter_config.json").read_text())
    (place / "target").mkdir()
    weights = (WEIGHTS / "specialist-lora" / "adapter_model.safetensors").read_bytes()
    (place / "target" / "adapter_model.safetensors").write_bytes(weights)
    config["base_model_name_or_path"] = str(WEIGHTS / "base")
    (place / "target" / "adapter_config.json").write_text(json.dumps(config))
    models["target"] = PeftModel.from_pretrained(testbed.load("base")[0], WEIGHTS / "specialist-lora").eval()
    return {name: str(place / name) for name in models}, models


def test_the_output_layer_under_an_adapter_is_not_frozen(adapters):
    """On a CPU torch multiplies states by frozen weights in bfloat16 up to a hundred times more slowly."""
    model, _ = load_causal(adapters[0]["target"], CPU)
    assert model.get_output_embeddings().weight.requires_grad
    assert not any(p.requires_grad for name, p in model.named_parameters() if "layers" in name and "lora" not in name)


def test_an_adapters_folder_is_a_target(adapters):
    folders, models = adapters
    tokenizer = testbed.load("base")[1]
    chats = chats_of("harmful", 2)
    guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=models["target"])
    expected, n_prompt = generated((models["target"], tokenizer), chats, logits_processor=[guard])
    model, own = load_causal(folders["target"], CPU, dtype="float32")
    assert own.get_vocab() == tokenizer.get_vocab()
    guard = AnchorLogitsProcessor("base", own, own, model=model)
    assert torch.equal(generated((model, own), chats, logits_processor=[guard])[0], expected)
    recipe = {"model": {"name": folders["target"], "dtype": "float32"}, "anchor": "base", "prompts": "x", "max_new_tokens": 40}
    parsed = parse_recipe({**recipe, "systems": ["anchor-logits"]})
    answers = build(parsed.systems[0], RecipeModels(parsed, parsed.models[0]))(chats)
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    rows = [[i for i in row if i not in ends] for row in expected[:, n_prompt:].tolist()]
    assert [each.ids for each in answers] == rows


def test_an_adapters_folder_is_an_anchor(adapters, specialist, strategy_folder):
    folders, models = adapters
    tokenizer = testbed.load("anchor")[1]
    chats = chats_of("harmful", 1)
    guard = AnchorLogitsProcessor(models["anchor"], tokenizer, specialist[1])
    expected = generated(specialist, chats, logits_processor=[guard], max_new_tokens=20)[0]
    options = {"anchor": folders["anchor"], "tokenizer": specialist[1], "max_new_tokens": 20, **TRUSTED}
    assert torch.equal(generated(specialist, chats, strategy_folder("anchor-logits"), **options)[0], expected)
    exchange = ["How?"], ["Take 5 drops."]
    expected = PlausibleAnswer(models["anchor"], tokenizer)(*exchange)
    for accept in ((folders["anchor"], None), (models["anchor"], tokenizer)):
        torch.testing.assert_close(
            load_accept(accept[0], None, specialist[0], accept[1])(*exchange), expected, atol=1e-2, rtol=0.1
        )


@pytest.mark.parametrize("name", ["judge-lm", "judge-cls"])
def test_an_adapter_is_a_judge_by_its_folder_and_loaded(name, adapters):
    folders, models = adapters
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / name)
    exchange = ["How?", "How?"], ["Take 5 drops.", "I cannot help."]
    settings = JudgeSettings(threshold=0.5, labels={"unsafe": 1.0, "safe": 0.0} if name == "judge-cls" else None)
    by_folder = load_judge(folders[name], settings)(*exchange)
    loaded = load_judge(models[name], settings, CPU, tokenizer)(*exchange)
    torch.testing.assert_close(by_folder, loaded, atol=1e-2, rtol=0.05)
    assert not loaded.isnan().any()
    with pytest.raises(ValueError, match="`judge_tokenizer` must be given with a loaded judge"):
        load_judge(models[name], settings)


def test_an_adapter_has_the_profile_of_its_own_name(adapters, tmp_path):
    """As NemoGuard's, which is published as a LoRA: its base's name is no guard's."""
    folder = copytree(adapters[0]["judge-lm"], tmp_path / "meta-llama--Llama-Guard-3-8B")
    assert load_judge(str(folder)).profile is LLAMA_GUARD


@pytest.mark.parametrize("kind", ["a soft prompt", "no base"])
@pytest.mark.parametrize("door", ["target", "judge", "accept"])
def test_what_no_door_can_load_is_refused_by_name(kind, door, adapters, specialist):
    name, why = str(WEIGHTS / "specialist-lora"), "LORA on None"
    if kind == "a soft prompt":
        name, why = adapters[0]["prompts"], "PROMPT_TUNING"
    doors = {
        "target": lambda: load_causal(name, CPU),
        "judge": lambda: load_judge(name),
        "accept": lambda: load_accept(name, None, specialist[0]),
    }
    message = f"An adapter must change layers of a base that its adapter_config.json names, but {name} is {why}"
    with pytest.raises(ValueError, match=re.escape(message)):
        doors[door]()


@pytest.mark.parametrize("kind", ["anchor", "judge", "model"])
def test_a_protected_model_consists_of_whole_models(kind, adapters, tmp_path):
    """An adapter's base is named in its folder, and that name could come to mean something else."""
    models = {"anchor": ANCHOR, "judge": JUDGE, "model": TARGET, kind: adapters[0]["anchor"]}
    with pytest.raises(ValueError, match="is an adapter.*[Mm]erge it into its base"):
        write_protected(models.pop("model"), tmp_path / "made", models)
    assert not (tmp_path / "made").exists()
