"""Steered prompts: stored, loaded for the same model alone, and never handed out where nothing was found."""

import json

import pytest
import torch
from conftest import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from hf_alignbeam.embedding import embedded, table_sha256
from hf_alignbeam.steered import RECORDS, SteeredPrompt, SteeredPrompts

QUESTIONS = ["How do I thank the mayor?", "How do I harm the mayor?", "Why?", "What now?"]
OUTCOMES = ["clean", "steered", "fallback", "failed"]


def prompt(model, question, outcome, dtype=torch.float32):
    embeds = embedded(model, list(range(10, 10 + len(question.split())))).detach().to(dtype)
    messages = [{"role": "user", "content": question}]
    return SteeredPrompt(messages, embeds, outcome, [7, 8, 2], "Ünsafe?", 0.05, [0.9, 0.05], 9, 0.25)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def steered(request, tiny_llama):
    prompts = [prompt(tiny_llama, *pair, request.param) for pair in zip(QUESTIONS, OUTCOMES, strict=True)]
    return SteeredPrompts(prompts, "owner/model", table_sha256(tiny_llama), {"mu": 1.0})


def same(one, other):
    assert len(one) == len(other)
    assert (one.model, one.table, one.settings) == (other.model, other.table, other.settings)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.embeds, b.embeds)
        assert a.embeds.dtype == b.embeds.dtype
        assert {k: v for k, v in vars(a).items() if k != "embeds"} == {k: v for k, v in vars(b).items() if k != "embeds"}


def test_what_is_saved_is_loaded(steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    same(SteeredPrompts.from_pretrained(tmp_path, tiny_llama), steered)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steered.json", "steered.safetensors"]


def test_inputs_are_padded_on_the_left_in_the_order_asked_for(steered):
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
        with pytest.raises(ValueError, match="`conversations` must hold prompts that were steered, got .*precompute"):
            steered.inputs([QUESTIONS[0], question])


@pytest.mark.parametrize("conversations", [QUESTIONS[0], []])
def test_what_is_no_list_of_conversations_is_an_error(conversations, steered):
    with pytest.raises(ValueError, match="`conversations` must hold at least one conversation"):
        steered.inputs(conversations)


def test_nothing_is_handed_out_where_nothing_acceptable_was_found(steered):
    for question, outcome in list(zip(QUESTIONS, OUTCOMES, strict=True))[2:]:
        with pytest.raises(ValueError, match=f"ended as '{outcome}'"):
            steered.inputs([question])
    with pytest.raises(ValueError, match="ended as 'failed'"):
        steered.inputs([QUESTIONS[3]], fallback=True)


def test_embeddings_for_another_model_are_an_error(steered, tiny_llama, piece_tokenizer, tmp_path):
    steered.save_pretrained(tmp_path)
    other = tiny(LlamaForCausalLM, LlamaConfig, piece_tokenizer, seed=9)
    with pytest.raises(ValueError, match="`model` must have the embedding table that the prompts were steered for"):
        SteeredPrompts.from_pretrained(tmp_path, other)


def test_a_collection_of_another_layout_is_an_error(steered, tiny_llama, tmp_path):
    steered.save_pretrained(tmp_path)
    written = json.loads((tmp_path / RECORDS).read_text())
    (tmp_path / RECORDS).write_text(json.dumps({**written, "layout": 99}))
    with pytest.raises(ValueError, match="must be of layout 1, but .* is of 99"):
        SteeredPrompts.from_pretrained(tmp_path, tiny_llama)
