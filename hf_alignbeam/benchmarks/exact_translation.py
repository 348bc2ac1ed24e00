"""The exact translation of an anchor's distribution into the target's next token, by walking what the anchor may write.

The anchor and its tokenizer define a distribution over byte strings; the target's tokenizer maps each string to one
sequence of tokens. The walk follows these strings token by token, from the start of a word, until the target's next token
is certain. It is slow: the reference that translation rules are measured against. For small models all of what has mass is
walked; for others some of it, drawn by mass.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hf_alignbeam.inference.engines import cache_argument
from hf_alignbeam.tokenization.vocabulary import Vocabulary
from hf_alignbeam.utils.method_cache import cached_method

#: A walk is long enough where at most this share of the mass remains.
MAX_REMAINING = 2e-3
#: Until then it is repeated, where it is not drawn, with a smaller least mass of its paths, by this factor.
MASS_FACTOR = 0.03
#: A path with less mass than this counts as impossible.
LEAST_MASS = 1e-60
#: The most paths in one forward; of more, the heaviest are kept.
MAX_PATHS = 4096
#: The most paths walked for one translation; after that, the best one so far is the result.
MAX_WALKED = 40_000
#: Paths of more tokens than this are given up.
MAX_TOKENS = 48
#: How many words before the point are walked in every tokenization; earlier text has the anchor's own tokenization.
N_OPEN_WORDS = 2


@dataclass(frozen=True)
class ExactTranslation:
    """The exact translation at one point of an answer.

    Attributes:
        prob: (V,) the distribution of the target's next token; the first EOS id holds the mass of all EOS ids.
        unresolved: The share of the mass that was not walked: the most by which `prob` can be wrong.
    """

    prob: Tensor
    unresolved: float


@dataclass(frozen=True)
class AnswerPoint:
    """A point of an answer.

    Attributes:
        prompt_ids: The anchor's prompt.
        leading_whitespace: The white space that the anchor's answers begin with.
        target_only_prefix: The bytes that only the target's answers begin with.
        written: The target's tokens so far.
    """

    prompt_ids: Sequence[int]
    leading_whitespace: bytes
    target_only_prefix: bytes
    written: tuple[int, ...]


#: Given the masses (M,) of paths and the mass of those that have ended: the indices (N,) of the paths to walk on, and the mass
#: (N,) that each then stands for.
_Choose = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def exact_translation(
    model: PreTrainedModel, anchor: Vocabulary, target: Vocabulary, point: AnswerPoint
) -> ExactTranslation | None:
    """Walk everything that the anchor may write up to and after a point of an answer, heaviest first.

    Args:
        model: The anchor.
        anchor: The anchor's vocabulary.
        target: The target's vocabulary; its tokenizer must split text before the leading space of every word.
        point: The point of the answer.

    Returns:
        The exact translation; None if the target would write these tokens for no text of the anchor.
    """
    start = _with_words_committed(anchor, target, point)
    least, n_walked = 1e-2, 0
    best: ExactTranslation | None = None
    while least > LEAST_MASS and n_walked < MAX_WALKED and (best is None or best.unresolved > MAX_REMAINING):
        walk = _Walk(model, anchor, target, start, partial(_heaviest, least))
        best = walk.result() or best
        least *= MASS_FACTOR
        n_walked += walk.n_walked
    return best


def sampled_translation(
    model: PreTrainedModel, anchor: Vocabulary, target: Vocabulary, point: AnswerPoint, n_paths: int, seed: int
) -> ExactTranslation | None:
    """Walk at most `n_paths` paths of each length, drawn by mass: an unbiased estimate of each mass, for models of any size.

    The other arguments and the result are those of `exact_translation`.
    """
    choose = partial(_drawn, n_paths, torch.Generator().manual_seed(seed))
    return _Walk(model, anchor, target, _with_words_committed(anchor, target, point), choose).result()


def _heaviest(least: float, masses: Tensor, _: float) -> tuple[Tensor, Tensor]:
    """The paths of more mass than `least`, at most `MAX_PATHS`."""
    heavy = (masses > least).nonzero().flatten()
    heavy = heavy[masses[heavy].topk(min(MAX_PATHS, len(heavy))).indices]
    return heavy, masses[heavy]


def _drawn(n_paths: int, rng: torch.Generator, masses: Tensor, ended: float) -> tuple[Tensor, Tensor]:
    """Draw paths: the heaviest for sure, of the others each with a probability in proportion to its mass.

    They are `n_paths` for all the mass, fewer where some of it has ended, and none where nearly all has. What is drawn of the
    others stands for the same mass each: the sums are unbiased and, of all such draws, vary least (Fearnhead and Clifford,
    On-line inference for hidden Markov models via particle filters, 2003).
    """
    share = float(masses.sum()) / max(float(masses.sum()) + ended, LEAST_MASS)
    n_paths = min(math.ceil(n_paths * share), int((masses > 0).sum())) if share > MAX_REMAINING else 0
    heaviest, order = masses.topk(n_paths)
    light = masses.sum() - heaviest.cumsum(0) + heaviest  # the mass of each of the heaviest and of all lighter ones
    n_sure = int((heaviest * torch.arange(n_paths, 0, -1) > light).sum())
    sure = order[:n_sure]
    rest = masses.index_fill(0, sure, 0.0)
    each = rest.sum() / max(n_paths - n_sure, 1)
    steps = (rest.cumsum(0) / each.clamp_min(LEAST_MASS) + torch.rand(1, generator=rng, dtype=masses.dtype)).floor()
    drawn = (steps.diff(prepend=steps.new_zeros(1)) > 0).nonzero().flatten()
    return torch.cat([sure, drawn]), torch.cat([masses[sure], each.expand(len(drawn))])


def _with_words_committed(anchor: Vocabulary, target: Vocabulary, point: AnswerPoint) -> AnswerPoint:
    """The same point with all but the last words of the answer moved into the prompt."""
    offsets = list(accumulate((len(target.tokens[i] or b"") for i in point.written), initial=0))
    text = target.decode(point.written)
    starts = [n for n, at in enumerate(offsets[:-1]) if at > len(point.target_only_prefix) and text[at : at + 1] == b" "]
    if len(starts) <= N_OPEN_WORDS:
        return point
    n = starts[-1 - N_OPEN_WORDS]
    committed = anchor.encode(point.leading_whitespace + text[len(point.target_only_prefix) : offsets[n]])
    return AnswerPoint([*point.prompt_ids, *committed], b"", b"", point.written[n:])


class _Walk:
    """The paths of anchor tokens that are chosen among those with mass, one token longer at every forward.

    Attributes:
        ends: For each next token of the target, the mass of the paths that end in it.
        unwalked: The mass of the paths that were dropped.
        n_walked: The number of paths fed to the anchor.
    """

    def __init__(self, model: PreTrainedModel, anchor: Vocabulary, target: Vocabulary, point: AnswerPoint, choose: _Choose):
        self._anchor, self._target, self._point, self._choose = anchor, target, point, choose
        self._text = point.leading_whitespace + target.decode(point.written)[len(point.target_only_prefix) :]
        self._ids = _ids_by_bytes(anchor)
        self.ends: dict[int, float] = defaultdict(float)
        self.unwalked = 0.0
        self.n_walked = 0
        cache = DynamicCache()
        paths, masses = [b""], torch.ones(1, dtype=torch.double)
        logits = _forward(model, torch.tensor([list(point.prompt_ids)]), cache)
        for _ in range(MAX_TOKENS):
            prob = logits.double().softmax(-1) * masses[:, None]  # (N, A)
            for text, ended in zip(paths, prob[:, list(anchor.eos_ids)].sum(-1).tolist(), strict=True):
                self._end(text, ended)
            children = [child for child in self._children(paths, prob) if not self._is_decided(*child[2:])]
            if not children:
                return
            rows, ids, masses_, paths_ = zip(*children, strict=True)
            paths, masses = list(paths_), torch.tensor(masses_, dtype=torch.double)
            cache.reorder_cache(torch.LongTensor(rows))
            logits = _forward(model, torch.tensor(ids)[:, None], cache)
            self.n_walked += len(ids)
        self.unwalked += float(masses.sum())

    def result(self) -> ExactTranslation | None:
        """The translation by the paths that were walked; None if none of them ended."""
        reached = sum(self.ends.values())
        if not reached:
            return None
        prob = torch.zeros(len(self._target))
        prob[list(self.ends)] = torch.tensor([mass / reached for mass in self.ends.values()])
        return ExactTranslation(prob, self.unwalked / (reached + self.unwalked))

    def _children(self, paths: list[bytes], prob: Tensor) -> list[tuple[int, int, float, bytes]]:
        """The heaviest paths longer by one token that agree with the text so far: row, id, mass and text of each."""
        fits = torch.zeros_like(prob, dtype=torch.bool)
        for row, text in enumerate(paths):
            rest = self._text[len(text) :]
            fitting = [i for n in range(1, len(rest) + 1) for i in self._ids.get(rest[:n], ())]
            fits[row, fitting] = True
            fits[row, self._completions(rest)] = True
        masses = (prob * fits).flatten()
        chosen, stands_for = self._choose(masses, sum(self.ends.values()))
        self.unwalked += float(masses.sum() - stands_for.sum())
        rows, ids = (chosen // prob.shape[-1]).tolist(), (chosen % prob.shape[-1]).tolist()
        return [
            (row, i, mass, paths[row] + (self._anchor.tokens[i] or b""))
            for row, i, mass in zip(rows, ids, stands_for.tolist(), strict=True)
        ]

    @cached_method(maxsize=64)
    def _completions(self, rest: bytes) -> Tensor:
        """The anchor's tokens that begin with `rest`."""
        return torch.tensor(self._anchor.endings(rest)[0], dtype=torch.long)

    def _end(self, text: bytes, mass: float) -> None:
        """Add the mass of a text at which the anchor ends its answer."""
        written = self._point.written
        ids = self._target.encode(self._written_text(text))
        if len(text) >= len(self._text) and ids[: len(written)] == written:
            self.ends[ids[len(written)] if len(ids) > len(written) else self._target.eos_ids[0]] += mass

    def _is_decided(self, mass: float, text: bytes) -> bool:
        """Whether a path ends: the target's next token is certain, or the target would have written other tokens."""
        render_target_prompt = self._written_text(text)
        spaces = [
            n
            for n in range(len(render_target_prompt) - 1)
            if render_target_prompt[n : n + 1] == b" " and render_target_prompt[n + 1 : n + 2] != b" "
        ]
        certain = self._target.encode(render_target_prompt[: spaces[-1]]) if spaces else ()
        written = self._point.written
        n_both = min(len(certain), len(written))
        if certain[:n_both] != written[:n_both]:
            return True
        if len(certain) > len(written):
            self.ends[certain[len(written)]] += mass
            return True
        return False

    def _written_text(self, text: bytes) -> bytes:
        """The target's text for a text of the anchor."""
        return self._point.target_only_prefix + text[len(self._point.leading_whitespace) :]


def _ids_by_bytes(vocabulary: Vocabulary) -> dict[bytes, list[int]]:
    """For each byte string, the ids that stand for it."""
    ids = defaultdict(list)
    for i, token in enumerate(vocabulary.tokens):
        if token and i not in vocabulary.eos_ids:
            ids[token].append(i)
    return dict(ids)


@torch.no_grad()
def _forward(model: PreTrainedModel, ids: Tensor, cache: DynamicCache) -> Tensor:
    """The logits (N, A) after each row's last token."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1, **{cache_argument(model): cache}).logits[:, -1].float()
