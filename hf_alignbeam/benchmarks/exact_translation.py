"""The exact translation, by enumeration: what the anchor says the target's next token is, over all the anchor could write.

The anchor and its tokenizer define a distribution over byte strings; the target's tokenizer maps each string to one
sequence of tokens. Here the strings are walked token by token, from the start of a word, until the target's next token
cannot change any more. Slow, and only for small models: what translations are measured against.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hf_alignbeam.tokenization.vocabulary import Vocabulary

#: The share of the mass that may be left unwalked, and by how much the least mass that is walked shrinks until it is.
TOLERANCE = 2e-3
SHRINKING = 0.03
#: What weighs less than this counts as impossible.
LEAST_MASS = 1e-60
#: Paths walked in one forward; more are given up, the lightest first.
MAX_PATHS = 4096
#: Paths walked for one answer; once there are as many, the best answer so far stands.
MAX_WALKED = 40_000
#: So many whole words before the point stay open to be read in every way; what comes before them is committed.
N_OPEN_WORDS = 2


@dataclass(frozen=True)
class Exact:
    """The exact answer at one point of a text.

    Attributes:
        prob: (V,) the distribution of the target's next token; all EOS mass stands on the first EOS id.
        unresolved: The most that the mass left unwalked can change of it, as a share.
    """

    prob: Tensor
    unresolved: float


@dataclass(frozen=True)
class Point:
    """A point of an answer: the anchor's prompt, the white space that its answers begin with, the bytes that the target
    writes in front of them, and the target's tokens so far."""

    prompt_ids: Sequence[int]
    leading_whitespace: bytes
    target_only_prefix: bytes
    written: tuple[int, ...]


def exact_translation(model: PreTrainedModel, anchor: Vocabulary, target: Vocabulary, point: Point) -> Exact | None:
    """Walk everything that the anchor may write after the tokens it has committed, likeliest first.

    Args:
        model: The anchor.
        anchor: Its vocabulary.
        target: The target's; words must be tokens of their own from their leading space on.
        point: Where the answer stands.

    Returns:
        The exact answer; None where the target's tokens are none that it would write for any text of the anchor's.
    """
    start = _committed(anchor, target, point)
    least, n_walked = 1e-2, 0
    best: Exact | None = None
    while least > LEAST_MASS and n_walked < MAX_WALKED and (best is None or best.unresolved > TOLERANCE):
        walk = _Walk(model, anchor, target, start, least)
        reached = sum(walk.ends.values())
        if reached > 0:
            prob = torch.zeros(len(target))
            prob[list(walk.ends)] = torch.tensor([mass / reached for mass in walk.ends.values()])
            best = Exact(prob, walk.unwalked / (reached + walk.unwalked))
        least *= SHRINKING
        n_walked += walk.n_walked
    return best


def _committed(anchor: Vocabulary, target: Vocabulary, point: Point) -> Point:
    """The same point seen from an earlier word of the answer on, what comes before it being part of the prompt."""
    spelled = list(accumulate((len(target.tokens[i] or b"") for i in point.written), initial=0))
    text = target.decode(point.written)
    starts = [n for n, at in enumerate(spelled[:-1]) if at > len(point.target_only_prefix) and text[at : at + 1] == b" "]
    if len(starts) <= N_OPEN_WORDS:
        return point
    n = starts[-1 - N_OPEN_WORDS]
    begun = anchor.encode(point.leading_whitespace + text[len(point.target_only_prefix) : spelled[n]])
    return Point([*point.prompt_ids, *begun], b"", b"", point.written[n:])


class _Walk:
    """All paths of anchor tokens with at least so much mass, a token longer at every forward.

    Attributes:
        ends: By the target's next token, the mass of the paths that decide on it.
        unwalked: The mass of the paths given up that might still have led somewhere.
        n_walked: How many paths were fed.
    """

    def __init__(self, model: PreTrainedModel, anchor: Vocabulary, target: Vocabulary, point: Point, least: float):
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
        """The ways to write one token more that agree with the text so far, the heaviest: row, id, mass and text of each."""
        fits = torch.zeros_like(prob, dtype=torch.bool)
        for row, text in enumerate(paths):
            left = self._text[len(text) :]
            fitting = [i for n in range(1, len(left) + 1) for i in self._ids.get(left[:n], ())]
            fits[row, fitting + self._anchor.starting_with(left)] = True
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
        """The anchor's answer ends here."""
        written = self._point.written
        ids = self._target.encode(self._written_text(text))
        if len(text) >= len(self._text) and ids[: len(written)] == written:
            self.ends[ids[len(written)] if len(ids) > len(written) else self._target.eos_ids[0]] += mass

    def _is_decided(self, mass: float, text: bytes) -> bool:
        """Whether a path need not be walked on: the target's next token is certain, or its tokens are others."""
        known = self._written_text(text)
        spaces = [n for n in range(len(known) - 1) if known[n : n + 1] == b" " and known[n + 1 : n + 2] != b" "]
        settled = self._target.encode(known[: spaces[-1]]) if spaces else ()
        written = self._point.written
        n_known = min(len(settled), len(written))
        if settled[:n_known] != written[:n_known]:
            return True
        if len(settled) > len(written):
            self.ends[settled[len(written)]] += mass
            return True
        return False

    def _written_text(self, text: bytes) -> bytes:
        return self._point.target_only_prefix + text[len(self._point.leading_whitespace) :]


def _ids_by_bytes(vocabulary: Vocabulary) -> dict[bytes, list[int]]:
    """Every id of each byte string."""
    found = defaultdict(list)
    for i, token in enumerate(vocabulary.tokens):
        if token and i not in vocabulary.eos_ids:
            found[token].append(i)
    return dict(found)


@torch.no_grad()
def _forward(model: PreTrainedModel, ids: Tensor, cache: DynamicCache) -> Tensor:
    """What the model says after each row's last token: (N, A) logits."""
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
