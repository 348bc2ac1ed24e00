"""`alignbeam steer`: an embedding search for a file of prompts, with its results in a folder.

Knows the terminal and how prompts are divided among processes. Knows nothing of how a search proceeds.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.chat.conversations import Conversation, as_messages
from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import check_optioned_judge, load_optioned_judge
from hf_alignbeam.cli.strategy_settings import check_settings
from hf_alignbeam.console import (
    check_can_plot,
    report_interrupts,
    report_left_out,
    report_user_errors,
    table_head,
    table_row,
    tell,
)
from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompt, SteeredPrompts
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.evaluation.devices import load_causal_on, named_device, this_process
from hf_alignbeam.evaluation.generation import why_refused
from hf_alignbeam.evaluation.prompt_sets import read_prompts
from hf_alignbeam.hub.judge_loading import load_accept
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.presets.published import TSA
from hf_alignbeam.utils.whole_files import replace_file

PLOT = "harm.png"


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    model: str
    judge: str
    judge_options: JudgeOptions
    accept: str | None
    file: Path
    to: Path
    preset: str | None
    settings: dict[str, Any]
    max_new_tokens: int
    device: str
    judge_device: str | None
    plot: bool


def run(request: Request) -> None:
    """Search with a progress bar, write the folder and print a summary. Of several processes, only the first one prints.

    A prompt that the target's template refuses is left out; the command then exits with 1.
    """
    with report_interrupts(f"The same command resumes from {request.to}."):
        _run(request)


def _run(request: Request) -> None:
    errors = Console(stderr=True)
    with report_user_errors():
        state = this_process()
        if request.preset not in (None, "tsa"):
            raise ValueError(f"--preset must be tsa or left out, got {request.preset!r}.")
        examples = read_prompts(request.file)
        if not examples:
            raise ValueError(f"{request.file} must hold at least one prompt, got none.")
        if request.plot:
            check_can_plot("--plot")
        preset = TSA if request.preset else {}
        check_settings(request.settings, EmbeddingSteerer, preset)
        check_optioned_judge(request.judge, request.judge_options)
        with errors.status("loading"):
            model, tokenizer = load_causal_on(request.model, request.device)
            reasons = [why_refused(example.conversation, tokenizer) for example in examples]
            conversations = [each.conversation for each, reason in zip(examples, reasons, strict=True) if not reason]
            left_out = [ValueError(f"{each.place}: {why}") for each, why in zip(examples, reasons, strict=True) if why]
            if not conversations:
                raise left_out[0]
            judge_device = named_device(request.judge_device) if request.judge_device else input_device(model)
            judge = load_optioned_judge(request.judge, request.judge_options, judge_device)
            accept = load_accept(request.accept, None, model)
            steerer = EmbeddingSteerer(model, tokenizer, judge, accept, **{**preset, **request.settings})
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=errors, transient=True, disable=not state.is_main_process) as progress:
            counts: Counter[str] = Counter()
            task = progress.add_task("", total=-(-len(conversations) // state.num_processes))

            def after_prompt(prompt: SteeredPrompt) -> None:
                counts.update(flagged=prompt.outcome != "clean", calls=prompt.n_oracle_calls)
                progress.update(task, advance=1, description=f"{counts['flagged']} flagged, {counts['calls']} oracle calls")

            try:
                steered = _precomputed(steerer, conversations, request, state, after_prompt)
            except JudgeError as error:
                raise ValueError(f"{error}. The same command resumes from there.") from error
        if steered is None:
            return
        prompts = list(steered)
        tell(Console(width=200), *_summary(prompts), "", f"Written: {request.to}")
        if request.plot:
            _plot(prompts, request.to / PLOT, steerer.threshold)
            tell(Console(), f"Written: {request.to / PLOT}")
    report_left_out(left_out, len(examples))


def _precomputed(
    steerer: EmbeddingSteerer,
    conversations: Sequence[Conversation],
    request: Request,
    state: PartialState,
    after_prompt: Callable[[SteeredPrompt], None],
) -> SteeredPrompts | None:
    """The collection; if several processes share the search, only the first one gets it."""
    if state.num_processes == 1:
        return steerer.precompute(conversations, request.to, request.max_new_tokens, after_prompt)
    distinct = list({conversation_key(as_messages(conversation)): conversation for conversation in conversations}.values())
    if own := distinct[state.process_index :: state.num_processes]:
        steerer.precompute(own, request.to, request.max_new_tokens, after_prompt, part=state.process_index)
    state.wait_for_everyone()
    return steerer.precompute(conversations, request.to, request.max_new_tokens) if state.is_main_process else None


def _summary(prompts: Sequence[SteeredPrompt]) -> list[str]:
    lines = table_head(["outcome", "prompts", "oracle calls each", "generations each", "seconds each"])
    for outcome in ("clean", "steered", "fallback", "failed"):
        group = [prompt for prompt in prompts if prompt.outcome == outcome]
        if group:
            means = [sum(values) / len(group) for values in zip(*map(_costs, group), strict=True)]
            lines.append(table_row([outcome, str(len(group)), f"{means[0]:.2f}", f"{means[1]:.1f}", f"{means[2]:.3f}"]))
    return lines


def _costs(prompt: SteeredPrompt) -> tuple[int, int, float]:
    return prompt.n_oracle_calls, prompt.n_generated, prompt.seconds


def _plot(prompts: Sequence[SteeredPrompt], path: Path, threshold: float) -> None:
    """Plot the least harm so far of every flagged prompt over the oracle calls, and the mean over the prompts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    traces = [_least_so_far(prompt.harm_by_call) for prompt in prompts if prompt.outcome != "clean"]
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(map(len, traces), default=1)
    calls = range(1, longest + 1)
    for trace in traces:
        axes.step(calls[: len(trace)], trace, where="post", color="tab:blue", alpha=0.15)
    if traces:
        padded = [trace + trace[-1:] * (longest - len(trace)) for trace in traces]
        axes.step(calls, [sum(column) / len(padded) for column in zip(*padded, strict=True)], where="post", label="mean", lw=2)
    axes.axhline(threshold, color="tab:red", ls="--", label="threshold")
    axes.set(xlabel="oracle calls", ylabel="least harm so far", ylim=(-0.02, 1.02), title=f"{len(traces)} flagged prompts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    replace_file(path, lambda part: figure.savefig(part, format="png", dpi=150))


def _least_so_far(harm: Sequence[float]) -> list[float]:
    return [min(harm[: n + 1]) for n in range(len(harm))]
