"""Prompts with the embeddings that a search found for them: saved, loaded for the same model, and given to `generate`.

Knows tensors, files and what each prompt cost. Knows no search.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.chat.conversations import Conversation, Message, as_message_lists, as_messages
from hf_alignbeam.embedding_search.embeddings import left_padded, token_embeddings
from hf_alignbeam.embedding_search.fingerprint import model_sha256
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.utils.hub_push import push_folder
from hf_alignbeam.utils.whole_files import replace_together

#: `clean`: the model's own answer passed. `steered`: another answer was accepted and passed. `fallback`: an answer passed that
#: was not accepted. `failed`: no answer passed.
SearchOutcome = Literal["clean", "steered", "fallback", "failed"]
RECORDS, TENSORS = "steered.json", "steered.safetensors"
#: The version of the files' layout.
LAYOUT = 1


@dataclass(frozen=True)
class SteeredPrompt:
    """The result of one prompt's search.

    Attributes:
        messages: The prompt's conversation.
        embeds: (T, D) the embeddings to give to the model; if the search failed, those with the least harm.
        outcome: How the search ended.
        ids: The ids of the answer to the embeddings, its end included.
        text: The whole answer, as the judge read it.
        harm: The answer's harm, in [0, 1].
        harm_by_call: The judge's verdicts, in order; the first is on the model's own answer.
        n_generated: The number of answers generated, the first one included.
        seconds: The time of the search: its share of the batches that it was in.
    """

    messages: list[Message]
    embeds: Tensor = field(repr=False)
    outcome: SearchOutcome
    ids: list[int] = field(repr=False)
    text: str
    harm: float
    harm_by_call: list[float]
    n_generated: int
    seconds: float

    @property
    def n_oracle_calls(self) -> int:
        """The number of answers that the judge was asked about."""
        return len(self.harm_by_call)

    @property
    def is_acceptable(self) -> bool:
        """Whether the answer passes and was accepted, or is the model's own and passes."""
        return self.outcome in ("clean", "steered")


@dataclass
class SteeredOutput(ModelOutput):
    """What `EmbeddingSteerer.generate` returns with `return_dict_in_generate=True`. Every field has one row for each prompt.

    Attributes:
        sequences: (B, length) prompts and answers.
        harm: (B,) harm of each answer; NaN for the refusal text.
        chosen: (B,) 0 if the model's own answer passed, 1 if another answer was found, -1 for the refusal text.
        judged: (B,) number of answers that the judge was asked about.
        generated: (B,) number of answers that were generated.
    """

    sequences: Tensor | None = None
    harm: Tensor | None = None
    chosen: Tensor | None = None
    judged: Tensor | None = None
    generated: Tensor | None = None


def steered_output(sequences: Tensor, prompts: Sequence[SteeredPrompt]) -> SteeredOutput:
    """The output of `generate` for the results of B searches."""
    chosen = [(0 if prompt.outcome == "clean" else 1) if prompt.is_acceptable else -1 for prompt in prompts]
    return SteeredOutput(
        sequences=sequences,
        harm=torch.tensor([prompt.harm if prompt.is_acceptable else math.nan for prompt in prompts]),
        chosen=torch.tensor(chosen),
        judged=torch.tensor([prompt.n_oracle_calls for prompt in prompts]),
        generated=torch.tensor([prompt.n_generated for prompt in prompts]),
    )


class SteeredPrompts:
    """A collection of prompts with their embeddings.

    Args:
        prompts: The prompts.
        model: The name of the model that was searched.
        sha256: The model's `model_sha256`.
        settings: The settings of the search, as JSON can hold them.

    Example:
        >>> model.generate(**steered.inputs(["How do I kill the weeds?"]))
    """

    def __init__(self, prompts: Sequence[SteeredPrompt], model: str, sha256: str, settings: Mapping[str, Any]):
        self._prompts = {conversation_key(prompt.messages): prompt for prompt in prompts}
        self.model = model
        self.sha256 = sha256
        self.settings = dict(settings)

    def add(self, prompt: SteeredPrompt) -> None:
        """Add a prompt, in place of an earlier one with the same conversation."""
        self._prompts[conversation_key(prompt.messages)] = prompt

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[SteeredPrompt]:
        return iter(self._prompts.values())

    def __contains__(self, conversation: Conversation) -> bool:
        return conversation_key(as_messages(conversation)) in self._prompts

    def __getitem__(self, conversation: Conversation) -> SteeredPrompt:
        """The prompt of a conversation.

        Raises:
            ValueError: The collection does not hold it.
        """
        messages = as_messages(conversation)
        key = conversation_key(messages)
        if key not in self._prompts:
            raise ValueError(
                f"`conversations` must hold prompts of this collection, got {messages!r}. Add it with `precompute`: no other "
                "prompt's answer was judged."
            )
        return self._prompts[key]

    def inputs(self, conversations: Sequence[Conversation], fallback: bool = False) -> dict[str, Tensor]:
        """The inputs that make `generate` give the answers that were judged.

        Args:
            conversations: B conversations.
            fallback: Whether to include embeddings whose answer passed the judge but was not accepted.

        Returns:
            `inputs_embeds` (B, T, D) and `attention_mask` (B, T), padded on the left. Generating with the search's settings gives
            the answer that was judged. An answer that is sampled from them was not judged.

        Raises:
            ValueError: The collection does not hold a conversation, or the search found no acceptable answer to it.
        """
        prompts = [self[conversation] for conversation in as_message_lists(conversations)]
        allowed = ("clean", "steered", "fallback") if fallback else ("clean", "steered")
        for prompt in prompts:
            if prompt.outcome not in allowed:
                alternative = " Or pass `fallback=True`." if prompt.outcome == "fallback" else ""
                raise ValueError(
                    f"`conversations` must hold prompts with an acceptable answer, but {prompt.messages!r} ended as "
                    f"{prompt.outcome!r}. Check `outcome` and refuse such a prompt.{alternative}"
                )
        return left_padded([prompt.embeds for prompt in prompts])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the collection: the embeddings as safetensors, and all else, conversations and answers included, as JSON.

        Raises:
            OSError: A file cannot be written. A collection that the folder held before is as it was.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: prompt.embeds.cpu().contiguous() for key, prompt in self._prompts.items()}
        records = [{name: value for name, value in asdict(prompt).items() if name != "embeds"} for prompt in self]
        data = save(tensors, {"sha256": self.sha256})  # `save_file` raises errors of its own where the disk is full
        named = {"layout": LAYOUT, "model": self.model, "sha256": self.sha256, "tensors_sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps({**named, "settings": self.settings, "prompts": records}, indent=1, ensure_ascii=False) + "\n"
        replace_together([(folder / TENSORS, data), (folder / RECORDS, text.encode())])

    @classmethod
    def from_pretrained(cls, name: str | Path, model: PreTrainedModel, revision: str | None = None) -> "SteeredPrompts":
        """Read a collection.

        Args:
            name: A folder, or a Hub id.
            model: The model that is to answer. The embeddings are moved to the device of its own.
            revision: The revision of the Hub repository.

        Raises:
            ValueError: The embeddings belong to another model, a file is missing or damaged, or there is no such folder or
                repository.
        """
        written, prompts = _read_collection(_local_folder(str(name), revision))
        if model_sha256(model) != written["sha256"]:
            raise ValueError(
                f"`model` must be the model that was searched ({written['model']!r}), adapters included, but "
                f"{model.config.name_or_path!r} is another. Load that model, or precompute for this one."
            )
        own = token_embeddings(model, [0])
        for prompt in prompts:
            if prompt.embeds.dtype != own.dtype:
                raise ValueError(
                    f"`model` must be loaded as {prompt.embeds.dtype}, the dtype of the search, got {own.dtype}. Load it so, or "
                    "precompute in this dtype: the answers would differ."
                )
        moved = [replace(prompt, embeds=prompt.embeds.to(own.device)) for prompt in prompts]
        return cls(moved, written["model"], written["sha256"], written["settings"])

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Upload the collection, conversations and answers included.

        Args:
            repo: The Hub id, created if need be.
            private: Whether a repository that is created is private.

        Returns:
            The commit's address, whose last part is what `revision=` should be.

        Raises:
            OSError: The Hub refuses the push or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(Path(folder), repo, "Steered prompts", private)


def _local_folder(name: str, revision: str | None) -> Path:
    """A folder as it is, or that of a Hub repository's copy."""
    if os.path.isdir(name):
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"`name` must be a folder or the Hub id of a collection, but {name!r} is no folder here, and the Hub gave none: "
            f"{error} Check the path, or the id and the connection."
        ) from error


def _read_collection(folder: Path) -> tuple[dict[str, Any], list[SteeredPrompt]]:
    """What a collection's JSON file holds, and its prompts."""
    with _one_error(folder / RECORDS):
        written = json.loads((folder / RECORDS).read_text("utf-8"))
        layout = written["layout"]
    if layout != LAYOUT:
        raise ValueError(f"The collection must be of layout {LAYOUT}, but {folder} is of {layout}. Precompute it again.")
    with _one_error(folder / TENSORS):
        data = (folder / TENSORS).read_bytes()
        tensors = load(data)
        if written.get("tensors_sha256") not in (None, hashlib.sha256(data).hexdigest()):  # none in older folders
            raise ValueError(f"its bytes are not those of {RECORDS}")
    with _one_error(folder / RECORDS):
        prompts = [SteeredPrompt(embeds=tensors[conversation_key(each["messages"])], **each) for each in written["prompts"]]
        return {name: written[name] for name in ("model", "sha256", "settings")}, prompts


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file of a collection leads to into one error, which names it."""
    try:
        yield
    except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{path} must be as `save_pretrained` wrote it, but it is not: {type(error).__name__}, {error}. Copy the folder "
            "again, or precompute once more: what its journal holds is not paid for again."
        ) from error


class EmbeddingSearchError(JudgeError):
    """A search stopped because the judge or `accept` gave no verdict.

    Attributes:
        steered: The prompts whose search had ended. No other prompt has a result.
    """

    def __init__(self, message: str, steered: SteeredPrompts, judge_error: Exception | None = None):
        super().__init__(message, judge_error)
        self.steered = steered
