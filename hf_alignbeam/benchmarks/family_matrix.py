"""`alignbeam bench --families`: the guard's laws on tiny random models of every family, in every mode of `generate`."""

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
from hf_alignbeam.console import table_head, tell
from hf_alignbeam.inference.branching_cache import choose_engine
from hf_alignbeam.inference.engines import KeyValueEngine
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed import tokenizers
from hf_alignbeam.testbed.language import language
from hf_alignbeam.tokenization.vocabulary import token_bytes

N_PROMPTS = 2
COLUMNS = ("family", "as anchor", "plain where anchor = target", "the anchor's where alpha = 1", *MODES)


class Bench:
    """The two tokenizers, prompts and partners that every family is tried with."""

    def __init__(self) -> None:
        tongue = language(0)
        texts = [prompt.text for prompt in tongue.prompts("train", "harmful")[:400]]
        self.tokenizer = tokenizers.byte_level(texts, n_merges=120)
        self.other_tokenizer = tokenizers.sentencepiece_style(texts, n_pieces=300)
        self.partner = build("Llama", self.tokenizer, seed=6)
        self.target = build("Llama", self.other_tokenizer, seed=5)
        self.conversations: list[Conversation] = [p.conversation for p in tongue.prompts("validation", "general")[:N_PROMPTS]]

    def errors(self, family: str) -> dict[str, float]:
        """By mode, how far a family's cached anchor is from the anchor from scratch, for a target of other tokens."""
        model = build(family, self.tokenizer)
        guard = AnchorLogitsProcessor(model, self.tokenizer, self.other_tokenizer, n_watch=None)

        def error(mode: str) -> float:
            return cache_error(guard, model, lambda p: outputs(self.target, self.other_tokenizer, self.conversations, mode, p))

        return {mode: error(mode) for mode in MODES}

    def laws(self, family: str) -> dict[str, tuple[bool, bool]]:
        """By mode that transformers runs the family in, whether it is plain with itself as anchor, and whether with
        `alpha=1` it gives its anchor's tokens and its target gives its own."""
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
        """Whether a family is read from a cache."""
        return choose_engine(build(family, self.tokenizer), token_bytes(self.tokenizer)) is KeyValueEngine

    def guidance_error(self) -> float:
        """The error of transformers' own processor with a second model, under beams."""
        return guidance_error(self.partner, self.tokenizer, self.conversations)


def run() -> None:
    """Print a line a family: the largest difference in log-probability by mode, and in how many modes the laws hold."""
    logging.set_verbosity_error()
    console = Console(width=220)
    bench = Bench()
    lines = table_head(COLUMNS)
    all_kept: list[bool] = []
    all_errors: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family in track(FAMILIES, description="families", console=Console(stderr=True), transient=True):
            laws, errors = bench.laws(family).values(), bench.errors(family).values()
            all_kept += [plain and followed for plain, followed in laws]
            all_errors += errors
            kept = [f"{sum(some)} of {len(laws)}" for some in zip(*laws, strict=True)]
            cells = [family, "cached" if bench.is_cached(family) else "read anew", *kept]
            cells += [f"{error:.0e}" for error in errors]
            lines.append("| " + " | ".join(cells) + " |")
        wrong = bench.guidance_error()
    tell(console, *lines)
    summary = (
        f"{len(FAMILIES)} families: the laws hold in {sum(all_kept)} of {len(all_kept)} cells. The last {len(MODES)} columns: "
        "the largest difference of a log-probability between the anchor in the guard and the anchor from scratch, over all "
        f"points held at every call; {max(all_errors):.0e} at most. Transformers' own classifier-free guidance, whose second "
        f"model's cache follows row numbers, under 4 beams: {wrong:.1f}."
    )
    tell(console, "\n" + summary)
