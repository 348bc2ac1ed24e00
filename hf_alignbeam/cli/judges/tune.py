"""`alignbeam tune`: finds a strategy's threshold from a target's own answers to prompts, harmless and harmful.

Knows when the strategy judges an answer. Knows no anchor: what is not flagged stays as the target writes it.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import track

from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.roc import drawn, rates_at, roc, why_not, written
from hf_alignbeam.cli.judges.settings import judge_settings
from hf_alignbeam.console import report_user_errors, table_head, table_row, tell
from hf_alignbeam.decoding.strategy import THRESHOLD, AlignBeam
from hf_alignbeam.evaluation.devices import load_causal_on, load_named_judge, named_device
from hf_alignbeam.evaluation.generation import Responder, without_prefill
from hf_alignbeam.evaluation.prompt_sets import read_prompts
from hf_alignbeam.judges.base import Judge
from hf_alignbeam.judges.calibration import KnownVerdict, best_threshold, separation
from hf_alignbeam.judges.failsafe import judge_each_or_none
from hf_alignbeam.tokenization.seen_text import seen_bytes
from hf_alignbeam.tokenization.vocabulary import token_bytes


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    model: str
    judge: str
    judge_options: JudgeOptions
    harmless: list[Path]
    harmful: list[Path]
    max_flagged: float
    judge_after: int | None
    judge_every: int | None
    max_new_tokens: int
    limit: int | None
    seed: int
    batch_size: int
    device: str
    judge_device: str | None


def run(request: Request) -> None:
    """Answer the prompts without a guard, judge the answers as the strategy would, and print the threshold to use."""
    console = Console(width=200)
    with report_user_errors():
        prompts = {kind: _conversations(files, request.limit, request.seed) for kind, files in _files(request).items()}
        _check_disjoint(prompts)
        settings = judge_settings(request.judge_options)
        options, device = request.judge_options, named_device(request.judge_device or request.device)
        judge = load_named_judge(request.judge, settings, device, options.api, options.model)
        answers = Answers(Responder(*load_causal_on(request.model, request.device), request.max_new_tokens), judge, request)
        verdicts = [
            KnownVerdict(harm, kind == "harmful")
            for kind, conversations in prompts.items()
            for harm in answers.harm(kind, conversations)
        ]
        chosen = best_threshold(verdicts, request.max_flagged)
    tell(console, f"{_counts(prompts)}. AUC {separation(verdicts):.3f}: how often a harmful prompt's answer has more harm.", "")
    tell(console, *table_head(["harmless flagged, at most", "threshold", "harmless flagged", "harmful flagged"]))
    for allowed, value in roc(verdicts):
        tell(console, table_row([f"{100 * allowed:g} %", written(verdicts, value), *map(str, rates_at(verdicts, value))]))
    for name, value in ((f"chosen: {100 * request.max_flagged:g} %", chosen), ("the default", THRESHOLD)):
        tell(console, table_row([name, written(verdicts, value), *map(str, rates_at(verdicts, value))]))
    objection = why_not(verdicts, chosen, THRESHOLD)
    tell(console, "", *_advice(verdicts, chosen, objection))
    if objection:
        raise typer.Exit(1)


class Answers:
    """A target's answers, judged wherever the strategy judges them.

    Args:
        responder: The target.
        judge: The judge.
        request: When answers are judged, and how many at once.
    """

    def __init__(self, responder: Responder, judge: Judge, request: Request):
        self._responder = responder
        self._judge = judge
        self._n_batch = request.batch_size
        own = inspect.signature(AlignBeam).parameters
        self._first = request.judge_after or own["judge_after"].default
        self._every = request.judge_every or own["judge_every"].default
        self._tokens = token_bytes(responder.tokenizer)

    def harm(self, kind: str, conversations: Sequence[list[Message]]) -> Iterator[float]:
        """The largest harm of each answer at any of the checks; 1 where one has no verdict, because that is flagged."""
        n = self._n_batch
        for start in track(range(0, len(conversations), n), kind, console=Console(stderr=True), transient=True):
            batch = conversations[start : start + n]
            texts = [self._checked(chat, response.ids) for chat, response in zip(batch, self._responder(batch), strict=True)]
            flat = [(without_prefill(chat), text) for chat, each in zip(batch, texts, strict=True) for text in each]
            verdicts = judge_each_or_none(self._judge, [chat for chat, _ in flat], [text for _, text in flat])
            found = iter(verdicts.harm)
            for each in texts:
                of_answer = [next(found) for _ in each]
                yield 1.0 if None in of_answer else max(float(harm) for harm in of_answer if harm is not None)

    def _checked(self, conversation: list[Message], ids: Sequence[int]) -> list[str]:
        """An answer's text at each check: after `judge_after` tokens, every `judge_every` more, and at its end."""
        prefill = conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""
        lengths = [*range(self._first, len(ids), self._every), len(ids)]
        seen = (seen_bytes(self._responder.tokenizer, self._tokens, ids[:length]) for length in lengths)
        return [(prefill + text.decode(errors="replace")).strip() for text in seen]


def _files(request: Request) -> dict[str, list[Path]]:
    return {"harmless": request.harmless, "harmful": request.harmful}


def _conversations(files: Sequence[Path], limit: int | None, seed: int) -> list[list[Message]]:
    """The conversations of files, so many of each drawn by a seed, in their order."""
    return [example.conversation for file in files for example in drawn(read_prompts(file), limit, seed)]


def _check_disjoint(prompts: dict[str, list[list[Message]]]) -> None:
    """Raise ValueError where a prompt is among the harmless and among the harmful ones."""
    harmless, harmful = ({conversation_key(messages): messages for messages in each} for each in prompts.values())
    if both := harmless.keys() & harmful.keys():
        first = next(messages for key, messages in harmless.items() if key in both)
        raise ValueError(
            f"--harmless and --harmful must hold different prompts, but share {len(both)}, the first of which is "
            f"{first[-1]['content'][:80]!r}. Leave it out of one of them."
        )


def _counts(prompts: dict[str, list[list[Message]]]) -> str:
    return " and ".join(f"{len(conversations)} {kind} prompts" for kind, conversations in prompts.items())


def _advice(verdicts: Sequence[KnownVerdict], chosen: float, objection: str) -> list[str]:
    lines = [
        "An answer that is not flagged stays as the target writes it, token for token; so at most the harmless prompts flagged "
        "can be refused by the guard. Of flagged answers, those go on that the anchor begins and the judge passes. The threshold "
        "was chosen on these prompts: of others more may be flagged, as the intervals say.",
    ]
    if chosen >= 1.0:
        return [*lines, "No threshold below 1 flags so few. Allow more with --max-flagged, or use another judge."]
    if objection:
        return [*lines, objection]
    recall, before = (rates_at(verdicts, value)[1] for value in (chosen, THRESHOLD))
    value = written(verdicts, chosen)
    return [
        *lines,
        f"Use it: --threshold {value} for generate and protect, `AlignBeam(..., threshold={value})`. It flags {recall} "
        f"of the harmful prompts; the default flags {before}.",
    ]
