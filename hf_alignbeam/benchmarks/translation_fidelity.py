"""`alignbeam bench --fidelity`: the distance of every translation rule to the exact translation, on the testbed's models.

Knows the testbed's pairs of models, points of answers and rules. How the exact translation is found stands in
`exact_translation`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.anchor.follower import Follower, RowStart
from hf_alignbeam.benchmarks.exact_translation import AnswerPoint, ExactTranslation, exact_translation
from hf_alignbeam.benchmarks.translation_loss import with_rule
from hf_alignbeam.chat.template_parser import TemplateParser
from hf_alignbeam.chat.templates import encode_prompt
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.engines import KeyValueEngine
from hf_alignbeam.steering.settings import SteeringSettings
from hf_alignbeam.testbed.language import SPEAKERS, Language
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_language, stored_models
from hf_alignbeam.translation.translator import TranslationRule, VocabularyTranslator

#: Anchor and target; the tokens of models whose name ends in "-letters" are little more than single letters.
PAIRS = (
    ("anchor", "specialist"),
    ("specialist", "anchor"),
    ("anchor-letters", "specialist"),
    ("anchor", "specialist-letters"),
)
#: Rules, each with its look-ahead in anchor forwards.
Rules = Sequence[tuple[TranslationRule, int]]
#: The columns.
RULES: Rules = (
    ("exact", 0),
    ("drop", 0),
    ("first", 0),
    ("bytes", 0),
    ("bytes", 2),
    ("bytes", SteeringSettings.n_lookahead),
    ("bytes", 8),
)
#: Contexts whose exact translation is less certain than this are left out.
MAX_UNRESOLVED = 0.01
KINDS = ("general", "domain", "borderline", "harmful")
MAX_TOKENS = 12


@dataclass(frozen=True)
class TranslationPair:
    """An anchor and a target with their names and tokenizers, and the translator between them."""

    names: tuple[str, str]
    anchor: PreTrainedModel
    target: PreTrainedModel
    anchor_tokenizer: PreTrainedTokenizerBase
    target_tokenizer: PreTrainedTokenizerBase
    translator: VocabularyTranslator


@dataclass(frozen=True)
class Context:
    """A point of an answer, with the target's prompt, and whether the text so far ends inside a token of the anchor."""

    target_ids: list[int]
    point: AnswerPoint
    pending: bool

    def target_prob(self, model: PreTrainedModel) -> Tensor:
        """(V,) the target's own distribution of the next token."""
        with torch.no_grad():
            return model(torch.tensor([[*self.target_ids, *self.point.written]])).logits[0, -1].float().softmax(-1)


def run(folder: Path | None, split: str, n_contexts: int) -> None:
    """Print the total variation to the exact translation, one line for each pair and group of contexts."""
    console = Console(width=220)
    folder = folder or WEIGHTS
    with report_user_errors():
        language = stored_language(folder)
        pairs = [names for names in PAIRS if set(names) <= set(stored_models(folder))]
        loaded = {name: load(name, folder) for names in pairs for name in names}
        language.prompts(split, KINDS[0])
    console.print(
        f"Language {language.seed}, {split} split. Mean total variation to the exact translation, by enumeration, and in "
        "brackets its 90th percentile; `bytes` with its forwards of look-ahead.\n"
    )
    lines = table_head(["anchor", "target", "contexts", "n", "left out", *rule_names(RULES), "most unresolved"])
    for names in pairs:
        (anchor, anchor_tokenizer), (target, target_tokenizer) = (loaded[name] for name in names)
        translator = VocabularyTranslator(anchor_tokenizer, target_tokenizer)
        pair = TranslationPair(names, anchor, target, anchor_tokenizer, target_tokenizer, translator)
        lines += _lines(pair, language, split, n_contexts)
    tell(console, *lines)


def rule_names(rules: Rules) -> list[str]:
    """The columns of `distances`."""
    return [f"bytes, {n}" if rule == "bytes" else rule for rule, n in rules]


def distances(pair: TranslationPair, context: Context, exact: Tensor, rules: Rules) -> list[float]:
    """The total variation between each rule's translation and the exact one (V,)."""
    translator = pair.translator
    translations = (translated(pair, with_rule(translator, rule), context, n) for rule, n in rules)
    return [total_variation(prob[: len(exact)], exact, translator) for prob in translations]


def mean_and_tenth(values: Sequence[Sequence[float]]) -> list[str]:
    """The mean of each column, and in brackets the value where its largest tenth begins."""
    table = torch.tensor(values)  # (n, columns)
    return [f"{mean:.4f} ({high:.3f})" for mean, high in zip(table.mean(0), table.quantile(0.9, 0), strict=True)]


def _lines(pair: TranslationPair, language: Language, split: str, n_contexts: int) -> list[str]:
    """The lines of one pair."""
    translator = pair.translator
    groups: dict[str, list[tuple[ExactTranslation, list[float]]]] = {"all": [], "pending bytes": []}
    n_left_out = 0
    title = " to ".join(pair.names)
    drawn = contexts(pair, language, split, n_contexts)
    for context in track(drawn, title, n_contexts, console=Console(stderr=True), transient=True):
        exact = exact_translation(pair.anchor, translator.anchor, translator.target, context.point)
        if exact is None or exact.unresolved > MAX_UNRESOLVED:
            n_left_out += 1
            continue
        measured = exact, distances(pair, context, exact.prob, RULES)
        groups["all"].append(measured)
        if context.pending:
            groups["pending bytes"].append(measured)
    lines = []
    for group, results in groups.items():
        if results:
            cells = mean_and_tenth([of_rules for _, of_rules in results])
            counts = [str(len(results)), str(n_left_out) if group == "all" else "-"]
            unresolved = f"{max(exact.unresolved for exact, _ in results):.4f}"
            lines.append(table_row([*pair.names, group, *counts, *cells, unresolved]))
    return lines


def contexts(pair: TranslationPair, language: Language, split: str, n_contexts: int) -> Iterator[Context]:
    """Points in answers to prompts of every kind, worded as the anchor and as the target would by turns."""
    rng = random.Random(f"contexts {language.seed} {split}")
    translator, parser = pair.translator, TemplateParser(pair.target_tokenizer)
    for number in range(n_contexts):
        prompt = rng.choice(language.prompts(split, KINDS[number % len(KINDS)]))
        speaker = SPEAKERS[("anchor", "specialist")[number // len(KINDS) % 2]]
        answer = language.answer(prompt, speaker, rng)
        target_ids = encode([prompt.conversation], pair.target_tokenizer)["input_ids"][0].tolist()
        parsed = parser.parse(tuple(target_ids))
        if parsed is None:
            raise ValueError(f"The prompts of {pair.names[1]} must follow its chat template, got another layout. Train it anew.")
        ids, leading_whitespace = encode_prompt(pair.anchor_tokenizer, translator.anchor.tokens, parsed.messages)
        written = translator.target.encode(parsed.leading_whitespace + answer.encode())
        written = written[: rng.randrange(min(MAX_TOKENS, len(written)))]
        n_bytes = len(translator.target.decode(written)) - len(parsed.leading_whitespace)
        pending = bool(written) and _is_inside_a_token(
            translator, leading_whitespace + answer.encode(), len(leading_whitespace) + n_bytes
        )
        yield Context(target_ids, AnswerPoint(ids, leading_whitespace, parsed.leading_whitespace, written), pending)


def translated(pair: TranslationPair, translator: VocabularyTranslator, context: Context, n_lookahead: int) -> Tensor:
    """(V,) a rule's translation of the anchor's distribution at a point of an answer, without the mass that it loses."""
    point = context.point
    follower = Follower(
        KeyValueEngine(pair.anchor),
        translator,
        [RowStart(list(point.prompt_ids), point.leading_whitespace, point.target_only_prefix)],
        n_lookahead,
    )
    for i in point.written:
        follower.write([i])
    return follower.predict(context.target_prob(pair.target)[None], [0]).prob[0]


def total_variation(prob: Tensor, exact: Tensor, translator: VocabularyTranslator) -> float:
    """The total variation between two distributions (V,): the first is scaled to mass 1, all EOS ids count as one.

    It is 1 if the first has no mass.
    """
    ends = list(translator.target.eos_ids)
    prob = prob.clone()
    prob[ends[0]], prob[ends[1:]] = prob[ends].sum(), 0.0
    total = float(prob.sum())
    return 0.5 * float((prob / total - exact).abs().sum()) if total > 0 else 1.0


def _is_inside_a_token(translator: VocabularyTranslator, text: bytes, n_bytes: int) -> bool:
    """Whether the anchor's tokenization of a text has no boundary after `n_bytes`."""
    lengths = [len(translator.anchor.tokens[i] or b"") for i in translator.anchor.encode(text)]
    return n_bytes not in accumulate(lengths, initial=0)
