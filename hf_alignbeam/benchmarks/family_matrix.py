"""`alignbeam bench --families`: the laws of steering on tiny random models of every family, in every mode of `generate`.

Knows which models are tried, and prints the table. The laws stand in `invariants`, the models in `tiny_families`.
"""

import warnings

from rich.console import Console
from rich.progress import track
from transformers.utils import logging

from hf_alignbeam.benchmarks.invariants import (
    MODES,
    Conversation,
    alpha_one_is_the_anchor,
    anchor_equal_to_target_is_plain,
    cache_error,
    guidance_error,
    outputs,
    supports,
)
from hf_alignbeam.benchmarks.tiny_families import FAMILIES, build
from hf_alignbeam.console import table_head, table_row, tell
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import RecomputeEngine
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed import tokenizers
from hf_alignbeam.testbed.language import language
from hf_alignbeam.tokenization.vocabulary import token_bytes

N_PROMPTS = 2
COLUMNS = ("family", "as anchor", "plain where anchor = target", "the anchor's where alpha = 1", *MODES)


class FamilyBench:
    """Two tokenizers, the prompts, and the Llamas that each family is paired with."""

    def __init__(self) -> None:
        testbed_language = language(0)
        texts = [prompt.text for prompt in testbed_language.prompts("train", "harmful")[:400]]
        self.tokenizer = tokenizers.byte_level(texts, n_merges=120)
        self.other_tokenizer = tokenizers.sentencepiece_style(texts, n_pieces=300)
        self.partner = build("Llama", self.tokenizer, seed=6)
        self.target = build("Llama", self.other_tokenizer, seed=5)
        prompts = testbed_language.prompts("validation", "general")[:N_PROMPTS]
        self.conversations: list[Conversation] = [prompt.conversation for prompt in prompts]

    def errors(self, family: str) -> dict[str, float]:
        """For each mode, the error of a family's cached anchor, under a target with another tokenizer."""
        model = build(family, self.tokenizer)
        guard = AnchorLogitsProcessor(model, self.tokenizer, self.other_tokenizer, n_watch=None)

        def error(mode: str) -> float:
            return cache_error(guard, model, lambda p: outputs(self.target, self.other_tokenizer, self.conversations, mode, p))

        return {mode: error(mode) for mode in MODES}

    def laws(self, family: str) -> dict[str, tuple[bool, bool]]:
        """For each mode that transformers runs a family in, whether the two laws hold.

        The first: with itself as anchor it answers as it does unguarded. The second: with `alpha=1` a target gives its anchor's
        tokens, with the family as target and as anchor.
        """
        model = build(family, self.tokenizer)
        return {
            mode: (
                anchor_equal_to_target_is_plain(model, self.tokenizer, self.conversations, mode),
                alpha_one_is_the_anchor(model, self.partner, self.tokenizer, self.conversations, mode)
                and alpha_one_is_the_anchor(self.partner, model, self.tokenizer, self.conversations, mode),
            )
            for mode in MODES
            if supports(model, self.tokenizer, self.conversations, mode)
        }

    def is_cached(self, family: str) -> bool:
        """Whether the anchor's engine uses a KV cache for a family."""
        return choose_engine(build(family, self.tokenizer), token_bytes(self.tokenizer)) is not RecomputeEngine

    def guidance_error(self) -> float:
        """The same error of transformers' own processor with a second model, under beams."""
        return guidance_error(self.partner, self.tokenizer, self.conversations)


def run() -> None:
    """Print one line for each family: in how many modes the laws hold, and the error of its cached anchor in each mode."""
    logging.set_verbosity_error()
    console = Console(width=220)
    bench = FamilyBench()
    lines = table_head(COLUMNS)
    all_held: list[bool] = []
    all_errors: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in track(FAMILIES, description="families", console=Console(stderr=True), transient=True):
            laws, errors = bench.laws(family).values(), bench.errors(family).values()
            all_held += [plain and followed for plain, followed in laws]
            all_errors += errors
            held = [f"{sum(modes)} of {len(laws)}" for modes in zip(*laws, strict=True)]
            cells = [family, "cached" if bench.is_cached(family) else "recomputed", *held]
            lines.append(table_row([*cells, *(f"{error:.0e}" for error in errors)]))
        guidance = bench.guidance_error()
    tell(console, *lines)
    summary = (
        f"{len(FAMILIES)} families: the laws hold in {sum(all_held)} of {len(all_held)} cells. The last {len(MODES)} columns: "
        "the largest difference of a log-probability between the guard's cached anchor and the anchor without a cache, over all "
        f"nodes at every call; {max(all_errors):.0e} at most. The same for transformers' own classifier-free guidance, which "
        f"keeps its second model's cache by row number, under 4 beams: {guidance:.1f}."
    )
    tell(console, "\n" + summary)
