"""A distribution over the anchor's vocabulary expressed over the target's, and the mass that is lost on the way.

Knows two vocabularies and the byte strings behind them. Knows no model: where an answer could go on in several ways that
only another forward of the anchor would tell apart, it names the paths (`Table.extensions`) and leaves the choice of
looking ahead to its caller.
"""

from collections import defaultdict
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_alignbeam.tokenization.vocabulary import Vocabulary
from hf_alignbeam.translation.retokenization import Retokenizer
from hf_alignbeam.utils.method_cache import cached_method, clear_method_caches

#: A row with less mass than this says nothing.
NEGLIGIBLE = 1e-30

#: Where the target's own distribution has to say which token a text becomes, the token that is that text and no more gets
#: so much on top: what the target finds all but impossible must not decide.
SETTLED_WEIGHT = 0.001

TranslationRule = Literal["bytes", "drop", "first", "exact"]


@dataclass(frozen=True)
class Translation:
    """A translated distribution: `prob` (N, V) over the target's ids, and the mass `lost` (N,) that it has no place for."""

    prob: Tensor
    lost: Tensor

    def normalised(self) -> "Translation":
        """The same, scaled so that the mass kept and lost is 1 in each row; all is lost where there was none."""
        total = self.prob.sum(-1) + self.lost  # (N,)
        scale = torch.where(total > NEGLIGIBLE, 1.0 / total.clamp_min(NEGLIGIBLE), 0.0)
        return Translation(self.prob * scale[:, None], torch.where(scale > 0, self.lost * scale, 1.0))


@dataclass(frozen=True)
class Table:
    """The map between two vocabularies at one point of an answer.

    An anchor token stands for its bytes, less the `pending` bytes already written, after the `target_only_prefix` that only the
    target writes (the space its template puts in front of an answer).

    Attributes:
        first: (V,) for each target id an anchor id whose mass goes to it whatever comes after.
        reached: (V,) 1 where there is one, 0 elsewhere.
        source: (M,) the other anchor ids whose mass goes to one target id whatever comes after.
        target: (M,) where it goes.
        groups: (G,) anchor ids that are also the start of longer target tokens.
        branch_group: (E,) index into `groups`.
        branch_target: (E,) the target ids a group's mass may go to.
        branch_weight: (E,) what it gets on top of the target's own share: `SETTLED_WEIGHT` where it holds the group's own
            bytes and no more.
        extensions: for a path of anchor ids, the target ids whose bytes it is a proper start of.
        anchor_eos, target_eos: the ids that end an answer.
        possible: (A,) 1 for the anchor ids that go on from the pending bytes; None where nothing is pending.
    """

    first: Tensor
    reached: Tensor
    source: Tensor
    target: Tensor
    groups: Tensor
    branch_group: Tensor
    branch_target: Tensor
    branch_weight: Tensor
    extensions: dict[tuple[int, ...], list[int]]
    anchor_eos: Tensor
    target_eos: Tensor
    possible: Tensor | None

    def to(self, device: torch.device) -> "Table":
        """The same table with its tensors on `device`; moved there once."""
        return self if self.source.device == device else self._moved(device)

    @cached_method(maxsize=4)
    def _moved(self, device: torch.device) -> "Table":
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def apply(self, anchor_prob: Tensor, target_prob: Tensor) -> Translation:
        """Translate whole rows.

        Args:
            anchor_prob: (N, A) the anchor's next-token distribution.
            target_prob: (N, V) the target's own, by which the mass of a group is shared out.

        Returns:
            The translation of each row. With pending bytes only the anchor tokens that begin with them and go on
            count: what is kept and lost adds up to their mass.
        """
        if self.possible is not None:
            width = min(anchor_prob.shape[-1], len(self.possible))
            anchor_prob = anchor_prob[:, :width] * self.possible[:width]
        width = target_prob.shape[-1]
        prob = anchor_prob.index_select(1, self.first[:width]) * self.reached[:width]
        if prob.shape[-1] < width:
            prob = torch.nn.functional.pad(prob, (0, width - prob.shape[-1]))  # (N, V)
        prob.index_add_(1, self.target, anchor_prob.index_select(1, self.source))
        if len(self.groups):
            weights = target_prob.index_select(1, self.branch_target) + self.branch_weight  # (N, E)
            totals = weights.new_zeros(len(weights), len(self.groups)).index_add_(1, self.branch_group, weights)
            scale = anchor_prob.index_select(1, self.groups) / totals  # (N, G)
            prob.index_add_(1, self.branch_target, weights * scale.index_select(1, self.branch_group))
        anchor_eos = self.anchor_eos[self.anchor_eos < anchor_prob.shape[-1]]
        target_eos = self.target_eos[self.target_eos < target_prob.shape[-1]]
        if len(anchor_eos) and len(target_eos):
            eos_prob = anchor_prob[:, anchor_eos].sum(-1, keepdim=True)  # (N, 1)
            prob[:, target_eos] += eos_prob * _normalised(target_prob[:, target_eos])
        return Translation(prob, (anchor_prob.sum(-1) - prob.sum(-1)).clamp_min(0.0))


class VocabularyTranslator:
    """Expresses the anchor's distributions over the target's vocabulary.

    Args:
        anchor_tokenizer: The anchor's tokenizer.
        tokenizer: The target's tokenizer.
        rule: `"bytes"` (ours), or one of the paper's context-free rules: `"exact"` keeps tokens of equal bytes,
            `"drop"` those that re-encode to a single target token, `"first"` sends each token to the first token of
            its re-encoding (arXiv 2606.12342).
        anchor_eos_ids: The ids that end the anchor's answers; its tokenizer's `eos_token_id` by default.
        eos_ids: The same for the target.

    Raises:
        ValueError: Unknown rule, or a tokenizer that cannot be read byte by byte.

    Example:
        >>> translator = VocabularyTranslator(anchor_tokenizer, tokenizer)
        >>> translation = translator(anchor_prob, target_prob)
        >>> translation.prob.sum(-1) + translation.lost
        tensor([1., 1.])
    """

    def __init__(
        self,
        anchor_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        rule: TranslationRule = "bytes",
        anchor_eos_ids: Iterable[int] | None = None,
        eos_ids: Iterable[int] | None = None,
    ):
        self.rule: TranslationRule = _checked_rule(rule)
        self.anchor = Vocabulary(anchor_tokenizer, anchor_eos_ids)
        one = anchor_tokenizer is tokenizer and anchor_eos_ids == eos_ids
        self.target = self.anchor if one else Vocabulary(tokenizer, eos_ids)
        #: How the target would write what the anchor says.
        self.retokenizer = Retokenizer(self.anchor, self.target)
        #: Equal vocabularies need no translation: the anchor reads the target's ids as they are.
        self.identity = self.anchor.same_ids(self.target)

    def check(
        self,
        anchor_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        anchor_eos_ids: Iterable[int],
        eos_ids: Iterable[int],
    ) -> None:
        """Raise ValueError unless this translator was built for these two tokenizers and ends of an answer."""
        sides = (
            ("anchor_tokenizer", self.anchor, anchor_tokenizer, anchor_eos_ids),
            ("tokenizer", self.target, tokenizer, eos_ids),
        )
        for name, built, live, ends in sides:
            vocabulary = Vocabulary(live, ends)
            if not built.same_ids(vocabulary) or built.eos_ids != vocabulary.eos_ids:
                raise ValueError(
                    f"`translation` must be a translator built for this `{name}`: its tokens or the ids that end an answer "
                    f"differ from those of {type(live).__name__} with {len(live)} tokens. Take the `translator` of another "
                    "AnchorLogitsProcessor for the same models, or leave it out."
                )

    def with_rule(self, rule: TranslationRule) -> "VocabularyTranslator":
        """The same two vocabularies, not read again, under another rule."""
        other = copy(self)
        clear_method_caches(other)
        other.rule = _checked_rule(rule)
        return other

    def __call__(
        self, anchor_prob: Tensor, target_prob: Tensor, pending: bytes = b"", target_only_prefix: bytes = b""
    ) -> Translation:
        """Translate next-token distributions.

        Args:
            anchor_prob: (N, A) the anchor's distribution after the text it has been fed; A may exceed its vocabulary.
            target_prob: (N, V) the target's own distribution.
            pending: Bytes of the answer after that text, which the anchor has not been fed.
            owed: Bytes that the target still has to write before the answer's first.

        Returns:
            `prob` (N, V) and `lost` (N,).
        """
        for name, prob, vocabulary in (("anchor_prob", anchor_prob, self.anchor), ("target_prob", target_prob, self.target)):
            if prob.dim() != 2 or prob.shape[-1] not in vocabulary.widths:
                raise ValueError(
                    f"`{name}` must have shape (rows, {len(vocabulary)}), padding of the vocabulary aside, got "
                    f"{tuple(prob.shape)}. This translator was built for other tokenizers, or the two are swapped."
                )
        if self.identity:
            width = min(anchor_prob.shape[-1], target_prob.shape[-1])
            prob = torch.zeros_like(target_prob)
            prob[:, :width] = anchor_prob[:, :width]
            return Translation(prob, (anchor_prob.sum(-1) - prob.sum(-1)).clamp_min(0.0))
        table = self.table(pending, target_only_prefix).to(target_prob.device)
        return table.apply(anchor_prob.to(target_prob.device), target_prob).normalised()

    def warm_up(self, leading_whitespace: bytes = b"", target_only_prefix: bytes = b"") -> None:
        """Build the maps for inside an answer and for its beginning.

        Args:
            lead_in: White space with which the anchor's answers begin.
            owed: The same for the target.
        """
        if not self.identity:
            self.table()
            self.table(leading_whitespace, target_only_prefix)
            self.anchor.begins_a_token(b" ")

    def table(self, pending: bytes = b"", target_only_prefix: bytes = b"") -> Table:
        """The map at one point of an answer; built once a point."""
        return self._table(pending, target_only_prefix)

    @cached_method(maxsize=32)
    def _table(self, pending: bytes, target_only_prefix: bytes) -> Table:
        strings = {
            i: target_only_prefix + token[len(pending) :]
            for i, token in enumerate(self.anchor.tokens)
            if token and token.startswith(pending) and len(token) > len(pending) and i not in self.anchor.eos_ids
        }
        goals = self._goals(strings)
        extensions = self._extensions(pending, target_only_prefix) if self.rule == "bytes" else {}
        branches = {
            i: [(t, False) for t in extensions[(i,)] if t != goals[i]] + [(goals[i], True)] for i in goals if (i,) in extensions
        }
        groups = {i: n for n, i in enumerate(branches)}
        flat = [(groups[i], t, settled) for i, ends in branches.items() for t, settled in ends]
        settled_ids = [i for i in goals if i not in groups]
        first = {goals[i]: i for i in reversed(settled_ids)}
        reached = torch.zeros(len(self.target))
        reached[list(first)] = 1.0
        others = [i for i in settled_ids if first[goals[i]] != i]
        possible = None
        if pending:
            possible = torch.zeros(len(self.anchor))
            possible[list(strings)] = 1.0
        return Table(
            first=_ids(first.get(t, 0) for t in range(len(self.target))),
            reached=reached,
            source=_ids(others),
            target=_ids(goals[i] for i in others),
            groups=_ids(groups),
            branch_group=_ids(group for group, _, _ in flat),
            branch_target=_ids(t for _, t, _ in flat),
            branch_weight=torch.tensor([SETTLED_WEIGHT * settled for _, _, settled in flat]),
            extensions=extensions,
            anchor_eos=_ids(() if pending else self.anchor.eos_ids),
            target_eos=_ids(self.target.eos_ids),
            possible=possible,
        )

    def _goals(self, strings: dict[int, bytes]) -> dict[int, int]:
        """The target id that each anchor token's bytes lead to, under this translator's rule."""
        equal = {i: self.target.by_bytes[s] for i, s in strings.items() if s in self.target.by_bytes}
        if self.rule == "exact":
            return equal
        rest = [i for i in strings if i not in equal]
        encoded = dict(zip(rest, self.target.encode_batch([strings[i] for i in rest]), strict=True))
        if self.rule == "drop":
            return equal | {i: ids[0] for i, ids in encoded.items() if len(ids) == 1}
        return equal | {i: ids[0] for i, ids in encoded.items() if ids}

    def _extensions(self, pending: bytes, target_only_prefix: bytes) -> dict[tuple[int, ...], list[int]]:
        """For each path of anchor tokens that is a proper start of target tokens: those tokens."""
        strings = {
            t: pending + token[len(target_only_prefix) :]
            for t, token in enumerate(self.target.tokens)
            if token
            and token.startswith(target_only_prefix)
            and len(token) > len(target_only_prefix)
            and t not in self.target.eos_ids
        }
        finer = [t for t, s in strings.items() if s not in self.anchor.by_bytes]
        extensions = defaultdict(list)
        for t, path in zip(finer, self.anchor.encode_batch([strings[t] for t in finer]), strict=True):
            for n in range(1, len(path)):
                extensions[path[:n]].append(t)
        return dict(extensions)


def _checked_rule(rule: TranslationRule) -> TranslationRule:
    if rule not in get_args(TranslationRule):
        raise ValueError(f"`rule` must be one of {', '.join(get_args(TranslationRule))}, got {rule!r}.")
    return rule


def _ids(ids: Iterable[int]) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.long)


def _normalised(weights: Tensor) -> Tensor:
    """Rows that sum to 1; equal shares where a row is all zero."""
    totals = weights.sum(-1, keepdim=True)
    return torch.where(totals > 0, weights / totals.clamp_min(torch.finfo().tiny), 1.0 / weights.shape[-1])
