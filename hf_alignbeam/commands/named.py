"""What a user names at the terminal: devices, models, files of prompts; and which of how many processes this is."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig

from hf_alignbeam.chat import Conversation

#: How long processes wait for the slowest one: torch's own half an hour is too short for that.
PATIENCE = timedelta(days=7)


def this_process() -> PartialState:
    """Which of how many processes this one is, as torchrun or accelerate started them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def named_device(name: str) -> torch.device:
    """The device that --device names; of several processes on a machine, `cuda` is each one's own card."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must name a device as torch does (cpu, cuda, cuda:1), got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name} needs CUDA, which this torch does not have. Use --device cpu.")
    return torch.device("cuda", this_process().local_process_index) if name == "cuda" else device


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


def load_causal(
    name: str,
    device: torch.device | None,
    revision: str | None = None,
    dtype: str = "auto",
    tp_plan: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal model and its tokenizer, ready to be asked in batches.

    Args:
        name: A folder or a Hub id.
        device: Where it goes; None: spread over what there is, or cut up over the processes where `tp_plan` says so.
        revision: Of the Hub's repository.
        dtype: Of its weights, as torch names it; `auto` is the checkpoint's.
        tp_plan: `auto` for tensor parallelism.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"`dtype` must be auto or a type of torch's such as bfloat16, got {dtype!r}.")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tp_plan not in (None, "auto"):
        raise ValueError(f"`tp_plan` must be auto or left out, got {tp_plan!r}.")
    spread: dict[str, Any] = {"device_map": "auto"} if device is None else {}
    if tp_plan is not None:
        spread = {"distributed_config": DistributedConfig(tp_plan="auto")}
    model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, **spread)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    return model.eval(), tokenizer


def load_spread(name: str, device: str, tp_plan: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same to where a user says: a device as torch names it, or `auto`."""
    return load_causal(name, None if "auto" in (device, tp_plan) else named_device(device), tp_plan=tp_plan)
