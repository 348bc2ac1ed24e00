"""The options of `alignbeam bench` and their help texts.

Imports the module of a measurement only when it runs, so that `--help` does not wait for torch.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option


def bench(
    translation: Annotated[
        list[str] | None, Option(help="A tokenizer: a folder or a Hub id; repeat it: every pair is measured.")
    ] = None,
    fidelity: Annotated[
        bool,
        Option("--fidelity", help="Distance of every translation rule to the exact one; of a pair with --model and --anchor."),
    ] = False,
    families: Annotated[bool, Option("--families", help="The guard's laws on every family of models, in every mode.")] = False,
    speed: Annotated[bool, Option("--speed", help="Cost of a steered step, on realistic shapes or of a pair.")] = False,
    decoding: Annotated[bool, Option("--decoding", help="Cost of AlignBeam, on realistic shapes.")] = False,
    memory: Annotated[bool, Option("--memory", help="Peak memory with the base under a LoRA as anchor.")] = False,
    build: Annotated[bool, Option("--build", help="Cost of building a guard: first, again, in a later process.")] = False,
    model: Annotated[str | None, Option(help="With --speed or --fidelity: a pair's target, a folder or a Hub id.")] = None,
    anchor: Annotated[str | None, Option(help="With --model: its anchor.")] = None,
    compiled: Annotated[bool, Option("--compiled", help="With --speed and --model: compile both models' forwards.")] = False,
    tokenizer: Annotated[str, Option(help="Realistic shapes: the target's tokenizer.")] = "Qwen/Qwen3-0.6B",
    anchor_tokenizer: Annotated[str, Option(help="Realistic shapes: the anchor's tokenizer.")] = "meta-llama/Llama-3.2-1B",
    text: Annotated[Path | None, Option(help="Realistic shapes: a text to generate. Default: Python's docstrings.")] = None,
    device: Annotated[str, Option(help="Realistic shapes: the device of the models.")] = "cpu",
    dtype: Annotated[str, Option(help="Realistic shapes: the dtype of the weights, as torch names it.")] = "float32",
    split: Annotated[str, Option(help="With --fidelity on the testbed: the split of the prompts, validation or test.")] = "test",
    contexts: Annotated[int, Option(min=4, help="With --fidelity: the number of positions in answers for each pair.")] = 64,
    weights: Annotated[Path | None, Option(help="With --fidelity on the testbed: a folder that its training wrote.")] = None,
) -> None:
    """Measure the translation between tokenizers, its loss and distance to the exact one, and the costs of the guard."""
    if [bool(translation), fidelity, families, speed, decoding, memory, build].count(True) != 1:
        raise typer.BadParameter(
            "give exactly one of --fidelity, --families, --speed, --decoding, --memory, --build or "
            "--translation A --translation B"
        )
    if bool(model) != bool(anchor) or (model and not (speed or fidelity)):
        raise typer.BadParameter("give --model together with --anchor, and with --speed or --fidelity")
    if compiled and not (speed and model):
        raise typer.BadParameter("give --compiled with --speed, --model and --anchor")
    if fidelity and model and anchor:
        from hf_alignbeam.benchmarks.pairs.sampled_fidelity import run as measure_pair_fidelity

        measure_pair_fidelity(model, anchor, contexts, device, dtype)
    elif fidelity:
        from hf_alignbeam.benchmarks.translation_fidelity import run as measure_fidelity

        measure_fidelity(weights, split, contexts)
    elif families:
        from hf_alignbeam.benchmarks.family_matrix import run as try_families

        try_families()
    elif speed and model and anchor:
        from hf_alignbeam.benchmarks.pairs.steered_steps import run as measure_pair

        measure_pair(model, anchor, device, dtype, compiled)
    elif speed:
        from hf_alignbeam.benchmarks.step_cost import run as measure_speed

        measure_speed(tokenizer, anchor_tokenizer, text, device, dtype)
    elif decoding:
        from hf_alignbeam.benchmarks.strategy_cost import run as measure_decoding

        measure_decoding(tokenizer, anchor_tokenizer, text, device, dtype)
    elif memory:
        from hf_alignbeam.benchmarks.memory import run as measure_memory

        measure_memory(tokenizer, device, dtype)
    elif build:
        from hf_alignbeam.benchmarks.pairs.build_cost import run as measure_build

        measure_build(tokenizer, anchor_tokenizer, device, dtype)
    else:
        from hf_alignbeam.benchmarks.translation_loss import run

        if len(translation or ()) < 2:
            raise typer.BadParameter("name at least two tokenizers: --translation A --translation B")
        run(translation or [])
