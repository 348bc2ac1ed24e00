"""`alignbeam bench --memory`: the peak memory of a LoRA whose base is its anchor, and the time of the base's forward.

Each figure is measured in a new process while it answers, without the memory that building the model took. One target is the
testbed's, the other has a realistic shape and random weights.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil  # type: ignore[import-untyped]
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoTokenizer, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from hf_alignbeam.benchmarks.realistic_models import TARGET_SHAPE, as_dtype, load_tokenizer, new_target, standard_library_text
from hf_alignbeam.benchmarks.step_cost import CONTEXTS
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.adapters import adapter_layers, adapters_off, base_of
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.testbed.language import language
from hf_alignbeam.testbed.model_store import load

N_NEW_TOKENS = 16
#: Seconds between two samples of a process's memory.
INTERVAL = 0.002
#: The batch size of the testbed's target.
N_PROMPTS = 100
#: How many forwards are timed for each way to switch the adapter off.
N_TIMED = 5
COLUMNS = ("target", "prompts", "target alone, MiB", "with its base as anchor, MiB", "ratio")


def run(tokenizer: str, device: str, dtype: str) -> None:
    """Print one line for the testbed's target and one for each context of the realistic one."""
    with report_user_errors():
        as_dtype(dtype)
        AutoTokenizer.from_pretrained(tokenizer)
    console = Console(width=200)
    tell(console, *table_head(COLUMNS))
    for name, n_context in (("specialist-lora", 0), *(("realistic", n_context) for n_context in CONTEXTS)):
        alone, guarded = (_peak_in_new_process(system, n_context, tokenizer, device, dtype) for system in ("alone", "guarded"))
        prompts = f"1 of {n_context} tokens" if n_context else str(N_PROMPTS)
        tell(console, table_row([name, prompts, f"{alone:.0f}", f"{guarded:.0f}", f"{guarded / alone:.3f}"]))
    tell(console, *base_forward_times(tokenizer, device, dtype))
    console.print(
        f"\n{device}, {dtype}; {N_NEW_TOKENS} new tokens, all of them steered. On a CPU: memory of the whole process while it "
        "answers."
    )


def _peak_in_new_process(*arguments: object) -> float:
    command = [sys.executable, "-m", "hf_alignbeam.benchmarks.memory", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"Memory is measured in a new process, which failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


@torch.no_grad()
def measured_peak(system: str, n_context: int, tokenizer: str, device: str, dtype: str) -> float:
    """The peak memory in MiB of this process (on a GPU: of its tensors) while it answers.

    Args:
        system: `"alone"` or `"guarded"`.
        n_context: The prompt's length in tokens; 0 for the testbed's target and prompts.
        tokenizer: The realistic target's tokenizer.
        device: Where the target goes, as torch names it.
        dtype: The dtype of its weights, as torch names it.
    """
    if n_context:
        model, own_tokenizer, inputs = _realistic_adapter(n_context, tokenizer, device, dtype)
    else:
        model, own_tokenizer = load("specialist-lora")
        prompts = language(0).prompts("test", "harmful")[:N_PROMPTS]
        inputs = encode([prompt.conversation for prompt in prompts], own_tokenizer).to(device)
        model.to(device)  # type: ignore[arg-type]
    processors = []
    if system == "guarded":
        guard = AnchorLogitsProcessor("base", own_tokenizer, own_tokenizer, model=model, n_steps=None, n_watch=None)
        processors.append(guard)
    options = {"max_new_tokens": N_NEW_TOKENS, "min_new_tokens": N_NEW_TOKENS, "do_sample": False}
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        model.generate(**inputs, logits_processor=processors, **options)  # type: ignore[operator]
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory(lambda: model.generate(**inputs, logits_processor=processors, **options))  # type: ignore[operator]


def _realistic_adapter(
    n_context: int, tokenizer: str, device: str, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, BatchEncoding]:
    """A LoRA on a realistic base, its tokenizer, and an encoded prompt of `n_context` tokens of text."""
    own_tokenizer = load_tokenizer(tokenizer)
    with torch.device(device):
        base = new_target(own_tokenizer, TARGET_SHAPE)
        base.to(dtype=as_dtype(dtype))  # type: ignore[call-arg]
        model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    ids = own_tokenizer(standard_library_text()[: 8 * n_context], add_special_tokens=False).input_ids
    conversation = [{"role": "user", "content": str(own_tokenizer.decode(ids[:n_context]))}]
    return cast(PreTrainedModel, model), own_tokenizer, encode([conversation], own_tokenizer).to(device)


@torch.no_grad()
def base_forward_times(tokenizer: str, device: str, dtype: str) -> list[str]:
    """A table of the time of a one-token forward of the base under an adapter, for each way to switch the adapter off."""
    adapted, _, inputs = _realistic_adapter(1, tokenizer, device, dtype)
    model, base, layers = cast(PeftModel, adapted), base_of(adapted), adapter_layers(adapted)
    ids = inputs["input_ids"][:, :1]

    def off() -> object:
        with adapters_off(layers):
            return base(input_ids=ids)

    def disabled() -> object:
        with model.disable_adapter():
            return model(input_ids=ids)

    timed: dict[str, Callable[[], object]] = {
        "the target itself, adapter on": lambda: model(input_ids=ids),
        "ours": off,
        "peft's `disable_adapter()`": disabled,
        'peft\'s `adapter_names=["__base__"]`': lambda: model(input_ids=ids, adapter_names=["__base__"]),
    }
    lines = ["", "| a forward of one token | ms |", "|---|---|"]
    for name, forward in timed.items():
        forward()
        start = time.perf_counter()
        for _ in range(N_TIMED):
            forward()
        lines.append(f"| {name} | {1000 * (time.perf_counter() - start) / N_TIMED:.0f} |")
    return lines


def peak_memory(work: Callable[[], object]) -> float:
    """The most memory in MiB that this process holds while it does some work."""
    done = threading.Event()
    process = psutil.Process()
    peak = [0]

    def watch() -> None:
        while not done.wait(INTERVAL):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0] / 2**20


if __name__ == "__main__":
    _, chosen_system, prompt_length, tokenizer_name, device_type, dtype_name = sys.argv
    print(measured_peak(chosen_system, int(prompt_length), tokenizer_name, device_type, dtype_name))
