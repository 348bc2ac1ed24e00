"""AnchorSteering: an anchor that is checked once and then mixed into one target's distributions.

Knows the anchor, the translation and the mixing rule. Does not know its caller: the logits processor in the loops of
`generate`, or the candidates of the decoding strategy.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_alignbeam.anchor.follower import Follower, RowStart
from hf_alignbeam.chat.conversations import Message, ParsedPrompt
from hf_alignbeam.chat.prompt_reader import PromptReader
from hf_alignbeam.chat.templates import bytes_with_special_tokens, encode_prompt, leading_reasoning_marker
from hf_alignbeam.inference.adapters import OneThread, adapter_layers, adapters_off, base_of, n_embeddings
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import MAX_PACKED, PACKED, KeyValueEngine, Scope
from hf_alignbeam.steering.generate_call import CallState, GenerateCall, SteeringSchedule
from hf_alignbeam.steering.ledger import Ledger
from hf_alignbeam.steering.mixing import PAPER_TOP_TOKENS, RULES, paper
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.tokenization.vocabulary import logits_widths, token_bytes
from hf_alignbeam.translation.translator import VocabularyTranslator
from hf_alignbeam.utils.method_cache import kept


class AnchorSteering:
    """An anchor that is ready to steer one target.

    Args:
        anchor, anchor_tokenizer, tokenizer, model: As in `AnchorLogitsProcessor`.
        settings: How the anchor is mixed in.

    Raises:
        ValueError: The models and tokenizers do not belong together.
    """

    def __init__(
        self,
        anchor: PreTrainedModel | Literal["base"],
        anchor_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        settings: SteeringSettings,
        model: torch.nn.Module | None,
    ):
        _check_tokenizers(anchor_tokenizer=anchor_tokenizer, tokenizer=tokenizer)
        _check_base(anchor, model)
        self.settings = settings
        self.ledger = Ledger()
        self._anchor = base_of(model) if model is not None else cast(PreTrainedModel, anchor)
        self._adapted = model
        self._anchor_tokenizer = anchor_tokenizer
        self._anchor_tokens = token_bytes(anchor_tokenizer)
        _check_anchor(self._anchor, anchor_tokenizer, self._anchor_tokens)
        self._engine = kept(choose_engine, self._anchor, self._anchor_tokens, self._scope())
        self._exclusive = OneThread(self._anchor) if model is not None else None
        self.prompt_reader = PromptReader(tokenizer, settings.template)
        eos_ids = _eos_ids(self._anchor, anchor_tokenizer), self.prompt_reader.eos_ids
        if isinstance(settings.translation, VocabularyTranslator):
            settings.translation.check(anchor_tokenizer, tokenizer, *eos_ids)
            self.translator = settings.translation
        else:
            self.translator = kept(VocabularyTranslator, anchor_tokenizer, tokenizer, settings.translation, *eos_ids)
        self._pad_token_id = tokenizer.pad_token_id
        self._warm_up()

    def _warm_up(self) -> None:
        """Build the tables that the first tokens of an answer need, so that no decoding step has to build them."""
        question: list[Message] = [{"role": "user", "content": "?"}]
        try:
            _, leading_whitespace = encode_prompt(self._anchor_tokenizer, self._anchor_tokens, question)
            target_only_prefix = self.prompt_reader.leading_whitespace(question)
        except ValueError:  # the template needs more than a question; the first call will build the tables
            leading_whitespace = target_only_prefix = b""
        if not self.translator.identity:
            self.translator.table(b"", b"")
            self.translator.table(leading_whitespace, target_only_prefix)
            self.translator.anchor.begins_a_token(b" ")

    def begin(self, input_ids: Tensor, prompts: Sequence[ParsedPrompt], groups: Sequence[int]) -> GenerateCall:
        """Begin a call for `input_ids` (rows, length): the anchor reads each row's prompt. `groups` numbers the prompts by row.

        Raises:
            ValueError: A conversation does not fit the anchor.
            RuntimeError: The anchor shares its weights with the target, and another thread uses them.
        """
        release = self._exclusive.claim() if self._exclusive is not None else None
        try:
            starts = {id(prompt): self._start(prompt) for prompt in prompts}  # rows of one prompt share the object
            n_tokens = sum(len(start.prompt_ids) for start in starts.values())
            is_large = self._engine in PACKED and len(prompts) * n_tokens > MAX_PACKED
            engine = (KeyValueEngine if is_large else self._engine)(self._anchor, self._scope())
            follower = Follower(engine, self.translator, [starts[id(prompt)] for prompt in prompts], self.settings.n_lookahead)
            self._check_no_reasoning(follower)
            eos_ids = frozenset(self.translator.target.eos_ids)
            schedule = SteeringSchedule(self.settings.n_steps, self.settings.n_watch, eos_ids, self._pad_token_id)
            return GenerateCall(schedule, input_ids, follower, groups, release)
        except BaseException:
            if release is not None:
                release()
            raise

    def _start(self, prompt: ParsedPrompt) -> RowStart:
        """One prompt in the anchor's template, with the beginning of its answer."""
        ids, leading_whitespace = encode_prompt(self._anchor_tokenizer, self._anchor_tokens, prompt.messages)
        return RowStart(ids, leading_whitespace, prompt.leading_whitespace, prompt.prefill)

    def _check_no_reasoning(self, follower: Follower) -> None:
        """Raise ValueError if the anchor would reason before its answer: its reasoning must not be mixed into the target's."""
        for i in set(follower.cache.after_prompt.prob.argmax(-1).tolist()):
            text = bytes_with_special_tokens(self._anchor_tokenizer, self._anchor_tokens, [i])
            if (opening := leading_reasoning_marker(text)) is not None:
                raise ValueError(
                    f"`anchor` must answer at once, but begins with {opening!r}. Give `anchor_tokenizer` a chat template that "
                    "writes the end of its reasoning before its answer, or use a model that does not reason."
                )

    def steer(self, call: GenerateCall, state: CallState, scores: Tensor) -> Tensor:
        """Mix the anchor into the target's scores (rows, V) at the state where the call's follower is.

        The result holds log-probabilities for the steered rows, and the scores themselves for the others.
        """
        rows = state.steered_rows
        if call.follower is None or not rows:
            return scores
        steers_all = len(rows) == len(scores)
        target_logp = (scores if steers_all else scores[rows]).detach().float().log_softmax(-1)  # (N, V)
        mixed, lost_mass = self.mix(call.follower, target_logp, rows)
        state.target_logp = dict(zip(rows, target_logp, strict=True))
        n_forwards, n_tokens = call.uncounted_cost()
        self.ledger.add(anchor_forwards=n_forwards, anchor_tokens=n_tokens, steered_tokens=len(rows), lost_mass=lost_mass)
        if steers_all:
            return mixed.to(scores.dtype)
        return scores.index_copy(0, torch.tensor(rows, device=scores.device), mixed.to(scores.dtype))

    def mix(self, follower: Follower, target_logp: Tensor, rows: Sequence[int]) -> tuple[Tensor, float]:
        """Mix the anchor's translated distribution into the target's log-probabilities (N, V) of N rows of the follower.

        The result is the mixed log-probabilities (N, V), and the anchor's mass that had no translation, summed over rows.
        """
        target_prob = target_logp.exp()
        if self.settings.mixing == "paper":
            anchor_prob, n_sources = follower.translate_top(target_prob, rows, PAPER_TOP_TOKENS)
            return paper(target_logp, anchor_prob, self.settings.alpha, n_sources), float((1.0 - anchor_prob.sum(-1)).sum())
        translation = follower.predict(target_prob, rows)
        anchor_prob = translation.prob.addcmul_(translation.lost[:, None], target_prob)
        return RULES[self.settings.mixing](target_logp, anchor_prob, self.settings.alpha), float(translation.lost.sum())

    def check_width(self, width: int) -> None:
        """Raise ValueError if scores over a vocabulary of this width cannot be the target's."""
        target = self.translator.target
        if width not in target.widths:
            raise ValueError(
                f"`scores` must be as wide as the target's vocabulary of {len(target)} tokens (padding aside), got "
                f"{width}. Pass the target's own `tokenizer`; an assistant model of another vocabulary cannot be steered."
            )

    def _scope(self) -> Scope:
        """The context for the anchor's forwards. Adapters are listed anew for each call, because more may have been added."""
        if self._adapted is None:
            return nullcontext
        base_of(self._adapted)  # raises if the adapters were merged or removed in the meantime
        return partial(adapters_off, adapter_layers(self._adapted))


def _check_tokenizers(**tokenizers: PreTrainedTokenizerBase) -> None:
    """Raise ValueError, by the argument's name, if a tokenizer has no `tokenizers` backend."""
    for name, tokenizer in tokenizers.items():
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(
                f"`{name}` must have a `tokenizers` backend, whose chat template can be parsed, got "
                f"{type(tokenizer).__name__}. Load the same files with AutoTokenizer, with tokenizer.json beside them."
            )


def _check_base(anchor: PreTrainedModel | str, model: torch.nn.Module | None) -> None:
    """Raise ValueError unless the anchor is a model, or "base" together with the adapted target as `model`."""
    is_base = isinstance(anchor, str)
    if is_base != (model is not None) or (anchor != "base" if is_base else not isinstance(anchor, torch.nn.Module)):
        given = [repr(x) if x is None or isinstance(x, str) else f"a {type(x).__name__}" for x in (anchor, model)]
        raise ValueError(
            f'`anchor` must be a model, or "base" with the adapted target as `model`, got {" with ".join(given)}. '
            "Leave `model` out if the anchor is a separate model."
        )
    is_whole = hasattr(anchor, "get_base_model") or getattr(anchor, "_hf_peft_config_loaded", False)
    if not (is_whole or isinstance(anchor, str) or all(layer.disable_adapters for layer in adapter_layers(anchor))):
        raise ValueError(
            "`anchor` must be a whole model, got the inside of a `PeftModel`, where its adapters are on. For the model without "
            'them give `anchor="base"` and the `PeftModel` as `model`; for the model with them the `PeftModel`.'
        )


def _check_anchor(anchor: PreTrainedModel, anchor_tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None]) -> None:
    """Raise ValueError if the anchor is no decoder in evaluation mode, or does not fit its tokenizer with these `tokens`."""
    name = type(anchor).__name__
    if anchor.config.is_encoder_decoder:
        raise ValueError(f"`anchor` must be a decoder, got the encoder-decoder {name}. Use a causal language model.")
    if anchor.training:
        raise ValueError(f"`anchor` must be in evaluation mode, but {name} is in training mode. Call `anchor.eval()`.")
    n_tokens, n_rows = len(anchor_tokenizer), n_embeddings(anchor)
    if n_rows not in logits_widths(tokens):
        raise ValueError(
            f"`anchor_tokenizer` must belong to the anchor: it has {n_tokens} tokens, but {name} has {n_rows} "
            "embeddings. Load both from the same checkpoint."
        )
    if anchor_tokenizer.chat_template is None:
        warnings.warn(
            "`anchor_tokenizer` has no chat template: the anchor reads the messages' plain text, one after the other. An "
            "aligned model refuses best in the template it was trained with. Set `anchor_tokenizer.chat_template`.",
            stacklevel=4,
        )


def _eos_ids(anchor: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end the anchor's answers, from its generation config, its tokenizer and its chat template."""
    configured = anchor.generation_config.eos_token_id if anchor.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in ids if i is not None and i >= 0} | PromptReader(tokenizer).eos_ids
