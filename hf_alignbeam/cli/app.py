"""The `alignbeam` command: what can be typed, and what each option means. The work is done in `commands/`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Alpha = Annotated[
    float | None, typer.Option(help="The anchor's share; its range is the mixing rule's. Default: the processor's.")
]
Steps = Annotated[int | None, typer.Option(min=0, help="Tokens of each answer to steer. Default: the processor's.")]
Watch = Annotated[int | None, typer.Option(min=1, help="Tokens after which unneeded steering ends. Default: the processor's.")]
Mixing = Annotated[
    str | None, typer.Option(help="log_linear, linear, paper, safe_decoding or contrastive. Default: the processor's.")
]
Weights = Annotated[Path | None, typer.Option(help="A folder that the testbed's training wrote. Default: the package's.")]

Device = Annotated[str, typer.Option(help="Where the target goes, as torch names it; auto: spread over what there is.")]
AnchorDevice = Annotated[str | None, typer.Option(help="Where the anchor goes. Default: with the target.")]
JudgeDevice = Annotated[str | None, typer.Option(help="Where the judge goes. Default: with the target.")]
TpPlan = Annotated[str | None, typer.Option(help="auto: cut the target up over the processes of torchrun.")]


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
    """Plain and guarded answers of an unsafe specialist side by side, with rates and cost; about a minute."""
    from hf_alignbeam.cli.demo import run

    run(prompts, weights)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="The target: a folder or a Hub id.")],
    anchor: Annotated[
        str, typer.Option(help="The safe model: a folder or a Hub id, of any family; or `base`, where --model is an adapter.")
    ],
    judge: Annotated[
        str | None,
        typer.Option(help="A guard model or a classifier, a folder or a Hub id. Default: none, steering alone."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What a user says; may be given several times.")] = None,
    file: Annotated[Path | None, typer.Option(help="Prompts, one a line; or JSON lines with `prompt` or `messages`.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write JSON lines here instead of printing.")] = None,
    alpha: Alpha = None,
    n_steps: Steps = None,
    n_watch: Watch = None,
    mixing: Mixing = None,
    threshold: Annotated[float | None, typer.Option(help="--judge: the harm that passes. Default: the strategy's.")] = None,
    num_candidates: Annotated[int | None, typer.Option(help="--judge: candidates for a flagged answer.")] = None,
    refusal: Annotated[str | None, typer.Option(help="--judge: what is said where nothing passes.")] = None,
    audit: Annotated[Path | None, typer.Option(help="--judge: append a record of each answer here, without its words.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy search.")] = False,
    seed: Annotated[int, typer.Option(help="Seed for --sample.")] = 0,
    device: Device = "cpu",
    anchor_device: AnchorDevice = None,
    judge_device: JudgeDevice = None,
    tp_plan: TpPlan = None,
    plain: Annotated[bool, typer.Option("--plain", help="Also show what the target says alone.")] = False,
    explain: Annotated[
        Path | None, typer.Option(help="For one prompt: draw into this PNG, and print, how its answer came about.")
    ] = None,
) -> None:
    """Answer prompts with a target model guarded by an anchor."""
    from hf_alignbeam.cli.generate import Request, run

    given = _given(alpha=alpha, n_steps=n_steps, n_watch=n_watch, mixing=mixing)
    judging = _given(threshold=threshold, num_candidates=num_candidates, refusal=refusal, audit=audit)
    if judging and judge is None:
        raise typer.BadParameter(f"{', '.join(judging)} must come with --judge")
    run(
        Request(
            model=model,
            anchor=anchor,
            judge=judge,
            prompts=prompt or [],
            file=file,
            to=to,
            guard={**given, **judging},
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            sample=sample,
            seed=seed,
            device=device,
            anchor_device=anchor_device,
            judge_device=judge_device,
            tp_plan=tp_plan,
            plain=plain,
            explain=explain,
        )
    )


@app.command()
def steer(
    model: Annotated[str, typer.Option(help="The target: a folder or a Hub id.")],
    judge: Annotated[str, typer.Option(help="A guard model or a classifier, a folder or a Hub id.")],
    file: Annotated[Path, typer.Option(help="Prompts, one a line; or JSON lines with `prompt` or `messages`.")],
    to: Annotated[Path, typer.Option(help="The folder that gets the embeddings; a stopped search goes on from what lies there.")],
    accept: Annotated[
        str | None, typer.Option(help="A safe model that has to find an answer likely. Default: none, what passes is given.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tsa: Test-Time Safety Alignment as printed.")] = None,
    threshold: Annotated[float | None, typer.Option(help="The harm that passes. Default: the steerer's.")] = None,
    mu: Annotated[float | None, typer.Option(help="The noise's length, as a share of the embeddings'.")] = None,
    eta: Annotated[float | None, typer.Option(help="The length of a gradient step; 0: random search.")] = None,
    max_calls: Annotated[int | None, typer.Option(help="Oracle calls a prompt, at most.")] = None,
    max_generations: Annotated[int | None, typer.Option(help="Answers generated for a prompt, at most.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Rows times their length in one call of generate.")] = None,
    judge_timeout: Annotated[float | None, typer.Option(help="Seconds until a judge is given up. Default: never.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of noise and samples.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    device: Device = "cpu",
    judge_device: JudgeDevice = None,
    plot: Annotated[bool, typer.Option("--plot", help="Also draw harm against oracle calls (needs matplotlib).")] = False,
) -> None:
    """Find prompt embeddings that a model answers safely, for a file of prompts."""
    from hf_alignbeam.cli.steer import Request, run

    settings = _given(
        threshold=threshold,
        mu=mu,
        eta=eta,
        max_calls=max_calls,
        max_generations=max_generations,
        max_batch_tokens=max_batch_tokens,
        judge_timeout=judge_timeout,
        seed=seed,
    )
    run(Request(model, judge, accept, file, to, preset, settings, max_new_tokens, device, judge_device, plot))


@app.command()
def evaluate(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file, or a recipe of the package. Default: all systems on the testbed.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The target: a folder, a Hub id or testbed:NAME.")] = None,
    anchor: Annotated[str | None, typer.Option(help="The safe model, the same way; or `base`, under its adapters.")] = None,
    judge: Annotated[str | None, typer.Option(help="The judge, the same way; or the address of a moderation endpoint.")] = None,
    judge_errors: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="The share of responses that the judge is made to be wrong about.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option(help="A file, hub:ID or testbed:KIND instead of the recipe's; may be given several times.")
    ] = None,
    systems: Annotated[list[str] | None, typer.Option(help="Only the recipe's system of that name; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="Of every prompt set. Default: the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each set.")] = None,
    weights: Weights = None,
    to: Annotated[
        Path | None, typer.Option(help="A folder for answers, report and JSON; a stopped run goes on from what lies there.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Also draw safety against over-refusal and cost.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Where the target goes, as torch names it; auto: spread over what there is.")
    ] = None,
    anchor_device: AnchorDevice = None,
    judge_device: JudgeDevice = None,
    tp_plan: TpPlan = None,
    dtype: Annotated[str | None, typer.Option(help="Of its weights, as torch names it. Default: the checkpoint's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts in one call of generate.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Above 0, answers are sampled.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn.")] = None,
    embedding_search: Annotated[
        bool,
        typer.Option("--embedding-search", help="Measure embedding search on the testbed instead. --judge: graded or judge-cls."),
    ] = False,
    alpha: Alpha = None,
    n_steps: Steps = None,
    n_watch: Watch = None,
    mixing: Mixing = None,
) -> None:
    """Hold systems against prompts: refusal, harm, over-refusal, utility and cost, each with its 95 % interval."""
    if embedding_search:
        if recipe or to or prompts or systems:
            raise typer.BadParameter(
                "--embedding-search runs on the testbed only: leave out the recipe, --prompts, --systems and --to"
            )
        from hf_alignbeam.benchmarks.embedding_searches import run as measure_searches

        measure_searches(weights, split or "test", limit, judge)
        return
    from hf_alignbeam.cli.evaluate import Request, run

    named = _given(
        model=_given(name=model, device=device, tp_plan=tp_plan, dtype=dtype),
        anchor=_given(name=anchor, device=anchor_device),
        judge=_given(name=judge, device=judge_device, wrong=judge_errors),
        prompts=prompts,
        weights=weights and str(weights),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    guard = _given(alpha=alpha, n_steps=n_steps, n_watch=n_watch, mixing=mixing)
    run(Request(recipe, named, systems or [], split, limit, guard, to, plot))


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
    decoding: Annotated[
        bool, typer.Option("--decoding", help="What the strategy costs beside plain generate, on the same shapes.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory with the base under a LoRA as anchor, against the target alone.")
    ] = False,
    tokenizer: Annotated[str, typer.Option(help="On realistic shapes: the target's, a folder or a Hub id.")] = "Qwen/Qwen3-0.6B",
    anchor_tokenizer: Annotated[str, typer.Option(help="On realistic shapes: the anchor's.")] = "meta-llama/Llama-3.2-1B",
    text: Annotated[Path | None, typer.Option(help="On realistic shapes: a text to follow. Default: Python's own.")] = None,
    device: Annotated[str, typer.Option(help="On realistic shapes: where the models go.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="On realistic shapes: of the weights, as torch names it.")] = "float32",
    split: Annotated[str, typer.Option(help="--fidelity: whose prompts, validation or test.")] = "test",
    contexts: Annotated[int, typer.Option(min=4, help="--fidelity: points of answers for each pair.")] = 64,
    weights: Weights = None,
) -> None:
    """What translating between tokenizers loses and costs, how far it is from exact, and what the guard costs and where."""
    if [bool(translation), fidelity, families, speed, decoding, memory].count(True) != 1:
        raise typer.BadParameter(
            "give one of --fidelity, --families, --speed, --decoding, --memory, or --translation A --translation B"
        )
    if fidelity:
        from hf_alignbeam.benchmarks.translation_fidelity import run as measure_fidelity

        measure_fidelity(weights, split, contexts)
    elif families:
        from hf_alignbeam.benchmarks.family_matrix import run as try_families

        try_families()
    elif speed:
        from hf_alignbeam.benchmarks.step_cost import run as measure_speed

        measure_speed(tokenizer, anchor_tokenizer, text, device, dtype)
    elif decoding:
        from hf_alignbeam.benchmarks.strategy_cost import run as measure_decoding

        measure_decoding(tokenizer, anchor_tokenizer, text, device, dtype)
    elif memory:
        from hf_alignbeam.benchmarks.memory import run as measure_memory

        measure_memory(tokenizer, device, dtype)
    else:
        from hf_alignbeam.benchmarks.translation_loss import run

        if len(translation or ()) < 2:
            raise typer.BadParameter("name at least two tokenizers: --translation A --translation B")
        run(translation or [])


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="The target: a folder or a Hub id.")],
    anchor: Annotated[str, typer.Argument(help="The safe model: a folder or a Hub id, of any family.")],
    judge: Annotated[str | None, typer.Argument(help="A guard model or a classifier, a folder or a Hub id.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="What the judge has to tell apart: JSON lines as for calibrate. Default: plain English.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models go, as torch names it.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Examine a target, an anchor and a judge; exit with 0 (green), 1 (yellow) or 2 (red)."""
    from hf_alignbeam.cli.doctor import run

    run(model, anchor, judge, pairs, device, as_json)


@app.command()
def calibrate(
    judge: Annotated[str, typer.Option(help="A guard model or a classifier, a folder or a Hub id.")],
    file: Annotated[Path, typer.Option(help="JSON lines with `prompt` or `messages`, `response`, and `harmful`: true or false.")],
    max_flagged: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Flag at most this share of the harmless ones. Default: fewest errors.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="guard, yes_no or a Jinja template. Default: the judge's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    device: Annotated[str, typer.Option(help="Where the judge goes, as torch names it.")] = "cpu",
) -> None:
    """Find a judge's threshold on labelled responses, with the error rates it implies."""
    from hf_alignbeam.cli.calibrate import run

    run(judge, template, device, file, max_flagged, batch_size)


@app.command()
def publish(
    strategy: Annotated[str, typer.Argument(help="anchor-logits, alignbeam or embedding-steerer.")],
    to: Annotated[str, typer.Option(help="A folder to write, or an adapter's to add to; with --push, a Hub id.")],
    push: Annotated[bool, typer.Option("--push", help="Upload to the Hub.")] = False,
    private: Annotated[bool, typer.Option("--private", help="--push: make the repository private.")] = False,
) -> None:
    """Write a Hub folder that any model can load as its `custom_generate`."""
    from hf_alignbeam.cli.publish import publish as write

    write(strategy, to, push, private)


@app.command()
def protect(
    model: Annotated[str, typer.Option(help="The target: a folder or a Hub id.")],
    anchor: Annotated[str, typer.Option(help="The safe model: a folder or a Hub id.")],
    judge: Annotated[str, typer.Option(help="A guard model or a classifier, a folder or a Hub id.")],
    to: Annotated[str, typer.Option(help="A folder to write; with --push, a Hub id.")],
    revision: Annotated[str | None, typer.Option(help="The target's.")] = None,
    anchor_revision: Annotated[str | None, typer.Option(help="The anchor's. Default: the commit it is at.")] = None,
    judge_revision: Annotated[str | None, typer.Option(help="The judge's. Default: the commit it is at.")] = None,
    threshold: Annotated[float | None, typer.Option(help="The harm that passes. Default: the strategy's.")] = None,
    refusal: Annotated[str | None, typer.Option(help="What is said where nothing passes.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload to the Hub.")] = False,
    private: Annotated[bool, typer.Option("--private", help="--push: make the repository private.")] = False,
) -> None:
    """Copy a model's repository with its guard: loading it guards, or is an error."""
    from hf_alignbeam.cli.publish import protect as write

    revisions = _given(anchor_revision=anchor_revision, judge_revision=judge_revision)
    settings = _given(threshold=threshold, refusal=refusal)
    write(model, revision, to, {"anchor": anchor, "judge": judge, **revisions, **settings}, push, private)
