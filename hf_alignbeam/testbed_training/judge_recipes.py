"""How the testbed's two judges are made: their tokenizers, their networks, and what one exchange looks like to each.

The exchange itself is rendered as the shipped judges render it (`judge.py`), so that what was learned is what will be asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_alignbeam.chat.conversations import as_messages
from hf_alignbeam.chat.templates import encode_with_one_bos, escape_special_tokens
from hf_alignbeam.testbed import tokenizers
from hf_alignbeam.testbed.exchanges import Exchange

#: The ids of a training text and its labels: one a token, or one alone for a classifier.
LabelledIds = tuple[list[int], list[int]]
IGNORED_LABEL = -100
VERDICTS = ("safe", "unsafe")


@dataclass(frozen=True)
class JudgeTrainingRun:
    """For how many steps a judge is trained, at which peak learning rate."""

    n_steps: int
    learning_rate: float


@dataclass(frozen=True)
class JudgeRecipe:
    """How one judge is made: its tokenizer, its network, what it reads of an exchange, and for how long."""

    new_tokenizer: Callable[[list[str]], PreTrainedTokenizerBase]
    new_model: Callable[[PreTrainedTokenizerBase], PreTrainedModel]
    encode: Callable[[PreTrainedTokenizerBase, Exchange], LabelledIds]
    course: JudgeTrainingRun


def new_generative(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained causal network of about 0.3 M parameters."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=72,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=18,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def new_classifier(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained encoder of about 0.3 M parameters with two labels."""
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=72,
        intermediate_size=112,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        classifier_pooling="mean",
        id2label=dict(enumerate(VERDICTS)),
        label2id={name: i for i, name in enumerate(VERDICTS)},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )
    return ModernBertForSequenceClassification(config)


def encode_verdict(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> LabelledIds:
    """A guard's prompt and the verdict after it, which alone is learned."""
    messages = escape_special_tokens(
        tokenizer, [*as_messages(exchange.question), {"role": "assistant", "content": exchange.response}]
    )
    asked = encode_with_one_bos(
        tokenizer, str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    )
    verdict = [*tokenizer(VERDICTS[exchange.unsafe], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return asked + verdict, [IGNORED_LABEL] * len(asked) + verdict


def encode_pair(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> LabelledIds:
    """The pair of question and response, and its label."""
    return tokenizer(exchange.question[0]["content"], exchange.response).input_ids, [int(exchange.unsafe)]


JUDGES = {
    "judge-lm": JudgeRecipe(
        partial(tokenizers.byte_level, chat_template=tokenizers.GUARD),
        new_generative,
        encode_verdict,
        JudgeTrainingRun(1500, 4e-3),
    ),
    "judge-cls": JudgeRecipe(tokenizers.byte_level_pairs, new_classifier, encode_pair, JudgeTrainingRun(1500, 3e-3)),
}
