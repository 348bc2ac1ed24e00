"""`alignbeam generate`: answers from any target model, guarded by any anchor and any judge."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_alignbeam.chat import Conversation, Message, as_messages, target_text
from hf_alignbeam.commands import told_plainly
from hf_alignbeam.commands.explain import check_request, show, watch
from hf_alignbeam.commands.named import load_causal, named_device, read_prompts
from hf_alignbeam.commands.picture import draw
from hf_alignbeam.decode import AlignBeam
from hf_alignbeam.loading import load_judge
from hf_alignbeam.processor import AnchorLogitsProcessor


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
    plain: bool
    explain: Path | None


def run(request: Request) -> None:
    """Load, answer, print or write."""
    errors = Console(stderr=True)
    with told_plainly():
        conversations = [as_messages(conversation) for conversation in _conversations(request)]
        if request.explain is not None:
            check_request(request.explain, len(conversations))
        with errors.status("loading"):
            device = named_device(request.device)
            model, tokenizer = load_causal(request.model, device)
            guard = _guard(request, model, tokenizer, device)
        records = _answers(request, conversations, model, tokenizer, guard, errors)
        if request.to is None:
            for record in records:
                _show(record)
        else:
            with request.to.open("w") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=False, default=asdict) + "\n")
                    file.flush()
    ledger = guard.ledger
    errors.print(
        f"{ledger.anchor_forwards} forwards of the anchor steered {ledger.steered_tokens} tokens; the judge was asked about "
        f"{ledger.judged} texts."
    )
    if request.explain:
        errors.print(f"Written: {request.explain}", soft_wrap=True, markup=False, highlight=False)


def _guard(
    request: Request, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> AlignBeam | AnchorLogitsProcessor:
    """The whole strategy, or its processor alone where there is no judge."""
    base = request.anchor == "base"
    anchor, anchor_tokenizer = (model, tokenizer) if base else load_causal(request.anchor, device)
    named: dict[str, Any] = {"anchor": "base", "model": model} if base else {"anchor": anchor}
    named |= {"anchor_tokenizer": anchor_tokenizer, "tokenizer": tokenizer, **request.guard}
    if request.judge is None:
        return AnchorLogitsProcessor(**named)
    return AlignBeam(judge=load_judge(request.judge, device=device), **named)


def _conversations(request: Request) -> list[Conversation]:
    found = [*request.prompts, *([] if request.file is None else read_prompts(request.file))]
    if not found:
        raise ValueError("There is nothing to answer: give --prompt, or --file with at least one prompt in it.")
    return found


def _answers(
    request: Request,
    conversations: list[list[Message]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    guard: AlignBeam | AnchorLogitsProcessor,
    errors: Console,
) -> Iterator[dict[str, Any]]:
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("answering", total=len(conversations))
        for start in range(0, len(conversations), request.batch_size):
            batch = conversations[start : start + request.batch_size]
            watched = watch(guard, batch[0], tokenizer) if request.explain else None
            systems = {"answer": watched.how if watched else _guarding(guard, batch)} | ({"plain": {}} if request.plain else {})
            ids, texts, seconds = {}, {}, {}
            for name, how in systems.items():
                began = time.perf_counter()
                ids[name] = _generate(request, batch, model, tokenizer, how)
                texts[name] = tokenizer.batch_decode(ids[name], skip_special_tokens=True)
                seconds[name] = round((time.perf_counter() - began) / len(batch), 3)
            progress.advance(task, len(batch))
            explained = {"explain": watched.explain(ids["answer"][0].tolist())} if watched else {}
            for i, messages in enumerate(batch):
                answers = {name: text[i] for name, text in texts.items()}
                yield {"messages": messages, **answers, "seconds": seconds, **explained}
            if request.explain:  # the answer is out by now, whatever becomes of the picture
                draw(explained["explain"], request.explain)


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
    prompts = [target_text(tokenizer, messages) for messages in batch]
    plain_text = tokenizer.chat_template is None
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=plain_text)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = model.generate(  # type: ignore[operator]
            **inputs.to(model.device),
            **how,
            max_new_tokens=request.max_new_tokens,
            do_sample=request.sample,
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
