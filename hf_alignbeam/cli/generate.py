"""`alignbeam generate`: answers from any target model, guarded by any anchor and any judge."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_alignbeam.chat.conversations import Conversation, Message, as_messages
from hf_alignbeam.cli.explain import check_request, show, watch
from hf_alignbeam.cli.explain_picture import draw
from hf_alignbeam.console import report_user_errors
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.answer_store import Store, digest, files_of
from hf_alignbeam.evaluation.devices import load_causal, load_causal_on, named_device, this_process
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.evaluation.prompt_files import read_prompts
from hf_alignbeam.hub.judge_loading import load_judge
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.steering.processor import AnchorLogitsProcessor


@dataclass(frozen=True)
class Request:
    """What was asked for at the terminal."""

    model: str
    anchor: str
    judge: str | None
    prompts: list[str]
    file: Path | None
    to: Path | None
    guard: dict[str, Any]
    max_new_tokens: int
    batch_size: int
    sample: bool
    seed: int
    device: str
    anchor_device: str | None
    judge_device: str | None
    tp_plan: str | None
    plain: bool
    explain: Path | None


@dataclass(frozen=True)
class Loaded:
    """The target and its guard."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    guard: AlignBeam | AnchorLogitsProcessor


#: What does not change an answer: how many there are, and where they are made and go.
ELSEWHERE = ("prompts", "file", "to", "device", "anchor_device", "judge_device", "tp_plan", "explain")


def run(request: Request) -> None:
    """Load, answer, print or write."""
    errors = Console(stderr=True)
    with report_user_errors():
        state = this_process()
        conversations = [as_messages(conversation) for conversation in _conversations(request)]
        if request.explain is not None:
            check_request(request.explain, len(conversations))
        if request.to is None and state.num_processes > 1:
            raise ValueError("Several processes need --to, a file in a folder that all of them share.")
        with errors.status("loading"):
            loaded = _load(request)
        size = request.batch_size
        batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
        with Progress(console=errors, transient=True, disable=not state.is_main_process) as progress:
            task = progress.add_task("answering", total=len(conversations))
            after_batch = lambda n_done: progress.advance(task, n_done * state.num_processes)  # noqa: E731
            if request.to is None:
                for batch in batches:
                    records = _answered(request, loaded, batch)
                    for record in records:
                        _show(record)
                    _draw(request, records)
                    after_batch(len(batch))
            else:
                _write(request, request.to, loaded, batches, state, after_batch)
        ledger = loaded.guard.ledger
        own = (ledger.anchor_forwards, ledger.steered_tokens, ledger.judged)
        spent = [sum(each) for each in zip(*([own] if request.tp_plan else gather_object([own])), strict=True)]
    if not state.is_main_process:
        return
    errors.print(
        f"{spent[0]} forwards of the anchor steered {spent[1]} tokens; the judge was asked about {spent[2]} texts.",
        soft_wrap=True,
    )
    if request.explain:
        errors.print(f"Written: {request.explain}", soft_wrap=True, markup=False, highlight=False)


def _load(request: Request) -> Loaded:
    """The target, and the whole strategy or, where there is no judge, its processor alone."""
    model, tokenizer = load_causal_on(request.model, request.device, request.tp_plan)
    base = request.anchor == "base"
    near = input_device(model)
    elsewhere = request.anchor_device
    anchor, anchor_tokenizer = (
        (model, tokenizer)
        if base
        else load_causal_on(request.anchor, elsewhere)
        if elsewhere
        else load_causal(request.anchor, near)
    )
    named: dict[str, Any] = {"anchor": "base", "model": model} if base else {"anchor": anchor}
    named |= {"anchor_tokenizer": anchor_tokenizer, "tokenizer": tokenizer, **request.guard}
    if request.judge is None:
        return Loaded(model, tokenizer, AnchorLogitsProcessor(**named))
    judge = load_judge(request.judge, device=named_device(request.judge_device) if request.judge_device else near)
    return Loaded(model, tokenizer, AlignBeam(judge=judge, **named))


def _conversations(request: Request) -> list[Conversation]:
    conversations: list[Conversation] = [*request.prompts, *([] if request.file is None else read_prompts(request.file))]
    if not conversations:
        raise ValueError("There is nothing to answer: give --prompt, or --file with at least one prompt in it.")
    return conversations


def _write(
    request: Request,
    to: Path,
    loaded: Loaded,
    batches: list[list[list[Message]]],
    state: PartialState,
    after_batch: Callable[[int], None],
) -> None:
    """Answer what is not answered yet, shared out over processes, and put all of it into one file in the order of the prompts."""
    parts = to.with_name(f"{to.name}.parts")
    settings = {name: value for name, value in vars(request).items() if name not in ELSEWHERE}
    stamps = [files_of(name) for name in (request.model, request.anchor, request.judge) if name is not None]
    keys = [digest([version("hf-alignbeam"), settings, stamps, batch]) for batch in batches]
    with contextlib.closing(Store(parts, "answers", state)) as store:
        todo = dict(zip(keys, batches, strict=True)).items()
        left = [(key, batch) for key, batch in todo if request.explain or key not in store]  # no picture lies in the store
        for key, batch in left if request.tp_plan else left[state.process_index :: state.num_processes]:
            try:
                records = _answered(request, loaded, batch)
            except KeyboardInterrupt:
                typer.echo(f"Stopped. The same command goes on from what lies in {parts}.", err=True)
                raise typer.Exit(130) from None
            if not request.tp_plan or state.is_main_process:
                store.add(key, records, {})
                _draw(request, records)
            after_batch(len(batch))
        store.gather()
        if state.is_main_process:
            lines = [json.dumps(record, ensure_ascii=False) for key in keys for record in store[key].records]
            to.write_text("".join(line + "\n" for line in lines))
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(parts)


def _answered(request: Request, loaded: Loaded, batch: list[list[Message]]) -> list[dict[str, Any]]:
    """A record for each of a batch's prompts."""
    watched = watch(loaded.guard, batch[0], loaded.tokenizer) if request.explain else None
    systems = {"answer": watched.how if watched else _guarding(loaded.guard, batch)} | ({"plain": {}} if request.plain else {})
    ids, texts, seconds = {}, {}, {}
    for name, how in systems.items():
        began = time.perf_counter()
        ids[name] = _generate(request, batch, loaded.model, loaded.tokenizer, how)
        texts[name] = loaded.tokenizer.batch_decode(ids[name], skip_special_tokens=True)
        seconds[name] = round((time.perf_counter() - began) / len(batch), 3)
    explained = {} if watched is None else {"explain": watched.explain(ids["answer"][0].tolist())}
    answers = [{name: text[i] for name, text in texts.items()} for i in range(len(batch))]
    return [{"messages": m, **said, "seconds": seconds, **explained} for m, said in zip(batch, answers, strict=True)]


def _guarding(guard: AlignBeam | AnchorLogitsProcessor, batch: list[list[Message]]) -> dict[str, Any]:
    """What `generate` is given for a batch."""
    if isinstance(guard, AlignBeam):
        return {"custom_generate": guard.for_call(conversations=batch)}
    return {"logits_processor": [guard.with_conversations(batch)]}


def _generate(
    request: Request,
    batch: list[list[Message]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    how: dict[str, Any],
) -> torch.Tensor:
    """The new tokens (B, length) of each answer."""
    if request.sample:
        set_seed(request.seed)
    inputs = encode(batch, tokenizer).to(input_device(model))
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            **inputs, **how, max_new_tokens=request.max_new_tokens, do_sample=request.sample
        )
    return output[:, inputs["input_ids"].shape[1] :]


def _show(record: dict[str, Any]) -> None:
    typer.secho(record["messages"][-1]["content"], bold=True)
    if "plain" in record:
        typer.echo(f"  plain:   {record['plain'].strip()}\n  guarded: {record['answer'].strip()}")
    else:
        typer.echo(f"  {record['answer'].strip()}")
    if "explain" in record:
        show(record["explain"], Console())


def _draw(request: Request, records: Sequence[Mapping[str, Any]]) -> None:
    """The picture that was asked for: last of all, for the answer is to be out by then, whatever becomes of the picture."""
    if request.explain is not None:
        draw(records[0]["explain"], request.explain)
