"""`alignbeam generate`: answers prompts with a target model, guarded by an anchor and optionally a judge."""

import contextlib
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

from hf_alignbeam.chat.conversations import Message, as_messages
from hf_alignbeam.cli.explanation.explained import check_request, print_explanation, watch
from hf_alignbeam.cli.explanation.picture import draw
from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import check_optioned_judge, judge_values, load_optioned_judge
from hf_alignbeam.cli.strategy_settings import check_settings
from hf_alignbeam.console import OBEYED, check_encodable, printable, report_interrupts, report_left_out, report_user_errors, tell
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.evaluation.answer_store import Store, commit_of, digest, files_of, remove_store
from hf_alignbeam.evaluation.devices import load_causal, load_causal_on, named_device, this_process
from hf_alignbeam.evaluation.generation import encode_for
from hf_alignbeam.evaluation.prompt_sets import Example, read_prompts
from hf_alignbeam.inference.engines import input_device
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.utils.jsonl_log import check_records, json_line
from hf_alignbeam.utils.whole_files import replace_bytes


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    model: str
    anchor: str
    judge: str | None
    judge_options: JudgeOptions
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
class GuardedTarget:
    """The target with its tokenizer, and its guard."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    guard: AlignBeam | AnchorLogitsProcessor


#: Options that do not change an answer; the others are a part of its key in the store.
NOT_IN_KEY = ("prompts", "file", "to", "device", "anchor_device", "judge_device", "tp_plan", "explain")


def run(request: Request) -> None:
    """Load the models, answer all prompts, and print or write the answers; exit with 1 where a prompt could not be answered."""
    to = request.to
    resume = (
        f"The same command resumes from {_parts_of(to)}." if to else "The answers above stand; with --to, it could be resumed."
    )
    with report_interrupts(resume):
        _run(request)


def _run(request: Request) -> None:
    errors = Console(stderr=True)
    with report_user_errors():
        state = this_process()
        examples = _examples(request)
        if request.explain is not None:
            check_request(request.explain, len(examples))
        if request.to is None and state.num_processes > 1:
            raise ValueError("Several processes need --to, a file in a folder that all of them share.")
        if request.to is not None and request.to.is_dir():
            raise ValueError(f"--to must name a file, got the folder {request.to}.")
        if request.to is not None:
            check_records(request.to, "--to", {"messages", "answer"}, {"messages", "error"})
            _check_place(request, request.to)
        _check_apart(request)
        check_settings(request.guard, AnchorLogitsProcessor if request.judge is None else AlignBeam)
        if request.judge is not None:
            check_optioned_judge(request.judge, request.judge_options)
        with errors.status("loading"):
            loaded = _load(request)
        size = request.batch_size
        batches = [examples[start : start + size] for start in range(0, len(examples), size)]
        with Progress(console=errors, transient=True, disable=not state.is_main_process) as progress:
            task = progress.add_task("answering", total=len(examples))
            after_batch = lambda n_done: progress.advance(task, n_done * state.num_processes)  # noqa: E731
            if request.to is None:
                refused = _print_answers(request, loaded, batches, after_batch)
            else:
                refused = _write(request, request.to, loaded, batches, state, after_batch)
        ledger = loaded.guard.ledger
        counts = (ledger.anchor_forwards, ledger.steered_tokens, ledger.judged)
        n_forwards, n_steered, n_judged = map(sum, zip(*([counts] if request.tp_plan else gather_object([counts])), strict=True))
    if not state.is_main_process:
        return
    tell(errors, f"{n_forwards} forwards of the anchor steered {n_steered} tokens; the judge was asked about {n_judged} texts.")
    if request.explain:
        tell(errors, f"Written: {request.explain}")
    report_left_out(refused, len(examples))


def _check_apart(request: Request) -> None:
    """Raise ValueError where two options name one file: what the one holds would be lost."""
    named = {"--file": request.file, "--to": request.to, "--audit": request.guard.get("audit"), "--explain": request.explain}
    places: dict[Path, str] = {}
    for option, path in named.items():
        if path is not None and (first := places.setdefault(Path(path).resolve(), option)) != option:
            raise ValueError(f"{option} must name another file than {first}, got {path} for both. One would replace the other.")


def _check_place(request: Request, to: Path) -> None:
    """Raise ValueError where the answers would lie in the folder of a model."""
    for option, name in (("--model", request.model), ("--anchor", request.anchor), ("--judge", request.judge)):
        if name is not None and Path(name).is_dir() and to.resolve().is_relative_to(Path(name).resolve()):
            raise ValueError(f"--to must lie outside the folder of {option}, got {to} in {name}. Name another file.")


def _parts_of(to: Path) -> Path:
    return to.with_name(f"{to.name}.parts")


def _load(request: Request) -> GuardedTarget:
    """Load the target and its guard: AlignBeam with a judge, the processor alone without one."""
    model, tokenizer = load_causal_on(request.model, request.device, request.tp_plan)
    device = input_device(model)
    arguments: dict[str, Any] = {"anchor": "base", "model": model, "anchor_tokenizer": tokenizer}
    if request.anchor != "base":
        anchor, anchor_tokenizer = _load_anchor(request, device)
        arguments = {"anchor": anchor, "anchor_tokenizer": anchor_tokenizer}
    arguments |= {"tokenizer": tokenizer, **request.guard}
    if request.judge is None:
        return GuardedTarget(model, tokenizer, AnchorLogitsProcessor(**arguments))
    judge_device = named_device(request.judge_device) if request.judge_device else device
    judge = load_optioned_judge(request.judge, request.judge_options, judge_device)
    return GuardedTarget(model, tokenizer, AlignBeam(judge=judge, **{"on_judge_error": "raise", **arguments}))


def _load_anchor(request: Request, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the anchor onto its own device, or by default onto the target's."""
    if request.anchor_device:
        return load_causal_on(request.anchor, request.anchor_device)
    return load_causal(request.anchor, device)


def _examples(request: Request) -> list[Example]:
    """The prompts of the options and of the file, each with its place."""
    for prompt in request.prompts:
        check_encodable("--prompt", prompt)
    check_encodable("--refusal", request.guard.get("refusal"))
    places = (f"--prompt {number}" for number in range(1, len(request.prompts) + 1))
    typed = [Example("", as_messages(prompt), place=place) for prompt, place in zip(request.prompts, places, strict=True)]
    examples = [*typed, *([] if request.file is None else read_prompts(request.file))]
    if not examples:
        raise ValueError("There is nothing to answer: give --prompt, or --file with at least one prompt in it.")
    return examples


def _print_answers(
    request: Request, loaded: GuardedTarget, batches: list[list[Example]], after_batch: Callable[[int], None]
) -> list[ValueError]:
    """Answer the batches and print the answers; returns the errors of prompts that have none."""
    refused = []
    for batch in batches:
        records = _answer_each(request, loaded, [example.conversation for example in batch])
        for record in records:
            _print(record)
        _draw(request, records)
        after_batch(len(batch))
        refused += _refused(batch, records)
    _check_any_is_answered(refused, batches)
    return refused


def _write(
    request: Request,
    to: Path,
    loaded: GuardedTarget,
    batches: list[list[Example]],
    state: PartialState,
    after_batch: Callable[[int], None],
) -> list[ValueError]:
    """Answer the batches that are not in the store, shared out over processes, and write all answers in order into one file.

    Returns the errors of prompts that have no answer; a resumed command tries them again.
    """
    parts = _parts_of(to)
    settings = {name: value for name, value in vars(request).items() if name not in NOT_IN_KEY}
    settings["judge_values"] = judge_values(request.judge_options)  # with the contents of files
    names = {request.model: None, request.anchor: None, request.judge: request.judge_options.revision}
    models = [files_of(name) or commit_of(name, revision) for name, revision in names.items() if name not in (None, "base")]
    prompts = [[example.conversation for example in batch] for batch in batches]
    keys = [digest([version("hf-alignbeam"), settings, models, batch]) for batch in prompts]
    with contextlib.closing(Store(parts, "answers", state)) as store:
        done = {key for key in keys if key in store and not any("error" in record for record in store[key].records)}
        by_key = dict(zip(keys, prompts, strict=True))  # an explanation is always made: the store holds no picture
        left = [(key, batch) for key, batch in by_key.items() if request.explain or key not in done]
        for key, batch in left if request.tp_plan else left[state.process_index :: state.num_processes]:
            records = _answer_each(request, loaded, batch)
            if not request.tp_plan or state.is_main_process:
                store.add(key, records, {})
                _draw(request, records)
            after_batch(len(batch))
        store.gather()
        answered = [store[key].records for key in keys]
        refused = [error for pair in zip(batches, answered, strict=True) for error in _refused(*pair)]
        _check_any_is_answered(refused, batches)
        if state.is_main_process:
            replace_bytes(to, "".join(_json_line(record) for records in answered for record in records).encode())
        state.wait_for_everyone()
        if state.is_main_process:  # before the store is closed: until then no other run can use it
            remove_store(parts, "answers")
    return refused


def _json_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON; what terminals obey, or some readers take for the end of a line, is escaped."""
    line = json_line(record).decode().removesuffix("\n")
    return OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def _answer_each(request: Request, loaded: GuardedTarget, batch: list[list[Message]]) -> list[dict[str, Any]]:
    """Answer a batch. A prompt that cannot be answered, as a template refuses it or it is too long, costs no other its answer.

    A judge that fails at all ends the command: else every answer would be the refusal.
    """
    try:
        return _answer(request, loaded, batch)
    except (ValueError, JudgeError) as error:
        if isinstance(error, JudgeError) and not error.concerns_one_text:
            raise
        if len(batch) == 1:
            return [{"messages": batch[0], "error": str(error)}]
    return [record for prompt in batch for record in _answer_each(request, loaded, [prompt])]


def _refused(batch: Sequence[Example], records: Sequence[Mapping[str, Any]]) -> list[ValueError]:
    """The errors of a batch's prompts that have no answer, each with its place."""
    pairs = zip(batch, records, strict=True)
    return [ValueError(f"{example.place}: {record['error']}") for example, record in pairs if "error" in record]


def _check_any_is_answered(refused: Sequence[ValueError], batches: Sequence[Sequence[Example]]) -> None:
    """Raise the first error where no prompt has an answer: then the set-up is wrong, and no file is written."""
    if len(refused) == sum(map(len, batches)):
        raise refused[0]


def _answer(request: Request, loaded: GuardedTarget, batch: list[list[Message]]) -> list[dict[str, Any]]:
    """Answer a batch; one record for each prompt."""
    watched = watch(loaded.guard, batch[0], loaded.tokenizer) if request.explain else None
    systems = {"answer": watched.generate_arguments if watched else _guard_arguments(loaded.guard, batch)}
    systems |= {"plain": {}} if request.plain else {}
    ids, texts, seconds = {}, {}, {}
    for name, arguments in systems.items():
        start = time.perf_counter()
        ids[name] = _generate(request, batch, loaded, arguments)
        texts[name] = loaded.tokenizer.batch_decode(ids[name], skip_special_tokens=True)
        seconds[name] = round((time.perf_counter() - start) / len(batch), 3)
    explained = {} if watched is None else {"explain": watched.explain(ids["answer"][0].tolist())}
    answers = [{name: text[i] for name, text in texts.items()} for i in range(len(batch))]
    pairs = zip(batch, answers, strict=True)
    return [{"messages": messages, **answer, "seconds": seconds, **explained} for messages, answer in pairs]


def _guard_arguments(guard: AlignBeam | AnchorLogitsProcessor, batch: list[list[Message]]) -> dict[str, Any]:
    """The arguments of `generate` that guard a batch."""
    if isinstance(guard, AlignBeam):
        return {"custom_generate": guard.for_call(conversations=batch)}
    return {"logits_processor": [guard.with_conversations(batch)]}


def _generate(request: Request, batch: list[list[Message]], loaded: GuardedTarget, arguments: dict[str, Any]) -> torch.Tensor:
    """The new tokens (B, length) of each answer."""
    if request.sample:
        set_seed(request.seed)
    inputs = encode_for(loaded.model, batch, loaded.tokenizer)
    with torch.no_grad():
        output = loaded.model.generate(  # type: ignore[operator]
            **inputs, **arguments, max_new_tokens=request.max_new_tokens, do_sample=request.sample
        )
    return output[:, inputs["input_ids"].shape[1] :]


def _print(record: dict[str, Any]) -> None:
    if "error" in record:
        return
    typer.secho(printable(record["messages"][-1]["content"]), bold=True)
    answers = {name: printable(record[name].strip()) for name in ("plain", "answer") if name in record}
    if "plain" in answers:
        typer.echo(f"  plain:   {answers['plain']}\n  guarded: {answers['answer']}")
    else:
        typer.echo(f"  {answers['answer']}")
    if "explain" in record:
        print_explanation(record["explain"], Console())


def _draw(request: Request, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the explanation. This comes last, so that the answer is out even if drawing fails."""
    if request.explain is not None and "explain" in records[0]:
        draw(records[0]["explain"], request.explain)
