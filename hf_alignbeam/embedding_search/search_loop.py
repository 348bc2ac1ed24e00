"""Many prompts searched at once, round by round: probes answered together, and the judge asked as seldom as can be.

Knows the order in which answers are generated, checked and judged, and keeps within each prompt's budget. Knows neither how
probes are drawn (`search.py`) nor how they are answered (`probing.py`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.embedding_search.batched_generation import BatchedGenerator, GenerationRow
from hf_alignbeam.embedding_search.journal import Journal
from hf_alignbeam.embedding_search.search_state import Accept, Probe, PromptSearch, SearchLimits
from hf_alignbeam.embedding_search.zeroth_order import SearchConfig
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.failsafe import JudgeError, judge_once, with_timeout

Tries = Sequence[tuple[PromptSearch, Probe]]


class SearchLoop:
    """Searches prompts to their end.

    Args:
        prober: Answers probes.
        judge: The judge.
        accept: Says which answers may be given; None for all.
        method: How probes are drawn.
        rules: What passes and what may be spent.
        journal: What was paid for already.
        text_of: The whole answer that ids say, after what the prompt begins itself.
        timeout: Seconds until a judge is given up; None for never.
    """

    def __init__(
        self,
        prober: BatchedGenerator,
        judge: Judge,
        accept: Accept | None,
        method: SearchConfig,
        rules: SearchLimits,
        journal: Journal,
        text_of: Callable[[ParsedPrompt, Sequence[int]], str],
        timeout: float | None,
    ):
        self._prober = prober
        self._judge = judge
        self._accept = accept
        self._method = method
        self._rules = rules
        self._journal = journal
        self._text_of = text_of
        self._timeout = timeout

    def begin(self, walks: Sequence[PromptSearch]) -> None:
        """Answer prompts as they are, and judge that.

        Raises:
            JudgeError: There is no verdict.
        """
        tries = [(walk, Probe(walk.prompt.embeds, True)) for walk in walks]
        self._answer(tries)
        self._judge_first(tries)

    def begin_with(self, walks: Sequence[PromptSearch], answers: Sequence[list[int]]) -> None:
        """The same where they have been answered already: `answers` are ids, one answer a prompt."""
        tries = []
        for walk, ids in zip(walks, answers, strict=True):
            tries.append((walk, Probe(walk.prompt.embeds, True, ids, self._text_of(walk.asked, ids))))
            walk.n_generated = 1
        self._judge_first(tries)

    def search(self, walks: Sequence[PromptSearch]) -> None:
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

    def _judge_first(self, tries: Tries) -> None:
        self._ask(tries)
        for walk, first in tries:
            walk.centre_harm = first.harm
            if self._rules.passes(first.harm):
                walk.outcome = "clean"

    def _can_go_on(self, walk: PromptSearch) -> bool:
        n_next = self._method.n_probes + walk.search.has_moved
        return walk.n_generated + n_next <= self._rules.max_generations and self._has_calls(walk) and self._method.mu > 0.0

    def _has_calls(self, walk: PromptSearch) -> bool:
        return len(walk.harm_by_call) < self._rules.max_calls

    def _round(self, walks: Sequence[PromptSearch]) -> None:
        """One round of probes for every prompt."""
        drawn = {walk: list(self._drawn(walk)) for walk in walks}
        tries = [(walk, each) for walk, its in drawn.items() for each in its]
        self._answer(tries)
        self._check(tries)
        for at_once in self._in_turn(tries):
            self._ask(at_once)
            for walk, each in at_once:
                if self._rules.passes(each.harm):
                    walk.found, walk.outcome = each, "steered"
        going = [walk for walk in walks if walk.outcome is None]
        if self._method.steps:
            self._ask(self._affordable([(walk, each) for walk in going for each in drawn[walk]]))
        for walk in going:
            self._learn(walk, drawn[walk])

    def _drawn(self, walk: PromptSearch) -> Iterator[Probe]:
        dtype = walk.prompt.embeds.dtype
        if walk.search.has_moved:
            yield Probe(walk.search.centre.to(dtype), True)
        for probe in walk.search.probes():
            yield Probe(probe.to(dtype), False)

    def _answer(self, tries: Tries) -> None:
        """Generate what is not in the journal, and count it."""
        numbers = []
        for walk, _ in tries:
            numbers.append(walk.n_generated)
            walk.n_generated += 1
        known = [self._journal.answer(walk.key, n, each.embeds) for (walk, each), n in zip(tries, numbers, strict=True)]
        new = [place for place, answer in enumerate(known) if answer is None]
        began = time.perf_counter()
        for batch in self._prober.answers([GenerationRow(tries[n][1].embeds, tries[n][0].seed + numbers[n]) for n in new]):
            each_took = (time.perf_counter() - began) / len(batch)
            for number, ids in batch:
                place = new[number]
                walk, each = tries[place]
                known[place] = ids, each_took
                self._journal.answered(walk.key, numbers[place], each.embeds, ids, each_took)
            began = time.perf_counter()
        for (walk, each), answer in zip(tries, known, strict=True):
            each.ids, seconds = answer or ([], 0.0)
            walk.seconds += seconds
            each.text = self._text_of(walk.asked, each.ids)

    def _check(self, tries: Tries) -> None:
        """Ask which answers may be given, once for each."""
        new = list(dict.fromkeys((walk, each.text) for walk, each in tries if each.text not in walk.accepted))
        for (walk, text), verdict in zip(new, self._accepted(new), strict=True):
            walk.accepted[text] = verdict
        for walk, each in tries:
            if not walk.accepted[each.text] and each.text not in walk.known:
                walk.unjudged.setdefault(each.text, each)

    def _accepted(self, answers: Sequence[tuple[PromptSearch, str]]) -> list[bool]:
        if self._accept is None or not answers:
            return [True] * len(answers)
        try:
            accept, copies = self._accept, [[dict(message) for message in walk.asked.messages] for walk, _ in answers]
            said = torch.as_tensor(with_timeout(lambda: accept(copies, [text for _, text in answers]), self._timeout))
            if said.shape != (len(answers),) or said.isnan().any():
                raise ValueError(f"it must say of each of {len(answers)} responses whether it may be given, got {said}")
        except Exception as error:  # whatever it may raise: nobody has said that these may be given
            raise JudgeError(f"`accept` gave no verdict: {error}") from error
        return [float(each) >= 0.5 for each in said]

    def _in_turn(self, tries: Tries) -> Iterator[Tries]:
        """What is to be judged at once, one answer a prompt: those that would be given, until one passes."""
        waiting = [(walk, each) for walk, each in tries if walk.accepted[each.text] and (each.is_centre or self._rules.first)]
        while waiting:
            at_once: dict[PromptSearch, Probe] = {}
            later = []
            for walk, each in waiting:
                if walk.outcome is None and self._recalled(walk, each) and self._rules.passes(each.harm):
                    walk.found, walk.outcome = each, "steered"
                if walk.outcome is not None or self._recalled(walk, each) or not self._has_calls(walk):
                    continue
                if walk in at_once:
                    later.append((walk, each))
                else:
                    at_once[walk] = each
            if at_once:
                yield list(at_once.items())
            waiting = later

    def _recalled(self, walk: PromptSearch, each: Probe) -> bool:
        """Note with a try what the judge said of the same answer before, and say whether it has spoken."""
        if self._rules.cache and math.isnan(each.harm):
            each.harm = walk.known.get(each.text, math.nan)
        return not math.isnan(each.harm)

    def _affordable(self, tries: Tries) -> Tries:
        """Of these, what has no verdict, each answer once, as far as the budgets go."""
        chosen: list[tuple[PromptSearch, Probe]] = []
        n_left = {walk: self._rules.max_calls - len(walk.harm_by_call) for walk, _ in tries}
        seen: set[tuple[PromptSearch, str]] = set()
        for walk, each in tries:
            if self._recalled(walk, each) or not n_left[walk] or (self._rules.cache and (walk, each.text) in seen):
                continue
            seen.add((walk, each.text))
            n_left[walk] -= 1
            chosen.append((walk, each))
        return chosen

    def _ask(self, tries: Tries) -> None:
        """Ask for verdicts, or take them from the journal, and keep the least harmful try of each prompt."""
        numbers = []
        n_calls = {walk: len(walk.harm_by_call) for walk, _ in tries}
        for walk, _ in tries:
            numbers.append(n_calls[walk])
            n_calls[walk] += 1
        known = [self._journal.verdict(walk.key, n, each.text) for (walk, each), n in zip(tries, numbers, strict=True)]
        new = [place for place, verdict in enumerate(known) if verdict is None]
        if new:
            began = time.perf_counter()
            conversations, texts = [tries[n][0].asked.messages for n in new], [tries[n][1].text for n in new]
            verdicts = judge_once(self._judge, conversations, texts, self._timeout)
            each_took = (time.perf_counter() - began) / len(new)
            for place, harm in zip(new, verdicts.harm, strict=True):
                if harm is not None:  # what was paid for is kept, whatever the others cost
                    known[place] = harm, each_took
                    self._journal.judged(tries[place][0].key, numbers[place], tries[place][1].text, harm, each_took)
            if verdicts.errors:
                n_silent = sum(harm is None for harm in verdicts.harm)
                raise JudgeError(f"The judge gave no verdict on {n_silent} of {len(new)} answers: {verdicts.errors[0]}")
        for (walk, each), verdict in zip(tries, known, strict=True):
            each.harm, seconds = verdict or (math.nan, 0.0)
            walk.seconds += seconds
            walk.harm_by_call.append(each.harm)
            walk.known[each.text] = each.harm
            walk.unjudged.pop(each.text, None)
            if walk.found is None or (each.harm < walk.found.harm and (each.is_centre or self._rules.first)):
                walk.found = each

    def _learn(self, walk: PromptSearch, tries: Sequence[Probe]) -> None:
        for each in tries:
            self._recalled(walk, each)
            if each.is_centre:
                walk.centre_harm = each.harm
        probes = [each for each in tries if not each.is_centre]
        alike = len({each.text for each in probes}) == 1
        walk.search.learn([each.harm for each in probes], walk.centre_harm, alike)

    def _fall_back(self, walks: Sequence[PromptSearch]) -> None:
        """End searches that found nothing acceptable: with what passes though it was not accepted, where there is any."""
        going = [walk for walk in walks if not self._rules.passes(walk.given.harm)]
        while going:
            at_once = [(walk, next(iter(walk.unjudged.values()))) for walk in going if walk.unjudged and self._has_calls(walk)]
            if not at_once:
                break
            self._ask(at_once)
            going = [walk for walk, _ in at_once if not self._rules.passes(walk.given.harm)]
        for walk in walks:
            walk.outcome = "fallback" if self._rules.passes(walk.given.harm) else "failed"
