"""`alignbeam steer`: embeddings for a file of prompts, found once and kept in a folder."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hf_alignbeam.chat.conversations import Conversation, as_messages, conversation_key
from hf_alignbeam.console import check_can_plot, report_user_errors, table_head, table_row, tell
from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompt, SteeredPrompts
from hf_alignbeam.embedding_search.steerer import EmbeddingSteerer
from hf_alignbeam.evaluation.devices import load_causal_on, named_device, this_process
from hf_alignbeam.evaluation.prompt_files import read_prompts
from hf_alignbeam.hub.judge_loading import load_accept, load_judge
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.presets.published import TSA

PLOT = "harm.png"


@dataclass(frozen=True)
class Request:
    """What was asked for at the terminal."""

    model: str
    judge: str
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
    """Search, tell how far it is, write the folder and say what became of the prompts; of several processes, the first one."""
    errors = Console(stderr=True)
    with report_user_errors():
        state = this_process()
        if request.preset not in (None, "tsa"):
            raise ValueError(f"--preset must be tsa or left out, got {request.preset!r}.")
        conversations = read_prompts(request.file)
        if not conversations:
            raise ValueError(f"{request.file} must hold at least one prompt, got none.")
        if request.plot:
            check_can_plot("--plot")
        with errors.status("loading"):
            model, tokenizer = load_causal_on(request.model, request.device)
            near = input_device(model)
            judge = load_judge(request.judge, device=named_device(request.judge_device) if request.judge_device else near)
            accept = load_accept(request.accept, None, model)
            preset = TSA if request.preset else {}
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
                raise ValueError(f"{error}. The same command goes on from there.") from error
            except KeyboardInterrupt:
                progress.stop()
                typer.echo(f"Stopped. The same command goes on from what lies in {request.to}.", err=True)
                raise typer.Exit(130) from None
        if steered is None:
            return
        prompts = list(steered)
    tell(Console(width=200), *_summary(prompts), "", f"Written: {request.to}")
    if request.plot:
        _plot(prompts, request.to / PLOT, steerer.threshold)
        typer.echo(f"Written: {request.to / PLOT}")


def _precomputed(
    steerer: EmbeddingSteerer,
    conversations: Sequence[Conversation],
    request: Request,
    state: PartialState,
    after_prompt: Callable[[SteeredPrompt], None],
) -> SteeredPrompts | None:
    """The collection, shared out over processes where there are several; the first one of them gets it."""
    if state.num_processes == 1:
        return steerer.precompute(conversations, request.to, request.max_new_tokens, after_prompt)
    each = list({conversation_key(as_messages(conversation)): conversation for conversation in conversations}.values())
    if mine := each[state.process_index :: state.num_processes]:
        steerer.precompute(mine, request.to, request.max_new_tokens, after_prompt, part=state.process_index)
    state.wait_for_everyone()
    return steerer.precompute(conversations, request.to, request.max_new_tokens) if state.is_main_process else None


def _summary(prompts: Sequence[SteeredPrompt]) -> list[str]:
    lines = table_head(["outcome", "prompts", "oracle calls each", "generations each", "seconds each"])
    for outcome in ("clean", "steered", "fallback", "failed"):
        found = [prompt for prompt in prompts if prompt.outcome == outcome]
        if found:
            means = [sum(values) / len(found) for values in zip(*map(_costs, found), strict=True)]
            lines.append(table_row([outcome, str(len(found)), f"{means[0]:.2f}", f"{means[1]:.1f}", f"{means[2]:.3f}"]))
    return lines


def _costs(prompt: SteeredPrompt) -> tuple[int, int, float]:
    return prompt.n_oracle_calls, prompt.n_generated, prompt.seconds


def _plot(prompts: Sequence[SteeredPrompt], path: Path, threshold: float) -> None:
    """The least harm so far of every flagged prompt against the oracle calls that it took, and their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    traces = [_least(prompt.harm_by_call) for prompt in prompts if prompt.outcome != "clean"]
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    longest = max(map(len, traces), default=1)
    calls = range(1, longest + 1)
    for trace in traces:
        axes.step(calls[: len(trace)], trace, where="post", color="tab:blue", alpha=0.15)
    if traces:
        whole = [trace + trace[-1:] * (longest - len(trace)) for trace in traces]
        axes.step(calls, [sum(column) / len(whole) for column in zip(*whole, strict=True)], where="post", label="mean", lw=2)
    axes.axhline(threshold, color="tab:red", ls="--", label="threshold")
    axes.set(xlabel="oracle calls", ylabel="least harm so far", ylim=(-0.02, 1.02), title=f"{len(traces)} flagged prompts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    figure.savefig(path, dpi=150)


def _least(harm: Sequence[float]) -> list[float]:
    return [min(harm[: n + 1]) for n in range(len(harm))]
