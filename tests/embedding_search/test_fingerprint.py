"""A model's fingerprint: another one for whatever changes its answers, and the same for the same answers."""

import copy

import pytest
import torch
import transformers as t
from conftest import tiny
from peft import LoraConfig, get_peft_model

from hf_alignbeam.embedding_search.fingerprint import model_sha256


def test_a_fingerprint_depends_on_the_parameters_but_not_on_their_dtype(tiny_llama, tiny_qwen, piece_tokenizer):
    twin = tiny(t.LlamaForCausalLM, t.LlamaConfig, piece_tokenizer, seed=2)
    assert model_sha256(twin) == model_sha256(tiny_llama) != model_sha256(tiny_qwen)
    twin.get_input_embeddings().weight.data[5, 3] += 1e-3
    assert model_sha256(twin) != model_sha256(tiny_llama)
    gemma = tiny(t.GemmaForCausalLM, t.GemmaConfig, piece_tokenizer, seed=3, head_dim=8).to(torch.bfloat16)
    assert model_sha256(gemma) == model_sha256(copy.deepcopy(gemma).float())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 under transformers 5.23
def test_which_adapters_are_on_and_how_strong_is_a_part_of_the_fingerprint(tiny_llama):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(tiny_llama), lora, "one")
    model.add_adapter("two", lora)
    own = model_sha256(model)
    model.set_adapter("two")
    assert model_sha256(model) != own
    model.set_adapter("one")
    assert model_sha256(model) == own
    with model.disable_adapter():
        assert model_sha256(model) != own
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.set_scale("one", 3.0)
    assert model_sha256(model) != own
    layer.set_scale("one", 1.0)
    assert model_sha256(model) == own


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_that_is_merged_makes_another_fingerprint(tiny_llama):
    model = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    own = model_sha256(model)  # a new adapter adds nothing, so that merging it changes no weight
    model.merge_adapter()
    assert model_sha256(model) != own


def test_buffers_that_are_saved_with_the_model_are_a_part_of_the_fingerprint(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    model.model.register_buffer("step", torch.zeros(3), persistent=False)
    assert model_sha256(model) == model_sha256(tiny_llama)
    model.model.layers[0].register_buffer("qweight", torch.zeros(3, dtype=torch.int32))
    own = model_sha256(model)
    model.model.layers[0].qweight += 1
    assert model_sha256(model) != own != model_sha256(tiny_llama)
