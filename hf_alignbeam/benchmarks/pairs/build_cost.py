"""`alignbeam bench --build`: the time and the memory of a first guard, a second one, and one of a later process.

The tokenizers are real; the anchor has a realistic shape and random weights, which are loaded before the measurement begins.
Each process starts anew, and what is kept on disk lies in a folder of the measurement's own.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_alignbeam.benchmarks.memory import peak_memory
from hf_alignbeam.benchmarks.realistic_models import ANCHOR_SHAPE, Shape, as_dtype, load_tokenizer, padded_size
from hf_alignbeam.build_cache.disk import FOLDER_VARIABLE
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

COLUMNS = ("guard", "seconds", "CPU seconds", "memory kept, MiB", "memory at most, MiB")
#: The guards of each process: of the first one, whose folder is empty; and of a later one.
GUARDS = (("first", "second of the process"), ("first of a later process", "second of that process"))


def run(tokenizer: str, anchor_tokenizer: str, device: str, dtype: str, shape: Shape = ANCHOR_SHAPE) -> None:
    """Print one line for each guard."""
    with report_user_errors():
        as_dtype(dtype)
        sizes = [len(AutoTokenizer.from_pretrained(name)) for name in (tokenizer, anchor_tokenizer)]
    console = Console(width=200)
    lines = table_head(COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        for names in track(GUARDS, description="processes", console=Console(stderr=True), transient=True):
            costs = _costs_in_new_process(folder, shape, tokenizer, anchor_tokenizer, device, dtype)
            lines += [table_row([name, *cells]) for name, cells in zip(names, costs, strict=True)]
        n_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    tell(console, *lines)
    console.print(
        f"\n{device}, {dtype}, {torch.get_num_threads()} threads; {sizes[0]:,} tokens, the anchor {sizes[1]:,}. Kept on disk: "
        f"{n_bytes / 2**10:,.0f} KiB. Memory of the process beyond that of its models and tokenizers."
    )


def _costs_in_new_process(folder: str, shape: Shape, *names: str) -> list[list[str]]:
    command = [sys.executable, "-m", "hf_alignbeam.benchmarks.pairs.build_cost", *names, json.dumps(asdict(shape))]
    environment = {**os.environ, FOLDER_VARIABLE: folder}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3], env=environment)
    if done.returncode:
        raise RuntimeError(f"A guard is built in a new process, which failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured_costs(tokenizer: str, anchor_tokenizer: str, device: str, dtype: str, shape: Shape) -> list[list[str]]:
    """The cells of two guards that are built in this process, one after the other.

    Args:
        tokenizer: The target's tokenizer, a folder or a Hub id.
        anchor_tokenizer: The anchor's.
        device: Where the anchor goes, as torch names it.
        dtype: The dtype of its weights, as torch names it.
        shape: Its size.
    """
    target_tokenizer, safe_tokenizer = map(load_tokenizer, (tokenizer, anchor_tokenizer))
    torch.manual_seed(0)  # another process has the same anchor
    with torch.device(device):
        config = LlamaConfig(vocab_size=padded_size(safe_tokenizer), tie_word_embeddings=True, **vars(shape))
        anchor = LlamaForCausalLM(config).to(dtype=as_dtype(dtype)).eval()  # type: ignore[call-arg]
    anchor(input_ids=torch.tensor([[1, 2]], device=device))  # what torch itself sets up at its first forward is not ours
    process = psutil.Process()
    before = process.memory_info().rss / 2**20
    guards: list[AnchorLogitsProcessor] = []
    cells = []
    for _ in range(2):
        gc.collect()  # else the first guard pays for looking through what was loaded
        start, cpu_start = time.perf_counter(), time.process_time()
        peak = peak_memory(lambda: guards.append(AnchorLogitsProcessor(anchor, safe_tokenizer, target_tokenizer)))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        kept = process.memory_info().rss / 2**20
        cells.append([f"{seconds:.2f}", f"{cpu_seconds:.2f}", f"{kept - before:.0f}", f"{max(peak, kept) - before:.0f}"])
    return cells


if __name__ == "__main__":
    _, target_name, anchor_name, device_type, dtype_name, shape_text = sys.argv
    size = Shape(**json.loads(shape_text))
    print(json.dumps(measured_costs(target_name, anchor_name, device_type, dtype_name, size)))
