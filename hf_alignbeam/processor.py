"""AnchorLogitsProcessor: the logits processor that steers the first tokens of an answer towards a safe anchor.

Knows `generate`'s calls: which rows go on from which, where a prompt ends, when steering is over. What the anchor says is
`follow.py`'s business, how it is mixed in is `mixing.py`'s.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .adapters import OneThread, adapter_layers, adapters_off, base_of
from .anchor import check_anchor, choose_engine
from .calls import Call, Point, Rules
from .chat import ChatReader, Conversation, Message, as_messages, learn_format, render_prompt
from .engines import Scope
from .follow import N_BACK, Follower, Start
from .loops import Loops, asking_loop
from .mixing import PAPER_TOP_TOKENS, MixingRule, check_mixing, linear, log_linear, paper
from .translate import TranslationRule, VocabularyTranslator
from .vocab import token_bytes

#: Extra forwards of the anchor a step may spend, by default: chosen by the distance to the exact translation.
N_LOOKAHEAD = 4


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
        self._exclusive = OneThread(safe) if model is not None else None
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
        self._loops = Loops()
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
        try:
            _, lead_in = render_prompt(self._anchor_tokenizer, self._anchor_tokens, question)
            owed = self._reader.lead_in(question)
        except ValueError:  # a template that wants more than a question: its own answers will tell
            lead_in = owed = b""
        self._translator.warm_up(lead_in, owed)

    @property
    def translator(self) -> VocabularyTranslator:
        """What expresses the anchor in the target's vocabulary; other processors for the same models may share it."""
        return self._translator

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
        other._conversations = _checked_conversations(conversations)
        other._loops = Loops()
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
        loop = asking_loop()
        call, point = self._find(loop, input_ids)
        rows = point.rows
        if call.follower is not None and rows:
            with call.ended_by_errors():
                scores = self._steered(call, point, scores, rows)
        self._count(call, 0, 0.0)
        self._loops.put(loop, call)
        if loop is None and point.over:
            call.end()  # nobody will say when a call by hand ends
        return scores

    def _steered(self, call: Call, point: Point, scores: Tensor, rows: list[int]) -> Tensor:
        """Scores with the anchor mixed into some rows."""
        every = len(rows) == len(scores)
        target_logp = (scores if every else scores[rows]).detach().float().log_softmax(-1)  # (N, V)
        mixed, lost = self._mix(cast(Follower, call.follower), target_logp, rows)
        point.own_logp = dict(zip(rows, target_logp, strict=True))
        self._count(call, len(rows), lost)
        if every:
            return mixed.to(scores.dtype)
        result = scores.clone()
        result[rows] = mixed.to(scores.dtype)
        return result

    def _find(self, loop: LogitsProcessorList | None, input_ids: Tensor) -> tuple[Call, Point]:
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

    def _mix(self, follower: Follower, target_logp: Tensor, rows: list[int]) -> tuple[Tensor, float]:
        """The mixed log-probabilities (N, V) of some rows, and the anchor's mass that had no translation."""
        target_prob = target_logp.exp()
        if self.mixing == "paper":
            anchor_prob, n_sources = follower.translate_top(target_prob, rows, PAPER_TOP_TOKENS)
            return paper(target_logp, anchor_prob, self.alpha, n_sources), float((1.0 - anchor_prob.sum(-1)).sum())
        translation = follower.translate(target_prob, rows)
        anchor_prob = torch.addcmul(translation.prob, translation.lost[:, None], target_prob)
        rule = linear if self.mixing == "linear" else log_linear
        return rule(target_logp, anchor_prob, self.alpha), float(translation.lost.sum())

    def _count(self, call: Call, n_rows: int, lost: float) -> None:
        n_forwards, n_tokens = call.spent()
        with self._lock:
            self.ledger.anchor_forwards += n_forwards
            self.ledger.anchor_tokens += n_tokens
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

    def _begin(self, input_ids: Tensor) -> Call:
        """A new call: every row's conversation rendered for the anchor and read by it."""
        rows = [tuple(row) for row in input_ids.tolist()]
        known: dict[tuple[int, ...], Start] = {}
        starts, groups = [], []
        for number, row in enumerate(rows):
            if self._conversations is None:
                starts.append(known.get(row) or known.setdefault(row, self._start(row, None)))
                groups.append(list(known).index(row))
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
                groups.append(number // n_each)
                starts.append(self._start(row, self._conversations[number // n_each]))
        rules = Rules(self.n_steps, self.n_watch, frozenset(self._translator.target.eos_ids), self._pad_token_id)
        release = self._exclusive.claim() if self._exclusive is not None else None
        try:
            follower = Follower(self._engine(self._anchor, self._scope()), self._translator, starts, self.n_lookahead)
        except BaseException:
            if release is not None:
                release()
            raise
        return Call(rules, input_ids, follower, groups, release)

    def _scope(self) -> Scope:
        """What the anchor's forwards run in; adapters are looked up for each call of `generate`, for more may be added."""
        if self._adapted is None:
            return nullcontext
        base_of(self._adapted)  # adapters may have been merged or taken out since
        return partial(adapters_off, adapter_layers(self._adapted))

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
