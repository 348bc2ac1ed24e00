"""A causal model that was never trained to judge, on the disk."""

import pytest
import torch
from conftest import tiny
from transformers import Qwen3Config, Qwen3ForCausalLM


@pytest.fixture
def no_guard(byte_tokenizer, tmp_path):
    """The folder of a random model whose likeliest token takes nearly all the probability."""
    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=1, head_dim=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(10.0)
    model.save_pretrained(tmp_path / "no-guard")
    byte_tokenizer.save_pretrained(tmp_path / "no-guard")
    return tmp_path / "no-guard"
