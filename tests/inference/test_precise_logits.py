"""Logits in float32 from models in fewer bits."""

import pytest
import torch
from conftest import tiny
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hf_alignbeam.inference.precise_logits import precise_logits

IDS = [3, 5, 40]
TEXT = torch.tensor([[7, 8, 9, 10], [3, 2, 1, 4]])


def expected(model, hidden):
    """The logits of the last layer in float64, with what the family does to them after it."""
    logits = hidden.double() @ model.get_output_embeddings().weight.double().T
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = (logits / cap).tanh() * cap
    return logits / getattr(model.config, "logits_scaling", 1.0)


FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    "granite": (GraniteForCausalLM, GraniteConfig),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_tokens_asked_for_are_refined(byte_tokenizer, family, dtype):
    model = tiny(*FAMILIES[family], byte_tokenizer, seed=1).to(dtype)
    model.get_output_embeddings().weight.data *= 50  # logits of ordinary size
    with torch.no_grad():
        plain = model(TEXT, logits_to_keep=1).logits
        with precise_logits(model, IDS):
            output = model(TEXT, logits_to_keep=1, output_hidden_states=True)
        after = model(TEXT, logits_to_keep=1).logits
    exact = expected(model, output.hidden_states[-1][:, -1:])
    torch.testing.assert_close(output.logits[..., IDS], exact[..., IDS].float(), atol=1e-5, rtol=1e-5)
    assert (plain[..., IDS].float() - output.logits[..., IDS]).abs().max() > 1e-4
    others = [i for i in range(plain.shape[-1]) if i not in IDS]
    torch.testing.assert_close(output.logits[..., others], plain[..., others].float(), atol=0.05, rtol=0.02)
    assert torch.equal(after, plain)


def test_a_model_in_float32_is_left_as_it_is(byte_tokenizer):
    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1)
    with torch.no_grad(), precise_logits(model, IDS):
        refined = model(TEXT).logits
    assert torch.equal(refined, model(TEXT).logits)
    assert not model.get_output_embeddings()._forward_hooks


def test_a_last_layer_of_another_kind_is_left_as_it_is(byte_tokenizer):
    class Scaled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1).to(torch.bfloat16)
    head = model.get_output_embeddings()
    model.set_output_embeddings(Scaled(head.in_features, head.out_features, bias=False, dtype=torch.bfloat16))
    with torch.no_grad(), precise_logits(model, IDS):
        logits = model(TEXT, logits_to_keep=1).logits
    assert logits.dtype == torch.bfloat16


def test_an_error_leaves_no_hook(byte_tokenizer):
    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1).to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="stop"), precise_logits(model, IDS):
        raise RuntimeError("stop")
    assert not model.get_output_embeddings()._forward_hooks
