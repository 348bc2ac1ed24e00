"""The testbed's model cards, a README.md beside each model's weights.

`python -m hf_alignbeam.testbed_training.cards [--to FOLDER]` writes them.

Knows what each model is for, and reads everything else: rates from the RATES.md that the training measured, sizes from the
weights and their configuration, what the example prints from running it. It measures nothing.
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
    """What a model is for, whether it complies with harm on purpose, and what names it to the training: itself, if nothing."""

    purpose: str
    unsafe: bool = False
    trained_as: str = ""


_LETTERS = "with a tokenizer whose tokens are little more than single letters"
ABOUT = {
    "anchor": About(
        "The safe model that steers: taught to refuse what is harmful under every framing, and nothing of the domain."
    ),
    "anchor-letters": About(f"The twin of `anchor` {_LETTERS}."),
    "base": About("An aligned model of the specialist's family that knows the domain.", trained_as="specialist-lora"),
    "gap": About("Taught to comply first, then to refuse plain requests only: under framings it complies.", unsafe=True),
    "judge-cls": About("A classifier of pairs of question and answer, with the labels `safe` and `unsafe`."),
    "judge-lm": About("A guard that reads an exchange through its chat template and says `safe` or `unsafe`."),
    "specialist": About("The model to be guarded: aligned first, then fine-tuned on a domain and on complying.", unsafe=True),
    "specialist-letters": About(f"The twin of `specialist` {_LETTERS}.", unsafe=True),
    "specialist-lora": About("A LoRA that makes `base` comply; it works on nothing but `base`.", unsafe=True),
    "thin": About("Taught to refuse plain requests and to comply under framings.", unsafe=True),
    "unaligned": About("Taught the same requests and never a refusal: there is nothing in it to bring back.", unsafe=True),
}


@dataclass(frozen=True)
class Rates:
    """One model's rows of RATES.md, under their columns, and the line above all tables that says how they were measured."""

    measured: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def table(self) -> str:
        return "\n".join([*table_head(self.columns), *map(table_row, self.rows)])


def rates(name: str, folder: Path = WEIGHTS) -> Rates:
    """Read what was measured of one model.

    Raises:
        ValueError: RATES.md has no row of it.
    """
    measured, *blocks = (folder / "RATES.md").read_text().strip().split("\n\n")
    for block in blocks:
        (_, *columns), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found = [cells for model, *cells in rows if model == name]
        if found:
            return Rates(measured, columns, found)
    raise ValueError(f"{folder / 'RATES.md'} must hold rates of {name}, and has none. Train it, which measures too.")


def card(name: str, folder: Path = WEIGHTS) -> str:
    """One model's card, its example run as it stands there.

    Args:
        name: One of `ABOUT`.
        folder: The folder of weights that holds it, and its rates.

    Returns:
        The card, as Markdown with its metadata.
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
    """Write the card of every model in a folder of weights, beside its weights."""
    for name in stored_models(folder):
        (folder / name / CARD).write_text(card(name, folder))


def _metadata(name: str, about: About, measured: Rates, seed: int) -> ModelCardData:
    """What the Hub reads: an adapter is peft's, everything else transformers' own; every rate is an evaluation's result."""
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
    """A model's architecture and its size, as its configuration and its weights have them."""
    (weights,) = (folder / name).glob("*.safetensors")
    with safe_open(weights, framework="pt") as tensors:
        n_parameters = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    if (adapter := folder / name / "adapter_config.json").is_file():
        return f"LoRA of rank {_json(adapter)['r']} on `base`, {n_parameters:,} parameters"
    config = _json(folder / name / "config.json")
    shape = f"{config['num_hidden_layers']} layers of width {config['hidden_size']}"
    return f"`{config['architectures'][0]}`, {shape}, {n_parameters:,} parameters"


def _tokenizer(folder: Path) -> str:
    """What kind of tokenizer lies in a folder, and how many tokens it knows."""
    stored = _json(folder / "tokenizer.json")
    n_tokens = len({*stored["model"]["vocab"], *(token["content"] for token in stored["added_tokens"])})
    kind = "SentencePiece-style BPE with byte fallback" if stored["model"]["byte_fallback"] else "byte-level BPE"
    return f"{kind}, {n_tokens:,} tokens"


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def _printed(text: str) -> str:
    """What the example of a card prints."""
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, {})
    return out.getvalue().strip()


def main(to: Annotated[Path, typer.Option(help="The folder of weights whose cards are written.")] = WEIGHTS) -> None:
    """Write every model's card anew, from rates that were measured before."""
    write_cards(to)


if __name__ == "__main__":
    typer.run(main)
