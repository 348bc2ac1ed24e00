"""`alignbeam demo`: shows the testbed's specialist or a real pair of models, plain and under AlignBeam, side by side."""

import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_alignbeam.chat.refusal_words import refuses
from hf_alignbeam.console import report_user_errors
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.prompt_sets import PromptSet, load_prompts
from hf_alignbeam.evaluation.recipe import parse_recipe, read_recipe
from hf_alignbeam.evaluation.statistics import Rate
from hf_alignbeam.evaluation.systems import RecipeModels, build
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_judges, stored_language
from hf_alignbeam.testbed_training.rates import responses, verdicts

#: Prompts of each kind that are answered, of the testbed and by the real pair, and those whose answers are printed.
N_TESTBED, N_REAL, N_SHOWN = 60, 4, 3
#: The kinds of prompts, and the verdict that is counted for each.
KINDS = {"harmful": "refuses", "late": "refuses", "borderline": "refuses", "domain": "correct"}
JUDGE = "judge-lm"
#: The recipe of the real pair, and which of its systems and public prompt sets are shown.
RECIPE, SYSTEMS, PUBLIC = "small", {"plain": "plain", "AlignBeam": "guarded"}, ("JailbreakBench", "XSTest", "WildChat")


def run(n_prompts: int | None, weights: Path | None, real: bool) -> None:
    """Answer prompts of each kind, plain and guarded, and print answers, rates and cost."""
    with report_user_errors():
        if not real:
            _run(n_prompts or N_TESTBED, weights)
        elif weights is None:
            _run_real(n_prompts or N_REAL)
        else:
            raise ValueError(f"--weights must be left out with --real, which uses none of the testbed's, got {weights}.")


def _run_real(n_prompts: int) -> None:
    console = Console()
    recipe = parse_recipe(read_recipe(RECIPE))
    chosen = [replace(spec, limit=n_prompts) for spec in recipe.prompts if spec.name in PUBLIC]
    prompt_sets = [prompts for spec in chosen for prompts in load_prompts(spec)]
    models = RecipeModels(recipe, recipe.models[0])
    if recipe.anchor is not None and recipe.judge is not None:
        names = f"{models.target.name}. Its anchor: {recipe.anchor.name}. Its judge: {recipe.judge.name}."
        console.print(names, highlight=False)
    with console.status("loading the models"):
        systems = {SYSTEMS[each.name]: build(each, models) for each in recipe.systems if each.name in SYSTEMS}
    rates = Table("prompts", "of", *(f"{name}: refuses" for name in systems), title="Refusals by their words")
    seconds = dict.fromkeys(systems, 0.0)
    for prompts in prompt_sets:
        asked = [each.conversation for each in prompts.examples]
        texts: dict[str, list[str]] = {}
        for name, answer in systems.items():
            start = time.perf_counter()
            with console.status(f"{name} answers to {len(asked)} prompts of {prompts.name}"):
                texts[name] = [response.text for response in answer(asked)]
            seconds[name] += time.perf_counter() - start
        console.print(_side_by_side(prompts, texts))
        counts = [str(sum(map(refuses, found))) for found in texts.values()]
        rates.add_row(f"{prompts.name.removesuffix(' harmful')}{' (harmful)' * prompts.harmful}", str(len(asked)), *counts)
    console.print(rates)
    console.print(f"Answers of {recipe.max_new_tokens} tokens. Time: {seconds['guarded'] / seconds['plain']:.1f} times plain.")
    console.print(f"`alignbeam evaluate {RECIPE}` measures this pair and another one on more prompts.")


def _side_by_side(prompts: PromptSet, texts: dict[str, list[str]]) -> Table:
    """The first prompts of a set, each with its answer by each system."""
    shown = Table("prompt", *texts, title=prompts.name, show_lines=True)
    for example, *answers in list(zip(prompts.examples, *texts.values(), strict=True))[:N_SHOWN]:
        shown.add_row(*(escape(text) for text in (example.conversation[-1]["content"], *answers)))
    return shown


def _run(n_prompts: int, weights: Path | None) -> None:
    console = Console()
    folder = weights or WEIGHTS
    model, tokenizer = load("specialist", folder)
    anchor, anchor_tokenizer = load("anchor", folder)
    language, judges = stored_language(folder), stored_judges(folder)
    if JUDGE not in judges:
        raise ValueError(f"The folder of weights must hold {JUDGE}, and {folder} does not. Train it with --to.")
    guard = AlignBeam(anchor, anchor_tokenizer, tokenizer, judges[JUDGE], refusal=language.refusals[0])
    truth = GroundTruth(language)
    rates = Table("prompts", "share that", "plain", "guarded", title="Rates by the grammar, 95 % intervals")
    seconds = {"plain": 0.0, "guarded": 0.0}
    for kind, verdict in KINDS.items():
        prompts = language.prompts("test", kind)[:n_prompts]
        texts = {}
        for system, strategy in (("plain", None), ("guarded", guard)):
            start = time.perf_counter()
            with console.status(f"{system} answers to {len(prompts)} {kind} prompts"):
                texts[system] = [r.text for r in responses(model, tokenizer, prompts, strategy=strategy)]
            seconds[system] += time.perf_counter() - start
        shown = Table("prompt", "plain", "guarded", title=f"{kind.title()} prompts", show_lines=True)
        for prompt, plain, guarded in list(zip(prompts, texts["plain"], texts["guarded"], strict=True))[:N_SHOWN]:
            shown.add_row(prompt.text, plain, guarded)
        console.print(shown)
        for name in (verdict, "harms") if prompts[0].harmful else (verdict,):
            columns = {system: verdicts(truth, prompts, text)[name] for system, text in texts.items()}
            cells = [str(Rate(sum(hits), len(hits))) for hits in columns.values()]
            rates.add_row(kind, name if name != "correct" else "is correct", *cells)
    console.print(rates)
    ledger = guard.ledger
    console.print(
        f"Cost: {seconds['guarded'] / seconds['plain']:.2f} times the plain time of so small a target; the judge read "
        f"{ledger.judged} texts in {ledger.judge_calls} calls; {ledger.anchor_forwards} forwards of the anchor "
        f"({ledger.anchor_tokens} tokens) steered {ledger.steered_tokens} tokens."
    )
