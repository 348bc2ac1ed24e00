"""AnchorLogitsProcessor: the logits processor that steers the first tokens of an answer towards a safe anchor.

Knows the contract of transformers' processors: ids and scores in, scores out. How an anchor steers is `steering.py`'s business,
which rows go on from which `calls.py`'s.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.anchor.follower import N_BACK, Follower
from hf_alignbeam.chat.conversations import Conversation, Message, as_message_lists_or_none
from hf_alignbeam.steering.anchor_steering import AnchorSteering
from hf_alignbeam.steering.generate_call import CallState, GenerateCall
from hf_alignbeam.steering.generate_loops import CallRegistry, calling_processor_list
from hf_alignbeam.steering.ledger import Ledger
from hf_alignbeam.steering.mixing import MixingRule
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator

#: Of so many first tokens of an answer it is looked whether they open reasoning, byte by byte if need be.
N_OPENING = 24


class AnchorLogitsProcessor(LogitsProcessor):
    """Mixes a safe anchor's next-token distribution into the target's scores for the first tokens of an answer.

    Works in `model.generate(..., logits_processor=[processor])`: greedy search, sampling, beams, several sequences a prompt,
    prompt lookup, left-padded batches, `inputs_embeds`. One object serves any number of calls, from several threads too.

    Args:
        anchor: The safe model, a decoder of any family; or `"base"`, the model under the adapters of `model`.
        anchor_tokenizer: Its tokenizer, with the chat template it was aligned in.
        tokenizer: The target's tokenizer.
        alpha: The anchor's share, in [0, 1]; 0 leaves the target alone. The last two rules of `mixing` have ranges of their own.
        n_steps: How many tokens of each answer are steered; None for all of them.
        n_watch: After so many, steering ends where the anchor has not overruled the target: where the target alone finds
            each token written so far likely enough (`OVERRULED`). None steers every answer for `n_steps`.
        conversations: What the prompts of each call say, one conversation a prompt: a list of
            `{"role", "content"}` messages or a plain string; one that ends in an assistant's message is an answer
            already begun. By default they are recovered from the prompt's ids through the target's chat template.
            `with_conversations` gives the same guard for other ones.
        mixing: `"log_linear"`, `"linear"` (over the union of both supports), `"paper"` (arXiv 2606.12342, which goes with
            `translation="drop"`), `"safe_decoding"` (arXiv 2402.08983; alpha at least 0) or `"contrastive"` (arXiv 2309.09117;
            alpha at least 1). `PROCESSOR` holds the last three as published.
        translation: The rule of `VocabularyTranslator`; or the `translator` of another processor for the same models, which
            saves building it (a second or two for large vocabularies).
        n_lookahead: How many extra forwards of the anchor a step may spend where the anchor's tokens are finer than the
            target's, so that its next token leaves the target's open.
        template: For a target without a chat template: a Jinja template, or a callable from the prompt's text to the
            conversation.
        model: For `anchor="base"` the target: a `PeftModel`, the model inside it, or a model with adapters of its own.
            Adapters are off during the anchor's forwards, so only one thread at a time may run such a model.

    Raises:
        ValueError: An argument is out of its range, or the anchor and its tokenizer do not belong together.

    Example:
        >>> processor = AnchorLogitsProcessor(anchor, anchor_tokenizer, tokenizer)
        >>> model.generate(**inputs, logits_processor=[processor])
    """

    supports_continuous_batching = False

    def __init__(
        self,
        anchor: PreTrainedModel | Literal["base"],
        anchor_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        alpha: float = SteeringSettings.alpha,
        n_steps: int | None = SteeringSettings.n_steps,
        n_watch: int | None = SteeringSettings.n_watch,
        conversations: Sequence[Conversation] | None = None,
        mixing: MixingRule = SteeringSettings.mixing,
        translation: TranslationRule | VocabularyTranslator = SteeringSettings.translation,
        n_lookahead: int = SteeringSettings.n_lookahead,
        template: str | Callable[[str], Conversation] | None = SteeringSettings.template,
        model: torch.nn.Module | None = None,
    ):
        settings = SteeringSettings(alpha, n_steps, n_watch, mixing, translation, n_lookahead, template)
        self._steering = AnchorSteering(anchor, anchor_tokenizer, tokenizer, settings, model)
        self._conversations = as_message_lists_or_none(conversations)
        self._loops = CallRegistry()

    @property
    def steering(self) -> AnchorSteering:
        """The anchor made ready, with its settings."""
        return self._steering

    @property
    def ledger(self) -> Ledger:
        """What steering has cost."""
        return self._steering.ledger

    @property
    def translator(self) -> VocabularyTranslator:
        """What expresses the anchor in the target's vocabulary; other processors for the same models may share it."""
        return self._steering.translator

    @property
    def follower(self) -> Follower | None:
        """The anchor's side of this thread's last call, while that is under way and it may be needed: to look at only."""
        call = self._loops.last
        return call.follower if call is not None else None

    @property
    def conversations(self) -> list[list[Message]] | None:
        """What the prompts say; None where it is recovered from their ids."""
        return self._conversations

    def with_conversations(self, conversations: Sequence[Conversation] | None) -> "AnchorLogitsProcessor":
        """The same guard for prompts that say something else: it shares models, translator and ledger with this one."""
        other = copy.copy(self)
        other._conversations = as_message_lists_or_none(conversations)
        other._loops = CallRegistry()
        return other

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mix the anchor in.

        Args:
            input_ids: `torch.LongTensor` of shape `(rows, length)`: prompts, left padding included, and answers so far.
            scores: `torch.FloatTensor` of shape `(rows, vocab_size)`.

        Returns:
            Log-probabilities of the same shape; the scores themselves where nothing is steered.

        Raises:
            ValueError: A prompt does not fit, or an answer begins with reasoning.
        """
        self._check(input_ids, scores)
        if self._steering.settings.is_off:
            return scores
        loop = calling_processor_list()
        call, point = self._find(loop, input_ids)
        n_written = input_ids.shape[-1] - call.first.input_ids.shape[-1]
        if 0 < n_written <= N_OPENING:
            with call.ended_by_errors():
                self._steering.prompts.check_no_reasoning(input_ids[:, -n_written:].tolist())
        if call.follower is not None and point.rows:
            with call.ended_by_errors():
                scores = self._steering.steer(call, point, scores)
        self._steering.count(call)
        self._loops.put(loop, call)
        if loop is None and point.over:
            call.end()  # nobody will say when a call by hand ends
        return scores

    def _find(self, loop: LogitsProcessorList | None, input_ids: Tensor) -> tuple[GenerateCall, CallState]:
        """The call that these rows belong to, a new one if need be, and the point of it that they are at."""
        known = self._loops.take(loop)
        if known is not None:
            with known.ended_by_errors():
                point = known.reach(input_ids)
            if point is not None:
                return known, point
            if loop is not None and known.knows(input_ids):
                raise ValueError(
                    f"Assisted generation must take back at most {N_BACK} tokens of an answer at once, and took back more. Use a "
                    "smaller `prompt_lookup_num_tokens` or `num_assistant_tokens`."
                )
            known.end()
        call = self._begin(input_ids)
        if loop is not None:
            self._loops.when_over(loop, call.end)
        return call, call.first

    def _check(self, input_ids: Tensor, scores: Tensor) -> None:
        if input_ids.dim() != 2:
            raise ValueError(
                f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}. Continuous batching hands "
                "processors one id a request; it cannot be steered: use `generate` without it."
            )
        self._steering.check_width(scores.shape[-1])

    def _begin(self, input_ids: Tensor) -> GenerateCall:
        """A new call: every row's conversation rendered for the anchor and read by it."""
        asked, groups = self._steering.prompts.read(input_ids, self._conversations)
        return self._steering.begin(input_ids, asked, groups)
