"""AnchorLogitsProcessor: the logits processor that steers the first tokens of an answer towards a safe anchor.

Knows the contract of transformers' processors: ids and scores in, scores out. Does not know how an anchor is mixed in
(`anchor_steering`) or which row continues which (`generate_call`).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.anchor.follower import N_BACK, Follower
from hf_alignbeam.chat.conversations import Conversation, as_message_lists
from hf_alignbeam.steering.anchor_steering import AnchorSteering
from hf_alignbeam.steering.generate_call import CallState, GenerateCall
from hf_alignbeam.steering.generate_loops import CallRegistry, calling_loop
from hf_alignbeam.steering.ledger import Ledger
from hf_alignbeam.steering.mixing import MixingRule
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator

#: The number of first tokens of an answer that are checked for the beginning of reasoning, which may be written byte by byte.
N_OPENING = 24


class AnchorLogitsProcessor(LogitsProcessor):
    """Mixes a safe anchor's next-token distribution into the target's scores for the first tokens of an answer.

    Works in `model.generate(..., logits_processor=[processor])`: greedy search, sampling, beams, several sequences a prompt,
    prompt lookup, left-padded batches, `inputs_embeds`. One object serves any number of calls, also from several threads.

    Args:
        anchor: The safe model, a decoder of any family; or `"base"`, the model under the adapters of `model`.
        anchor_tokenizer: The anchor's tokenizer, with the chat template that the anchor was aligned in.
        tokenizer: The target's tokenizer.
        alpha: The anchor's share, in [0, 1]; 0 leaves the target unchanged. The last two rules of `mixing` have other ranges.
        n_steps: How many tokens of each answer are steered at most; None for all of them.
        n_watch: After this many tokens, steering ends for an answer in which the anchor has not overruled the target: the
            target alone gave each token at least 1 %. None steers every answer for `n_steps`.
        conversations: The conversations of each call, one a prompt: a list of `{"role", "content"}` messages or a plain
            string. Where the last message is the assistant's, the answer continues it. By default, conversations are
            recovered from the prompt's ids by the target's chat template. `with_conversations` replaces them.
        mixing: `"log_linear"`, `"linear"` (over the union of both supports), `"paper"` (arXiv 2606.12342, to be used with
            `translation="drop"`), `"safe_decoding"` (arXiv 2402.08983; alpha at least 0) or `"contrastive"` (arXiv 2309.09117;
            alpha at least 1). `hf_alignbeam.presets.PROCESSOR` holds the published settings of the last three.
        translation: The rule of `VocabularyTranslator`; or the `translator` of another processor for the same models, to save
            building one (a second or two for large vocabularies).
        n_lookahead: How many extra forwards of the anchor a step may cost where the anchor's tokens are shorter than the
            target's, so that the anchor's next token does not decide the target's.
        template: For a target without a chat template: a Jinja template, or a callable that turns the prompt's text into the
            conversation.
        model: The target, only for `anchor="base"`: a `PeftModel`, the model inside it, or a model with adapters of its own.
            Adapters are off during the anchor's forwards, so only one thread at a time may run such a model.

    Raises:
        ValueError: An argument is out of its range, or the anchor and its tokenizer do not belong together.

    Example:
        >>> processor = AnchorLogitsProcessor(anchor, anchor_tokenizer, tokenizer)
        >>> model.generate(**inputs, logits_processor=[processor])
    """

    supports_continuous_batching = False
    check_settings = SteeringSettings  #: raises ValueError for wrong settings, before a model is loaded for them

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
        self._calls = CallRegistry()  # first: it stops a deep copy before the anchor is copied
        settings = SteeringSettings(alpha, n_steps, n_watch, mixing, translation, n_lookahead, template)
        self._steering = AnchorSteering(anchor, anchor_tokenizer, tokenizer, settings, model)
        self._conversations = None if conversations is None else as_message_lists(conversations)

    @property
    def steering(self) -> AnchorSteering:
        """The anchor, ready to steer, and its settings."""
        return self._steering

    @property
    def ledger(self) -> Ledger:
        """What steering has cost."""
        return self._steering.ledger

    @property
    def translator(self) -> VocabularyTranslator:
        """The translator from the anchor's vocabulary to the target's; other processors for the same models may share it."""
        return self._steering.translator

    @property
    def follower(self) -> Follower | None:
        """The anchor's state in this thread's last call, for inspection only; None once the call needs no anchor any more."""
        call = self._calls.last
        return call.follower if call is not None else None

    def with_conversations(self, conversations: Sequence[Conversation] | None) -> "AnchorLogitsProcessor":
        """The same processor for other conversations: it shares models, translator and ledger with this one."""
        other = copy.copy(self)
        other._conversations = None if conversations is None else as_message_lists(conversations)
        other._calls = CallRegistry()
        return other

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mix the anchor into the scores.

        Args:
            input_ids: `torch.LongTensor` of shape `(rows, length)`: prompts, left padding included, and answers so far.
            scores: `torch.FloatTensor` of shape `(rows, vocab_size)`.

        Returns:
            Log-probabilities of the same shape; the scores themselves where nothing is steered.

        Raises:
            ValueError: A prompt or the scores do not fit, or an answer begins with reasoning.
        """
        self._check(input_ids, scores)
        if self._steering.settings.is_off:
            return scores
        loop, ended = calling_loop(input_ids)
        call, state = self._find(loop, input_ids, ended)
        n_written = input_ids.shape[-1] - call.initial.input_ids.shape[-1]
        with call.ended_by_errors():
            if 0 < n_written <= N_OPENING:
                self._steering.prompt_reader.check_no_reasoning(input_ids[:, -n_written:].tolist())
            scores = self._steering.steer(call, state, scores)
        self._calls.put(loop, call)
        if loop is None and state.is_over:
            call.end()  # without a loop, there is no other sign that the call has ended
        return scores

    def _check(self, input_ids: Tensor, scores: Tensor) -> None:
        if input_ids.dim() != 2:
            raise ValueError(
                f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}. Continuous batching hands "
                "processors one id a request and cannot be steered: use `generate` without it."
            )
        self._steering.check_width(scores.shape[-1])

    def _find(self, loop: LogitsProcessorList | None, input_ids: Tensor, ended: list[int]) -> tuple[GenerateCall, CallState]:
        """The call that these rows belong to, which may be a new one, and the state of the rows, of which some have `ended`."""
        known = self._calls.take(loop)
        if known is not None:
            with known.ended_by_errors():
                state = known.advance_to(input_ids, ended)
            if state is not None:
                return known, state
            if loop is not None and known.is_rolled_back(input_ids):
                raise ValueError(
                    f"Assisted generation must take back at most {N_BACK} tokens of an answer at once, and took back more. Use a "
                    "smaller `prompt_lookup_num_tokens` or `num_assistant_tokens`."
                )
            known.end()
        prompts, groups = self._steering.prompt_reader.read(input_ids, self._conversations)
        call = self._steering.begin(input_ids, prompts, groups)
        if loop is not None:
            self._calls.on_loop_end(loop, call.end)
        return call, call.initial
