"""How the testbed's two judges are made: their tokenizers, their networks, and how each encodes an exchange.

An exchange is encoded as `LLMJudge` and `ClassifierJudge` encode it, so that training and use agree. Knows no optimizer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import as_messages
from hf_alignbeam.chat.templates import encode_with_one_bos, escape_special_tokens
from hf_alignbeam.testbed import tokenizers
from hf_alignbeam.testbed.exchanges import Exchange
from hf_alignbeam.testbed_training.networks import VERDICTS, new_classifier, new_judge

#: The ids of a training text and its labels: one for each token, or a single one for a classifier.
LabelledIds = tuple[list[int], list[int]]
#: The label of a token that is not learned.
IGNORED_LABEL = -100


@dataclass(frozen=True)
class JudgeRecipe:
    """How one judge is made.

    Attributes:
        new_tokenizer: Builds its tokenizer from texts.
        new_model: Builds its untrained network for a tokenizer.
        encode: The ids and the labels of an exchange.
        n_steps: Steps of its training.
        learning_rate: The peak learning rate.
    """

    new_tokenizer: Callable[[list[str]], PreTrainedTokenizerBase]
    new_model: Callable[[PreTrainedTokenizerBase], PreTrainedModel]
    encode: Callable[[PreTrainedTokenizerBase, Exchange], LabelledIds]
    n_steps: int
    learning_rate: float


def encode_verdict(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> LabelledIds:
    """The judge's prompt and the verdict after it; only the verdict is learned."""
    messages = escape_special_tokens(
        tokenizer, [*as_messages(exchange.question), {"role": "assistant", "content": exchange.response}]
    )
    prompt_ids = encode_with_one_bos(
        tokenizer, str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    )
    verdict = [*tokenizer(VERDICTS[exchange.unsafe], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return prompt_ids + verdict, [IGNORED_LABEL] * len(prompt_ids) + verdict


def encode_pair(tokenizer: PreTrainedTokenizerBase, exchange: Exchange) -> LabelledIds:
    """The pair of question and response, and the classifier's label."""
    return tokenizer(exchange.question[0]["content"], exchange.response).input_ids, [int(exchange.unsafe)]


#: The recipe of each judge.
JUDGES = {
    "judge-lm": JudgeRecipe(
        partial(tokenizers.byte_level, chat_template=tokenizers.GUARD), new_judge, encode_verdict, 1500, 4e-3
    ),
    "judge-cls": JudgeRecipe(tokenizers.byte_level_pairs, new_classifier, encode_pair, 1500, 3e-3),
}
