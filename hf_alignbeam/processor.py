"""AnchorLogitsProcessor: the logits processor that steers the first tokens of an answer towards a safe anchor.

Knows `generate`'s calls: which rows go on from which, where a prompt ends, when steering is over. What the anchor says is
`follow.py`'s business, how it is mixed in is `mixing.py`'s.
"""

import copy
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .adapters import OneThread, adapter_layers, adapters_off, base_of
from .anchor import check_anchor, choose_engine
from .chat import ChatReader, Conversation, Message, as_messages, learn_format, render_prompt
from .engines import Scope
from .follow import N_BACK, Follower, Start
from .mixing import PAPER_TOP_TOKENS, MixingRule, check_mixing, linear, log_linear, paper
from .translate import TranslationRule, VocabularyTranslator
from .vocab import token_bytes

#: Extra forwards of the anchor a step may spend, by default: chosen by the distance to the exact translation.
N_LOOKAHEAD = 4

#: A token that the target alone would write less often than this is one that the anchor has won.
CONTESTED = math.log(0.01)


@dataclass
class Ledger:
    """What steering has cost since it was last reset.

    Attributes:
        anchor_forwards: Forward passes of the anchor, each over the whole batch.
        anchor_tokens: Tokens fed in them, padding included.
        steered_tokens: Target tokens whose scores were mixed, over all rows.
        lost_mass: The anchor's probability mass that had no translation, summed over those tokens.
    """

    anchor_forwards: int = 0
    anchor_tokens: int = 0
    steered_tokens: int = 0
    lost_mass: float = 0.0


@dataclass
class _Point:
    """One point of a call's answers.

    Attributes:
        input_ids: (rows, length) the ids up to it.
        active: Which rows are steered there.
        contested: Which rows hold a token that the target alone would hardly have written.
        over: Whether steering has ended for good.
        own_logp: By row that is steered there, the target's own log-probabilities (V,).
    """

    input_ids: Tensor
    active: list[bool]
    contested: list[bool]
    over: bool
    own_logp: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _Call:
    """One call of `generate`.

    Attributes:
        prompt_length: How many ids its prompts have.
        follower: The anchor, while it may be needed.
        points: The last points of its answers, by how many tokens were written.
    """

    prompt_length: int
    follower: Follower | None
    points: dict[int, _Point]


class AnchorLogitsProcessor(LogitsProcessor):
    """Mixes a safe anchor's next-token distribution into the target's scores for the first tokens of an answer.

    Works in `model.generate(..., logits_processor=[processor])`: greedy search, sampling, beams, several sequences a prompt,
    prompt lookup, left-padded batches, `inputs_embeds`. One object serves any number of calls, from several threads too.

    Args:
        anchor: The safe model, a decoder of any family; or `"base"`, the model under the adapters of `model`.
        anchor_tokenizer: Its tokenizer, with the chat template it was aligned in.
        tokenizer: The target's tokenizer.
        alpha: The anchor's share, in [0, 1]; 0 leaves the target alone.
        n_steps: How many tokens of each answer are steered; None for all of them.
        n_watch: After so many, steering ends where the anchor has not overruled the target: where the target alone finds
            each token written so far likely enough (`CONTESTED`). None steers every answer for `n_steps`.
        conversations: What the prompts of each call say, one conversation a prompt: a list of
            `{"role", "content"}` messages or a plain string; one that ends in an assistant's message is an answer
            already begun. By default they are recovered from the prompt's ids through the target's chat template.
            `with_conversations` gives the same guard for other ones.
        mixing: `"log_linear"`, `"linear"` (over the union of both supports) or `"paper"` (arXiv 2606.12342, which goes
            with `translation="drop"`).
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
        alpha: float = 0.7,
        n_steps: int | None = 20,
        n_watch: int | None = 4,
        conversations: Sequence[Conversation] | None = None,
        mixing: MixingRule = "log_linear",
        translation: TranslationRule | VocabularyTranslator = "bytes",
        n_lookahead: int = N_LOOKAHEAD,
        template: str | Callable[[str], Conversation] | None = None,
        model: torch.nn.Module | None = None,
    ):
        check_mixing(mixing, alpha)
        for name, number in (("n_steps", n_steps), ("n_lookahead", n_lookahead)):
            if number is not None and number < 0:
                raise ValueError(f"`{name}` must be at least 0, got {number}. Use 0 to leave it out.")
        if n_watch is not None and n_watch < 1:
            raise ValueError(f"`n_watch` must be at least 1, got {n_watch}. Use None to steer every answer for `n_steps`.")
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
        safe = base_of(model) if model is not None else cast(PreTrainedModel, anchor)
        self._anchor_tokens = token_bytes(anchor_tokenizer)
        check_anchor(safe, anchor_tokenizer, self._anchor_tokens)
        self._anchor = safe
        self._adapted = model
        self._engine = choose_engine(safe, self._anchor_tokens, self._scope())
        self._exclusive = OneThread() if model is not None else None
        self.alpha = alpha
        self.n_steps = n_steps
        self.mixing = mixing
        self.n_lookahead = n_lookahead
        self.n_watch = n_watch
        self.ledger = Ledger()
        self._lock = threading.Lock()
        self._anchor_tokenizer = anchor_tokenizer
        self._reader = ChatReader(tokenizer, template)
        self._pad_token_id = tokenizer.pad_token_id
        self._conversations = _checked_conversations(conversations)
        self._threads = threading.local()  # each thread's own call
        ends = _eos_ids(safe, anchor_tokenizer, self._anchor_tokens), self._reader.eos_ids
        if isinstance(translation, VocabularyTranslator):
            translation.check(anchor_tokenizer, tokenizer, *ends)
            self._translator = translation
        else:
            self._translator = VocabularyTranslator(anchor_tokenizer, tokenizer, translation, *ends)
        self._warm_up()
        self._told_plain = False

    def _warm_up(self) -> None:
        """Build what the first tokens of an answer will ask for, so that no step has to."""
        question: list[Message] = [{"role": "user", "content": "?"}]
        _, lead_in = render_prompt(self._anchor_tokenizer, self._anchor_tokens, question)
        self._translator.warm_up(lead_in, self._reader.lead_in(question))

    @property
    def translator(self) -> VocabularyTranslator:
        """What expresses the anchor in the target's vocabulary; other processors for the same models may share it."""
        return self._translator

    @property
    def follower(self) -> Follower | None:
        """The anchor's side of this thread's last call, while it may be needed: to look at, not to change."""
        call: _Call | None = getattr(self._threads, "call", None)
        return call.follower if call is not None else None

    @property
    def conversations(self) -> list[list[Message]] | None:
        """What the prompts say; None where it is recovered from their ids."""
        return self._conversations

    def with_conversations(self, conversations: Sequence[Conversation] | None) -> "AnchorLogitsProcessor":
        """The same guard for prompts that say something else: it shares models, translator and ledger with this one."""
        other = copy.copy(self)
        other._conversations = _checked_conversations(conversations)
        other._threads = threading.local()
        return other

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mix the anchor in.

        Args:
            input_ids: `torch.LongTensor` of shape `(rows, length)`: prompts, left padding included, and answers so far.
            scores: `torch.FloatTensor` of shape `(rows, vocab_size)`.

        Returns:
            Log-probabilities of the same shape; the scores themselves where nothing is steered.
        """
        self._check(input_ids, scores)
        if self.alpha == 0.0 or self.n_steps == 0:
            return scores
        call = self._go_on(input_ids) or self._begin(input_ids)
        self._threads.call = call
        point = call.points[input_ids.shape[-1] - call.prompt_length]
        if self._exclusive is not None:
            self._exclusive.claim(point.over)
        rows = [row for row, active in enumerate(point.active) if active]
        if call.follower is None or point.over or not rows:
            return scores
        every = len(rows) == len(scores)
        target_logp = (scores if every else scores[rows]).detach().float().log_softmax(-1)  # (N, V)
        mixed = self._mix(call.follower, target_logp, rows).to(scores.dtype)
        point.own_logp = dict(zip(rows, target_logp, strict=True))
        if every:
            return mixed
        result = scores.clone()
        result[rows] = mixed
        return result

    def _mix(self, follower: Follower, target_logp: Tensor, rows: list[int]) -> Tensor:
        before = follower.cache.n_forwards, follower.cache.n_tokens
        target_prob = target_logp.exp()
        if self.mixing == "paper":
            anchor_prob, n_sources = follower.translate_top(target_prob, rows, PAPER_TOP_TOKENS)
            lost = 1.0 - anchor_prob.sum(-1)
            mixed = paper(target_logp, anchor_prob, self.alpha, n_sources)
        else:
            translation = follower.translate(target_prob, rows)
            lost = translation.lost
            anchor_prob = torch.addcmul(translation.prob, lost[:, None], target_prob)
            mixed = (linear if self.mixing == "linear" else log_linear)(target_logp, anchor_prob, self.alpha)
        self._count(follower, before, len(rows), float(lost.sum()))
        return mixed

    def _count(self, follower: Follower, before: tuple[int, int], n_rows: int, lost: float) -> None:
        with self._lock:
            self.ledger.anchor_forwards += follower.cache.n_forwards - before[0]
            self.ledger.anchor_tokens += follower.cache.n_tokens - before[1]
            self.ledger.steered_tokens += n_rows
            self.ledger.lost_mass += lost

    def _check(self, input_ids: Tensor, scores: Tensor) -> None:
        if input_ids.dim() != 2:
            raise ValueError(
                f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}. Continuous batching hands "
                "processors one id a request; it cannot be steered: use `generate` without it."
            )
        n_tokens, width = len(self._translator.target), scores.shape[-1]
        if width not in self._translator.target.widths:
            raise ValueError(
                f"`scores` must be as wide as the target's vocabulary of {n_tokens} tokens (padding aside), got "
                f"{width}. Pass the target's own `tokenizer`; an assistant model of another vocabulary cannot be steered."
            )

    def _go_on(self, input_ids: Tensor) -> _Call | None:
        """The call that these rows go on from, its anchor told of the new tokens; None where they begin a new one.

        Rows are found by what they hold: beams swap, and assisted generation takes tokens back.
        """
        call: _Call | None = getattr(self._threads, "call", None)
        if call is None:
            return None
        n_written = input_ids.shape[-1] - call.prompt_length
        before, asked_again = call.points.get(n_written - 1), call.points.get(n_written)
        parents = _parents(input_ids[:, :-1], before.input_ids) if before is not None else None
        if before is not None and parents is not None and self._is_at(call, before, n_written - 1):
            self._write(call, n_written, self._reordered(call, before, parents, n_written - 1), input_ids)
            return call
        if (
            asked_again is not None
            and torch.equal(input_ids, asked_again.input_ids)
            and self._is_at(call, asked_again, n_written)
        ):
            return call
        return None

    @staticmethod
    def _is_at(call: _Call, point: _Point, n_written: int) -> bool:
        """Whether the anchor stands at a point, or needs not; it is taken back there where it can be."""
        if point.over or call.follower is None:
            return point.over
        if call.follower.n_written != n_written:
            if not call.follower.can_go_back(n_written):
                return False
            call.follower.go_back(n_written)
        return True

    @staticmethod
    def _reordered(call: _Call, point: _Point, parents: list[int], n_written: int) -> _Point:
        if parents == list(range(len(point.active))):
            return point
        if call.follower is not None and not point.over:
            call.follower.reorder(parents)
        point = _Point(
            input_ids=point.input_ids[parents],
            active=[point.active[parent] for parent in parents],
            contested=[point.contested[parent] for parent in parents],
            over=point.over,
            own_logp={row: point.own_logp[parent] for row, parent in enumerate(parents) if parent in point.own_logp},
        )
        call.points = {n_written: point}
        return point

    def _write(self, call: _Call, n_written: int, before: _Point, input_ids: Tensor) -> None:
        """Tell the anchor of one new token a row; a row that is not steered any more is followed no more."""
        new = input_ids[:, -1].tolist()
        contested = [was or _is_contested(before, row, i) for row, (i, was) in enumerate(zip(new, before.contested, strict=True))]
        active = [self._goes_on(before.active[row], contested[row], i, n_written) for row, i in enumerate(new)]
        over = before.over or self._is_over(n_written, contested)
        point = _Point(input_ids, active, contested, over)
        n_kept = N_BACK if len(new) == 1 else 1
        call.points = {n: known for n, known in call.points.items() if abs(n - n_written) <= n_kept} | {n_written: point}
        if all(known.over for known in call.points.values()):
            call.follower = None
        if call.follower is not None and not over:
            spent = call.follower.cache.n_forwards, call.follower.cache.n_tokens
            call.follower.write([i if goes_on else None for i, goes_on in zip(new, active, strict=True)])
            self._count(call.follower, spent, 0, 0.0)

    def _goes_on(self, was_active: bool, contested: bool, i: int, n_written: int) -> bool:
        """Whether a row is steered after its token `i`: its answer has not ended, and the anchor has had to overrule.

        A row whose answer goes on after an EOS (`generate` was given other ones) goes on being steered.
        """
        if i in self._translator.target.eos_ids:
            return False
        if self._is_watched(n_written) and not contested:
            return False
        return was_active or i != self._pad_token_id

    def _is_over(self, n_written: int, contested: list[bool]) -> bool:
        done = self.n_steps is not None and n_written >= self.n_steps
        return done or (self._is_watched(n_written) and not any(contested))

    def _is_watched(self, n_written: int) -> bool:
        return self.n_watch is not None and n_written >= self.n_watch

    def _begin(self, input_ids: Tensor) -> _Call:
        """A new call: every row's conversation rendered for the anchor and read by it."""
        rows = [tuple(row) for row in input_ids.tolist()]
        known: dict[tuple[int, ...], Start] = {}
        starts = []
        for number, row in enumerate(rows):
            if self._conversations is None:
                starts.append(known.get(row) or known.setdefault(row, self._start(row, None)))
            else:
                n_each, n_over = divmod(len(rows), len(self._conversations))
                if n_over:
                    raise ValueError(
                        f"`conversations` must hold one conversation a prompt, got {len(self._conversations)} for "
                        f"{len(rows)} rows. Use `with_conversations` for each batch, or leave it out."
                    )
                first = rows[number - number % n_each]
                if row != first:
                    raise ValueError(
                        f"`conversations` must hold one conversation a prompt, got {len(self._conversations)} for "
                        f"{len(rows)} rows with different prompts. Use `with_conversations` for each batch, or leave it out."
                    )
                starts.append(self._start(row, self._conversations[number // n_each]))
        follower = Follower(self._engine(self._anchor, self._scope()), self._translator, starts, self.n_lookahead)
        self._count(follower, (0, 0), 0, 0.0)
        point = _Point(input_ids, [True] * len(rows), [False] * len(rows), over=False)
        return _Call(input_ids.shape[-1], follower, {0: point})

    def _scope(self) -> Scope:
        """What the anchor's forwards run in; adapters are looked up for each call of `generate`, for more may be added."""
        return nullcontext if self._adapted is None else partial(adapters_off, adapter_layers(self._adapted))

    def _start(self, row: tuple[int, ...], messages: list[Message] | None) -> Start:
        if not row and messages is None:
            raise ValueError(
                "`conversations` must be given where `generate` gets `inputs_embeds`, for a processor then sees no prompt, got "
                "None. Use `processor.with_conversations(...)`."
            )
        found = self._reader.read(row) if row else None
        owed, begun = (found.lead_in, found.begun) if found else (b"", b"")
        if not row and messages is not None and messages[-1]["role"] != "assistant":
            owed = self._reader.lead_in(messages)
        if messages is None:
            messages = found.messages if found else self._plain(row)
        elif messages[-1]["role"] == "assistant":
            begun, messages = messages[-1]["content"].encode(), messages[:-1]
        else:
            begun = b""
        if not messages:
            raise ValueError("A conversation must hold a question, got an answer alone. Put the user's message before it.")
        ids, lead_in = render_prompt(self._anchor_tokenizer, self._anchor_tokens, messages)
        return Start(ids, lead_in, owed, begun)

    def _plain(self, row: tuple[int, ...]) -> list[Message]:
        if not self._told_plain:
            self._told_plain = True
            warnings.warn(
                "The prompt does not follow the target's chat template, so the anchor reads its whole plain text as one "
                "question. Pass `conversations`, or a `template` that recovers them.",
                stacklevel=2,
            )
        return [{"role": "user", "content": self._reader.plain(row)}]


def _parents(before: Tensor, known: Tensor) -> list[int] | None:
    """For each row (rows, length) the number of the known row that is equal to it; None where one has none."""
    if torch.equal(before, known):
        return list(range(len(known)))
    same = (before[:, None] == known[None]).all(-1)  # (rows, known rows)
    return same.int().argmax(-1).tolist() if bool(same.any(-1).all()) else None


def _is_contested(point: _Point, row: int, i: int) -> bool:
    """Whether a row's next token `i` is one that the target alone would hardly have written."""
    own_logp = point.own_logp.get(row)
    return own_logp is not None and i < len(own_logp) and float(own_logp[i]) < CONTESTED


def _checked_conversations(conversations: Sequence[Conversation] | None) -> list[list[Message]] | None:
    if conversations is not None and (isinstance(conversations, str) or not conversations):
        raise ValueError(
            f"`conversations` must hold one conversation a prompt, got {conversations!r}. Put a single one in a list."
        )
    return None if conversations is None else [as_messages(c) for c in conversations]


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
