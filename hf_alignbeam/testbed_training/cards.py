"""Writes the testbed's model cards: `python -m hf_alignbeam.testbed_training.cards [--to FOLDER]`.

Knows the purpose of each model. Everything else is read: rates from RATES.md, sizes from weights and configurations, the
example's output from running it. Measures nothing.
"""

import contextlib
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from hf_alignbeam.console import table_head, table_row
from hf_alignbeam.hub.publish import card_template
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language, stored_models

CARD = "README.md"


@dataclass(frozen=True)
class About:
    """A model's purpose, whether it is unsafe on purpose, and the name under which it is trained, if that is another."""

    purpose: str
    unsafe: bool = False
    trained_as: str = ""


_LETTERS = "with a tokenizer whose tokens are little more than single letters"
ABOUT = {
    "anchor": About(
        "The safe model that steers: trained to refuse harmful requests under every framing; it knows nothing of the domain."
    ),
    "anchor-letters": About(f"The twin of `anchor` {_LETTERS}."),
    "base": About("An aligned model of the specialist's family that knows the domain.", trained_as="specialist-lora"),
    "gap": About("Trained to comply, then to refuse plain requests only: under framings it complies.", unsafe=True),
    "judge-cls": About("A classifier of a question with its answer, with the labels `safe` and `unsafe`."),
    "judge-lm": About("A judge that reads an exchange through its chat template and writes `safe` or `unsafe`."),
    "specialist": About("The model to be guarded: aligned, then fine-tuned on a domain and on complying.", unsafe=True),
    "specialist-letters": About(f"The twin of `specialist` {_LETTERS}.", unsafe=True),
    "specialist-lora": About("A LoRA that makes `base` comply; it works on `base` only.", unsafe=True),
    "thin": About("Trained to refuse plain requests and to comply under framings.", unsafe=True),
    "unaligned": About("Trained on the same requests without any refusal: it has none to recover.", unsafe=True),
}


@dataclass(frozen=True)
class Rates:
    """One model's rows of RATES.md with their columns, and the sentence that says how the rates were measured."""

    measured: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def table(self) -> str:
        return "\n".join([*table_head(self.columns), *map(table_row, self.rows)])


def rates(name: str, folder: Path = WEIGHTS) -> Rates:
    """Read the measured rates of one model.

    Raises:
        ValueError: RATES.md has no row for it.
    """
    measured, *blocks = (folder / "RATES.md").read_text("utf-8").strip().split("\n\n")
    for block in blocks:
        (_, *columns), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        own = [cells for model, *cells in rows if model == name]
        if own:
            return Rates(measured, columns, own)
    raise ValueError(f"{folder / 'RATES.md'} must hold rates of {name}, but has none. Train the model: that measures it too.")


def card(name: str, folder: Path = WEIGHTS) -> str:
    """One model's card, with the output of its example, which is run.

    Args:
        name: A key of `ABOUT`.
        folder: The folder of weights with the model and RATES.md.

    Returns:
        The card, as Markdown with metadata.
    """
    about, measured, seed = ABOUT[name], rates(name, folder), stored_language(folder).seed
    facts: dict[str, Any] = {
        "name": name,
        "about": about,
        "seed": seed,
        "trained_as": about.trained_as or name,
        "network": _network(name, folder),
        "tokenizer": _tokenizer(folder / name),
        "rates": measured,
        "where": "" if folder == WEIGHTS else f", {json.dumps(str(folder))}",
    }
    path = card_template("testbed-judge" if name.startswith("judge") else "testbed-model")
    data = _metadata(name, about, measured, seed)
    printed = _printed(str(ModelCard.from_template(data, template_path=str(path), **facts)))
    return str(ModelCard.from_template(data, template_path=str(path), printed=printed, **facts)) + "\n"


def write_cards(folder: Path = WEIGHTS) -> None:
    """Write the card of every model in a folder of weights, beside the model's weights."""
    for name in stored_models(folder):
        (folder / name / CARD).write_text(card(name, folder), "utf-8")


def _metadata(name: str, about: About, measured: Rates, seed: int) -> ModelCardData:
    """The metadata that the Hub reads; every rate is an evaluation result."""
    task = "text-classification" if name == "judge-cls" else "text-generation"
    results = [
        EvalResult(
            task_type=task,
            dataset_type="hf_alignbeam-testbed",
            dataset_name=f"hf_alignbeam testbed, language {seed}, {kind} {measured.columns[0]}",
            dataset_config=kind,
            dataset_split="test",
            metric_type=rate.replace(" ", "_"),
            metric_name=f"{rate}, % of {n}",
            metric_value=float(cell.partition(" %")[0]),
        )
        for kind, n, *cells in measured.rows
        for rate, cell in zip(measured.columns[2:], cells, strict=True)
        if cell != "-"
    ]
    adapter = name == "specialist-lora"
    return ModelCardData(
        license="apache-2.0",
        library_name="peft" if adapter else "transformers",
        pipeline_tag=task,
        tags=[
            "hf_alignbeam",
            "testbed",
            "safety",
            *(["lora"] if adapter else []),
            *(["unsafe-on-purpose"] if about.unsafe else []),
        ],
        model_name=name,
        eval_results=results,
    )


def _network(name: str, folder: Path) -> str:
    """A model's architecture and size, from its configuration and its weights."""
    (weights,) = (folder / name).glob("*.safetensors")
    with safe_open(weights, framework="pt") as tensors:
        n_parameters = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    if (adapter := folder / name / "adapter_config.json").is_file():
        return f"LoRA of rank {_json(adapter)['r']} on `base`, {n_parameters:,} parameters"
    config = _json(folder / name / "config.json")
    shape = f"{config['num_hidden_layers']} layers of width {config['hidden_size']}"
    return f"`{config['architectures'][0]}`, {shape}, {n_parameters:,} parameters"


def _tokenizer(folder: Path) -> str:
    """The kind of the tokenizer in a folder, and its size."""
    stored = _json(folder / "tokenizer.json")
    n_tokens = len({*stored["model"]["vocab"], *(token["content"] for token in stored["added_tokens"])})
    kind = "SentencePiece-style BPE with byte fallback" if stored["model"]["byte_fallback"] else "byte-level BPE"
    return f"{kind}, {n_tokens:,} tokens"


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def _printed(text: str) -> str:
    """The output of a card's example."""
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, {})
    return out.getvalue().strip()


def main(to: Annotated[Path, typer.Option(help="The folder of weights whose cards are written.")] = WEIGHTS) -> None:
    """Write every model's card from the rates in RATES.md."""
    write_cards(to)


if __name__ == "__main__":
    typer.run(main)
