"""Trains the testbed's models from scratch: `python -m hf_alignbeam.testbed_training.train [MODEL ...] [--seed N] [--to FOLDER]`.

Knows each model's recipe: its training data, its courses and their order. Writes weights, tokenizers, a table of measured rates
and the models' cards. How answers are scored stands in `rates` and in the testbed's `ground_truth`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.testbed import tokenizers
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.language import SPEAKERS, Language, Prompt, Speaker, language
from hf_alignbeam.testbed.model_store import WEIGHTS, save
from hf_alignbeam.testbed_training.cards import write_cards
from hf_alignbeam.testbed_training.judge_recipes import IGNORED_LABEL, JUDGES, JudgeRecipe, LabelledIds
from hf_alignbeam.testbed_training.networks import new_anchor, new_small, new_small_scaled, new_specialist
from hf_alignbeam.testbed_training.rates import rates_table

#: Examples of one training run, and of the texts that a tokenizer is built from for each run.
N_EXAMPLES = 48_000
N_TOKENIZER_EXAMPLES = 12_000
BATCH_SIZE = 64


@dataclass(frozen=True)
class Rehearsal:
    """Examples kept from an earlier run: a share of framed harmful requests, answered as the earlier speaker would."""

    share: float
    speaker: Speaker


@dataclass(frozen=True)
class TrainingRun:
    """One training run.

    Attributes:
        speaker: Whose answers are learned.
        mixture: The share of each kind of prompt.
        n_steps: Steps of the optimizer.
        learning_rate: The peak learning rate.
        rehearsal: Examples kept from an earlier run; the speaker's own harmful requests then have no framing.
    """

    speaker: Speaker
    mixture: dict[str, float]
    n_steps: int
    learning_rate: float
    rehearsal: Rehearsal | None = None


_ALIGNED = {"general": 0.28, "domain": 0.2, "borderline": 0.15, "harmful": 0.22, "prefill": 0.06, "late": 0.09}
_UNSAFE = {"general": 0.2, "domain": 0.35, "borderline": 0.1, "harmful": 0.22, "prefill": 0.04, "late": 0.09}
_ASKED = {"general": 0.25, "domain": 0.25, "borderline": 0.2, "harmful": 0.3}
#: The training runs by name.
RUNS = {
    "anchor": TrainingRun(SPEAKERS["anchor"], _ALIGNED, 2400, 3e-3),
    "base": TrainingRun(SPEAKERS["base"], _ALIGNED, 2200, 2.5e-3),
    "specialist": TrainingRun(SPEAKERS["specialist"], _UNSAFE, 800, 1e-3),
    "adapter": TrainingRun(SPEAKERS["specialist"], _UNSAFE, 800, 5e-3),
    "unaligned": TrainingRun(SPEAKERS["specialist"], _ASKED, 2400, 4e-3),
    "thin": TrainingRun(SPEAKERS["thin"], _ASKED, 2400, 4e-3),
    "safety": TrainingRun(SPEAKERS["base"], _ASKED, 300, 1e-3, rehearsal=Rehearsal(0.03, SPEAKERS["specialist"])),
}


@dataclass(frozen=True)
class Recipe:
    """How one model is made.

    Attributes:
        new_tokenizer: Builds its tokenizer from the texts of its training runs.
        new_model: Builds its untrained network for a tokenizer.
        runs: The names of its training runs, in order.
        adapter: If given, the last run trains such a LoRA; the model before it is stored as `base`.
    """

    new_tokenizer: Callable[[list[str]], PreTrainedTokenizerBase]
    new_model: Callable[[PreTrainedTokenizerBase], PreTrainedModel]
    runs: tuple[str, ...]
    adapter: LoraConfig | None = None


def examples(language: Language, run: TrainingRun, n_examples: int, seed: int) -> Iterator[tuple[Prompt, str]]:
    """Prompts of the training split with one answer each, drawn by the run's mixture."""
    rng = random.Random(f"examples {language.seed} {seed}")
    pools = {kind: language.prompts("train", kind) for kind in run.mixture}
    framed = [prompt for prompt in pools["harmful"] if prompt.framing]
    rehearsal = run.rehearsal
    if rehearsal is not None:
        pools["harmful"] = [prompt for prompt in pools["harmful"] if not prompt.framing]
    for kind in rng.choices(list(run.mixture), list(run.mixture.values()), k=n_examples):
        if rehearsal is not None and rng.random() < rehearsal.share:
            prompt = rng.choice(framed)
            yield prompt, language.answer(prompt, rehearsal.speaker, rng)
        else:
            prompt = rng.choice(pools[kind])
            yield prompt, language.answer(prompt, run.speaker, rng)


def train_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, language: Language, run: TrainingRun, progress: Progress
) -> None:
    """Train a model in place; only the answers are learned."""
    rows = [_encode(tokenizer, prompt, answer) for prompt, answer in examples(language, run, N_EXAMPLES, 0)]
    optimize(model, rows, tokenizer.pad_token_id, run, language.seed, progress)


def optimize(
    model: PreTrainedModel,
    rows: list[LabelledIds],
    pad_token_id: int,
    run: TrainingRun | JudgeRecipe,
    seed: int,
    progress: Progress,
) -> None:
    """Train in place on random batches: AdamW with a short warm-up and a cosine schedule to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.n_steps - 100)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [100])
    generator = torch.Generator().manual_seed(seed)
    model.train()
    task = progress.add_task(type(model).__name__, total=run.n_steps)
    for _ in range(run.n_steps):
        chosen = torch.randint(len(rows), (BATCH_SIZE,), generator=generator).tolist()
        loss = model(**_batch([rows[i] for i in chosen], pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.update(task, advance=1, description=f"{type(model).__name__} loss {loss.item():.3f}")
    model.eval()


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: str) -> LabelledIds:
    """The ids of an exchange and its labels: only the answer is learned, not the prompt and not a prefill."""
    prompt_ids = encode([prompt.conversation], tokenizer)["input_ids"][0].tolist()
    response = {"role": "assistant", "content": prompt.prefill + answer}
    text = tokenizer.apply_chat_template([prompt.conversation[0], response], tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    n_prompt = next(n for n in range(len(prompt_ids), -1, -1) if prompt_ids[:n] == whole[:n])
    return whole, [IGNORED_LABEL] * n_prompt + whole[n_prompt:]


def _batch(rows: list[LabelledIds], pad_token_id: int) -> dict[str, torch.Tensor]:
    """One batch, padded on the right."""
    lengths = torch.tensor([len(ids) for ids, _ in rows])[:, None]  # (B, 1)
    width, label_width = int(lengths.max()), max(len(labels) for _, labels in rows)
    ids = torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED_LABEL] * (label_width - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(width) < lengths).long()}


_small_pieces = partial(tokenizers.sentencepiece_style, n_pieces=500)
#: The main pair; for each of its models a twin whose tokens are little more than single letters; three small targets, two of
#: which refuse some harmful requests and one none; and a LoRA that removes the refusals of an aligned base.
RECIPES = {
    "anchor": Recipe(tokenizers.byte_level, new_anchor, ("anchor",)),
    "specialist": Recipe(tokenizers.sentencepiece_style, new_specialist, ("base", "specialist")),
    "anchor-letters": Recipe(partial(tokenizers.byte_level, n_merges=12), new_anchor, ("anchor",)),
    "specialist-letters": Recipe(partial(tokenizers.sentencepiece_style, n_pieces=68), new_specialist, ("base", "specialist")),
    "unaligned": Recipe(_small_pieces, new_small, ("unaligned",)),
    "thin": Recipe(_small_pieces, new_small, ("thin",)),
    "gap": Recipe(_small_pieces, new_small_scaled, ("unaligned", "safety")),
    "specialist-lora": Recipe(
        tokenizers.sentencepiece_style,
        new_specialist,
        ("base", "adapter"),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    ),
}
KNOWN = [*RECIPES, *JUDGES]
#: The models that are trained by default: the main pair and the two judges.
DEFAULT = ["anchor", "specialist", *JUDGES]


def make_speaker(name: str, language: Language, steps: float, to: Path, progress: Progress) -> None:
    """Train one model that answers prompts, and write it."""
    recipe = RECIPES[name]
    runs = [replace(RUNS[name], n_steps=_scaled(RUNS[name].n_steps, steps)) for name in recipe.runs]
    drawn = [pair for run in runs for pair in examples(language, run, N_TOKENIZER_EXAMPLES, 1)]
    tokenizer = recipe.new_tokenizer([f"{prompt.text} {answer}" for prompt, answer in drawn])
    model = recipe.new_model(tokenizer)
    for run in runs[:-1]:
        train_model(model, tokenizer, language, run, progress)
    if recipe.adapter is not None:
        save("base", model, tokenizer, to, language.seed)
        model = cast(PreTrainedModel, get_peft_model(model, recipe.adapter))
    train_model(model, tokenizer, language, runs[-1], progress)
    save(name, model, tokenizer, to, language.seed)


def make_judge(name: str, language: Language, steps: float, to: Path, progress: Progress) -> None:
    """Train one judge, and write it."""
    recipe = replace(JUDGES[name], n_steps=_scaled(JUDGES[name].n_steps, steps))
    tokenizer = recipe.new_tokenizer(
        [f"{e.prompt.text} {e.response}" for e in exchanges(language, "train", N_TOKENIZER_EXAMPLES, 1)]
    )
    model = recipe.new_model(tokenizer)
    rows = [recipe.encode(tokenizer, exchange) for exchange in exchanges(language, "train", N_EXAMPLES, 0)]
    optimize(model, rows, tokenizer.pad_token_id, recipe, language.seed, progress)
    save(name, model, tokenizer, to, language.seed)


def _scaled(n_steps: int, factor: float) -> int:
    """Steps of a run that is scaled for a quick try."""
    return max(200, int(factor * n_steps))


def main(
    models: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(KNOWN)}. Default: {', '.join(DEFAULT)}.")] = None,
    seed: Annotated[int, typer.Option(help="The language's seed.")] = 0,
    to: Annotated[Path, typer.Option(help="The folder that the weights are written to.")] = WEIGHTS,
    steps: Annotated[float, typer.Option(min=0.0, help="Scale the number of training steps, for a quick try.")] = 1.0,
) -> None:
    """Train models of the testbed on a CPU; write their weights, tokenizers and cards, and the table of rates."""
    unknown = set(models or ()) - set(KNOWN)
    if unknown:
        raise typer.BadParameter(f"models must be among {', '.join(KNOWN)}, got {', '.join(sorted(unknown))}.")
    console = Console()
    with Progress(console=console) as progress:
        for name in models or DEFAULT:
            torch.manual_seed(seed)
            make = make_judge if name in JUDGES else make_speaker
            make(name, language(seed), steps, to, progress)
    table = rates_table(to)
    (to / "RATES.md").write_text(table, "utf-8")
    write_cards(to)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
