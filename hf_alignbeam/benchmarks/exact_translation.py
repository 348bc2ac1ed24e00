"""The exact translation of an anchor's distribution into the target's next token, by enumerating what the anchor may write.

The anchor and its tokenizer define a distribution over byte strings; the target's tokenizer maps each string to one
sequence of tokens. The walk follows these strings token by token, from the start of a word, until the target's next token
is certain. It is slow, for small models only: the reference that translation rules are measured against.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hf_alignbeam.inference.engines import cache_argument
from hf_alignbeam.tokenization.vocabulary import Vocabulary

#: The walk is repeated with a smaller least mass of its paths, by this factor, until at most this share of the mass remains.
MAX_REMAINING = 2e-3
MASS_FACTOR = 0.03
#: A path with less mass than this counts as impossible.
LEAST_MASS = 1e-60
#: The most paths in one forward; of more, the heaviest are kept.
MAX_PATHS = 4096
#: The most paths walked for one translation; after that, the best one so far is the result.
MAX_WALKED = 40_000
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
        walk = _Walk(model, anchor, target, start, least)
        reached = sum(walk.ends.values())
        if reached > 0:
            prob = torch.zeros(len(target))
            prob[list(walk.ends)] = torch.tensor([mass / reached for mass in walk.ends.values()])
            best = ExactTranslation(prob, walk.unwalked / (reached + walk.unwalked))
        least *= MASS_FACTOR
        n_walked += walk.n_walked
    return best


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
    """All paths of anchor tokens with at least some mass, one token longer at every forward.

    Attributes:
        ends: For each next token of the target, the mass of the paths that end in it.
        unwalked: The mass of the paths that were dropped.
        n_walked: The number of paths fed to the anchor.
    """

    def __init__(self, model: PreTrainedModel, anchor: Vocabulary, target: Vocabulary, point: AnswerPoint, least: float):
        self._anchor, self._target, self._point, self._least = anchor, target, point, least
        self._text = point.leading_whitespace + target.decode(point.written)[len(point.target_only_prefix) :]
        self._ids = _ids_by_bytes(anchor)
        self.ends: dict[int, float] = defaultdict(float)
        self.unwalked = 0.0
        self.n_walked = 0
        cache = DynamicCache()
        paths, masses = [b""], torch.ones(1, dtype=torch.double)
        logits = _forward(model, torch.tensor([list(point.prompt_ids)]), cache)
        while paths:
            prob = logits.double().softmax(-1) * masses[:, None]  # (N, A)
            for text, ended in zip(paths, prob[:, list(anchor.eos_ids)].sum(-1).tolist(), strict=True):
                self._end(text, ended)
            children = [child for child in self._children(paths, prob) if not self._is_decided(*child[2:])]
            if not children:
                break
            rows, ids, masses_, paths_ = zip(*children, strict=True)
            paths, masses = list(paths_), torch.tensor(masses_, dtype=torch.double)
            cache.reorder_cache(torch.LongTensor(rows))
            logits = _forward(model, torch.tensor(ids)[:, None], cache)
            self.n_walked += len(ids)

    def _children(self, paths: list[bytes], prob: Tensor) -> list[tuple[int, int, float, bytes]]:
        """The heaviest paths longer by one token that agree with the text so far: row, id, mass and text of each."""
        fits = torch.zeros_like(prob, dtype=torch.bool)
        for row, text in enumerate(paths):
            rest = self._text[len(text) :]
            fitting = [i for n in range(1, len(rest) + 1) for i in self._ids.get(rest[:n], ())]
            fits[row, fitting + self._anchor.starting_with(rest)] = True
        masses = (prob * fits).flatten()
        heavy = (masses > self._least).nonzero().flatten()
        heavy = heavy[masses[heavy].topk(min(MAX_PATHS, len(heavy))).indices]
        self.unwalked += float(masses.sum() - masses[heavy].sum())
        rows, ids = (heavy // prob.shape[-1]).tolist(), (heavy % prob.shape[-1]).tolist()
        return [
            (row, i, mass, paths[row] + (self._anchor.tokens[i] or b""))
            for row, i, mass in zip(rows, ids, masses[heavy].tolist(), strict=True)
        ]

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
