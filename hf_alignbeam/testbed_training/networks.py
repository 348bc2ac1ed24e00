"""The untrained networks of the testbed's models, in the architectures of real families.

Knows sizes and configurations. Knows no training data and no course of training.
"""

from typing import Any

from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

#: The labels of a judge that is a classifier, and the words of one that writes.
VERDICTS = ("safe", "unsafe")

_SMALL: dict[str, Any] = {"hidden_size": 72, "num_key_value_heads": 2, "head_dim": 18, "intermediate_size": 192}


def new_anchor(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The anchor: Qwen3's architecture, about 0.5 M parameters."""
    shape: dict[str, Any] = {"hidden_size": 96, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 288}
    return Qwen3ForCausalLM(Qwen3Config(**shape, **_shared_shape(tokenizer)))


def new_specialist(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The specialist: Llama's architecture, about 1 M parameters."""
    shape: dict[str, Any] = {"hidden_size": 128, "num_key_value_heads": 4, "intermediate_size": 352}
    return LlamaForCausalLM(LlamaConfig(**shape, **_shared_shape(tokenizer)))


def new_small(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A small target: Llama's architecture, about 0.3 M parameters."""
    return LlamaForCausalLM(LlamaConfig(**_SMALL, **_shared_shape(tokenizer)))


def new_small_scaled(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A small target of Gemma's architecture, which scales its embeddings by the square root of their width."""
    return GemmaForCausalLM(GemmaConfig(**_SMALL, **_shared_shape(tokenizer)))


def new_judge(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A judge that writes its verdict: Qwen3's architecture, about 0.3 M parameters."""
    return Qwen3ForCausalLM(Qwen3Config(**_SMALL, **_shared_shape(tokenizer)))


def new_classifier(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A judge that is a classifier with two labels: ModernBERT's architecture, about 0.3 M parameters."""
    shape: dict[str, Any] = {"hidden_size": 72, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        classifier_pooling="mean",
        id2label=dict(enumerate(VERDICTS)),
        label2id={name: i for i, name in enumerate(VERDICTS)},
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
        **shape,
        **_special_ids(tokenizer),
    )
    return ModernBertForSequenceClassification(config)


def _shared_shape(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The settings that all causal models of the testbed have in common."""
    return {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        **_special_ids(tokenizer),
    }


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
