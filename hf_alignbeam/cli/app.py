"""The `alignbeam` command: the options of every command and their help texts.

Imports the module of a command only when it runs, so that `--help` does not wait for torch.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from hf_alignbeam.cli.bench import bench
from hf_alignbeam.cli.judges.commands import add_judge_commands
from hf_alignbeam.cli.judges.options import JudgeDevice, JudgeName, JudgeOptions, MaybeJudge, with_judge_options
from hf_alignbeam.cli.strategy_settings import Settings, typed_settings
from hf_alignbeam.console import command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's table cuts the names of options on a narrow terminal
    context_settings={"max_content_width": 100},
)

Alpha = Annotated[float | None, Option(help="The anchor's share, in the range of the mixing rule. Default: the processor's.")]
Steps = Annotated[int | None, Option(min=0, help="The number of tokens to steer in each answer. Default: the processor's.")]
Watch = Annotated[int | None, Option(min=1, help="Tokens after which unneeded steering ends. Default: the processor's.")]
Mixing = Annotated[str | None, Option(help="log_linear, linear, paper, safe_decoding or contrastive. Default: the processor's.")]
Weights = Annotated[Path | None, Option(help="A folder that the testbed's training wrote. Default: the package's.")]
Device = Annotated[str, Option(help="The target's device; auto: spread it over all devices.")]
AnchorDevice = Annotated[str | None, Option(help="The anchor's device. Default: the target's.")]
TpPlan = Annotated[str | None, Option(help="auto: split the target over the processes of torchrun (tensor parallelism).")]


def _given(**options: object) -> dict[str, object]:
    """The options that were given, without those left at None."""
    return {name: value for name, value in options.items() if value is not None}


@app.callback()
def alignbeam() -> None:
    """Make a fine-tuned model refuse what a safe model would refuse, at generation time."""


@command(app)
def demo(
    prompts: Annotated[int | None, Option(min=2, help="Prompts of each kind. Default: 60, with --real 4.")] = None,
    real: Annotated[bool, Option("--real", help="Small public models and prompts instead of the testbed's.")] = False,
    weights: Weights = None,
) -> None:
    """Show plain and guarded answers of an unsafe specialist side by side, with rates and cost; takes about a minute."""
    from hf_alignbeam.cli.demo import run

    run(prompts, weights, real)


@command(app)
@with_judge_options
def generate(
    model: Annotated[str, Option(help="The target: a folder or a Hub id.")],
    anchor: Annotated[
        str, Option(help="The safe model: a folder or a Hub id, of any family; or `base`, the model under an adapter.")
    ],
    judge_options: JudgeOptions,
    judge: MaybeJudge = None,
    prompt: Annotated[list[str] | None, Option(help="A user's message; may be repeated.")] = None,
    file: Annotated[Path | None, Option(help="Prompts, one a line; or a table or JSON with `prompt` or `messages`.")] = None,
    to: Annotated[Path | None, Option(help="Write JSON lines to this file instead of printing.")] = None,
    alpha: Alpha = None,
    n_steps: Steps = None,
    n_watch: Watch = None,
    mixing: Mixing = None,
    settings: Settings = None,
    threshold: Annotated[float | None, Option(help="With --judge: the largest harm that passes.")] = None,
    num_candidates: Annotated[int | None, Option(help="With --judge: candidates for a flagged answer.")] = None,
    refusal: Annotated[str | None, Option(help="With --judge: the answer where nothing passes.")] = None,
    audit: Annotated[Path | None, Option(help="With --judge: a log of each answer, without its words.")] = None,
    max_new_tokens: Annotated[int, Option(min=1)] = 256,
    batch_size: Annotated[int, Option(min=1)] = 8,
    sample: Annotated[bool, Option("--sample", help="Sample instead of greedy search.")] = False,
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="The seed of --sample.")] = 0,
    device: Device = "cpu",
    anchor_device: AnchorDevice = None,
    judge_device: JudgeDevice = None,
    tp_plan: TpPlan = None,
    plain: Annotated[bool, Option("--plain", help="Also show the target's answer without a guard.")] = False,
    explain: Annotated[Path | None, Option(help="For one prompt: print and draw (PNG) how its answer came about.")] = None,
) -> None:
    """Answer prompts with a target model, guarded by an anchor and optionally a judge."""
    from hf_alignbeam.cli.generate import Request, run

    given = _given(alpha=alpha, n_steps=n_steps, n_watch=n_watch, mixing=mixing)
    judging = _given(threshold=threshold, num_candidates=num_candidates, refusal=refusal, audit=audit)
    if judge is None and (alone := [*judging, *judge_options.given]):
        raise typer.BadParameter(f"{', '.join(alone)} must come with --judge")
    run(
        Request(
            model=model,
            anchor=anchor,
            judge=judge,
            judge_options=judge_options,
            prompts=prompt or [],
            file=file,
            to=to,
            guard=typed_settings(settings, {**given, **judging}),
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


@command(app)
@with_judge_options
def steer(
    model: Annotated[str, Option(help="The target: a folder or a Hub id.")],
    judge: JudgeName,
    judge_options: JudgeOptions,
    file: Annotated[Path, Option(help="Prompts, one a line; or a table or JSON with `prompt` or `messages`.")],
    to: Annotated[Path, Option(help="The folder for the embeddings; a stopped search resumes from it.")],
    accept: Annotated[str | None, Option(help="`refusal`, or a safe model that must find an answer likely.")] = None,
    preset: Annotated[str | None, Option(help="tsa: Test-Time Safety Alignment as published.")] = None,
    threshold: Annotated[float | None, Option(help="The largest harm that passes. Default: the steerer's.")] = None,
    mu: Annotated[float | None, Option(help="The length of the noise, as a share of the embeddings' length.")] = None,
    eta: Annotated[float | None, Option(help="The length of a gradient step; 0: random search.")] = None,
    settings: Settings = None,
    max_calls: Annotated[int | None, Option(help="The largest number of judge calls for a prompt.")] = None,
    max_generations: Annotated[int | None, Option(help="The largest number of answers generated for a prompt.")] = None,
    max_batch_tokens: Annotated[int | None, Option(help="The largest batch: rows times their length.")] = None,
    judge_timeout: Annotated[float | None, Option(help="Seconds to wait for a judge. Default: no limit.")] = None,
    seed: Annotated[int | None, Option(help="The seed of noise and sampling.")] = None,
    max_new_tokens: Annotated[int, Option(min=1)] = 128,
    device: Device = "cpu",
    judge_device: JudgeDevice = None,
    plot: Annotated[bool, Option("--plot", help="Also draw harm against judge calls (needs matplotlib).")] = False,
) -> None:
    """Search prompt embeddings that a model answers safely, for a file of prompts."""
    from hf_alignbeam.cli.steer import Request, run

    named = _given(
        threshold=threshold,
        mu=mu,
        eta=eta,
        max_calls=max_calls,
        max_generations=max_generations,
        max_batch_tokens=max_batch_tokens,
        judge_timeout=judge_timeout,
        seed=seed,
    )
    given = typed_settings(settings, named)
    run(Request(model, judge, judge_options, accept, file, to, preset, given, max_new_tokens, device, judge_device, plot))


@command(app)
@with_judge_options
def evaluate(
    judge_options: JudgeOptions,
    recipe: Annotated[
        str | None,
        Argument(help="A YAML file or a recipe of the package. Default: testbed."),
    ] = None,
    model: Annotated[str | None, Option(help="The target: a folder, a Hub id or testbed:NAME.")] = None,
    anchor: Annotated[str | None, Option(help="The safe model, named like --model; or `base`.")] = None,
    judge: MaybeJudge = None,
    judge_errors: Annotated[float | None, Option(min=0.0, max=1.0, help="The share of verdicts to invert.")] = None,
    harm_judge: Annotated[
        str | None, Option(help="Another judge, named like --judge, that no guard asks: it says which answers do harm.")
    ] = None,
    prompts: Annotated[list[str] | None, Option(help="A file, hub:ID or testbed:KIND; may be repeated.")] = None,
    systems: Annotated[list[str] | None, Option(help="Only the recipe's system of this name; may be repeated.")] = None,
    split: Annotated[str | None, Option(help="The split of every prompt set. Default: the recipe's.")] = None,
    limit: Annotated[int | None, Option(min=1, help="The largest number of prompts from each set.")] = None,
    weights: Weights = None,
    to: Annotated[Path | None, Option(help="A folder for answers, report and JSON; a stopped run resumes from it.")] = None,
    plot: Annotated[bool, Option("--plot", help="Also draw safety against over-refusal and cost.")] = False,
    device: Annotated[str | None, Option(help="The target's device; auto: spread it over all devices.")] = None,
    anchor_device: AnchorDevice = None,
    judge_device: JudgeDevice = None,
    tp_plan: TpPlan = None,
    dtype: Annotated[str | None, Option(help="The dtype of the target. Default: the checkpoint's.")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Prompts in one call of generate.")] = None,
    max_new_tokens: Annotated[int | None, Option(min=1)] = None,
    temperature: Annotated[float | None, Option(min=0.0, help="Above 0, answers are sampled.")] = None,
    seed: Annotated[int | None, Option(help="The seed of everything random.")] = None,
    embedding_search: Annotated[
        bool,
        Option("--embedding-search", help="Measure embedding search on the testbed instead; --judge: graded or judge-cls."),
    ] = False,
    alpha: Alpha = None,
    n_steps: Steps = None,
    n_watch: Watch = None,
    mixing: Mixing = None,
) -> None:
    """Compare systems on prompts: refusal, harm, over-refusal, utility and cost, each with its 95 % interval."""
    if embedding_search:
        if recipe or to or prompts or systems or harm_judge or judge_options.given:
            raise typer.BadParameter(
                "--embedding-search runs on the testbed only: leave out the recipe, --prompts, --systems, --to, --harm-judge and "
                "--judge-..."
            )
        from hf_alignbeam.benchmarks.embedding_searches.testbed_searches import run as measure_searches

        measure_searches(weights, split or "test", limit, judge)
        return
    from hf_alignbeam.cli.evaluate import Request, run

    named = _given(
        model=_given(name=model, device=device, tp_plan=tp_plan, dtype=dtype),
        anchor=_given(name=anchor, device=anchor_device),
        judge=_given(name=judge, device=judge_device, wrong=judge_errors),
        harm_judge=harm_judge,
        score_harm=True if harm_judge else None,
        prompts=prompts,
        weights=weights and str(weights),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    guard = _given(alpha=alpha, n_steps=n_steps, n_watch=n_watch, mixing=mixing)
    run(Request(recipe, named, judge_options, systems or [], split, limit, guard, to, plot))


@command(app)
@with_judge_options
def doctor(
    model: Annotated[str, Argument(help="The target: a folder or a Hub id.")],
    anchor: Annotated[str, Argument(help="The safe model, of any family: a folder or a Hub id.")],
    judge_options: JudgeOptions,
    judge: Annotated[str | None, Argument(help="A guard, a model or a classifier: a folder, a Hub id or a URL.")] = None,
    pairs: Annotated[
        Path | None, Option(help="Responses to test the judge, as for calibrate. Default: the package's, in English.")
    ] = None,
    device: Annotated[str, Option(help="The device of all models, as torch names it.")] = "cpu",
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Check a target, an anchor and a judge for faults; exit with 0 (green), 1 (yellow) or 2 (red)."""
    from hf_alignbeam.cli.doctor import run

    if judge is None and judge_options.given:
        raise typer.BadParameter(f"{', '.join(judge_options.given)} must come with a judge")
    run(model, anchor, judge, judge_options, pairs, device, as_json)


add_judge_commands(app)
command(app)(bench)


@command(app)
def publish(
    strategy: Annotated[str, Argument(help="anchor-logits, alignbeam or embedding-steerer.")],
    to: Annotated[str, Option(help="A folder to write, or an adapter's folder to add to; with --push, a Hub id.")],
    push: Annotated[bool, Option("--push", help="Upload to the Hub.")] = False,
    private: Annotated[bool, Option("--private", help="With --push: make the repository private.")] = False,
) -> None:
    """Write a Hub folder that any model can load as its `custom_generate`."""
    from hf_alignbeam.cli.publish import publish as write

    write(strategy, to, push, private)


@command(app)
@with_judge_options
def protect(
    model: Annotated[str, Option(help="The target: a folder or a Hub id.")],
    anchor: Annotated[str, Option(help="The safe model: a folder or a Hub id.")],
    judge: Annotated[str, Option(help="A guard, another model or a classifier: a folder or a Hub id, but no URL.")],
    judge_options: JudgeOptions,
    to: Annotated[str, Option(help="A folder to write; with --push, a Hub id.")],
    revision: Annotated[str | None, Option(help="The target's revision.")] = None,
    anchor_revision: Annotated[str | None, Option(help="The anchor's revision. Default: its current commit.")] = None,
    threshold: Annotated[float | None, Option(help="The largest harm that passes. Default: the strategy's.")] = None,
    refusal: Annotated[str | None, Option(help="The answer where nothing passes.")] = None,
    settings: Settings = None,
    push: Annotated[bool, Option("--push", help="Upload to the Hub.")] = False,
    private: Annotated[bool, Option("--private", help="With --push: make the repository private.")] = False,
) -> None:
    """Copy a model's repository and add its guard: the copy loads guarded, or fails to load."""
    from hf_alignbeam.cli.publish import protect as write

    guards = _given(anchor=anchor, judge=judge, anchor_revision=anchor_revision)
    given = typed_settings(settings, _given(threshold=threshold, refusal=refusal))
    write(model, revision, to, guards, given, judge_options, push, private)
