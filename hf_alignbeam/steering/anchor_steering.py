"""How an anchor steers: the settings, checked once, and what they make of a target's distribution at one point.

Knows the anchor, the translation and the mixing rule. It does not know who asks: `processor.py` does for `generate`'s own
loops, `decode.py` for candidates.
"""

import threading
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
from hf_alignbeam.chat.prompt_reader import Prompts
from hf_alignbeam.chat.template_parser import learn_format
from hf_alignbeam.chat.templates import begins_reasoning, raw_text, render_prompt
from hf_alignbeam.inference.adapters import OneThread, adapter_layers, adapters_off, base_of
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import Scope
from hf_alignbeam.steering.generate_call import CallState, GenerateCall, SteeringSchedule
from hf_alignbeam.steering.ledger import Ledger
from hf_alignbeam.steering.mixing import (
    PAPER_TOP_TOKENS,
    contrastive,
    linear,
    log_linear,
    paper,
    safe_decoding,
)
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.tokenization.vocabulary import logits_widths, token_bytes
from hf_alignbeam.translation.translator import VocabularyTranslator


class AnchorSteering:
    """An anchor made ready to steer one target.

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
        for name, given in (("anchor_tokenizer", anchor_tokenizer), ("tokenizer", tokenizer)):
            if not isinstance(given, PreTrainedTokenizerFast):
                raise ValueError(
                    f"`{name}` must have a `tokenizers` back end, whose chat template can be followed, got "
                    f"{type(given).__name__}. Load the same files through AutoTokenizer, with tokenizer.json beside them."
                )
        shared = isinstance(anchor, str)
        if shared != (model is not None) or (shared and anchor != "base"):
            raise ValueError(
                f'`anchor` must be a model, or "base" with the adapted target as `model`, got {_named(anchor)} with '
                f"{_named(model)}. Leave `model` out where the anchor is a model of its own."
            )
        self.settings = settings
        self.ledger = Ledger()
        self._lock = threading.Lock()
        self._anchor = base_of(model) if model is not None else cast(PreTrainedModel, anchor)
        self._adapted = model
        self._anchor_tokenizer = anchor_tokenizer
        self._anchor_tokens = token_bytes(anchor_tokenizer)
        check_anchor(self._anchor, anchor_tokenizer, self._anchor_tokens)
        self._engine = choose_engine(self._anchor, self._anchor_tokens, self._scope())
        self._exclusive = OneThread(self._anchor) if model is not None else None
        self.prompts = Prompts(tokenizer, settings.template)
        ends = _eos_ids(self._anchor, anchor_tokenizer, self._anchor_tokens), self.prompts.eos_ids
        if isinstance(settings.translation, VocabularyTranslator):
            settings.translation.check(anchor_tokenizer, tokenizer, *ends)
            self.translator = settings.translation
        else:
            self.translator = VocabularyTranslator(anchor_tokenizer, tokenizer, settings.translation, *ends)
        self._pad_token_id = tokenizer.pad_token_id
        self._warm_up()

    def _warm_up(self) -> None:
        """Build what the first tokens of an answer will ask for, so that no step has to."""
        question: list[Message] = [{"role": "user", "content": "?"}]
        try:
            _, leading_whitespace = render_prompt(self._anchor_tokenizer, self._anchor_tokens, question)
            target_only_prefix = self.prompts.leading_whitespace(question)
        except ValueError:  # a template that wants more than a question: its own answers will tell
            leading_whitespace = target_only_prefix = b""
        self.translator.warm_up(leading_whitespace, target_only_prefix)

    @property
    def schedule(self) -> SteeringSchedule:
        """When a row is steered."""
        eos_ids = frozenset(self.translator.target.eos_ids)
        return SteeringSchedule(self.settings.n_steps, self.settings.n_watch, eos_ids, self._pad_token_id)

    def begin(self, input_ids: Tensor, asked: Sequence[ParsedPrompt], groups: Sequence[int]) -> GenerateCall:
        """A new call, the anchor having read what each row asks.

        Args:
            input_ids: (rows, length) the rows so far.
            asked: What each of them asks.
            groups: By row, the number of its prompt.

        Raises:
            ValueError: A conversation does not fit the anchor.
            RuntimeError: The anchor's weights are the target's, and another thread uses them.
        """
        release = self._exclusive.claim() if self._exclusive is not None else None
        try:
            starts = {id(one): start(self._anchor_tokenizer, self._anchor_tokens, one) for one in asked}
            engine = self._engine(self._anchor, self._scope())
            follower = Follower(engine, self.translator, [starts[id(one)] for one in asked], self.settings.n_lookahead)
            self._check_answers_at_once(follower)
            return GenerateCall(self.schedule, input_ids, follower, groups, release)
        except BaseException:
            if release is not None:
                release()
            raise

    def _check_answers_at_once(self, follower: Follower) -> None:
        """Raise ValueError where the anchor would reason first: what it says then is no answer to be mixed in."""
        for i in set(follower.cache.prompt_logp.argmax(-1).tolist()):
            opening = begins_reasoning(raw_text(self._anchor_tokenizer, self._anchor_tokens, [i]))
            if opening is not None:
                raise ValueError(
                    f"`anchor` must answer at once, but begins with {opening!r}. Give `anchor_tokenizer` a chat template that "
                    "writes the end of its reasoning before its answer, or take a model that does not reason."
                )

    def mix(self, follower: Follower, target_logp: Tensor, rows: Sequence[int]) -> tuple[Tensor, float]:
        """The anchor mixed in.

        Args:
            follower: The anchor, at the point where the target is.
            target_logp: (N, V) the target's log-probabilities.
            rows: The N rows of the follower that they belong to.

        Returns:
            The mixed log-probabilities (N, V), and the anchor's mass that had no translation, summed over rows.
        """
        target_prob = target_logp.exp()
        if self.settings.mixing == "paper":
            anchor_prob, n_sources = follower.translate_top(target_prob, rows, PAPER_TOP_TOKENS)
            return paper(target_logp, anchor_prob, self.settings.alpha, n_sources), float((1.0 - anchor_prob.sum(-1)).sum())
        translation = follower.predict(target_prob, rows)
        anchor_prob = torch.addcmul(translation.prob, translation.lost[:, None], target_prob)
        rules = {"linear": linear, "log_linear": log_linear, "safe_decoding": safe_decoding, "contrastive": contrastive}
        return rules[self.settings.mixing](target_logp, anchor_prob, self.settings.alpha), float(translation.lost.sum())

    def steer(self, call: GenerateCall, point: CallState, scores: Tensor) -> Tensor:
        """Mix the anchor into the rows that are steered at a point.

        Args:
            call: The call that the rows belong to, its follower at that point.
            point: Where they are.
            scores: (rows, V) the target's.

        Returns:
            (rows, V) log-probabilities for the rows that are steered; the scores themselves for the others.
        """
        rows = point.rows
        if call.follower is None or not rows:
            return scores
        every = len(rows) == len(scores)
        target_logp = (scores if every else scores[rows]).detach().float().log_softmax(-1)  # (N, V)
        mixed, lost = self.mix(call.follower, target_logp, rows)
        point.own_logp = dict(zip(rows, target_logp, strict=True))
        self.count(call, len(rows), lost)
        if every:
            return mixed.to(scores.dtype)
        result = scores.clone()
        result[rows] = mixed.to(scores.dtype)
        return result

    def anchor_logp(self, call: GenerateCall, point: CallState) -> Tensor:
        """What the anchor alone would write next in the rows that were steered at a point, as log-probabilities (rows, V)."""
        assert call.follower is not None
        target_prob = torch.stack([point.own_logp[row] for row in point.rows]).exp()
        if self.settings.mixing == "paper":
            return call.follower.translate_top(target_prob, point.rows, PAPER_TOP_TOKENS)[0].log()
        return call.follower.predict(target_prob, point.rows).prob.log()

    def count(self, call: GenerateCall, n_steered: int = 0, lost: float = 0.0) -> None:
        """Add to the ledger what a call has spent since it was last counted, and what was steered in it."""
        n_forwards, n_tokens = call.spent()
        self.add(anchor_forwards=n_forwards, anchor_tokens=n_tokens, steered_tokens=n_steered, lost_mass=lost)

    def add(self, **spent: float) -> None:
        """Add to the ledger, by the names of its fields."""
        with self._lock:
            for name, much in spent.items():
                setattr(self.ledger, name, getattr(self.ledger, name) + much)

    def check_width(self, width: int) -> None:
        """Raise ValueError where scores over a vocabulary so wide are not the target's."""
        target = self.translator.target
        if width not in target.widths:
            raise ValueError(
                f"`scores` must be as wide as the target's vocabulary of {len(target)} tokens (padding aside), got "
                f"{width}. Pass the target's own `tokenizer`; an assistant model of another vocabulary cannot be steered."
            )

    def _scope(self) -> Scope:
        """What the anchor's forwards run in; adapters are looked up for each call of `generate`, for more may be added."""
        if self._adapted is None:
            return nullcontext
        base_of(self._adapted)  # adapters may have been merged or taken out since
        return partial(adapters_off, adapter_layers(self._adapted))


def _named(given: object) -> str:
    return repr(given) if given is None or isinstance(given, str) else f"a {type(given).__name__}"


def _eos_ids(anchor: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None]) -> set[int]:
    """Every id that ends the anchor's answers: by its tokenizer, its generation config and its template."""
    configured = anchor.generation_config.eos_token_id if anchor.generation_config is not None else None
    ids = set(configured if isinstance(configured, list) else [configured])
    ids.add(tokenizer.eos_token_id)
    if tokenizer.chat_template is not None:
        learned = learn_format(tokenizer, tokens, tokenizer.chat_template)
        ids |= learned.eos_ids if learned else set()
    return {i for i in ids if i is not None}


def start(anchor_tokenizer: PreTrainedTokenizerBase, anchor_tokens: list[bytes | None], asked: ParsedPrompt) -> RowStart:
    """How the anchor's reading of one prompt begins."""
    ids, leading_whitespace = render_prompt(anchor_tokenizer, anchor_tokens, asked.messages)
    return RowStart(ids, leading_whitespace, asked.leading_whitespace, asked.prefill)


def check_anchor(anchor: PreTrainedModel, anchor_tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes | None]) -> None:
    """Raise ValueError where a model cannot be followed, or does not belong to its tokenizer, whose `tokens` are given."""
    name = type(anchor).__name__
    if anchor.config.is_encoder_decoder:
        raise ValueError(f"`anchor` must be a decoder, got the encoder-decoder {name}. Use a causal language model.")
    if anchor.training:
        raise ValueError(f"`anchor` must be in evaluation mode, but {name} is in training mode. Call `anchor.eval()`.")
    n_tokens, n_rows = len(anchor_tokenizer), int(anchor.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    if n_rows not in logits_widths(tokens):
        raise ValueError(
            f"`anchor_tokenizer` must belong to the anchor: it has {n_tokens} tokens, but {name} has {n_rows} "
            "embeddings. Load both from the same place."
        )
    if anchor_tokenizer.chat_template is None:
        warnings.warn(
            "`anchor_tokenizer` has no chat template: the anchor reads the messages' plain text, one after the other. An "
            "aligned model refuses best in the template it was trained with: set `anchor_tokenizer.chat_template`.",
            stacklevel=3,
        )
