"""Loads models and judges onto devices by their names, and knows which of several processes this one is.

Knows torch's devices and accelerate. Knows no guard and no prompt.
"""

from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig

from hf_alignbeam.hub.judge_loading import JudgeSettings, check_judge, load_judge
from hf_alignbeam.hub.model_loading import explain_load_errors, load_model, load_tokenizer
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.probes.probe_judge import HIDDEN_STATES
from hf_alignbeam.judges.profile import GuardProfile
from hf_alignbeam.judges.profiles.known import find_profile

#: How long processes wait for the slowest one; torch's default of half an hour is too short.
PROCESS_TIMEOUT = timedelta(days=7)


def this_process() -> PartialState:
    """This process and the number of processes, as torchrun or accelerate started them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PROCESS_TIMEOUT)


def named_device(name: str) -> torch.device:
    """The device that --device names. `cuda` is a GPU of its own for each process on a machine."""
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
    """Load a causal language model and its tokenizer, ready for batches.

    Args:
        name: A folder or a Hub id.
        device: The model's device; None spreads it over all devices, or over the processes with `tp_plan`.
        revision: The revision of the Hub repository.
        dtype: The dtype of the weights, as torch names it; `auto` is the checkpoint's.
        tp_plan: `auto` for tensor parallelism.

    Raises:
        ValueError: `dtype` or `tp_plan` is unknown, or the model is of another kind.
        OSError: The model cannot be loaded; its name is in the error.
    """
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"`dtype` must be auto or a dtype of torch such as bfloat16, got {dtype!r}.")
    if tp_plan not in (None, "auto"):
        raise ValueError(f"`tp_plan` must be auto or left out, got {tp_plan!r}.")
    placement: dict[str, Any] = {"device_map": "auto"} if device is None else {}
    if tp_plan is not None:
        placement = {"distributed_config": DistributedConfig(tp_plan="auto")}
    with explain_load_errors(name):
        tokenizer = load_padding_tokenizer(name, revision)
        return load_model(name, revision=revision, dtype=dtype, device=device, **placement), tokenizer


def load_causal_on(name: str, device: str, tp_plan: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model onto a device as a user names it, or spread it over all devices with `auto`."""
    return load_causal(name, None if "auto" in (device, tp_plan) else named_device(device), tp_plan=tp_plan)


def load_named_judge(
    name: str, settings: JudgeSettings, device: torch.device, api: str | None = None, model: str | None = None
) -> Judge:
    """A judge by its Hub id, its folder, or the URL of an endpoint.

    Args:
        name: The id, the folder or the URL.
        settings: What is said of it.
        device: Where a model goes.
        api: For a URL, the kind of endpoint, as in `judge_from_url`.
        model: For a URL, the model's name there.

    Raises:
        ValueError: The settings do not fit, or the judge gives no verdicts.
        OSError: The judge cannot be loaded.
    """
    check_named_judge(name, settings, api, model)
    if not _is_url(name):
        return load_judge(name, settings, device)
    from hf_alignbeam.judges.remote.from_url import judge_from_url

    try:
        return judge_from_url(name, api, model, _profile_behind_url(settings, api, model), settings.threshold, settings.labels)
    except RuntimeError as error:  # the endpoint refuses every request
        raise ValueError(str(error)) from error


def check_named_judge(name: str, settings: JudgeSettings, api: str | None = None, model: str | None = None) -> None:
    """Check the arguments of `load_named_judge` as far as they can be checked before anything is loaded or asked.

    Raises:
        ValueError: The name cannot be a judge's, a setting is wrong, or the settings do not go together.
    """
    if not _is_url(name):
        for field, value in (("api", api), ("model", model)):
            if value is not None:
                raise ValueError(f"`judge_{field}` must come with a URL as judge, got {value!r} for {name}. Leave it out.")
        check_judge(name, settings)
        return
    for field in ("revision", "template"):
        if (value := getattr(settings, field)) is not None:
            raise ValueError(f"`judge_{field}` must be left out for a URL, got {value!r}. The endpoint has its own.")
    if settings.rubric == HIDDEN_STATES:
        raise ValueError(f"`judge_rubric` must be another one for a URL, got {HIDDEN_STATES!r}. Use one-to-five.")
    try:
        from hf_alignbeam.judges.remote.from_url import check_endpoint
    except ImportError as error:  # an extra
        raise ValueError(str(error)) from error
    check_endpoint(api, model, _profile_behind_url(settings, api, model), settings.labels)


def _is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def _profile_behind_url(settings: JudgeSettings, api: str | None, model: str | None) -> GuardProfile | None:
    return settings.resolved(None if model is None or api != "chat" else find_profile(model, None))


def load_padding_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left, with the EOS token where it has no padding token."""
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(name, revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
