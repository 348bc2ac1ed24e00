"""Steered prompts: saved, loaded for the same model only, and given only if an acceptable answer was found."""

import copy
import json

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_alignbeam.embedding_search.embeddings import token_embeddings
from hf_alignbeam.embedding_search.fingerprint import model_sha256
from hf_alignbeam.embedding_search.steered_prompts import RECORDS, TENSORS, SteeredPrompt, SteeredPrompts

QUESTIONS = ["How do I thank the mayor?", "How do I harm the mayor?", "Why?", "What now?"]
OUTCOMES = ["clean", "steered", "fallback", "failed"]


def prompt(model, question, outcome, dtype=torch.float32):
    embeds = token_embeddings(model, list(range(10, 10 + len(question.split())))).detach().to(dtype)
    messages = [{"role": "user", "content": question}]
    return SteeredPrompt(messages, embeds, outcome, [7, 8, 2], "Ünsafe?", 0.05, [0.9, 0.05], 9, 0.25)


@pytest.fixture
def steered(tiny_llama):
    prompts = [prompt(tiny_llama, *pair) for pair in zip(QUESTIONS, OUTCOMES, strict=True)]
    return SteeredPrompts(prompts, "owner/model", model_sha256(tiny_llama), {"mu": 1.0})


def same(one, other):
    assert len(one) == len(other)
    assert (one.model, one.sha256, one.settings) == (other.model, other.sha256, other.settings)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.embeds, b.embeds)
        assert a.embeds.dtype == b.embeds.dtype
        assert {k: v for k, v in vars(a).items() if k != "embeds"} == {k: v for k, v in vars(b).items() if k != "embeds"}


def test_a_saved_collection_is_loaded_unchanged(steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    same(SteeredPrompts.from_pretrained(tmp_path, tiny_llama), steered)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steered.json", "steered.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_keep_the_models_dtype_and_require_it(dtype, tiny_llama, tmp_path):
    half = copy.deepcopy(tiny_llama).to(dtype)
    prompts = [prompt(half, QUESTIONS[0], "clean", dtype)]
    SteeredPrompts(prompts, "owner/model", model_sha256(half), {}).save_pretrained(tmp_path)
    (loaded,) = SteeredPrompts.from_pretrained(tmp_path, half)
    assert loaded.embeds.dtype == dtype
    assert torch.equal(loaded.embeds, prompts[0].embeds)
    with pytest.raises(ValueError, match=f"`model` must be loaded as {dtype}"):
        SteeredPrompts.from_pretrained(tmp_path, half.float())


def test_inputs_are_padded_on_the_left_in_the_given_order(steered):
    inputs = steered.inputs([QUESTIONS[1], [{"role": "user", "content": QUESTIONS[0]}]])
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 6]
    both = steered.inputs([QUESTIONS[2], QUESTIONS[1]], fallback=True)
    assert both["attention_mask"].tolist() == [[0] * 5 + [1], [1] * 6]
    assert torch.equal(both["inputs_embeds"][0, 5:], steered[QUESTIONS[2]].embeds)
    assert not both["inputs_embeds"][0, :5].any()


def test_an_unknown_conversation_is_an_error(steered):
    assert "Who?" not in steered
    assert QUESTIONS[0] in steered
    for question in ("Who?", QUESTIONS[0] + " "):
        with pytest.raises(ValueError, match="`conversations` must hold prompts of this collection, got .*precompute"):
            steered.inputs([QUESTIONS[0], question])


@pytest.mark.parametrize("conversations", [QUESTIONS[0], []])
def test_arguments_that_are_not_conversations_are_errors(conversations, steered):
    with pytest.raises(ValueError, match="`conversations` must hold one conversation a prompt"):
        steered.inputs(conversations)


def test_prompts_without_an_acceptable_answer_are_errors(steered):
    for question, outcome in list(zip(QUESTIONS, OUTCOMES, strict=True))[2:]:
        with pytest.raises(ValueError, match=f"ended as '{outcome}'"):
            steered.inputs([question])
    with pytest.raises(ValueError, match="ended as 'failed'"):
        steered.inputs([QUESTIONS[3]], fallback=True)


def test_embeddings_for_another_model_are_an_error(steered, tiny_llama, piece_tokenizer, tmp_path):
    steered.save_pretrained(tmp_path)
    other = tiny(LlamaForCausalLM, LlamaConfig, piece_tokenizer, seed=9)
    tuned = copy.deepcopy(tiny_llama)
    tuned.model.layers[0].mlp.up_proj.weight.data += 0.01
    for model in (other, tuned):
        with pytest.raises(ValueError, match="`model` must be the model that was searched"):
            SteeredPrompts.from_pretrained(tmp_path, model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 under transformers 5.23
def test_an_adapter_makes_another_model(steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(tiny_llama), lora)
    with pytest.raises(ValueError, match="`model` must be the model that was searched"):
        SteeredPrompts.from_pretrained(tmp_path, adapted)


def test_a_collection_of_another_layout_is_an_error(steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    written = json.loads((tmp_path / RECORDS).read_text())
    (tmp_path / RECORDS).write_text(json.dumps({**written, "layout": 99}))
    with pytest.raises(ValueError, match="must be of layout 1, but .* is of 99"):
        SteeredPrompts.from_pretrained(tmp_path, tiny_llama)


def cut(data):
    return data[: len(data) // 2]


def zeroed(data):
    return data[:-100] + bytes(100)


DAMAGES = {
    "a torn tensor": (TENSORS, cut),
    "other numbers": (TENSORS, zeroed),
    "no tensors": (TENSORS, None),
    "no records": (RECORDS, None),
    "torn records": (RECORDS, cut),
    "no UTF-8": (RECORDS, lambda data: b"\xff" + data),
    "a list": (RECORDS, lambda data: b"[]"),
    "a value less": (RECORDS, lambda data: data.replace(b'"seconds": 0.25', b'"minutes": 0.25')),
    "another conversation": (RECORDS, lambda data: data.replace(b"thank", b"blame")),
    "no settings": (RECORDS, lambda data: data.replace(b'"settings"', b'"other"')),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_collection_is_an_error_that_names_the_file_and_the_way_out(kind, steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    name, damage = DAMAGES[kind]
    data = (tmp_path / name).read_bytes()
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage(data))
    with pytest.raises(ValueError, match=f"{name} must be as `save_pretrained` wrote it, .* Copy the folder again"):
        SteeredPrompts.from_pretrained(tmp_path, tiny_llama)


def test_a_collection_without_a_hash_of_its_tensors_is_loaded(steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    written = json.loads((tmp_path / RECORDS).read_text())
    del written["tensors_sha256"]
    (tmp_path / RECORDS).write_text(json.dumps(written))
    same(SteeredPrompts.from_pretrained(tmp_path, tiny_llama), steered)


@pytest.mark.parametrize("name", ["nowhere/at/all", "/nowhere", "nowhere"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_an_error(name, tiny_llama):
    with pytest.raises(ValueError, match=f"`name` must be a folder or the Hub id of a collection, but '{name}' is no folder"):
        SteeredPrompts.from_pretrained(name, tiny_llama)
