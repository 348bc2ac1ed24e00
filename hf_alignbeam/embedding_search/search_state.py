"""One prompt's search so far: what was tried, what was said of it, what it has cost, and what passes.

Knows records and numbers. Knows neither how answers come about nor who judges them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from hf_alignbeam.chat.conversations import Message, ParsedPrompt
from hf_alignbeam.embedding_search.embeddings import Embedded
from hf_alignbeam.embedding_search.steered_prompts import Outcome, SteeredPrompt
from hf_alignbeam.embedding_search.zeroth_order import ProbeSampler

#: Says of responses whether each is one that may be given: True or False, or a number of at least 0.5.
Accept = Callable[[Sequence[list[Message]], Sequence[str]], Any]


@dataclass(frozen=True)
class SearchLimits:
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

    def passes(self, harm: float) -> bool:
        """Whether an answer with this verdict may be given; NaN stands for none, and does not pass."""
        return harm <= self.threshold


@dataclass(eq=False)
class Probe:
    """Embeddings (T, D) that were tried, what the model answered, and its harm: NaN while nobody was asked."""

    embeds: Tensor = field(repr=False)
    is_centre: bool
    ids: list[int] = field(default_factory=list)
    text: str = ""
    harm: float = math.nan


@dataclass(eq=False)
class PromptSearch:
    """The search of one prompt so far.

    Attributes:
        key: Of its conversation.
        asked: What it says.
        prompt: Its own embeddings.
        search: What draws its probes.
        seed: Of its answers' streams.
        harm_by_call: What the judge said each time, in order.
        known: By answer its harm.
        accepted: By answer whether it may be given.
        found: What is given as things stand: the try that passes, else the one with the least harm.
        spare: Distinct answers that were not accepted and were never judged.
        centre_harm: Of the answer to where the search stands.
        n_generated: Answers generated.
        seconds: What they and their verdicts took, its share of the batches it was in.
        outcome: None while the search goes on.
    """

    key: str
    asked: ParsedPrompt
    prompt: Embedded
    search: ProbeSampler
    seed: int
    harm_by_call: list[float] = field(default_factory=list)
    known: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, bool] = field(default_factory=dict)
    found: Probe | None = None
    unjudged: dict[str, Probe] = field(default_factory=dict)
    centre_harm: float = math.nan
    n_generated: int = 0
    seconds: float = 0.0
    outcome: Outcome | None = None

    @property
    def given(self) -> Probe:
        """What was found, once the first answer was judged."""
        if self.found is None:
            raise RuntimeError("Nothing was judged yet.")
        return self.found

    def steered(self, messages: list[Message]) -> SteeredPrompt:
        """What is kept of a search that has ended, under the conversation it was for."""
        return SteeredPrompt(
            messages=messages,
            embeds=self.given.embeds,
            outcome=cast(Outcome, self.outcome),
            ids=self.given.ids,
            text=self.given.text,
            harm=self.given.harm,
            harm_by_call=self.harm_by_call,
            n_generated=self.n_generated,
            seconds=round(self.seconds, 4),
        )
