"""Many prompts searched at once, round by round: probes answered together, and the judge asked as seldom as can be.

Knows the order in which answers are generated, checked and judged, and each prompt's budget. Knows neither how probes are
drawn (`search.py`) nor how they are answered (`probing.py`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .asking import insist
from .chat import Asked
from .embedding import Embedded
from .journal import Journal
from .judge import Judge
from .probing import Probe, Prober
from .search import Method, Search
from .steered import Outcome

#: Says of responses whether each is one that may be given: True or False, or a number of at least 0.5.
Accept = Callable[[Sequence[list[dict[str, str]]], Sequence[str]], Any]


@dataclass(frozen=True)
class Rules:
    """What passes, and how much may be spent on one prompt; the arguments of `EmbeddingSteerer` of the same names."""

    threshold: float
    first: bool
    cache: bool
    max_calls: int
    max_generations: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < 1.0:
            raise ValueError(f"`threshold` must be in [0, 1), got {self.threshold}. At 1 everything passes.")
        for name in ("max_calls", "max_generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, for the first answer, got {getattr(self, name)}.")


@dataclass(eq=False)
class Try:
    """Embeddings that were tried, and what the model answered."""

    embeds: Tensor = field(repr=False)
    is_centre: bool
    ids: list[int] = field(default_factory=list)
    text: str = ""
    harm: float = math.nan


@dataclass(eq=False)
class Walk:
    """The search of one prompt so far.

    Attributes:
        key: Of its conversation.
        asked: What it says.
        prompt: Its own embeddings.
        search: What draws its probes.
        seed: Of its answers' streams.
        harm: Of each oracle call.
        known: By answer its harm, where the judge is not asked twice.
        accepted: By answer whether it may be given.
        found: What is given so far: the try with the least harm, accepted ones first.
        spare: Distinct answers that were not accepted and were never judged.
    """

    key: str
    asked: Asked
    prompt: Embedded
    search: Search
    seed: int
    harm: list[float] = field(default_factory=list)
    known: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, bool] = field(default_factory=dict)
    found: Try | None = None
    spare: dict[str, Try] = field(default_factory=dict)
    centre_harm: float = math.nan
    has_moved: bool = False
    n_generated: int = 0
    seconds: float = 0.0
    outcome: Outcome | None = None

    @property
    def given(self) -> Try:
        """What was found."""
        if self.found is None:
            raise RuntimeError("Nothing was judged yet.")
        return self.found


class Rounds:
    """Searches prompts to their end.

    Args:
        prober: Answers probes.
        judge: The judge.
        accept: Says which answers may be given; None for all.
        method: How probes are drawn.
        rules: What passes and what may be spent.
        journal: What was paid for already.
        text_of: The whole answer that ids say, after what the prompt begins itself.
        timeout: Seconds until a judge is given up.
    """

    def __init__(
        self,
        prober: Prober,
        judge: Judge,
        accept: Accept | None,
        method: Method,
        rules: Rules,
        journal: Journal,
        text_of: Callable[[Asked, Sequence[int]], str],
        timeout: float | None,
    ):
        self.prober = prober
        self._judge = judge
        self._accept = accept
        self._method = method
        self._rules = rules
        self._journal = journal
        self._text_of = text_of
        self._timeout = timeout

    def begin(self, walks: Sequence[Walk]) -> None:
        """Answer prompts as they are, and judge that.

        Raises:
            JudgeError: There is no verdict.
        """
        tries = [(walk, Try(walk.prompt.embeds, True)) for walk in walks]
        self._answer(tries, by_ids=True)
        self._judge_first(tries)

    def begin_with(self, walks: Sequence[Walk], answers: Sequence[list[int]]) -> None:
        """The same where they have been answered already."""
        tries = [
            (walk, Try(walk.prompt.embeds, True, ids, self._text_of(walk.asked, ids)))
            for walk, ids in zip(walks, answers, strict=True)
        ]
        for walk in walks:
            walk.n_generated = 1
        self._judge_first(tries)

    def search(self, walks: Sequence[Walk]) -> None:
        """Search until every prompt has its outcome.

        Raises:
            JudgeError: There is no verdict; every prompt without an outcome is as good as not searched.
        """
        going = [walk for walk in walks if walk.outcome is None]
        while going:
            can_go_on = [walk for walk in going if self._can_go_on(walk)]
            self._fall_back([walk for walk in going if walk not in can_go_on])
            self._round(can_go_on)
            going = [walk for walk in can_go_on if walk.outcome is None]

    def _judge_first(self, tries: Sequence[tuple[Walk, Try]]) -> None:
        self._ask(tries)
        for walk, first in tries:
            walk.centre_harm = first.harm
            walk.found = first
            if first.harm <= self._rules.threshold:
                walk.outcome = "clean"

    def _can_go_on(self, walk: Walk) -> bool:
        n_next = self._method.n_probes + walk.has_moved
        rules = self._rules
        return walk.n_generated + n_next <= rules.max_generations and len(walk.harm) < rules.max_calls and self._method.mu > 0.0

    def _round(self, walks: Sequence[Walk]) -> None:
        """One round of probes for every prompt."""
        tries = [(walk, each) for walk in walks for each in self._drawn(walk)]
        self._answer(tries)
        self._check(tries)
        for at_once in self._in_turn(tries):
            self._ask(at_once)
            for walk, each in at_once:
                if each.harm <= self._rules.threshold:
                    walk.found, walk.outcome = each, "steered"
        going = [(walk, each) for walk, each in tries if walk.outcome is None]
        if self._method.steps:
            self._ask(self._affordable(going))
        by_walk: dict[int, list[Try]] = {}
        for walk, each in going:
            by_walk.setdefault(id(walk), []).append(each)
        for walk in {id(walk): walk for walk, _ in going}.values():
            self._learn(walk, by_walk[id(walk)])

    def _drawn(self, walk: Walk) -> Iterator[Try]:
        dtype = walk.prompt.embeds.dtype
        if walk.has_moved:
            yield Try(walk.search.centre.to(dtype), True)
        for probe in walk.search.probes():
            yield Try(probe.to(dtype), False)

    def _answer(self, tries: Sequence[tuple[Walk, Try]], by_ids: bool = False) -> None:
        """Generate what is not in the journal, and count it."""
        places = []
        for walk, _ in tries:
            places.append((walk.key, walk.n_generated))
            walk.n_generated += 1
        new = [n for n, place in enumerate(places) if place not in self._journal.answers]
        probes = []
        for n in new:
            walk, each = tries[n]
            probes.append(Probe(walk.prompt.ids if by_ids else each.embeds, walk.seed + places[n][1]))
        began = time.perf_counter()
        for batch in self.prober.answers(probes):
            each_took = (time.perf_counter() - began) / len(batch)
            for number, ids in batch:
                self._journal.answered(places[new[number]], ids, each_took)
            began = time.perf_counter()
        for (walk, each), place in zip(tries, places, strict=True):
            each.ids, seconds = self._journal.answers[place]
            walk.seconds += seconds
            each.text = self._text_of(walk.asked, each.ids)

    def _check(self, tries: Sequence[tuple[Walk, Try]]) -> None:
        """Ask which answers may be given, once for each."""
        new = {(id(walk), each.text): walk for walk, each in tries if each.text not in walk.accepted}
        if new and self._accept is not None:
            texts = [text for _, text in new]
            said = torch.as_tensor(self._accept([walk.asked.messages for walk in new.values()], texts))
            if said.shape != (len(texts),) or said.isnan().any():
                raise ValueError(f"`accept` must say of each response whether it may be given, got {said} for {len(texts)}.")
            verdicts = [float(each) >= 0.5 for each in said]
        else:
            verdicts = [True] * len(new)
        for ((_, text), walk), verdict in zip(new.items(), verdicts, strict=True):
            walk.accepted[text] = verdict
        for walk, each in tries:
            if not walk.accepted[each.text] and each.text not in walk.known:
                walk.spare.setdefault(each.text, each)

    def _in_turn(self, tries: Sequence[tuple[Walk, Try]]) -> Iterator[list[tuple[Walk, Try]]]:
        """What is to be judged at once, one answer a prompt: those that would be given, until one passes."""
        waiting = [(walk, each) for walk, each in tries if walk.accepted[each.text] and (each.is_centre or self._rules.first)]
        while waiting:
            at_once: dict[int, tuple[Walk, Try]] = {}
            later = []
            for walk, each in waiting:
                if walk.outcome is not None or self._is_known(walk, each) or len(walk.harm) >= self._rules.max_calls:
                    continue
                if id(walk) in at_once:
                    later.append((walk, each))
                else:
                    at_once[id(walk)] = walk, each
            if at_once:
                yield list(at_once.values())
            waiting = later

    def _is_known(self, walk: Walk, each: Try) -> bool:
        """Whether the judge has spoken on an answer; if so, it is noted with the try."""
        if self._rules.cache and each.text in walk.known:
            each.harm = walk.known[each.text]
        return not math.isnan(each.harm)

    def _affordable(self, tries: Sequence[tuple[Walk, Try]]) -> list[tuple[Walk, Try]]:
        """Of these, what has no verdict, each answer once, as far as the budgets go."""
        chosen: list[tuple[Walk, Try]] = []
        n_left = {id(walk): self._rules.max_calls - len(walk.harm) for walk, _ in tries}
        seen: set[tuple[int, str]] = set()
        for walk, each in tries:
            if self._is_known(walk, each) or not n_left[id(walk)] or (self._rules.cache and (id(walk), each.text) in seen):
                continue
            seen.add((id(walk), each.text))
            n_left[id(walk)] -= 1
            chosen.append((walk, each))
        return chosen

    def _ask(self, asked: Sequence[tuple[Walk, Try]]) -> None:
        """Ask for verdicts, or take them from the journal, and keep the least harmful try of each prompt."""
        places = []
        n_calls: dict[int, int] = {}
        for walk, _ in asked:
            n_before = n_calls.get(id(walk), len(walk.harm))
            places.append((walk.key, n_before))
            n_calls[id(walk)] = n_before + 1
        new = [n for n, place in enumerate(places) if place not in self._journal.harm]
        if new:
            began = time.perf_counter()
            texts = [asked[n][1].text for n in new]
            said = insist(self._judge, [asked[n][0].asked.messages for n in new], texts, self._timeout)
            for n, harm in zip(new, said, strict=True):
                self._journal.judged(places[n], harm, (time.perf_counter() - began) / len(new))
        for (walk, each), place in zip(asked, places, strict=True):
            each.harm, seconds = self._journal.harm[place]
            walk.seconds += seconds
            walk.harm.append(each.harm)
            walk.known[each.text] = each.harm
            walk.spare.pop(each.text, None)
            if walk.found is None or (each.harm < walk.found.harm and (each.is_centre or self._rules.first)):
                walk.found = each

    def _learn(self, walk: Walk, tries: Sequence[Try]) -> None:
        probes = [each for each in tries if not each.is_centre]
        for each in tries:
            self._is_known(walk, each)
            if each.is_centre:
                walk.centre_harm = each.harm
        alike = len({each.text for each in probes}) == 1
        walk.search.learn([each.harm for each in probes], walk.centre_harm, alike)
        walk.has_moved = walk.search.has_moved

    def _fall_back(self, walks: Sequence[Walk]) -> None:
        """End searches that found nothing acceptable: with what passes though it was not accepted, where there is any."""
        going = [walk for walk in walks if walk.given.harm > self._rules.threshold]
        while going:
            at_once = [(walk, next(iter(walk.spare.values()))) for walk in going if walk.spare and self._has_calls(walk)]
            if not at_once:
                break
            self._ask(at_once)
            going = [walk for walk, _ in at_once if walk.given.harm > self._rules.threshold]
        for walk in walks:
            walk.outcome = "fallback" if walk.given.harm <= self._rules.threshold else "failed"

    def _has_calls(self, walk: Walk) -> bool:
        return len(walk.harm) < self._rules.max_calls
