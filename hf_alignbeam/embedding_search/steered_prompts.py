"""Prompts with the embeddings that were found for them: stored, loaded for the same model, and given to `generate`.

Knows tensors, files and what each prompt cost. Knows no search.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from hf_alignbeam.chat.conversations import Conversation, Message, as_message_lists, as_messages, conversation_key
from hf_alignbeam.embedding_search.embeddings import embedded, left_padded
from hf_alignbeam.embedding_search.fingerprint import model_sha256
from hf_alignbeam.utils.hub_push import push_folder

#: `clean`: the model's own answer passed. `steered`: another one was accepted and passed. `fallback`: what was found passed
#: without being accepted. `failed`: nothing passed.
Outcome = Literal["clean", "steered", "fallback", "failed"]
RECORDS, TENSORS = "steered.json", "steered.safetensors"
#: The version of the files' layout.
LAYOUT = 1


@dataclass(frozen=True)
class SteeredPrompt:
    """One prompt.

    Attributes:
        messages: What it says.
        embeds: (T, D) what to give the model: of a failed prompt, the ones with the least harm.
        outcome: What became of it.
        ids: The tokens of the answer to them, its end included.
        text: The whole answer, as the judge saw it.
        harm: Of the answer, in [0, 1].
        harm_by_call: What the judge said each time, in order; the first is of the model's own answer.
        n_generated: How many answers were generated, the first one included.
        seconds: Of the search, its share of the batches it was in.
    """

    messages: list[Message]
    embeds: Tensor = field(repr=False)
    outcome: Outcome
    ids: list[int] = field(repr=False)
    text: str
    harm: float
    harm_by_call: list[float]
    n_generated: int
    seconds: float

    @property
    def n_oracle_calls(self) -> int:
        """How often the judge was asked."""
        return len(self.harm_by_call)


class SteeredPrompts:
    """A collection of prompts with their embeddings.

    Args:
        prompts: The prompts.
        model: The name of the model that they were made for.
        sha256: Its `model_sha256`.
        settings: What they were made with, as JSON can hold it.

    Example:
        >>> model.generate(**steered.inputs(["How do I kill the weeds?"]))
    """

    def __init__(self, prompts: Sequence[SteeredPrompt], model: str, sha256: str, settings: Mapping[str, Any]):
        self._prompts = {conversation_key(prompt.messages): prompt for prompt in prompts}
        self.model = model
        self.sha256 = sha256
        self.settings = dict(settings)

    def add(self, prompt: SteeredPrompt) -> None:
        """Take one more prompt in."""
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
            ValueError: There is none.
        """
        messages = as_messages(conversation)
        key = conversation_key(messages)
        if key not in self._prompts:
            raise ValueError(
                f"`conversations` must hold prompts that were steered, got {messages!r}. Add it with `precompute`: nothing else "
                "is known to be safe."
            )
        return self._prompts[key]

    def inputs(self, conversations: Sequence[Conversation], fallback: bool = False) -> dict[str, Tensor]:
        """What `generate` needs to answer.

        Args:
            conversations: B of them.
            fallback: Whether to hand out embeddings whose answer passed the judge without being accepted.

        Returns:
            `inputs_embeds` (B, T, D) and `attention_mask` (B, T), padded on the left. The answer that was judged is the one
            that generating with the same settings gives; what is sampled from them was not judged.

        Raises:
            ValueError: A conversation was never steered, or nothing that may be handed out was found for it.
        """
        found = [self[conversation] for conversation in as_message_lists(conversations)]
        allowed = ("clean", "steered", "fallback") if fallback else ("clean", "steered")
        for prompt in found:
            if prompt.outcome not in allowed:
                way_out = " Or pass `fallback=True`." if prompt.outcome == "fallback" else ""
                raise ValueError(
                    f"`conversations` must hold prompts with an acceptable answer, but {prompt.messages!r} ended as "
                    f"{prompt.outcome!r}. Refuse it yourself: its `outcome` tells.{way_out}"
                )
        return left_padded([prompt.embeds for prompt in found])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the collection: the embeddings as safetensors, all else as JSON, conversations and answers among it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: prompt.embeds.cpu().contiguous() for key, prompt in self._prompts.items()}
        records = [{name: value for name, value in asdict(prompt).items() if name != "embeds"} for prompt in self]
        written = {"layout": LAYOUT, "model": self.model, "sha256": self.sha256, "settings": self.settings, "prompts": records}
        for name, write in (
            (TENSORS, lambda path: save_file(tensors, path, {"sha256": self.sha256})),
            (RECORDS, lambda path: path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")),
        ):
            part = folder / f"{name}.part"
            write(part)
            os.replace(part, folder / name)  # whoever reads sees the old one or the new one

    @classmethod
    def from_pretrained(cls, name: str | Path, model: PreTrainedModel, revision: str | None = None) -> "SteeredPrompts":
        """Read a collection.

        Args:
            name: A folder, or a Hub id.
            model: The model that is to answer; the embeddings go where its own are.
            revision: Of the Hub's repository.

        Raises:
            ValueError: The embeddings were made for another model.
        """
        folder = Path(name) if os.path.isdir(name) else Path(snapshot_download(str(name), revision=revision))
        written = json.loads((folder / RECORDS).read_text())
        if written["layout"] != LAYOUT:
            raise ValueError(
                f"The collection must be of layout {LAYOUT}, but {name} is of {written['layout']}. Precompute it anew."
            )
        if model_sha256(model) != written["sha256"]:
            raise ValueError(
                f"`model` must be the one that the prompts were steered for ({written['model']!r}), adapters included, and "
                f"{model.config.name_or_path!r} is another. Load that one, or precompute for this one."
            )
        own = embedded(model, [0])
        prompts = []
        with safe_open(folder / TENSORS, framework="pt") as tensors:
            for record in written["prompts"]:
                embeds = tensors.get_tensor(conversation_key(record["messages"]))
                if embeds.dtype != own.dtype:
                    raise ValueError(
                        f"`model` must be loaded as {embeds.dtype}, as it was when the prompts were steered, got {own.dtype}. "
                        "Its answers would be others: precompute them for that."
                    )
                prompts.append(SteeredPrompt(embeds=embeds.to(own.device), **record))
        return cls(prompts, written["model"], written["sha256"], written["settings"])

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Upload the collection, conversations and answers among it.

        Args:
            repo: The Hub id, made if need be.
            private: Whether a repository that is made is private.

        Returns:
            The commit's address, whose last part is what `revision=` should be.

        Raises:
            OSError: The Hub does not take it, or does not answer.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(Path(folder), repo, "Steered prompts", private)
