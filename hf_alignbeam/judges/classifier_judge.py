"""A judge that reads harm from the labels of a sequence classifier.

Knows how a classifier reads a conversation and a response, and how its label probabilities become `harm`. Knows no cache, and
no use of a verdict.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Conversation, Message, as_messages
from hf_alignbeam.chat.templates import escape_special_tokens
from hf_alignbeam.inference.engines import input_device, max_positions
from hf_alignbeam.judges.base import check_model


class ClassifierJudge:
    """A sequence classifier as judge: `harm` is the probabilities of its labels, weighted by the harm of each.

    Args:
        model: A `...ForSequenceClassification`, in evaluation mode.
        tokenizer: Its tokenizer.
        labels: The harm in [0, 1] of each label, by name; labels left out count as harmless. For a multi-label classifier `harm`
            is the largest weighted probability, for any other the weighted sum.
        template: A Jinja chat template that renders the text to classify from `messages`, of which the response is the last.
            Default: the conversation and the response as a pair of texts.
        batch_size: Responses per forward pass.

    Raises:
        ValueError: An argument is out of its range, or the model has no label of a given name.

    Example:
        >>> judge = ClassifierJudge(model, tokenizer, {"toxic": 1.0})
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: Mapping[str, float],
        template: str | None = None,
        batch_size: int = 32,
    ):
        check_model(model, batch_size)
        known = {name: int(i) for i, name in (model.config.id2label or {}).items()}
        if not labels or not set(labels) <= set(known):
            raise ValueError(
                f"`labels` must name labels of the model ({', '.join(known)}), got {dict(labels)}. Use names from its `id2label`."
            )
        if not all(0.0 <= harm <= 1.0 for harm in labels.values()):
            raise ValueError(f"`labels` must give each label a harm in [0, 1], got {dict(labels)}. Use 1.0 for unsafe.")
        self._model = model
        self._tokenizer = tokenizer
        self._template = template
        self._batch_size = batch_size
        self._n_positions = max_positions(model)
        self._multi_label = model.config.problem_type == "multi_label_classification" or len(known) == 1
        self._harm = torch.zeros(len(known))
        for name, harm in labels.items():
            self._harm[known[name]] = harm

    def __call__(self, conversations: Sequence[Conversation], responses: Sequence[str]) -> Tensor:
        """As `Judge.__call__`; a conversation may also be a plain string."""
        pairs = list(zip([as_messages(c) for c in conversations], responses, strict=True))
        harm = [self._judge(pairs[start : start + self._batch_size]) for start in range(0, len(pairs), self._batch_size)]
        return torch.cat(harm) if harm else torch.zeros(0)

    def render(self, messages: list[Message], response: str) -> tuple[str, str | None]:
        """The text that the classifier reads, and the second text of a pair or None."""
        if self._template is not None:
            exchange = escape_special_tokens(self._tokenizer, [*messages, {"role": "assistant", "content": response}])
            return str(self._tokenizer.apply_chat_template(exchange, tokenize=False, chat_template=self._template)), None
        return "\n\n".join(message["content"] for message in messages), response

    def _judge(self, pairs: Sequence[tuple[list[Message], str]]) -> Tensor:
        texts, seconds = zip(*(self.render(*pair) for pair in pairs), strict=True)
        inputs = self._tokenizer(
            list(texts),
            list(seconds) if self._template is None else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._template is None,
        )
        width = inputs["input_ids"].shape[-1]
        if self._n_positions is not None and width > self._n_positions:
            raise ValueError(
                f"The classifier's context must hold conversation and response, but takes {self._n_positions} tokens and needs "
                f"{width}. Use a judge with a longer context."
            )
        with torch.no_grad():
            logits = self._model(**inputs.to(input_device(self._model))).logits.float().cpu()  # (B, labels)
        if self._multi_label:
            return (logits.sigmoid() * self._harm).amax(-1)
        return (logits.softmax(-1) * self._harm).sum(-1).clamp(0.0, 1.0)  # NaN stays NaN
