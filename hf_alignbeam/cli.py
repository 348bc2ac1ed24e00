"""The `alignbeam` command: what can be typed, and what each option means. The work is done in `commands/`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Alpha = Annotated[float | None, typer.Option(help="The anchor's share, 0 to 1. Default: the processor's.")]
Steps = Annotated[int | None, typer.Option(min=0, help="Tokens of each answer to steer. Default: the processor's.")]
Watch = Annotated[int | None, typer.Option(min=1, help="Tokens after which unneeded steering ends. Default: the processor's.")]
Mixing = Annotated[str | None, typer.Option(help="log_linear, linear or paper. Default: the processor's.")]
Weights = Annotated[Path | None, typer.Option(help="A folder that the testbed's training wrote. Default: the package's.")]


def _given(**options: object) -> dict[str, object]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


@app.callback()
def alignbeam() -> None:
    """Make a fine-tuned model refuse what a safe model would refuse, at generation time."""


@app.command()
def demo(
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each kind.")] = 60,
    weights: Weights = None,
) -> None:
    """Plain and guarded answers of an unsafe specialist side by side, with rates and cost; under a minute."""
    from hf_alignbeam.commands.demo import run

    run(prompts, weights)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="The target: a folder or a Hub id.")],
    anchor: Annotated[
        str, typer.Option(help="The safe model: a folder or a Hub id, of any family; or `base`, where --model is an adapter.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="What a user says; may be given several times.")] = None,
    file: Annotated[Path | None, typer.Option(help="Prompts, one a line; or JSON lines with `prompt` or `messages`.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write JSON lines here instead of printing.")] = None,
    alpha: Alpha = None,
    n_steps: Steps = None,
    n_watch: Watch = None,
    mixing: Mixing = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy search.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for --sample.")] = 0,
    device: Annotated[str, typer.Option(help="Where both models go, as torch names it.")] = "cpu",
    plain: Annotated[bool, typer.Option("--plain", help="Also show what the target says alone.")] = False,
) -> None:
    """Answer prompts with a target model guarded by an anchor."""
    from hf_alignbeam.commands.generate import Request, run

    given = _given(alpha=alpha, n_steps=n_steps, n_watch=n_watch, mixing=mixing)
    run(
        Request(
            model=model,
            anchor=anchor,
            prompts=prompt or [],
            file=file,
            to=to,
            guard=given,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            sample=sample,
            seed=seed,
            device=device,
            plain=plain,
        )
    )


@app.command()
def evaluate(
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    weights: Weights = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many prompts of each kind.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Compare mixing rules, alphas and n_steps on validation.")] = False,
    anchor: Annotated[
        str, typer.Option(help="The anchor's name: anchor, anchor-letters, or base for specialist-lora.")
    ] = "anchor",
    specialist: Annotated[
        str, typer.Option(help="The target's name: specialist, specialist-letters or specialist-lora.")
    ] = "specialist",
    judge: Annotated[
        str | None, typer.Option(help="Compare strategies instead of guards, with judge-lm, judge-cls or oracle as judge.")
    ] = None,
    judge_errors: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="--judge: the share of responses that it is wrong about.")
    ] = 0.0,
    alpha: Alpha = None,
    n_steps: Steps = None,
    n_watch: Watch = None,
    mixing: Mixing = None,
) -> None:
    """The main-job table on the testbed: refusal, harm, over-refusal and correctness, with 95 % intervals."""
    from hf_alignbeam.commands.evaluate import Asked, run

    given = _given(alpha=alpha, n_steps=n_steps, n_watch=n_watch, mixing=mixing)
    run(Asked(split, weights, limit, sweep, anchor, specialist, judge, judge_errors), given)


@app.command()
def bench(
    translation: Annotated[
        list[str] | None,
        typer.Option(help="Tokenizers, folders or Hub ids: every ordered pair of them is measured. Repeat it."),
    ] = None,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="Distance of every rule to the exact translation, on the testbed's models.")
    ] = False,
    families: Annotated[
        bool, typer.Option("--families", help="The guard's laws on tiny models of every family, in every mode of generate.")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="What a steered step costs, on random models of realistic shape.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory with the base under a LoRA as anchor, against the target alone.")
    ] = False,
    tokenizer: Annotated[str, typer.Option(help="--speed, --memory: the target's, a folder or a Hub id.")] = "Qwen/Qwen3-0.6B",
    anchor_tokenizer: Annotated[str, typer.Option(help="--speed: the anchor's.")] = "meta-llama/Llama-3.2-1B",
    text: Annotated[Path | None, typer.Option(help="--speed: a text to follow. Default: Python's own documentation.")] = None,
    device: Annotated[str, typer.Option(help="--speed, --memory: where both models go.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="--speed, --memory: of both models' weights, as torch names it.")] = "float32",
    split: Annotated[str, typer.Option(help="--fidelity: whose prompts, validation or test.")] = "test",
    contexts: Annotated[int, typer.Option(min=4, help="--fidelity: points of answers for each pair.")] = 64,
    weights: Weights = None,
) -> None:
    """What translating between tokenizers loses and costs, how far it is from exact, and what the guard costs and where."""
    if [bool(translation), fidelity, families, speed, memory].count(True) != 1:
        raise typer.BadParameter("give one of --fidelity, --families, --speed, --memory, or --translation A --translation B")
    if fidelity:
        from hf_alignbeam.commands.fidelity import run as measure_fidelity

        measure_fidelity(weights, split, contexts)
    elif families:
        from hf_alignbeam.commands.families import run as try_families

        try_families()
    elif speed:
        from hf_alignbeam.commands.speed import run as measure_speed

        measure_speed(tokenizer, anchor_tokenizer, text, device, dtype)
    elif memory:
        from hf_alignbeam.commands.memory import run as measure_memory

        measure_memory(tokenizer, device, dtype)
    else:
        from hf_alignbeam.commands.bench import run

        if len(translation or ()) < 2:
            raise typer.BadParameter("name at least two tokenizers: --translation A --translation B")
        run(translation or [])
