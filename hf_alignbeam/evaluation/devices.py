"""Models and devices by their names, and which of how many processes this one is.

Knows `from_pretrained`, torch's devices and accelerate. Knows no guard and no prompt.
"""

from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig

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
