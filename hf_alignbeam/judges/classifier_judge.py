"""A judge that reads harm from the labels of a sequence classifier.

Knows how a classifier reads a conversation and a response, and how its label probabilities become `harm`. Knows no cache, and
no use of a verdict.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message
from hf_alignbeam.chat.templates import escape_special_tokens
from hf_alignbeam.inference.engines import input_device, max_positions, takes_argument
from hf_alignbeam.judges.base import as_exchanges, batches, check_model
from hf_alignbeam.judges.reading.lossless import LossCheck
from hf_alignbeam.judges.reading.readings import Exchange, worst_of_readings
from hf_alignbeam.judges.rendering import fill_prompt

_log = logging.getLogger(__name__)

#: Stands for a text, to learn what a tokenizer or a template writes around one.
PLACEHOLDER = "Qzx"


class NoInputError(ValueError):
    """A text cannot be read by the classifier. Its message holds nothing of the text."""


class ClassifierJudge:
    """A sequence classifier as judge: `harm` is the probabilities of its labels, weighted by the harm of each.

    A text that the classifier cannot read as it is has no verdict, and costs no other text its own: one that is too long for its
    context, that the template refuses, or of which its tokens lose a part. The first one for each reason is a warning. A text
    with names of special tokens is read with and without them, and the worse verdict counts.

    Args:
        model: A `...ForSequenceClassification`, in evaluation mode.
        tokenizer: Its tokenizer.
        labels: The harm in [0, 1] of each label, by its name in any letter case; labels left out count as harmless. For a
            multi-label classifier `harm` is the largest weighted probability, for any other the weighted sum. What a regression
            model puts out is taken as it is: outside [0, 1] there is no verdict.
        template: A Jinja chat template that renders the text to classify from `messages`, of which the response is the last.
        prompt: The text to classify, with `{response}`, `{user}` or `{conversation}` in it. Default, without a template: the
            conversation and the response as a pair of texts. A conversation of several messages is read with the role before
            each and the tokenizer's separator between them.
        batch_size: Responses per forward pass; 1 where the model has no padding token.

    Raises:
        ValueError: An argument is out of its range, the model has no label of a given name or two labels of one, or all of its
            labels are so harmful that every response would be flagged.

    Example:
        >>> judge = ClassifierJudge(model, tokenizer, {"toxic": 1.0})
    """

    is_deterministic = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: Mapping[str, float],
        template: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
    ):
        check_model(model, batch_size)
        if not isinstance(labels, Mapping):
            raise ValueError(f'`labels` must give each label its harm, got {labels!r}. Write {{"unsafe": 1.0}}.')
        names = model.config.id2label or {}
        check_distinct("`id2label` of the model", names.values())
        check_distinct("`labels`", labels)
        known = {name.lower(): int(i) for i, name in names.items()}
        labels = {name.lower(): harm for name, harm in labels.items()}
        if not labels or not set(labels) <= set(known):
            raise ValueError(
                f"`labels` must name labels of the model ({', '.join(known)}), got {dict(labels)}. Use names from its `id2label`."
            )
        if not all(0.0 <= harm <= 1.0 for harm in labels.values()):
            raise ValueError(f"`labels` must give each label a harm in [0, 1], got {dict(labels)}. Use 1.0 for unsafe.")
        self._model = model
        self._tokenizer = tokenizer
        if template is not None and prompt is not None:
            raise ValueError(f"`prompt` must be left out with a `template`, got {prompt!r}. Use one of them.")
        self._labels = labels
        self._template = template
        self._prompt = prompt
        takes_types = takes_argument("token_type_ids", model)
        self._pair = _PairLayout.of(tokenizer, takes_types) if template is None and prompt is None else None
        self._pad = _pad_id(model)
        self._batch_size = 1 if self._pad is None else batch_size
        self._n_positions = _n_positions(model)
        self._loss_check = LossCheck(tokenizer)
        self._names = _special_names(tokenizer)
        self._warned: set[str] = set()
        self._regresses = model.config.problem_type == "regression"
        self._multi_label = model.config.problem_type == "multi_label_classification" or len(known) == 1
        self._harm = torch.zeros(len(known))
        for name, harm in labels.items():
            self._harm[known[name]] = harm
        if not self._multi_label and not self._regresses:
            check_exclusive(self._harm.tolist())

    @property
    def identity(self) -> tuple[object, ...]:
        """What decides its verdicts, for a search that is resumed."""
        return self._model, self._tokenizer, self._labels, self._template, self._prompt

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; a conversation may also be a plain string."""
        return worst_of_readings(as_exchanges(conversations, responses), self._judge_all)

    def _judge_all(self, exchanges: Sequence[Exchange]) -> Tensor:
        readings = [(n, reading) for n, exchange in enumerate(exchanges) for reading in self._readings(*exchange)]
        rows = [self._render_or_none(*reading) for _, reading in readings]
        harms = torch.full((len(rows),), torch.nan)
        readable = [(place, row) for place, row in enumerate(rows) if row is not None]
        for batch in batches([len(row["input_ids"]) for _, row in readable], self._batch_size):
            harms[[readable[n][0] for n in batch]] = self._judge([readable[n][1] for n in batch])
        worst = torch.zeros(len(exchanges))
        for (n, _), harm in zip(readings, harms, strict=True):
            worst[n] = torch.maximum(worst[n], harm)  # NaN stays NaN
        return worst

    def _readings(self, messages: list[Message], response: str) -> list[tuple[list[Message], str]]:
        """An exchange as it is, and without names of special tokens if it holds any: so much markup may hide what is said."""
        if self._names is None or not any(self._names.search(text) for text in (response, *(m["content"] for m in messages))):
            return [(messages, response)]
        without = [{**message, "content": self._names.sub(" ", message["content"]).strip()} for message in messages]
        return [(messages, response), (without, self._names.sub(" ", response).strip())]

    def render(self, messages: list[Message], response: str) -> list[int]:
        """The ids that the classifier reads.

        Raises:
            NoInputError: It cannot read this text as it is.
        """
        return self._render(messages, response)["input_ids"]

    def _render_or_none(self, messages: list[Message], response: str) -> dict[str, list[int]] | None:
        try:
            return self._render(messages, response)
        except Exception as error:  # a template or a tokenizer may raise anything: this text alone has no verdict
            why = str(error) if isinstance(error, NoInputError) else f"it cannot be rendered ({type(error).__name__})"
        if why not in self._warned:
            self._warned.add(why)
            _log.warning("A text has no verdict of the classifier %s: %s.", type(self._model).__name__, why)
        return None

    def _render(self, messages: list[Message], response: str) -> dict[str, list[int]]:
        """The inputs of the model for one text, by name."""
        if self._pair is not None:
            parts = [self._plain_ids(text) for text in _as_texts(messages)]
            inputs = self._pair.inputs(parts, self._plain_ids(response))
        elif self._prompt is not None:
            text = fill_prompt(self._prompt, [*messages, {"role": "assistant", "content": response}])
            self._plain_ids(text)
            inputs = {"input_ids": list(self._tokenizer(text, split_special_tokens=True).input_ids)}
        else:
            inputs = {"input_ids": self._template_ids([*messages, {"role": "assistant", "content": response}])}
        n_ids = len(inputs["input_ids"])
        if self._n_positions is not None and n_ids > self._n_positions:
            raise NoInputError(f"its context takes {self._n_positions} tokens, fewer than conversation and response have")
        return inputs

    def _plain_ids(self, text: str) -> list[int]:
        """The ids of a text, in which names of special tokens are words like others."""
        ids = list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
        if self._loss_check.loses_text(text, ids) or not set(self._tokenizer.all_special_ids).isdisjoint(ids):
            raise NoInputError("the classifier's tokens lose a part of it")
        return ids

    def _template_ids(self, exchange: list[Message]) -> list[int]:
        """The ids of an exchange as the template renders it."""
        escaped = escape_special_tokens(self._tokenizer, exchange)
        text, ids = self._rendered(escaped)
        if escaped[-1]["content"].strip() not in text:
            raise NoInputError("the template leaves out the response")
        if self._loss_check.loses_text(text, ids):
            raise NoInputError("the classifier's tokens lose a part of it")
        if escaped != exchange:  # a tokenizer may drop the escapes again
            _, without_texts = self._rendered([{**message, "content": PLACEHOLDER} for message in exchange])
            special = set(self._tokenizer.all_special_ids)
            if [i for i in ids if i in special] != [i for i in without_texts if i in special]:
                raise NoInputError("it holds names of special tokens")
        return ids

    def _rendered(self, exchange: list[Message]) -> tuple[str, list[int]]:
        text = str(self._tokenizer.apply_chat_template(exchange, tokenize=False, chat_template=self._template))
        return text, list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _judge(self, rows: Sequence[Mapping[str, list[int]]]) -> Tensor:
        """The harm (B,) of some texts, given their inputs."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self._pad or 0}
        inputs = {
            name: torch.tensor([row[name] + [fill.get(name, 0)] * (width - len(row[name])) for row in rows]) for name in rows[0]
        }
        inputs["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        )
        device = input_device(self._model)
        with torch.no_grad():
            output = self._model(**{name: value.to(device) for name, value in inputs.items()})
        logits = output.logits.float().cpu()  # (B, labels)
        if self._regresses:
            return (logits.where((logits >= 0.0) & (logits <= 1.0), torch.nan) * self._harm).amax(-1)
        if self._multi_label:
            return (logits.sigmoid() * self._harm).amax(-1)
        return (logits.softmax(-1) * self._harm).sum(-1).clamp(0.0, 1.0)  # NaN stays NaN


def check_distinct(called: str, labels: Iterable[str]) -> None:
    """Raise ValueError where labels are equal but for letter case."""
    n_equal = Counter(name.lower() for name in labels)
    if len(n_equal) < n_equal.total():
        label = n_equal.most_common(1)[0][0]
        raise ValueError(
            f"{called} must differ in more than letter case, got {label!r} twice. Give each label a name of its own."
        )


def check_exclusive(harm: Sequence[float]) -> None:
    """Raise ValueError where labels that exclude each other are all harmful: one of them holds of every response."""
    if min(harm) > 0.5:
        raise ValueError(
            f"`labels` must leave a harmless one where labels exclude each other, got at least {min(harm)} for all: every "
            "response would be flagged. Leave out those that hold of harmless responses."
        )


@dataclass(frozen=True)
class _PairLayout:
    """What a tokenizer writes around the two texts of a pair, and the type of each of the five parts.

    Attributes:
        before, between, after: The ids around the texts.
        separator: The id between the messages of a conversation. No text has it.
        types: The token types of what stands before, of the first text, between, of the second text, and after; None where the
            model takes none.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    separator: int
    types: tuple[int, int, int, int, int] | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, takes_types: bool) -> "_PairLayout":
        """Learn the layout from a pair of placeholders."""
        names = (tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.bos_token_id)
        separator = next((i for i in names if i is not None), None)
        encoded = tokenizer(PLACEHOLDER, PLACEHOLDER)
        ids, text = list(encoded.input_ids), list(tokenizer(PLACEHOLDER, add_special_tokens=False).input_ids)
        n, places = len(text), [at for at in range(len(ids)) if ids[at : at + len(text)] == text]
        if separator is None or not text or len(places) < 2:
            raise ValueError(
                "`tokenizer` must have a special token that keeps conversation and response apart, got none. Pass a `template`."
            )
        first, second = places[0], places[-1]
        between = ids[first + n : second]
        kinds = list(encoded["token_type_ids"]) if takes_types and "token_type_ids" in encoded else None
        types = (
            None if kinds is None else (kinds[0], kinds[first], kinds[first + n if between else first], kinds[second], kinds[-1])
        )
        special = set(tokenizer.all_special_ids)
        return cls(ids[:first], between if special & set(between) else [*between, separator], ids[second + n :], separator, types)

    def inputs(self, messages: Sequence[list[int]], response: list[int]) -> dict[str, list[int]]:
        """The ids and types of a conversation, its messages given by their ids, and a response."""
        conversation = [i for ids in messages for i in (self.separator, *ids)][1:]
        parts = (self.before, conversation, self.between, response, self.after)
        inputs = {"input_ids": [i for part in parts for i in part]}
        if self.types is not None:
            inputs["token_type_ids"] = [kind for part, kind in zip(parts, self.types, strict=True) for _ in part]
        return inputs


def _special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds names of special tokens in a text, with the white space after them; None where there are none."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = sorted({name for name in added | set(tokenizer.all_special_tokens) if len(name) > 1}, key=len, reverse=True)
    return re.compile(rf"(?:(?:{'|'.join(map(re.escape, names))})\s*)+") if names else None


def _as_texts(messages: list[Message]) -> list[str]:
    """The texts of a conversation: a single question as it is, several messages each with its role."""
    if [message["role"] for message in messages] == ["user"]:
        return [messages[0]["content"]]
    if not all(message["role"].isidentifier() for message in messages):
        raise NoInputError("a role of its conversation is no word")
    texts = [f"{message['role']}: {message['content']}" for message in messages]
    return texts if len(texts) > 1 else ["", *texts]


def _pad_id(model: PreTrainedModel) -> int | None:
    """The id that the model knows as padding, which need not be its tokenizer's; None where it cannot be padded.

    A decoder takes its verdict from the last token that is no padding, and some encoders count positions without padding.
    """
    config = model.config.get_text_config()
    pad, n_ids = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    return pad if pad is not None and 0 <= pad < (n_ids or pad + 1) else None


def _n_positions(model: PreTrainedModel) -> int | None:
    """How many tokens a text may have; None for any number. RoBERTa's positions begin after that of padding."""
    n_positions = max_positions(model)
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if n_positions is not None and name.endswith("position_embeddings") and padding is not None:
            return n_positions - padding - 1
    return n_positions
