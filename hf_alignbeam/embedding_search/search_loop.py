"""Many prompts searched at once, in rounds: all probes are answered together, and the judge is asked as rarely as possible.

Knows the order in which answers are generated, accepted and judged, and stays within each prompt's budget. Knows neither how
probes are drawn (`zeroth_order`) nor how they are answered (`batched_generation`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

from hf_alignbeam.chat.conversations import Message, ParsedPrompt
from hf_alignbeam.embedding_search.batched_generation import BatchedGenerator, GenerationRow
from hf_alignbeam.embedding_search.journal import Journal
from hf_alignbeam.embedding_search.search_state import AcceptanceTest, Probe, PromptSearch, SearchLimits
from hf_alignbeam.embedding_search.zeroth_order import SearchConfig
from hf_alignbeam.judges.base import NoVerdictError, as_numbers
from hf_alignbeam.judges.failsafe import JudgeCalls, JudgeError, reason
from hf_alignbeam.utils.random_stream import RandomStream
from hf_alignbeam.utils.timed_calls import TimedCalls

#: Probes, each with the search that it belongs to.
Probes = Sequence[tuple[PromptSearch, Probe]]


class SearchLoop:
    """Runs searches to their end.

    Args:
        generator: Answers probes.
        judge: The judge, as this search asks it.
        accept: Decides which answers may be given; None to accept all.
        config: How probes are drawn.
        limits: What passes, and what one prompt may cost.
        journal: The answers and verdicts that were paid for before.
        response_text: Maps a prompt and the ids of an answer to the whole response, its prefill included.
        timed: Runs calls of `accept` within their time limit.
    """

    def __init__(
        self,
        generator: BatchedGenerator,
        judge: JudgeCalls,
        accept: AcceptanceTest | None,
        config: SearchConfig,
        limits: SearchLimits,
        journal: Journal,
        response_text: Callable[[ParsedPrompt, Sequence[int]], str],
        timed: TimedCalls,
    ):
        self._generator = generator
        self._judge = judge
        self._accept = accept
        self._config = config
        self._limits = limits
        self._journal = journal
        self._response_text = response_text
        self._timed = timed
        self._stream = RandomStream()

    def start(self, searches: Sequence[PromptSearch]) -> None:
        """Answer the prompts with their own embeddings, and judge these answers.

        Raises:
            JudgeError: There is no verdict.
        """
        probes = [(search, Probe(search.prompt.embeds, True)) for search in searches]
        self._generate(probes)
        self._judge_first(probes)

    def start_with_answers(self, searches: Sequence[PromptSearch], answers: Sequence[list[int]]) -> None:
        """Judge answers that exist already: `answers` holds the ids of one answer to each prompt."""
        probes = []
        for search, ids in zip(searches, answers, strict=True):
            probes.append((search, Probe(search.prompt.embeds, True, ids, self._response_text(search.parsed, ids))))
            search.n_generated = 1
        self._judge_first(probes)

    def run(self, searches: Sequence[PromptSearch]) -> None:
        """Search until every prompt has its outcome.

        Raises:
            JudgeError: There is no verdict. A prompt without an outcome has no result.
        """
        running = [search for search in searches if search.outcome is None]
        while running:
            affordable = [search for search in running if self._can_afford_a_round(search)]
            self._end([search for search in running if search not in affordable])
            self._round(affordable)
            running = [search for search in affordable if search.outcome is None]

    def _judge_first(self, probes: Probes) -> None:
        self._judge_probes(probes)
        for search, probe in probes:
            search.center_harm = probe.harm
            if self._limits.passes(probe.harm):
                search.outcome = "clean"

    def _can_afford_a_round(self, search: PromptSearch) -> bool:
        n_probes = self._config.n_probes + search.sampler.has_moved
        fits = search.n_generated + n_probes <= self._limits.max_generations
        return fits and self._has_calls(search) and self._config.mu > 0.0

    def _has_calls(self, search: PromptSearch) -> bool:
        return len(search.harm_by_call) < self._limits.max_calls

    def _round(self, searches: Sequence[PromptSearch]) -> None:
        """Run one round of probes for every search."""
        drawn = {search: list(self._draw(search)) for search in searches}
        probes = [(search, probe) for search, its_probes in drawn.items() for probe in its_probes]
        self._generate(probes)
        self._accept_probes(probes)
        for batch in self._judge_batches(probes):
            self._judge_probes(batch)
            for search, probe in batch:
                if self._limits.passes(probe.harm):
                    search.best, search.outcome = probe, "steered"
        running = [search for search in searches if search.outcome is None]
        if self._config.moves_center:
            self._judge_probes(self._affordable([(search, probe) for search in running for probe in drawn[search]]))
        for search in running:
            self._move_center(search, drawn[search])

    def _draw(self, search: PromptSearch) -> Iterator[Probe]:
        dtype = search.prompt.embeds.dtype
        if search.sampler.has_moved:
            yield Probe(search.sampler.center.to(dtype), True)
        for embeds in search.sampler.probes():
            yield Probe(embeds.to(dtype), False)

    def _generate(self, probes: Probes) -> None:
        """Generate the answers that the journal does not hold, and count all of them."""
        numbers = []
        for search, _ in probes:
            numbers.append(search.n_generated)
            search.n_generated += 1
        answers = [self._journal.answer(search.key, n, probe.embeds) for (search, probe), n in zip(probes, numbers, strict=True)]
        missing = [place for place, answer in enumerate(answers) if answer is None]
        rows = [GenerationRow(probes[place][1].embeds, probes[place][0].seed + numbers[place]) for place in missing]
        started = time.perf_counter()
        for batch in self._generator.answers(rows):
            seconds = (time.perf_counter() - started) / len(batch)
            for row, ids in batch:
                place = missing[row]
                search, probe = probes[place]
                answers[place] = ids, seconds
                self._journal.add_answer(search.key, numbers[place], probe.embeds, ids, seconds)
            started = time.perf_counter()
        for (search, probe), answer in zip(probes, answers, strict=True):
            probe.ids, seconds = answer or ([], 0.0)
            search.seconds += seconds
            probe.text = self._response_text(search.parsed, probe.ids)

    def _accept_probes(self, probes: Probes) -> None:
        """Ask which answers may be given, once for each distinct answer."""
        new = list(dict.fromkeys((search, probe.text) for search, probe in probes if probe.text not in search.accepted_by_text))
        for (search, text), is_accepted in zip(new, self._acceptance(new), strict=True):
            search.accepted_by_text[text] = is_accepted
        for search, probe in probes:
            if not search.accepted_by_text[probe.text] and probe.text not in search.harm_by_text:
                search.unjudged.setdefault(probe.text, probe)

    def _acceptance(self, answers: Sequence[tuple[PromptSearch, str]]) -> list[bool]:
        if self._accept is None or not answers:
            return [True] * len(answers)
        accept, copies = self._accept, [[dict(message) for message in search.parsed.messages] for search, _ in answers]
        try:
            with self._stream.drawing():
                accepted = self._timed(lambda: _accepted(accept, copies, [text for _, text in answers]))
        except Exception as error:  # `accept` may raise anything: without its verdict no answer may be given
            failure = error
        else:
            return accepted
        raise JudgeError(f"`accept` gave no verdict: {reason(failure)}", failure)

    def _judge_batches(self, probes: Probes) -> Iterator[Probes]:
        """Batches to judge, with one answer of each prompt: the answers that may be given, until one of them passes."""
        waiting = [
            (search, probe)
            for search, probe in probes
            if search.accepted_by_text[probe.text] and (probe.is_center or self._limits.first)
        ]
        while waiting:
            batch: dict[PromptSearch, Probe] = {}
            later = []
            for search, probe in waiting:
                if search.outcome is None and self._recall(search, probe) and self._limits.passes(probe.harm):
                    search.best, search.outcome = probe, "steered"
                if search.outcome is not None or self._recall(search, probe) or not self._has_calls(search):
                    continue
                if search in batch:
                    later.append((search, probe))
                else:
                    batch[search] = probe
            if batch:
                yield list(batch.items())
            waiting = later

    def _recall(self, search: PromptSearch, probe: Probe) -> bool:
        """Give a probe the verdict on an earlier, equal answer, and return whether it has a verdict now."""
        if self._limits.cache and math.isnan(probe.harm):
            probe.harm = search.harm_by_text.get(probe.text, math.nan)
        return not math.isnan(probe.harm)

    def _affordable(self, probes: Probes) -> Probes:
        """The probes without a verdict, each distinct answer once, as far as the budgets allow."""
        chosen: list[tuple[PromptSearch, Probe]] = []
        n_left = {search: self._limits.max_calls - len(search.harm_by_call) for search, _ in probes}
        seen: set[tuple[PromptSearch, str]] = set()
        for search, probe in probes:
            if self._recall(search, probe) or not n_left[search] or (self._limits.cache and (search, probe.text) in seen):
                continue
            seen.add((search, probe.text))
            n_left[search] -= 1
            chosen.append((search, probe))
        return chosen

    def _judge_probes(self, probes: Probes) -> None:
        """Get verdicts from the journal or the judge, and keep the least harmful probe of each prompt."""
        numbers = []
        n_calls = {search: len(search.harm_by_call) for search, _ in probes}
        for search, _ in probes:
            numbers.append(n_calls[search])
            n_calls[search] += 1
        verdicts = [self._journal.verdict(search.key, n, probe.text) for (search, probe), n in zip(probes, numbers, strict=True)]
        self._ask_judge(probes, numbers, verdicts)
        for (search, probe), verdict in zip(probes, verdicts, strict=True):
            probe.harm, seconds = verdict or (math.nan, 0.0)
            search.seconds += seconds
            search.harm_by_call.append(probe.harm)
            search.harm_by_text[probe.text] = probe.harm
            search.unjudged.pop(probe.text, None)
            if search.best is None or (probe.harm < search.best.harm and (probe.is_center or self._limits.first)):
                search.best = probe

    def _ask_judge(self, probes: Probes, numbers: Sequence[int], verdicts: list[tuple[float, float] | None]) -> None:
        """Ask the judge for the verdicts that are None, in one call, and fill them in."""
        missing = [place for place, verdict in enumerate(verdicts) if verdict is None]
        if not missing:
            return
        started = time.perf_counter()
        conversations = [probes[place][0].parsed.messages for place in missing]
        judged = self._judge.once(conversations, [probes[place][1].text for place in missing])
        seconds = (time.perf_counter() - started) / len(missing)
        for place, harm in zip(missing, judged.harm, strict=True):
            if harm is not None:  # a verdict that was paid for is kept, even if others are missing
                verdicts[place] = harm, seconds
                search, probe = probes[place]
                self._journal.add_verdict(search.key, numbers[place], probe.text, harm, seconds)
        if judged.errors:
            n_missing = sum(harm is None for harm in judged.harm)
            why = judged.errors[0]
            raise JudgeError(f"The judge gave no verdict on {n_missing} of {len(missing)} answers: {reason(why)}", why)

    def _move_center(self, search: PromptSearch, drawn: Sequence[Probe]) -> None:
        for probe in drawn:
            self._recall(search, probe)
            if probe.is_center:
                search.center_harm = probe.harm
        probes = [probe for probe in drawn if not probe.is_center]
        all_alike = len({probe.text for probe in probes}) == 1
        search.sampler.update([probe.harm for probe in probes], search.center_harm, all_alike)

    def _end(self, searches: Sequence[PromptSearch]) -> None:
        """End searches that found no accepted answer. Answers that were not accepted are judged now: one may pass."""
        waiting = [search for search in searches if not self._limits.passes(search.result.harm)]
        while batch := [
            (search, next(iter(search.unjudged.values()))) for search in waiting if search.unjudged and self._has_calls(search)
        ]:
            self._judge_probes(batch)
            waiting = [search for search, _ in batch if not self._limits.passes(search.result.harm)]
        for search in searches:
            search.outcome = "fallback" if self._limits.passes(search.result.harm) else "failed"


def _accepted(accept: AcceptanceTest, conversations: list[list[Message]], responses: list[str]) -> list[bool]:
    """What `accept` says of each response."""
    accepted = as_numbers(accept(conversations, responses), len(responses), "The result of `accept`")
    if accepted.isnan().any():
        raise NoVerdictError(f"The result of `accept` must be one number a response, got NaN among {len(responses)}.")
    return [value >= 0.5 for value in accepted.tolist()]
