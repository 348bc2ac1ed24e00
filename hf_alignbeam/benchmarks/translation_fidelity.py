"""`alignbeam bench --fidelity`: how far every translation rule is from the exact answer, on the testbed's models."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.anchor.follower import Follower, RowStart
from hf_alignbeam.benchmarks.exact_translation import Exact, Point, exact_translation
from hf_alignbeam.chat.template_parser import TemplateParser
from hf_alignbeam.chat.templates import encode_prompt
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.engines import KeyValueEngine
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.testbed.language import SPEAKERS, Language
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_language, stored_models
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator

#: Anchor and target; the letters' models are the two made pairs.
PAIRS = (
    ("anchor", "specialist"),
    ("specialist", "anchor"),
    ("anchor-letters", "specialist"),
    ("anchor", "specialist-letters"),
)
#: The columns: a rule, and the look-ahead it is given.
SYSTEMS: tuple[tuple[TranslationRule, int], ...] = (
    ("exact", 0),
    ("drop", 0),
    ("first", 0),
    ("bytes", 0),
    ("bytes", 2),
    ("bytes", SteeringSettings.n_lookahead),
    ("bytes", 8),
)
#: A context whose exact answer is less certain than this is left out.
MAX_UNRESOLVED = 0.01
KINDS = ("general", "domain", "borderline", "harmful")
MAX_TOKENS = 12


@dataclass(frozen=True)
class Side:
    """One model of a pair."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Context:
    """A point of an answer: the target's prompt, its tokens so far, and whether they end inside a token of the anchor's."""

    target_ids: list[int]
    point: Point
    pending: bool

    def target_prob(self, model: PreTrainedModel) -> Tensor:
        """(V,) what the target itself would say next."""
        with torch.no_grad():
            return model(torch.tensor([[*self.target_ids, *self.point.written]])).logits[0, -1].float().softmax(-1)


def run(folder: Path | None, split: str, n_contexts: int) -> None:
    """Print total variation to the exact answer, a line a pair and group of contexts."""
    console = Console(width=220)
    folder = folder or WEIGHTS
    with report_user_errors():
        language = stored_language(folder)
        pairs = [pair for pair in PAIRS if set(pair) <= set(stored_models(folder))]
        sides = {name: Side(name, *load(name, folder)) for pair in pairs for name in pair}
        language.prompts(split, KINDS[0])
    console.print(
        f"Language {language.seed}, {split} split. Mean total variation to the exact translation, by enumeration, and in "
        "brackets where the largest tenth begins; `bytes` by its forwards of look-ahead.\n"
    )
    names = [f"bytes, {n}" if rule == "bytes" else rule for rule, n in SYSTEMS]
    columns = ["anchor", "target", "contexts", "n", "left out", *names, "most unresolved"]
    lines = table_head(columns)
    for anchor, target in pairs:
        lines += _lines(sides[anchor], sides[target], language, split, n_contexts)
    tell(console, *lines)


def _lines(anchor: Side, target: Side, language: Language, split: str, n_contexts: int) -> list[str]:
    translator = VocabularyTranslator(anchor.tokenizer, target.tokenizer)
    groups: dict[str, list[tuple[Exact, list[float]]]] = {"all": [], "pending bytes": []}
    n_left_out = 0
    title = f"{anchor.name} to {target.name}"
    found = contexts(anchor, target, translator, language, split, n_contexts)
    for context in track(found, title, n_contexts, console=Console(stderr=True), transient=True):
        exact = exact_translation(anchor.model, translator.anchor, translator.target, context.point)
        if exact is None or exact.unresolved > MAX_UNRESOLVED:
            n_left_out += 1
            continue
        distances = [
            total_variation(translated(anchor, target, translator.with_rule(rule), context, n), exact.prob, translator)
            for rule, n in SYSTEMS
        ]
        groups["all"].append((exact, distances))
        if context.pending:
            groups["pending bytes"].append((exact, distances))
    lines = []
    for group, measured in groups.items():
        if measured:
            table = torch.tensor([distances for _, distances in measured])  # (n, systems)
            cells = [f"{mean:.4f} ({tenth:.3f})" for mean, tenth in zip(table.mean(0), table.quantile(0.9, 0), strict=True)]
            counts = [str(len(measured)), str(n_left_out) if group == "all" else "-"]
            unresolved = f"{max(exact.unresolved for exact, _ in measured):.4f}"
            lines.append(table_row([anchor.name, target.name, group, *counts, *cells, unresolved]))
    return lines


def contexts(
    anchor: Side, target: Side, translator: VocabularyTranslator, language: Language, split: str, n_contexts: int
) -> Iterator[Context]:
    """Answers to prompts of every kind, in the anchor's words and in the target's by turns, cut after a few tokens."""
    rng = random.Random(f"contexts {language.seed} {split}")
    parser = TemplateParser(target.tokenizer)
    for number in range(n_contexts):
        prompt = rng.choice(language.prompts(split, KINDS[number % len(KINDS)]))
        speaker = SPEAKERS[("anchor", "specialist")[number // len(KINDS) % 2]]
        answer = language.answer(prompt, speaker, rng)
        target_ids = encode([prompt.conversation], target.tokenizer)["input_ids"][0].tolist()
        asked = parser.parse(tuple(target_ids))
        if asked is None:
            raise ValueError(f"The prompts of {target.name} must follow its chat template. Train it anew.")
        ids, leading_whitespace = encode_prompt(anchor.tokenizer, translator.anchor.tokens, asked.messages)
        written = translator.target.encode(asked.leading_whitespace + answer.encode())
        written = written[: rng.randrange(min(MAX_TOKENS, len(written)))]
        n_bytes = len(translator.target.decode(written)) - len(asked.leading_whitespace)
        pending = bool(written) and _is_inside(
            translator, leading_whitespace + answer.encode(), len(leading_whitespace) + n_bytes
        )
        yield Context(target_ids, Point(ids, leading_whitespace, asked.leading_whitespace, written), pending)


def translated(anchor: Side, target: Side, translator: VocabularyTranslator, context: Context, n_lookahead: int) -> Tensor:
    """(V,) what a rule makes of the anchor at a point of an answer; what it loses is left out."""
    point = context.point
    follower = Follower(
        KeyValueEngine(anchor.model),
        translator,
        [RowStart(list(point.prompt_ids), point.leading_whitespace, point.target_only_prefix)],
        n_lookahead,
    )
    for i in point.written:
        follower.write([i])
    return follower.predict(context.target_prob(target.model)[None], [0]).prob[0]


def total_variation(prob: Tensor, exact: Tensor, translator: VocabularyTranslator) -> float:
    """Half the distance between two distributions (V,), the first scaled to 1, all EOS ids taken as one; 1 for no mass."""
    ends = list(translator.target.eos_ids)
    prob = prob.clone()
    prob[ends[0]], prob[ends[1:]] = prob[ends].sum(), 0.0
    total = float(prob.sum())
    return 0.5 * float((prob / total - exact).abs().sum()) if total > 0 else 1.0


def _is_inside(translator: VocabularyTranslator, text: bytes, n_bytes: int) -> bool:
    """Whether the anchor, writing a text, has no boundary of its tokens after so many bytes."""
    lengths = [len(translator.anchor.tokens[i] or b"") for i in translator.anchor.encode(text)]
    return n_bytes not in accumulate(lengths, initial=0)
