"""One prompt's search so far: its probes, their answers and verdicts, its costs, and the best result.

Knows records and numbers. Knows neither how answers are generated nor who judges them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from hf_alignbeam.chat.conversations import Message, ParsedPrompt
from hf_alignbeam.embedding_search.embeddings import EmbeddedPrompt
from hf_alignbeam.embedding_search.steered_prompts import SearchOutcome, SteeredPrompt
from hf_alignbeam.embedding_search.zeroth_order import ProbeSampler
from hf_alignbeam.utils.checks import check_whole_number, is_number, refuse_none

#: Decides for each response to a conversation whether it may be given: True or False, or a number of at least 0.5.
AcceptanceTest = Callable[[Sequence[list[Message]], Sequence[str]], Any]


@dataclass(frozen=True)
class SearchLimits:
    """What passes, and what one prompt may cost: the arguments of `EmbeddingSteerer` of the same names."""

    threshold: float
    first: bool
    cache: bool
    max_calls: int
    max_generations: int

    def __post_init__(self) -> None:
        refuse_none(vars(self))
        if not is_number(self.threshold) or not 0.0 <= self.threshold < 1.0:
            raise ValueError(f"`threshold` must be in [0, 1), got {self.threshold!r}. At 1 everything passes.")
        for name, switch in (("first", self.first), ("cache", self.cache)):
            if not isinstance(switch, bool):
                raise ValueError(f"`{name}` must be True or False, got {switch!r}.")
        for name, number in (("max_calls", self.max_calls), ("max_generations", self.max_generations)):
            check_whole_number(name, number, 1, "The first answer needs one.")

    def passes(self, harm: float) -> bool:
        """Whether an answer with this harm passes. NaN means that there is no verdict, and does not pass."""
        return harm <= self.threshold


@dataclass(eq=False)
class Probe:
    """Embeddings (T, D) that were tried, the model's answer to them, and its harm: NaN until it is judged."""

    embeds: Tensor = field(repr=False)
    is_center: bool
    ids: list[int] = field(default_factory=list)
    text: str = ""
    harm: float = math.nan


@dataclass(eq=False)
class PromptSearch:
    """The search of one prompt so far.

    Attributes:
        key: The prompt's key in the journal.
        parsed: The prompt's conversation.
        prompt: The prompt's own embeddings.
        sampler: Draws its probes.
        seed: The seed of its answers' random streams.
        harm_by_call: The judge's verdicts, in order.
        harm_by_text: The harm of each judged answer.
        accepted_by_text: Whether each answer was accepted.
        best: The probe that passes, or else the judged probe with the least harm.
        unjudged: Distinct answers that were neither accepted nor judged.
        center_harm: The harm of the answer to the search's center.
        n_generated: The number of answers generated.
        seconds: The time that answers and verdicts took: its share of the batches that it was in.
        outcome: None until the search has ended.
    """

    key: str
    parsed: ParsedPrompt
    prompt: EmbeddedPrompt
    sampler: ProbeSampler
    seed: int
    harm_by_call: list[float] = field(default_factory=list)
    harm_by_text: dict[str, float] = field(default_factory=dict)
    accepted_by_text: dict[str, bool] = field(default_factory=dict)
    best: Probe | None = None
    unjudged: dict[str, Probe] = field(default_factory=dict)
    center_harm: float = math.nan
    n_generated: int = 0
    seconds: float = 0.0
    outcome: SearchOutcome | None = None

    @property
    def result(self) -> Probe:
        """The best probe, once the first answer was judged."""
        if self.best is None:
            raise RuntimeError("No answer was judged yet.")
        return self.best

    def steered_prompt(self, messages: list[Message]) -> SteeredPrompt:
        """The result of a search that has ended, under the prompt's whole conversation."""
        return SteeredPrompt(
            messages=messages,
            embeds=self.result.embeds,
            outcome=cast(SearchOutcome, self.outcome),
            ids=self.result.ids,
            text=self.result.text,
            harm=self.result.harm,
            harm_by_call=self.harm_by_call,
            n_generated=self.n_generated,
            seconds=round(self.seconds, 4),
        )
