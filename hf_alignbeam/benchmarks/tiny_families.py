"""Tiny random decoders of many families, for laws that must hold for every kind of layer.

Knows the smallest configurations that still have each family's kinds of layers: windows, chunks, recurrent states, experts.
"""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

#: The reach of sliding and chunked layers in tokens: shorter than a prompt, so that it has an effect.
WINDOW = 16
#: The standard deviation of the random weights: large enough that no two tokens are nearly equally likely.
WEIGHT_STD = 0.25

_HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
_DENSE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **_HEADS}
_FOUR: dict[str, Any] = {**_DENSE, "num_hidden_layers": 4}
_LOCAL_AND_FULL = ["sliding_attention", "full_attention"]
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
_LINEAR_HEADS: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 8,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA: dict[str, Any] = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_head": 16, "mamba_n_heads": 4}

#: For each family, the class and the settings of its configuration.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", _DENSE),
    "Qwen3": ("Qwen3Config", {**_DENSE, "head_dim": 8}),
    "Qwen2 (window)": (
        "Qwen2Config",
        {**_DENSE, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_FULL},
    ),
    "Mistral (window)": ("MistralConfig", {**_DENSE, "head_dim": 8, "sliding_window": WINDOW}),
    "Mixtral": ("MixtralConfig", {**_DENSE, **_EXPERTS}),
    "Phi-3 (window)": ("Phi3Config", {**_DENSE, "sliding_window": WINDOW}),
    "Gemma": ("GemmaConfig", {**_DENSE, "head_dim": 8}),
    "Gemma 2": ("Gemma2Config", {**_DENSE, "head_dim": 8, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_FULL}),
    "Gemma 3": ("Gemma3TextConfig", {**_DENSE, "head_dim": 8, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_FULL}),
    "GPT-2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "GPT-Neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
        },
    ),
    "GPT-NeoX": ("GPTNeoXConfig", {**_DENSE, "max_position_embeddings": 512}),
    "GPT-J": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 512}),
    "OPT": ("OPTConfig", {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "num_hidden_layers": 2, **_HEADS}),
    "BLOOM": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "MPT": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "Falcon": ("FalconConfig", {**_DENSE, "alibi": False}),
    "Falcon (ALiBi)": ("FalconConfig", {**_DENSE, "alibi": True}),
    "OLMo 2": ("Olmo2Config", _DENSE),
    "Cohere 2": (
        "Cohere2Config",
        {**_FOUR, "head_dim": 8, "logit_scale": 1.0, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_FULL * 2},
    ),
    "DeepSeek-V3": (
        "DeepseekV3Config",
        {
            **_DENSE,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {**_DENSE, **_EXPERTS, "head_dim": 8, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_FULL},
    ),
    "Granite": ("GraniteConfig", _DENSE),
    "Llama 4": (
        "Llama4TextConfig",
        {
            **_DENSE,
            **_EXPERTS,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
        },
    ),
    "SmolLM3": ("SmolLM3Config", _FOUR),
    "LFM2": ("Lfm2Config", {**_DENSE, "layer_types": ["conv", "full_attention"]}),
    "Mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "Mamba 2": (
        "Mamba2Config",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "Jamba": (
        "JambaConfig",
        {
            **_DENSE,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "Qwen3-Next": (
        "Qwen3NextConfig",
        {
            **_DENSE,
            **_LINEAR_HEADS,
            "layer_types": _LINEAR_AND_FULL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "Qwen3.5": ("Qwen3_5TextConfig", {**_DENSE, **_LINEAR_HEADS, "layer_types": _LINEAR_AND_FULL}),
    "Falcon-H1": ("FalconH1Config", {**_DENSE, **_MAMBA, "mamba_d_ssm": 64, "mamba_n_groups": 1, "mamba_chunk_size": 8}),
    "Granite 4 (hybrid)": (
        "GraniteMoeHybridConfig",
        {
            **_DENSE,
            **_EXPERTS,
            **_MAMBA,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
}


def build(family: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A random decoder of one family, in evaluation mode and float32, with the vocabulary of a tokenizer.

    Args:
        family: A key of `FAMILIES`.
        tokenizer: The tokenizer.
        seed: The seed of the weights.
    """
    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(0.0, WEIGHT_STD, generator=generator)
    return model
