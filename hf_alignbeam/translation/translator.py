"""A distribution over the anchor's vocabulary expressed over the target's vocabulary, and the mass that is lost.

Knows two vocabularies and the byte strings behind them. Knows no model: where only another forward of the anchor can tell
which target token comes next, `Table.extensions` names the candidates, and the caller decides whether to look ahead.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_alignbeam.tokenization.vocabulary import Vocabulary
from hf_alignbeam.translation.retokenization import Retokenizer
from hf_alignbeam.utils.method_cache import cached_method, kept

#: A row with less mass than this counts as empty; it keeps shares of nothing defined.
NEGLIGIBLE = 1e-30
#: Where the target's distribution decides between the tokens that a text may become, the token for the text as it is gets
#: this share of their sum on top, and all where they have none.
AS_IS_WEIGHT = 0.001

TranslationRule = Literal["bytes", "drop", "first", "exact"]


@dataclass(frozen=True)
class Translation:
    """A translated distribution: `prob` (N, V) over the target's ids, and the mass `lost` (N,) that none of them takes."""

    prob: Tensor
    lost: Tensor

    def normalize_(self) -> "Translation":
        """Scale each row in place so that the mass kept and lost adds up to 1; an empty row counts as lost."""
        total = self.prob.sum(-1) + self.lost  # (N,)
        scale = torch.where(total > NEGLIGIBLE, 1.0 / total.clamp_min(NEGLIGIBLE), 0.0)
        return Translation(self.prob.mul_(scale[:, None]), torch.where(scale > 0, self.lost * scale, 1.0))


@dataclass(frozen=True)
class Table:
    """The map between two vocabularies at one point of an answer.

    The text of an anchor token is its bytes without the `pending` bytes, which are written already, behind the
    `target_only_prefix` that only the target writes (the space that its template puts in front of an answer). An anchor id
    is unambiguous where its mass goes to one target id whatever follows.

    Attributes:
        target_of: (A,) the target id of each unambiguous anchor id; any id for the others.
        others: (M,) the other anchor ids.
        ambiguous: (G,) the anchor ids that are also a proper prefix of longer target tokens.
        branch_group: (E,) index into `ambiguous`.
        branch_target: (E,) the target ids that may take the mass of that anchor id; the last G are of the texts as they are.
        extensions: By path of anchor ids, the target ids whose text the path is a proper prefix of.
        anchor_eos, target_eos: The ids that end an answer.
        possible: (A,) 1 for the anchor ids that continue the pending bytes; None where no bytes are pending.
    """

    target_of: Tensor
    others: Tensor
    ambiguous: Tensor
    branch_group: Tensor
    branch_target: Tensor
    extensions: dict[tuple[int, ...], list[int]]
    anchor_eos: Tensor
    target_eos: Tensor
    possible: Tensor | None

    @cached_method(maxsize=4)
    def to(self, device: torch.device) -> "Table":
        """Return the table with its tensors on `device`; each device gets one copy."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return self if self.target_of.device == device else replace(self, **moved)

    def apply_(self, anchor_prob: Tensor, target_prob: Tensor) -> Translation:
        """Translate the anchor's rows (N, A), which are used up; the target's own rows (N, V) divide an ambiguous token's mass.

        The result is not normalized. Where bytes are pending, only the anchor tokens that continue them count: the mass kept
        and lost adds up to theirs.
        """
        if self.possible is not None:
            anchor_prob = anchor_prob[:, : len(self.possible)]
            anchor_prob *= self.possible[: anchor_prob.shape[-1]]
        n_target = target_prob.shape[-1]
        target_of, others, lost, anchor_eos, target_eos = self._of_width(anchor_prob.shape[-1], n_target)
        lost_mass = anchor_prob.index_select(1, lost).sum(-1)
        eos_mass = anchor_prob.index_select(1, anchor_eos).sum(-1, keepdim=True)  # (N, 1)
        ambiguous_mass = anchor_prob.index_select(1, self.ambiguous)  # (N, G)
        anchor_prob = anchor_prob[:, : len(target_of)].index_fill_(1, others, 0.0)
        prob = anchor_prob.new_zeros(len(anchor_prob), n_target).index_add_(1, target_of, anchor_prob)
        if len(self.ambiguous):
            weights = target_prob.index_select(1, self.branch_target)  # (N, E)
            totals = weights.new_zeros(ambiguous_mass.shape).index_add_(1, self.branch_group, weights)
            weights[:, -len(self.ambiguous) :].add_(totals, alpha=AS_IS_WEIGHT).add_(NEGLIGIBLE)
            totals.mul_(1.0 + AS_IS_WEIGHT).add_(NEGLIGIBLE)
            prob.index_add_(1, self.branch_target, weights.mul_(ambiguous_mass.div_(totals).index_select(1, self.branch_group)))
        if len(anchor_eos) and len(target_eos):
            prob.index_add_(1, target_eos, eos_mass * _normalized(target_prob.index_select(1, target_eos)))
        return Translation(prob, lost_mass)

    @cached_method(maxsize=4)
    def _of_width(self, n_anchor: int, n_target: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """For so many logits of both: `target_of`, `others`, those that no target id takes, and the ids that end an answer."""
        target_of, others = self.target_of[:n_anchor], self.others[self.others < n_anchor]
        anchor_eos, target_eos = self.anchor_eos[self.anchor_eos < n_anchor], self.target_eos[self.target_eos < n_target]
        taken = torch.cat([self.ambiguous, anchor_eos]) if len(target_eos) else self.ambiguous
        padding = torch.arange(len(target_of), n_anchor, device=others.device)
        return target_of, others, torch.cat([others[~torch.isin(others, taken)], padding]), anchor_eos, target_eos


class VocabularyTranslator:
    """Expresses the anchor's distributions over the target's vocabulary.

    Args:
        anchor_tokenizer: The anchor's tokenizer.
        tokenizer: The target's tokenizer.
        rule: `"bytes"` (ours), or one of the paper's context-free rules: `"exact"` keeps tokens of equal bytes, `"drop"`
            keeps tokens that re-encode to a single target token, `"first"` sends each token to the first token of its
            re-encoding (arXiv 2606.12342).
        anchor_eos_ids: The ids that end the anchor's answers; its tokenizer's `eos_token_id` by default.
        eos_ids: The same for the target.

    Raises:
        ValueError: The rule is unknown, or a tokenizer cannot be read byte by byte.

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
        if rule not in get_args(TranslationRule):
            raise ValueError(f"`rule` must be one of {', '.join(get_args(TranslationRule))}, got {rule!r}.")
        self.rule: TranslationRule = rule
        self.anchor = Vocabulary(anchor_tokenizer, anchor_eos_ids)
        is_shared = anchor_tokenizer is tokenizer and anchor_eos_ids == eos_ids
        self.target = self.anchor if is_shared else Vocabulary(tokenizer, eos_ids)
        self.retokenizer = Retokenizer(self.anchor, self.target)
        #: Whether the vocabularies are equal: then the anchor reads the target's ids as they are.
        self.identity = self.anchor.same_ids(self.target)

    def check(
        self,
        anchor_tokenizer: PreTrainedTokenizerBase,
        tokenizer: PreTrainedTokenizerBase,
        anchor_eos_ids: Iterable[int],
        eos_ids: Iterable[int],
    ) -> None:
        """Raise ValueError unless this translator was built for these tokenizers and EOS ids."""
        anchor, target = Vocabulary(anchor_tokenizer, anchor_eos_ids), Vocabulary(tokenizer, eos_ids)
        for name, own, given in (("anchor_tokenizer", self.anchor, anchor), ("tokenizer", self.target, target)):
            if not own.same_ids(given) or own.eos_ids != given.eos_ids:
                raise ValueError(
                    f"`translation` must be a translator built for this `{name}`: its tokens or the ids that end an answer "
                    f"differ from those of the {len(given)} tokens given. Take the `translator` of another "
                    "AnchorLogitsProcessor for the same models, or leave it out."
                )

    def __call__(
        self, anchor_prob: Tensor, target_prob: Tensor, pending: bytes = b"", target_only_prefix: bytes = b""
    ) -> Translation:
        """Translate next-token distributions.

        Args:
            anchor_prob: (N, A) the anchor's distribution after the text it has been fed; A may exceed its vocabulary.
            target_prob: (N, V) the target's own distribution.
            pending: Bytes of the answer after that text, which the anchor has not been fed.
            target_only_prefix: Bytes that the target still writes before the first byte of the answer.

        Returns:
            `prob` (N, V) and `lost` (N,).

        Raises:
            ValueError: A distribution is not of the vocabulary's width.
        """
        for name, prob, vocabulary in (("anchor_prob", anchor_prob, self.anchor), ("target_prob", target_prob, self.target)):
            if prob.dim() != 2 or prob.shape[-1] not in vocabulary.widths:
                raise ValueError(
                    f"`{name}` must have shape (rows, {len(vocabulary)}), padding of the vocabulary aside, got "
                    f"{tuple(prob.shape)}. This translator was built for other tokenizers, or its arguments are swapped."
                )
        if self.identity and not pending and not target_only_prefix:
            width = min(anchor_prob.shape[-1], target_prob.shape[-1])
            prob = torch.zeros_like(target_prob)
            prob[:, :width] = anchor_prob[:, :width]
            return Translation(prob, (anchor_prob.sum(-1) - prob.sum(-1)).clamp_min(0.0))
        table = self.table(pending, target_only_prefix).to(target_prob.device)
        return table.apply_(anchor_prob.to(target_prob.device, torch.float32, copy=True), target_prob.float()).normalize_()

    @cached_method(maxsize=32)
    def table(self, pending: bytes = b"", target_only_prefix: bytes = b"") -> Table:
        """Return the table for one point of an answer; each is built once."""
        next_ids, longer = kept(links, self, pending, target_only_prefix)
        next_tokens = _ids(next_ids)  # (A,)
        extensions = {tuple(path): tokens for path, tokens in longer}
        branches = {path[0]: tokens for path, tokens in extensions.items() if len(path) == 1 and next_ids[path[0]] >= 0}
        edges = [(n, t) for n, (i, tokens) in enumerate(branches.items()) for t in tokens if t != next_ids[i]]
        is_unambiguous = next_tokens >= 0
        is_unambiguous[list(branches)] = False
        return Table(
            target_of=next_tokens.clamp_min(0),
            others=(~is_unambiguous).nonzero()[:, 0],
            ambiguous=_ids(branches),
            branch_group=_ids([*(n for n, _ in edges), *range(len(branches))]),
            branch_target=_ids([*(t for _, t in edges), *(next_ids[i] for i in branches)]),
            extensions=extensions,
            anchor_eos=_ids(() if pending else self.anchor.eos_ids),
            target_eos=_ids(self.target.eos_ids),
            possible=torch.zeros(len(next_tokens)).index_fill(0, self.retokenizer.completions(pending), 1.0) if pending else None,
        )


def links(translator: VocabularyTranslator, pending: bytes, target_only_prefix: bytes) -> list[Any]:
    """Return, by anchor id, the target's next token for its text as it is, or -1; and the `extensions` of the table, in pairs."""
    anchor, target = translator.anchor, translator.target
    ids, endings = anchor.endings(pending)
    next_tokens = [-1] * len(anchor)
    texts, encodes_all = {}, translator.rule in ("drop", "first")
    for i, ending in zip(ids, endings, strict=True):
        next_tokens[i] = -1 if encodes_all else target.by_bytes.get(target_only_prefix + ending, -1)
        if next_tokens[i] < 0 and translator.rule != "exact":
            texts[i] = target_only_prefix + ending
    for i, encoded in zip(texts, target.encode_batch(list(texts.values()), not encodes_all), strict=True):
        if len(encoded) == 1 or (encoded and translator.rule != "drop"):
            next_tokens[i] = encoded[0]
    extensions = defaultdict(list)
    ids, endings = target.endings(target_only_prefix) if translator.rule == "bytes" else ([], [])
    several = {t: pending + text for t, text in zip(ids, endings, strict=True) if pending + text not in anchor.by_bytes}
    for t, path in zip(several, anchor.encode_batch(list(several.values())), strict=True):
        for n in range(1, len(path)):
            extensions[path[:n]].append(t)
    return [next_tokens, list(extensions.items())]


def _ids(ids: Iterable[int]) -> Tensor:
    return torch.tensor(list(ids), dtype=torch.long)


def _normalized(weights: Tensor) -> Tensor:
    """Scale rows to sum to 1; a row of zeros becomes uniform."""
    totals = weights.sum(-1, keepdim=True)
    return torch.where(totals > 0, weights / totals.clamp_min(torch.finfo().tiny), 1.0 / weights.shape[-1])
