"""`alignbeam bench --fidelity --model A --anchor B`: the distance of every translation rule to the exact one, on real models.

The exact translation is estimated twice, by paths of the anchor that are drawn by mass. From the mean of both halves an exact
rule would be about half as far as the halves are from each other.
"""

import random
from collections.abc import Iterator
from itertools import takewhile

import torch
from rich.console import Console
from rich.progress import track

from hf_alignbeam.benchmarks.exact_translation import AnswerPoint, sampled_translation
from hf_alignbeam.benchmarks.pairs.steered_steps import N_STEPS, Pair, conversations
from hf_alignbeam.benchmarks.realistic_models import device_name
from hf_alignbeam.benchmarks.translation_fidelity import Context, Rules, TranslationPair, distances, mean_and_tenth, rule_names
from hf_alignbeam.chat.template_parser import TemplateParser
from hf_alignbeam.chat.templates import encode_prompt
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.steering.settings import SteeringSettings

#: The columns: rules, each with its look-ahead in anchor forwards.
RULES: Rules = (("first", 0), ("bytes", 0), ("bytes", SteeringSettings.n_lookahead))
#: How many paths of each length are walked for one half of an estimate.
N_PATHS = 100


def run(model: str, anchor: str, n_contexts: int, device: str, dtype: str) -> None:
    """Print the total variation of each rule to the exact translation, and that between the halves of the estimate."""
    console = Console(width=200)
    with report_user_errors():
        pair = Pair(model, anchor, device, dtype)
        translator = pair.guard().translator
    (target, anchor_model), (tokenizer, anchor_tokenizer) = pair.models, pair.tokenizers
    both = TranslationPair((anchor, model), anchor_model, target, anchor_tokenizer, tokenizer, translator)
    measured: list[list[float]] = []
    n_left_out = 0
    drawn = _contexts(pair, both, n_contexts)
    for context in track(drawn, "contexts", n_contexts, console=Console(stderr=True), transient=True):
        halves = [
            sampled_translation(anchor_model, translator.anchor, translator.target, context.point, N_PATHS, seed)
            for seed in (0, 1)
        ]
        probs = [half.prob for half in halves if half is not None]
        if len(probs) < len(halves):
            n_left_out += 1
            continue
        of_halves = 0.5 * float((probs[0] - probs[1]).abs().sum())
        measured.append([of_halves, *distances(both, context, torch.stack(probs).mean(0), RULES)])
    if not measured:
        console.print("No point of these answers has an exact translation: the target would write its tokens for no text.")
        return
    tell(console, *table_head(["contexts", "left out", "between two halves", *rule_names(RULES)]))
    tell(console, table_row([str(len(measured)), str(n_left_out), *mean_and_tenth(measured)]))
    console.print(
        f"\n{device_name(torch.device(device))}, {dtype}; points of answers of up to {N_STEPS} tokens, half of them steered. "
        "Mean total variation, and in brackets its 90th percentile; `bytes` with its forwards of look-ahead. "
        f"{N_PATHS} paths a half."
    )


def _contexts(pair: Pair, both: TranslationPair, n_contexts: int) -> Iterator[Context]:
    """Points of the target's own answers and of steered ones, by turns."""
    rng, parser, asked = random.Random(0), TemplateParser(both.target_tokenizer), conversations()
    for number in range(n_contexts):
        conversation = asked[number // 2 % len(asked)]
        prompt = encode([conversation], both.target_tokenizer)["input_ids"][0].tolist()
        (ids,) = pair.answers([conversation], pair.guard() if number % 2 else None)
        answer = list(takewhile(lambda i: i not in both.translator.target.eos_ids, ids))
        written = tuple(answer[: rng.randrange(max(1, len(answer)))])
        parsed = parser.parse(tuple(prompt))
        messages, prefix = (conversation, b"") if parsed is None else (parsed.messages, parsed.leading_whitespace)
        anchor_prompt, leading_whitespace = encode_prompt(both.anchor_tokenizer, both.translator.anchor.tokens, messages)
        yield Context(prompt, AnswerPoint(anchor_prompt, leading_whitespace, prefix, written), pending=False)
