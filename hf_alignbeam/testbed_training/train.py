"""Train the testbed's models from nothing: `python -m hf_alignbeam.testbed_training.train [MODEL ...] [--seed N] [--to FOLDER]`.

Knows the models' shapes, their training data and the order they are made in, and writes weights, tokenizers, a table
of measured rates and the models' cards. How an answer is scored stands in `truth.py` and `measure.py`.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.testbed import tokenizers
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.language import SPEAKERS, Language, Prompt, Speaker, language
from hf_alignbeam.testbed.model_store import WEIGHTS, save
from hf_alignbeam.testbed_training.cards import write_cards
from hf_alignbeam.testbed_training.judge_recipes import IGNORED_LABEL, JUDGES, JudgeTrainingRun, LabelledIds
from hf_alignbeam.testbed_training.rates import rates_table

N_EXAMPLES = 48_000
N_TOKENIZER_EXAMPLES = 12_000
BATCH_SIZE = 64


@dataclass(frozen=True)
class Rehearsal:
    """What is kept of an earlier course: for so large a share of the examples, framed harmful requests, answered as then."""

    share: float
    speaker: Speaker


@dataclass(frozen=True)
class TrainingRun:
    """One training run: what a batch is made of, for how many steps, at which peak learning rate.

    With a rehearsal, the speaker's own harmful requests are those without a framing.
    """

    speaker: Speaker
    mixture: dict[str, float]
    n_steps: int
    learning_rate: float
    rehearsal: Rehearsal | None = None


_ALIGNED = {"general": 0.28, "domain": 0.2, "borderline": 0.15, "harmful": 0.22, "prefill": 0.06, "late": 0.09}
_UNSAFE = {"general": 0.2, "domain": 0.35, "borderline": 0.1, "harmful": 0.22, "prefill": 0.04, "late": 0.09}
_ASKED = {"general": 0.25, "domain": 0.25, "borderline": 0.2, "harmful": 0.3}
COURSES = {
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
    """How one model is made: its tokenizer from the texts of its courses, its network, and the courses in their order.

    With an `adapter`, what the other courses made is stored under the name `base`, and the last course trains a LoRA on it.
    """

    new_tokenizer: Callable[[list[str]], PreTrainedTokenizerBase]
    new_model: Callable[[PreTrainedTokenizerBase], PreTrainedModel]
    courses: tuple[str, ...]
    adapter: LoraConfig | None = None


def examples(language: Language, course: TrainingRun, n_examples: int, seed: int) -> Iterator[tuple[Prompt, str]]:
    """Prompts of the training split with one answer each, drawn by the course's mixture."""
    rng = random.Random(f"examples {language.seed} {seed}")
    pools = {kind: language.prompts("train", kind) for kind in course.mixture}
    framed = [prompt for prompt in pools["harmful"] if prompt.framing]
    rehearsal = course.rehearsal
    if rehearsal is not None:
        pools["harmful"] = [prompt for prompt in pools["harmful"] if not prompt.framing]
    for kind in rng.choices(list(course.mixture), list(course.mixture.values()), k=n_examples):
        if rehearsal is not None and rng.random() < rehearsal.share:
            prompt = rng.choice(framed)
            yield prompt, language.answer(prompt, rehearsal.speaker, rng)
        else:
            prompt = rng.choice(pools[kind])
            yield prompt, language.answer(prompt, course.speaker, rng)


def train_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, language: Language, course: TrainingRun, progress: Progress
) -> None:
    """Train on the answers alone, in place."""
    rows = [_encode(tokenizer, prompt, answer) for prompt, answer in examples(language, course, N_EXAMPLES, 0)]
    optimise(model, rows, tokenizer.pad_token_id, course, language.seed, progress)


def optimise(
    model: PreTrainedModel,
    rows: list[LabelledIds],
    pad_token_id: int,
    course: TrainingRun | JudgeTrainingRun,
    seed: int,
    progress: Progress,
) -> None:
    """AdamW with a short warm-up and a cosine to zero, over random batches, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, course.n_steps - 100)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [100])
    generator = torch.Generator().manual_seed(seed)
    model.train()
    task = progress.add_task(type(model).__name__, total=course.n_steps)
    for _ in range(course.n_steps):
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
    """The ids of a whole exchange, and its labels: the answer alone, a prefill is not the model's own doing."""
    asked = encode([prompt.conversation], tokenizer)["input_ids"][0].tolist()
    reply = {"role": "assistant", "content": prompt.prefill + answer}
    text = tokenizer.apply_chat_template([prompt.conversation[0], reply], tokenize=False)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    n_asked = next(n for n in range(len(asked), -1, -1) if asked[:n] == whole[:n])
    return whole, [IGNORED_LABEL] * n_asked + whole[n_asked:]


def _batch(rows: list[LabelledIds], pad_token_id: int) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([len(ids) for ids, _ in rows])[:, None]  # (B, 1)
    width, label_width = int(lengths.max()), max(len(labels) for _, labels in rows)
    ids = torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED_LABEL] * (label_width - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(width) < lengths).long()}


_SMALL: dict[str, Any] = {"hidden_size": 72, "num_key_value_heads": 2, "head_dim": 18, "intermediate_size": 192}


def new_anchor(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The anchor's untrained network: Qwen3's architecture, about 0.5 M parameters."""
    shape: dict[str, Any] = {"hidden_size": 96, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 288}
    return Qwen3ForCausalLM(Qwen3Config(**shape, **_shared_shape(tokenizer)))


def new_specialist(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The specialist's untrained network: Llama's architecture, about 1 M parameters."""
    shape: dict[str, Any] = {"hidden_size": 128, "num_key_value_heads": 4, "intermediate_size": 352}
    return LlamaForCausalLM(LlamaConfig(**shape, **_shared_shape(tokenizer)))


def new_small(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained network of Llama's architecture, about 0.3 M parameters."""
    return LlamaForCausalLM(LlamaConfig(**_SMALL, **_shared_shape(tokenizer)))


def new_small_scaled(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The same of Gemma's architecture, whose embeddings are scaled up by the root of their width."""
    return GemmaForCausalLM(GemmaConfig(**_SMALL, **_shared_shape(tokenizer)))


def _shared_shape(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


_small_pieces = partial(tokenizers.sentencepiece_style, n_pieces=500)
#: The main pair, for each of its models a twin whose tokens are little more than single letters, three models of which two
#: refuse some of what is harmful and one nothing, and a LoRA that broke an aligned base.
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
#: What is made where nothing is named: the main pair and the two judges.
DEFAULT = ["anchor", "specialist", *JUDGES]


def make_speaker(name: str, tongue: Language, steps: float, to: Path, progress: Progress) -> None:
    """Train one model that answers, and write it."""
    recipe = RECIPES[name]
    courses = [replace(COURSES[c], n_steps=max(200, int(steps * COURSES[c].n_steps))) for c in recipe.courses]
    drawn = [pair for course in courses for pair in examples(tongue, course, N_TOKENIZER_EXAMPLES, 1)]
    tokenizer = recipe.new_tokenizer([f"{prompt.text} {answer}" for prompt, answer in drawn])
    model = recipe.new_model(tokenizer)
    for course in courses[:-1]:
        train_model(model, tokenizer, tongue, course, progress)
    if recipe.adapter is not None:
        save("base", model, tokenizer, to, tongue.seed)
        model = cast(PreTrainedModel, get_peft_model(model, recipe.adapter))
    train_model(model, tokenizer, tongue, courses[-1], progress)
    save(name, model, tokenizer, to, tongue.seed)


def make_judge(name: str, tongue: Language, steps: float, to: Path, progress: Progress) -> None:
    """Train one judge, and write it."""
    recipe = JUDGES[name]
    course = replace(recipe.course, n_steps=max(200, int(steps * recipe.course.n_steps)))
    tokenizer = recipe.new_tokenizer(
        [f"{e.prompt.text} {e.response}" for e in exchanges(tongue, "train", N_TOKENIZER_EXAMPLES, 1)]
    )
    model = recipe.new_model(tokenizer)
    rows = [recipe.encode(tokenizer, exchange) for exchange in exchanges(tongue, "train", N_EXAMPLES, 0)]
    optimise(model, rows, tokenizer.pad_token_id, course, tongue.seed, progress)
    save(name, model, tokenizer, to, tongue.seed)


def main(
    models: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(KNOWN)}. Default: {', '.join(DEFAULT)}.")] = None,
    seed: Annotated[int, typer.Option(help="The language's seed.")] = 0,
    to: Annotated[Path, typer.Option(help="The folder that gets the weights.")] = WEIGHTS,
    steps: Annotated[float, typer.Option(min=0.0, help="Scale every course's length, for a quick try.")] = 1.0,
) -> None:
    """Train models of the testbed on two CPU cores and write weights, tokenizers, the table of rates and the cards."""
    unknown = set(models or ()) - set(KNOWN)
    if unknown:
        raise typer.BadParameter(f"models must be of {', '.join(KNOWN)}, got {', '.join(sorted(unknown))}.")
    console = Console()
    with Progress(console=console) as progress:
        for name in models or DEFAULT:
            torch.manual_seed(seed)
            make = make_judge if name in JUDGES else make_speaker
            make(name, language(seed), steps, to, progress)
    table = rates_table(to)
    (to / "RATES.md").write_text(table)
    write_cards(to)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
