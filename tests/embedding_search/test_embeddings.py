"""Prompts are embedded as the model itself embeds them, or the model is refused by name."""

import copy

import pytest
import torch
import transformers as t
from conftest import tiny
from peft import LoraConfig, get_peft_model

from hf_alignbeam.chat.target_prompts import render_target_prompt
from hf_alignbeam.chat.templates import encode_with_one_bos
from hf_alignbeam.embedding_search.embeddings import Embedder, left_padded, padded_ids, token_embeddings
from hf_alignbeam.tokenization.vocabulary import token_bytes

MESSAGES = [{"role": "user", "content": "How do I thank the mayor?"}]


def embedder(model, tokenizer, positions="all"):
    return Embedder(model, tokenizer, token_bytes(tokenizer), positions)


def ids_of(tokenizer, messages=MESSAGES):
    return encode_with_one_bos(tokenizer, render_target_prompt(tokenizer, messages))


def test_a_family_that_scales_its_embeddings_is_embedded_scaled(piece_tokenizer):
    model = tiny(t.GemmaForCausalLM, t.GemmaConfig, piece_tokenizer, seed=3, head_dim=8)
    ids = ids_of(piece_tokenizer)
    prompt = embedder(model, piece_tokenizer).embed(ids, MESSAGES)
    assert torch.allclose(prompt.embeds, model.get_input_embeddings().weight[ids] * 32**0.5)
    whole = model.generate(**left_padded([prompt.embeds]), max_new_tokens=8, do_sample=False)
    assert torch.equal(whole, model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[:, len(ids) :])


def test_prompts_of_any_lengths_are_answered_in_a_batch_as_alone(tiny_llama, piece_tokenizer):
    prompts = [token_embeddings(tiny_llama, ids_of(piece_tokenizer)[:n]).detach() for n in (4, 9, 6)]
    together = tiny_llama.generate(**left_padded(prompts), max_new_tokens=6, do_sample=False)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, tiny_llama.generate(**left_padded([prompt]), max_new_tokens=6, do_sample=False)[0])


@pytest.mark.parametrize("which", ["byte", "piece"])
def test_the_perturbable_positions_spell_the_users_last_words(which, tiny_qwen, tiny_llama, byte_tokenizer, piece_tokenizer):
    model, tokenizer = (tiny_qwen, byte_tokenizer) if which == "byte" else (tiny_llama, piece_tokenizer)
    messages = [*MESSAGES, {"role": "assistant", "content": "Bring figs."}, {"role": "user", "content": "And the weeds, now?"}]
    ids = ids_of(tokenizer, messages)
    prompt = embedder(model, tokenizer, "user").embed(ids, messages)
    spelled = tokenizer.decode([i for i, perturbable in zip(ids, prompt.perturbable.tolist(), strict=True) if perturbable])
    assert spelled.strip() == "And the weeds, now?"
    assert embedder(model, tokenizer).embed(ids, messages).perturbable.all()


@pytest.mark.parametrize("words", ["brew tea", "I", "INST", "a", "user", "s"])
def test_only_the_users_own_words_are_perturbable_even_if_they_occur_elsewhere(
    words, tiny_qwen, tiny_llama, byte_tokenizer, piece_tokenizer
):
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": "To brew tea, a user"}]
    for model, tokenizer in ((tiny_qwen, byte_tokenizer), (tiny_llama, piece_tokenizer)):
        ids = ids_of(tokenizer, messages)
        perturbable = embedder(model, tokenizer, "user").embed(ids, messages).perturbable
        first = int(perturbable.int().argmax())
        n_perturbable = int(perturbable.sum())
        assert perturbable[first : first + n_perturbable].all()
        assert tokenizer.decode(ids[first : first + n_perturbable]).strip() == words
        assert "brew" not in tokenizer.decode(ids[:first])


def test_every_position_is_perturbable_if_the_prompt_does_not_hold_the_users_words(tiny_llama, piece_tokenizer):
    elsewhere = [{"role": "user", "content": "Other words."}]
    assert embedder(tiny_llama, piece_tokenizer, "user").embed(ids_of(piece_tokenizer), elsewhere).perturbable.all()


REFUSED = {
    "takes no embeddings": (t.CTRLLMHeadModel, t.CTRLConfig, {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 2}),
    "takes no embeddings either": (t.XLNetLMHeadModel, t.XLNetConfig, {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48}),
    "looks up token ids in every layer": (
        t.Gemma3nForCausalLM,
        t.Gemma3nTextConfig,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "activation_sparsity_pattern": None,
            "layer_types": ["full_attention"] * 2,
        },
    ),
}


@pytest.mark.filterwarnings("ignore")  # old families warn when they are built
@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_generate_from_embeddings_is_refused_by_name(name, piece_tokenizer):
    model_class, config_class, shape = REFUSED[name]
    model = model_class(config_class(vocab_size=len(piece_tokenizer), **shape)).eval()
    with pytest.raises(ValueError, match=f"`model` must .*{model_class.__name__}"):
        embedder(model, piece_tokenizer)


def test_a_model_that_reads_embeddings_differently_from_ids_is_refused(tiny_llama, piece_tokenizer):
    class Otherwise(type(tiny_llama)):
        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
            return super().forward(
                input_ids, inputs_embeds=None if inputs_embeds is None else 2 * inputs_embeds.roll(1, -1), **kwargs
            )

    model = Otherwise(tiny_llama.config).eval()
    with pytest.raises(
        ValueError, match="`model` must read its input embeddings as it reads its ids, but the logits of Otherwise"
    ):
        embedder(model, piece_tokenizer)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 under transformers 5.23
@pytest.mark.parametrize("is_adapted", [False, True])
@pytest.mark.parametrize("settings", [{"stop_strings": [" a"]}, {"guidance_scale": 1.5}, {"penalty_alpha": 0.5}])
def test_a_models_own_generation_settings_do_not_decide_whether_it_reads_embeddings(
    settings, is_adapted, tiny_llama, piece_tokenizer
):
    own = copy.deepcopy(tiny_llama)
    own.generation_config.update(**settings)
    config = own.generation_config
    model = get_peft_model(own, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval() if is_adapted else own
    embedder(model, piece_tokenizer)
    assert own.generation_config is config
    assert "prepare_inputs_for_generation" not in vars(own)


def test_a_model_in_training_is_refused(tiny_llama, piece_tokenizer):
    tiny_llama.train()
    try:
        with pytest.raises(ValueError, match="`model` must be in evaluation mode"):
            embedder(tiny_llama, piece_tokenizer)
    finally:
        tiny_llama.eval()


def test_ids_are_padded_on_the_left():
    padded = padded_ids([[5, 6, 7], [8]], 3, torch.device("cpu"))
    assert padded["input_ids"].tolist() == [[5, 6, 7], [3, 3, 8]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
