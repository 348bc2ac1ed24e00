"""Writes the folders of strategies and protected models, and pushes them to the Hub.

Knows files, model cards and repositories. Knows nothing of what the published code does once it is loaded.
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
from hf_alignbeam.hub.loading_files import ADAPTER_CONFIG
from hf_alignbeam.hub.protected.checks import check_guard
from hf_alignbeam.hub.protected.generate import check_protection
from hf_alignbeam.hub.protected.model import TARGET_FOLDER, ProtectedConfig
from hf_alignbeam.hub.protected.pinning import pinned
from hf_alignbeam.hub.protected.target import find_target, write_target
from hf_alignbeam.utils.hub_push import explain_push_errors, push_folder
from hf_alignbeam.utils.written_files import check_unused, check_written, record_written, whole_folder
from hf_alignbeam.versions import OLDEST

Strategy = Literal["anchor-logits", "alignbeam", "embedding-steerer"]

PACKAGE = Path(__file__).parents[1]
#: For each strategy, the function that is its folder's `generate`, and the module that holds it.
ENTRIES: dict[str, tuple[str, str]] = {
    "anchor-logits": ("anchor_logits", "hf_alignbeam.hub.anchor_logits"),
    "alignbeam": ("alignbeam", "hf_alignbeam.hub.alignbeam"),
    "embedding-steerer": ("embedding_steerer", "hf_alignbeam.hub.embedding_steerer"),
}
#: The same for a protected model, and the module at the top of its folder.
PROTECTED_ENTRY = ("protected_generate", "hf_alignbeam.hub.protected.generate")
PROTECTED_MODEL = "hf_alignbeam.hub.protected.model"
CARD_FILE, CODE_FOLDER = "README.md", "custom_generate"
#: The record of the files that this package wrote.
WRITTEN_FILE = f"{CODE_FOLDER}/written.json"
#: For each strategy, the arguments of the example in an adapter's card.
EXAMPLE_ARGUMENTS = {
    "anchor-logits": 'anchor="base"',
    "alignbeam": 'anchor="base",\n    judge="Qwen/Qwen3Guard-Gen-0.6B"',
    "embedding-steerer": 'judge="Qwen/Qwen3Guard-Gen-0.6B"',
}
#: The section of an adapter's card that this package writes.
CARD_SECTION = re.compile(r"\n*<!-- hf_alignbeam -->.*<!-- /hf_alignbeam -->\n*", re.S)


def card_template(name: str) -> Path:
    """The template file of a model card: inside an installed package, beside it in a checkout."""
    folders = [PACKAGE / "model_cards", PACKAGE.parent / "model_cards"]
    return next(folder / f"{name}.md" for folder in folders if folder.is_dir())


def write_strategy(strategy: Strategy, folder: Path, repo: str = "OWNER/NAME") -> None:
    """Write a Hub folder whose `generate` is a strategy.

    Args:
        strategy: A key of `ENTRIES`.
        folder: The folder, created if it does not exist. If it holds an adapter, the strategy and a section of the card are
            added to it; otherwise it may hold nothing but an earlier version of the strategy.
        repo: The repository's name, for the card.

    Raises:
        ValueError: There is no such strategy, or the folder holds other files.
        OSError: The folder cannot be written. It is as it was.
    """
    if strategy not in ENTRIES:
        raise ValueError(f"`strategy` must be one of {', '.join(ENTRIES)}, got {strategy!r}.")
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter:
        check_written(folder, [CODE_FOLDER], WRITTEN_FILE)
        existing = folder / CARD_FILE
        if existing.is_symlink():
            raise ValueError(f"{existing} must be a file, but is a link to {existing.resolve()}. Put a copy there.")
        kept = CARD_SECTION.sub("\n\n", existing.read_text("utf-8")).rstrip() + "\n\n" if existing.is_file() else ""
        card = kept + _filled_card("adapter", {"REPO": repo, "STRATEGY": strategy, "ARGUMENTS": EXAMPLE_ARGUMENTS[strategy]})
    else:
        check_unused(folder, {CARD_FILE, CODE_FOLDER})
        check_written(folder, [CARD_FILE, CODE_FOLDER], WRITTEN_FILE)
        card = _filled_card(strategy, {"REPO": repo})
    with whole_folder(folder) as made:
        _write_code(made, ENTRIES[strategy])
        (made / CARD_FILE).write_text(card, "utf-8")
        record_written(made, [CODE_FOLDER] if is_adapter else [CARD_FILE, CODE_FOLDER], WRITTEN_FILE)


def write_protected(
    model: str, folder: Path, protection: Mapping[str, Any], revision: str | None = None, repo: str = "", linked: bool = False
) -> None:
    """Write a model repository that cannot be loaded without its guard.

    Args:
        model: The target: a folder or a Hub id. The files that loading needs are copied, and no others.
        folder: The folder; it must be new or empty. It appears when everything is written.
        protection: `anchor` and `judge`, their revisions, what is said of the judge (`judge_profile` as a name or a mapping,
            `judge_rubric` and so on), and the settings of `AlignBeam` that JSON can hold. An anchor or a judge on the Hub is
            pinned to its current commit; of one in a folder, the absolute path and a hash are stored.
        revision: The branch, tag or commit of the target's repository.
        repo: The repository's name, for the card.
        linked: Whether the target's files are links, for a folder that is uploaded at once.

    Raises:
        ValueError: The target is no causal model of transformers, its weights are cut off, the folder is not empty, or the
            anchor, the judge and the settings make no guard: both models are loaded to find out, on a GPU where there is one.
        OSError: The target's files, the anchor or the judge cannot be loaded.
    """
    check_unused(folder, set())
    check_protection(protection)
    source = find_target(model, revision)
    protection = {**protection, **pinned("anchor", protection), **pinned("judge", protection)}
    with whole_folder(folder) as made:
        write_target(source, made, protection, linked)
        _write_guard_code(source, made)
        check_guard(model, made, protection)
        values = {"REPO": repo or folder.name, "MODEL": _markdown_link(model)}
        values |= {"ANCHOR": _markdown_link(str(protection["anchor"])), "JUDGE": _markdown_link(str(protection["judge"]))}
        card = ModelCard(_filled_card("protected", values))
        if not os.path.isdir(model):  # the Hub rejects a card whose base model is not on the Hub
            card.data["base_model"] = model
        for key, value in _license(source).items():
            card.data[key] = value
        (made / CARD_FILE).write_text(str(card), "utf-8")
        record_written(made, [CARD_FILE, CODE_FOLDER], WRITTEN_FILE)


def _write_guard_code(source: Path, folder: Path) -> None:
    """Write the class that loads a protected model, the configuration that names it, and its `generate`."""
    config = {
        "model_type": ProtectedConfig.model_type,
        "vocab_size": AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config().vocab_size,  # for peft (0.21)
        "architectures": ["AutoModelForCausalLM"],  # `transformers serve` looks this up among its own classes (5.23)
        "auto_map": {
            "AutoConfig": f"{flat_name(PROTECTED_MODEL)}.ProtectedConfig",
            "AutoModelForCausalLM": f"{flat_name(PROTECTED_MODEL)}.ProtectedModelForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    write_flat(PROTECTED_MODEL, folder)
    _write_code(folder, PROTECTED_ENTRY)


def push(write: Callable[[Path], None], repo: str, private: bool = False) -> str:
    """Write a folder and upload it.

    Args:
        write: Writes the files into a folder, which is empty or holds an adapter's configuration and card.
        repo: The Hub id, created if it does not exist.
        private: Whether a repository that is created is private.

    Returns:
        The commit's address; its last part is the commit to pin with `revision=`.

    Raises:
        ValueError: The repository holds files that would stay beside the ones pushed.
        OSError: The Hub rejects the push, or does not answer.
    """
    remote = _remote_files(repo)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repo
        folder.mkdir(parents=True)
        for name in {ADAPTER_CONFIG, CARD_FILE} & remote if ADAPTER_CONFIG in remote else ():
            shutil.copy(hf_hub_download(repo, name), folder / name)
        write(folder)
        others = {name.split("/")[0] for name in remote} - {path.name for path in folder.iterdir()} - {".gitattributes"}
        if others and ADAPTER_CONFIG not in remote:  # a model beside its guard could be loaded without it
            raise ValueError(
                f"The repository must be new, or pushed by this command, but {repo} holds {', '.join(sorted(others))}."
            )
        replaced = [CODE_FOLDER] if ADAPTER_CONFIG in remote else [CARD_FILE, CODE_FOLDER]
        if any(name == CARD_FILE or name.startswith(f"{CODE_FOLDER}/") for name in remote):
            with explain_push_errors(repo):
                patterns = [CARD_FILE, f"{CODE_FOLDER}/*"]
                snapshot_download(repo, allow_patterns=patterns, local_dir=Path(temporary) / "remote")
            check_written(Path(temporary) / "remote", replaced, WRITTEN_FILE, repo)
        ours = (f"{CODE_FOLDER}/", f"{TARGET_FOLDER}/")
        outdated = {name for name in remote if name.startswith(ours) and not (folder / name).exists()}
        return push_folder(folder, repo, "Publish with hf_alignbeam", private, sorted(outdated))


def _remote_files(repo: str) -> set[str]:
    """The files of a repository; empty if there is no such repository."""
    with explain_push_errors(repo):
        try:
            return set(HfApi().list_repo_files(repo))
        except RepositoryNotFoundError:
            return set()


def _write_code(folder: Path, entry: tuple[str, str]) -> None:
    """Write an entry's closure, the `generate.py` that transformers imports, and the oldest releases it runs on."""
    function, module = entry
    code = folder / CODE_FOLDER
    write_flat(module, code)
    (code / "generate.py").write_text(
        f'from .{flat_name(module)} import {function} as generate\n\n__all__ = ["generate"]\n', "utf-8"
    )
    bounds = [f"{package}>={oldest}" for package, oldest in OLDEST.items()]
    (code / "requirements.txt").write_text("".join(f'{bound}  # pip install -U "{bound}"\n' for bound in bounds), "utf-8")


def _license(source: Path) -> dict[str, str]:
    """The license fields of the target's card, which hold for its weights in the protected repository too."""
    if not (source / CARD_FILE).is_file():
        return {}
    data = ModelCard.load(source / CARD_FILE, ignore_metadata_errors=True).data
    fields = {key: data.get(key) for key in ("license", "license_name", "license_link") if data.get(key)}
    if (link := fields.get("license_link")) and (source / link).is_file():
        fields["license_link"] = f"{TARGET_FOLDER}/{link}"
    return fields


def _markdown_link(name: str) -> str:
    """A model's name in Markdown: a link for a Hub id, plain for a folder."""
    return name if os.path.isdir(name) else f"[{name}](https://huggingface.co/{name})"


def _filled_card(name: str, values: Mapping[str, str]) -> str:
    """A model card with its placeholders filled in."""
    text = card_template(name).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", value)
    return text
