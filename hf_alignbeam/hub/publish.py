"""Hub folders: a strategy that any model can load, or a model that brings its own protection.

Knows files. What they do once they are loaded is `doors.py`'s and `protected.py`'s business.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import AutoConfig

from hf_alignbeam.hub.flatten import flat_name, write_flat
from hf_alignbeam.hub.model_loading import explain_load_errors
from hf_alignbeam.hub.protected_generate import KEY
from hf_alignbeam.hub.protected_model import CONFIG, TARGET, ProtectedConfig
from hf_alignbeam.utils.hub_push import explain_push_errors, push_folder
from hf_alignbeam.versions import OLDEST

Strategy = Literal["anchor-logits", "alignbeam", "embedding-steerer"]

PACKAGE = Path(__file__).parents[1]
#: By the name of a strategy, the function that its folder's `generate` is, and the module that holds it.
ENTRIES: dict[str, tuple[str, str]] = {
    "anchor-logits": ("anchor_logits", "hf_alignbeam.hub.anchor_logits"),
    "alignbeam": ("alignbeam", "hf_alignbeam.hub.alignbeam"),
    "embedding-steerer": ("embedding_steerer", "hf_alignbeam.hub.embedding_steerer"),
}
#: The same of a protected model, and the module at the top of its folder.
PROTECTED_ENTRY, PROTECTED_MODEL = ("protected", "hf_alignbeam.hub.protected_generate"), "hf_alignbeam.hub.protected_model"
#: What of a model's repository lies at the top of a protected one too, for tokenizers are looked for there.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "added_tokens.json", "vocab*", "merges.txt")
CARD, CODE = "README.md", "custom_generate"
#: What is left behind: the repository's own card would not be true of the protected one, nor its history.
LEFT_OUT = (CARD, ".git*", f"{CODE}*")
#: What tells an adapter's repository.
ADAPTER = "adapter_config.json"
#: What a call names in an adapter's repository, by the strategy that lies there.
NAMED = {
    "anchor-logits": 'anchor="base"',
    "alignbeam": 'anchor="base",\n    judge="meta-llama/Llama-Guard-3-1B"',
    "embedding-steerer": 'judge="meta-llama/Llama-Guard-3-1B"',
}
#: Our part of an adapter's card.
PART = re.compile(r"\n*<!-- hf_alignbeam -->.*<!-- /hf_alignbeam -->\n*", re.S)


def card_template(name: str) -> Path:
    """The file of a model card whose names are open: in the package, or beside it where it is not installed."""
    places = [PACKAGE / "model_cards", PACKAGE.parent / "model_cards"]
    return next(place / f"{name}.md" for place in places if place.is_dir())


def write_strategy(strategy: Strategy, folder: Path, repo: str = "OWNER/NAME") -> None:
    """Write a Hub folder whose `generate` is a strategy.

    Args:
        strategy: One of `ENTRIES`.
        folder: Where to; made if need be, and not emptied. To an adapter the strategy is added, and a part to its card.
        repo: The name that the card calls it by.

    Raises:
        ValueError: There is no such strategy, or the folder holds other things.
    """
    if strategy not in ENTRIES:
        raise ValueError(f"`strategy` must be one of {', '.join(ENTRIES)}, got {strategy!r}.")
    if (folder / ADAPTER).is_file():
        own = PART.sub("\n\n", (folder / CARD).read_text()).rstrip() + "\n\n" if (folder / CARD).is_file() else ""
        card = own + _card("adapter", {"REPO": repo, "STRATEGY": strategy, "NAMED": NAMED[strategy]})
    else:
        _check_free(folder, {CARD, CODE})
        card = _card(strategy, {"REPO": repo})
    _write_code(folder, ENTRIES[strategy])
    (folder / CARD).write_text(card)


def write_protected(model: str, folder: Path, protection: Mapping[str, Any], revision: str | None = None, repo: str = "") -> None:
    """Write a model repository that cannot be loaded without its guard.

    Args:
        model: The target: a folder, whose files are linked where the disk allows it, or a Hub id.
        folder: Where to; it must not hold anything.
        protection: `anchor` and `judge`, their revisions, and what `AlignBeam` takes, as JSON can hold it. Those of the Hub are
            pinned to the commit that they are at.
        revision: Of the target's repository.
        repo: The name that the card calls it by.

    Raises:
        ValueError: The target is not a causal model, is protected already, or the folder is in use.
        OSError: The target, the anchor or the judge cannot be had from the Hub.
    """
    _check_free(folder, set())
    with explain_load_errors(model):
        source = Path(model if os.path.isdir(model) else snapshot_download(model, revision=revision))
    if (source / ADAPTER).is_file() and not (source / "config.json").is_file():
        raise ValueError(
            f"`model` must be a causal language model, and {model} is an adapter, which nothing loads with a guard. Merge "
            f"it into its base, or add a strategy that calls can name: alignbeam publish alignbeam --to {model}"
        )
    made_for = " ".join(AutoConfig.from_pretrained(source).architectures or ())
    if "CausalLM" not in made_for and "ConditionalGeneration" not in made_for:
        raise ValueError(f"`model` must be a causal language model, and {model} is none.")
    if "auto_map" in json.loads((source / "config.json").read_text()):
        raise ValueError(f"`model` must be of a class that transformers has, but {model} brings code of its own.")
    protection = {**protection, **_pins(protection)}
    settings = source / "generation_config.json"
    generation = json.loads(settings.read_text()) if settings.is_file() else {}
    generation.pop("_from_model_config", None)  # where it is set, transformers 5.23 drops every key that it does not know
    (folder / TARGET).mkdir(parents=True)
    for file in _files(source):
        name = CONFIG if file == source / "config.json" else file.relative_to(source)
        _link(file, folder / TARGET / name)
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copy(file, folder / file.name)
    (folder / "generation_config.json").write_text(json.dumps({**generation, KEY: protection}, indent=2) + "\n")
    config = {
        "model_type": ProtectedConfig.model_type,
        "architectures": ["AutoModelForCausalLM"],  # `transformers serve` looks this up among its own classes (5.23)
        "auto_map": {
            "AutoConfig": f"{flat_name(PROTECTED_MODEL)}.ProtectedConfig",
            "AutoModelForCausalLM": f"{flat_name(PROTECTED_MODEL)}.ProtectedModelForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_flat(PROTECTED_MODEL, folder)
    _write_code(folder, PROTECTED_ENTRY)
    names = {"REPO": repo or folder.name, "MODEL": _linked(model)}
    names |= {"ANCHOR": _linked(str(protection["anchor"])), "JUDGE": _linked(str(protection["judge"]))}
    card = ModelCard(_card("protected", names))
    if not os.path.isdir(model):  # the Hub takes no card whose base model is none of its own
        card.data["base_model"] = model
    for key, value in _license(source).items():
        card.data[key] = value
    (folder / CARD).write_text(str(card))


def push(write: Callable[[Path], None], repo: str, private: bool = False) -> str:
    """Write a folder and upload it.

    Args:
        write: Writes it, given an empty one, or what an adapter's repository says of it.
        repo: The Hub id, made if need be.
        private: Whether a repository that is made is private.

    Returns:
        The commit's address, whose last part is what `revision=` should be.

    Raises:
        ValueError: The repository holds other things than it would be given.
        OSError: The Hub does not take it, or does not answer.
    """
    held = _held(repo)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / repo
        folder.mkdir(parents=True)
        for name in {ADAPTER, CARD} & held if ADAPTER in held else ():
            shutil.copy(hf_hub_download(repo, name), folder / name)
        write(folder)
        others = {name.split("/")[0] for name in held} - {path.name for path in folder.iterdir()} - {".gitattributes"}
        if others and ADAPTER not in held:  # a model beside its guard could be loaded without it
            raise ValueError(
                f"The repository must be new, or pushed by this command, but {repo} holds {', '.join(sorted(others))}."
            )
        gone = {name for name in held if name.startswith((f"{CODE}/", f"{TARGET}/")) and not (folder / name).exists()}
        return push_folder(folder, repo, "Publish with hf_alignbeam", private, sorted(gone))


def _held(repo: str) -> set[str]:
    """The files of a repository; none where there is none yet."""
    with explain_push_errors(repo):
        try:
            return set(HfApi().list_repo_files(repo))
        except RepositoryNotFoundError:
            return set()


def _pins(protection: Mapping[str, Any]) -> dict[str, str]:
    """The commits that anchor and judge are at, where they are the Hub's: a branch that moves would change what passes."""
    pins = {}
    for kind in ("anchor", "judge"):
        name = str(protection[kind])
        if not os.path.isdir(name):
            with explain_load_errors(name):
                config = hf_hub_download(name, "config.json", revision=protection.get(f"{kind}_revision"))
            pins[f"{kind}_revision"] = Path(config).parent.name
    return pins


def _write_code(folder: Path, entry: tuple[str, str]) -> None:
    function, module = entry
    code = folder / CODE
    write_flat(module, code)
    (code / "generate.py").write_text(f'from .{flat_name(module)} import {function} as generate\n\n__all__ = ["generate"]\n')
    bounds = [f"{package}>={oldest}" for package, oldest in OLDEST.items()]
    (code / "requirements.txt").write_text("".join(f'{bound}  # pip install -U "{bound}"\n' for bound in bounds))


def _check_free(folder: Path, ours: set[str]) -> None:
    others = {path.name for path in folder.iterdir()} - ours if folder.is_dir() else set()
    if folder.is_file() or others:
        raise ValueError(f"The folder must be new or empty, but {folder} holds {', '.join(sorted(others)) or 'no folder'}.")


def _files(source: Path) -> list[Path]:
    left_out = {file for pattern in LEFT_OUT for place in source.glob(pattern) for file in (place, *place.rglob("*"))}
    return [file for file in source.rglob("*") if file.is_file() and file not in left_out]


def _link(source: Path, to: Path) -> None:
    """One file under another name too; copied where the disk cannot do that."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), to)
    except OSError:
        shutil.copy(source, to)


def _license(source: Path) -> dict[str, str]:
    """What the target's own card says of its license, which holds for the weights wherever they lie."""
    if not (source / CARD).is_file():
        return {}
    told = ModelCard.load(source / CARD, ignore_metadata_errors=True).data
    found = {key: told.get(key) for key in ("license", "license_name", "license_link") if told.get(key)}
    if (link := found.get("license_link")) and (source / link).is_file():
        found["license_link"] = f"{TARGET}/{link}"
    return found


def _linked(name: str) -> str:
    """A model's name, as a link where the Hub has it."""
    return name if os.path.isdir(name) else f"[{name}](https://huggingface.co/{name})"


def _card(name: str, names: Mapping[str, str]) -> str:
    """A model card with its names filled in."""
    text = card_template(name).read_text()
    for key, value in names.items():
        text = text.replace(f"{{{{{key}}}}}", value)
    return text
