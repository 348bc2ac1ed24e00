"""What a user names at the terminal: devices, models, files of prompts."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.chat import Conversation


def named_device(name: str) -> torch.device:
    """The device that --device names."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must name a device as torch does (cpu, cuda, cuda:1), got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name} needs CUDA, which this torch does not have. Use --device cpu.")
    return device


def read_prompts(file: Path) -> list[Conversation]:
    """The prompts in a file: one a line, or JSON lines with `prompt` or `messages`.

    Raises:
        ValueError: A line is none of that; it is named.
    """
    lines = enumerate(file.read_text().splitlines(), start=1)
    return [_parsed(line, f"{file}:{number}") for number, line in lines if line.strip()]


def _parsed(line: str, place: str) -> Conversation:
    if not line.lstrip().startswith("{"):
        return line.strip()
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} begins like JSON but is not: {error}.") from error
    if not isinstance(record.get("messages"), list) and not isinstance(record.get("prompt"), str):
        raise ValueError(f"{place} must have a string 'prompt' or a list 'messages', got {line.strip()}.")
    return record["messages"] if isinstance(record.get("messages"), list) else record["prompt"]


def load_causal(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal model and its tokenizer, ready to be asked in batches."""
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), tokenizer
