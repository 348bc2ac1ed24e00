"""One answer explained: its tokens and how far steering moved each, where the judge read, what was tried and what went on.

Knows what was noted while the answer was written, in words and at a terminal. `picture.py` draws it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text
from transformers import LogitsProcessor, PreTrainedTokenizerBase
from transformers.generation import BaseStreamer

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.console import check_can_plot
from hf_alignbeam.decoding.records import Answer, RollbackRecord, divergence
from hf_alignbeam.decoding.strategy import AlignBeam
from hf_alignbeam.steering.processor import AnchorLogitsProcessor
from hf_alignbeam.tokenization.vocabulary import token_bytes

#: From a token that steering left as it was to the one that it moved most, as red, green and blue.
PALE, STRONG = (255, 244, 229), (247, 129, 34)


@dataclass(frozen=True)
class Token:
    """One token: its id, readable text, and KL(mixed || target) in nats where it was drawn under steering, else None."""

    id: int
    text: str
    kl: float | None


@dataclass(frozen=True)
class Verdict:
    """What the judge said of an answer's first tokens: `harm` in [0, 1], None where it gave none."""

    after: int
    harm: float | None
    passes: bool


@dataclass(frozen=True)
class Candidate:
    """A continuation that was tried: `logp` is the mean log-probability of its tokens under the target."""

    tokens: list[Token]
    harm: float | None
    logp: float
    passes: bool
    chosen: bool


@dataclass(frozen=True)
class SentBack:
    """One time that the answer was sent back.

    Attributes:
        after: How many of its tokens stayed.
        flagged: Those that were taken back.
        verdicts: What the judge said of them, in the order of the text.
        candidates: What was tried instead.
    """

    after: int
    flagged: list[Token]
    verdicts: list[Verdict]
    candidates: list[Candidate]


@dataclass(frozen=True)
class Explanation:
    """One answer and how it came about.

    Attributes:
        prompt: The user's last words.
        begun: The start of the answer that the prompt already held.
        tokens: The answer's.
        n_drawn: How many of them were drawn; the others are a text that stands where nothing passed.
        chosen: As in `AlignBeamOutput`; None without a judge.
        threshold: The harm that still passes; None without a judge.
        verdicts: What the judge said of what stands in the answer.
        sent_back: The times that it was sent back, in order.
    """

    prompt: str
    prefill: str
    tokens: list[Token]
    n_drawn: int
    chosen: int | None = None
    threshold: float | None = None
    verdicts: Sequence[Verdict] = ()
    sent_back: Sequence[SentBack] = ()

    @property
    def every_token(self) -> list[Token]:
        """The answer's tokens, those that were taken back, and those that were tried."""
        taken_back = [token for each in self.sent_back for token in each.flagged]
        tried = [token for each in self.sent_back for candidate in each.candidates for token in candidate.tokens]
        return [*self.tokens, *taken_back, *tried]

    @property
    def most(self) -> float:
        """The KL at the end of the scale: the largest of any of them, but at least a nat, so that little looks like little."""
        return max([1.0, *(token.kl or 0.0 for token in self.every_token)])


@dataclass(frozen=True)
class Watch:
    """A guard that is watched while it answers one prompt.

    Attributes:
        how: What `generate` is given.
        explain: Afterwards, the explanation of the answer with these tokens.
    """

    how: dict[str, Any]
    explain: Callable[[list[int]], Explanation]


def watch(
    guard: AlignBeam | AnchorLogitsProcessor,
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    streamer: BaseStreamer | None = None,
) -> Watch:
    """Watch a guard answer one prompt; it writes what it would write unwatched, and a streamer gets what it would get."""
    telling = _Telling(tokenizer, messages)
    if isinstance(guard, AlignBeam):
        answers: list[Answer] = []
        strategy = guard.for_call([messages], streamer, answers.append)
        return Watch({"custom_generate": strategy}, lambda ids: telling.judged(answers[0], guard.threshold))
    watched = _Watched(guard.with_conversations([messages]))
    return Watch({"logits_processor": [watched], "streamer": streamer}, lambda ids: telling.steered(ids, watched.moved))


def check_request(path: Path, n_prompts: int) -> None:
    """Raise ValueError where one answer cannot be drawn to a path."""
    if n_prompts != 1:
        raise ValueError(f"--explain draws one answer, got {n_prompts} prompts. Give one --prompt, or a --file that holds one.")
    if path.suffix.lower() != ".png":
        raise ValueError(f"--explain must name a file that ends in .png, got {path}.")
    if not path.parent.is_dir():
        raise ValueError(f"--explain must name a file in a folder that is there, got {path}.")
    check_can_plot("--explain")


class _Watched(LogitsProcessor):
    """A processor, and how far it moves each distribution that it is shown, by the ids that it follows."""

    def __init__(self, processor: LogitsProcessor):
        self._processor = processor
        self.moved: dict[tuple[int, ...], float] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        mixed = self._processor(input_ids, scores)
        for ids, nats in zip(input_ids.tolist(), divergence(mixed, scores).tolist(), strict=True):
            self.moved[tuple(ids)] = nats
        return mixed


class _Telling:
    """What was noted of the answer to one prompt, in readable text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: list[Message]):
        self._tokenizer = tokenizer
        self._pieces = token_bytes(tokenizer)
        self._begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        self._prompt = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")

    def steered(self, ids: list[int], moved: dict[tuple[int, ...], float]) -> Explanation:
        prompt = min(moved, key=len)
        tokens = self._tokens(ids, [moved[(*prompt, *ids[:n])] for n in range(len(ids))])
        return Explanation(self._prompt, self._begun, tokens, len(tokens))

    def judged(self, answer: Answer, threshold: float) -> Explanation:
        return Explanation(
            prompt=self._prompt,
            prefill=self._begun,
            tokens=self._tokens(answer.ids, answer.divergences),
            n_drawn=len(answer.divergences),
            chosen=answer.chosen,
            threshold=threshold,
            verdicts=_verdicts(answer, answer.ids),
            sent_back=[self._sent_back(answer, attempt) for attempt in answer.rollbacks],
        )

    def _sent_back(self, answer: Answer, attempt: RollbackRecord) -> SentBack:
        before = _verdicts(answer, [*answer.ids[: attempt.n_kept], *attempt.flagged])
        candidates = [
            Candidate(self._tokens(one.ids, one.divergences), _number(one.harm), one.logp, one.passes, number == attempt.chosen)
            for number, one in enumerate(attempt.candidates, start=1)
        ]
        return SentBack(
            after=attempt.n_kept,
            flagged=self._tokens(attempt.flagged, attempt.divergences),
            verdicts=[verdict for verdict in before if verdict.after > attempt.n_kept],
            candidates=candidates,
        )

    def _tokens(self, ids: Sequence[int], moved: Sequence[float] = ()) -> list[Token]:
        """Tokens with what each was moved by, as far as that is known."""
        unknown = [math.nan] * (len(ids) - len(moved))
        return [Token(i, self._readable(i), _number(nats)) for i, nats in zip(ids, [*moved, *unknown], strict=True)]

    def _readable(self, i: int) -> str:
        """A token as text on one line: broken characters and those that cannot be seen as Python writes them."""
        piece = self._pieces[i] if i < len(self._pieces) else None
        text = str(self._tokenizer.convert_ids_to_tokens(i)) if piece is None else piece.decode(errors="backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _verdicts(answer: Answer, ids: Sequence[int]) -> list[Verdict]:
    """What the judge said of a text's beginnings, by their length."""
    read = {len(each.ids): each for each in answer.judged_prefixes if each.ids == list(ids[: len(each.ids)])}
    return [Verdict(after, _number(read[after].harm), read[after].passes) for after in sorted(read)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def headlines(explanation: Explanation) -> list[str]:
    """What became of an answer, and how far it was steered, in a sentence each."""
    lines = [_outcome(explanation)] if explanation.chosen is not None else []
    moved = [(token.kl, token.text) for token in explanation.tokens if token.kl is not None]
    if not moved:
        return [*lines, f"None of its {len(explanation.tokens)} tokens was steered."]
    most, where = max(moved)
    total = sum(kl for kl, _ in moved)
    n_tokens = f"{len(moved)} of its {len(explanation.tokens)} tokens"
    return [*lines, f"{n_tokens} were steered, by {total:.2f} nats in all, at most by {most:.2f} (at “{where.strip()}”)."]


def _outcome(explanation: Explanation) -> str:
    if not explanation.sent_back:
        return "The judge let the target's own answer pass, token for token."
    n_back = sum(bool(each.flagged) for each in explanation.sent_back)
    times = {0: "", 1: "Sent back once. ", 2: "Sent back twice. "}.get(n_back, f"Sent back {n_back} times. ")
    last = explanation.sent_back[-1]
    where = f"After token {last.after}" if last.after else "From the start on"
    number = next((n for n, each in enumerate(last.candidates, start=1) if each.chosen), None)
    if number is not None:
        return f"{times}{where} it is candidate {number} of {len(last.candidates)}."
    said = "the refusal text" if explanation.chosen == -1 else "what on_fail said"
    return f"{times}{where} no candidate passed, and {said} stands."


def why(sent_back: SentBack, threshold: float | None) -> str:
    """Why an answer was sent back, and where to."""
    if not sent_back.flagged:
        return "Candidates in place of the target's own text"
    last = sent_back.verdicts[-1]
    reason = "no verdict" if last.harm is None else f"harm {last.harm:.3f} > {threshold:g}"
    where = f"token {sent_back.after}" if sent_back.after else "the start"
    return f"Flagged after token {last.after} ({reason}), sent back to {where}"


def spoken(harm: float | None) -> str:
    """A harm as it is printed."""
    return "none" if harm is None else f"{harm:.3f}"


def fate(candidate: Candidate) -> str:
    """What became of a candidate, in a word or two."""
    return "goes on" if candidate.chosen else "passes" if candidate.passes else "flagged"


def shade(kl: float, most: float) -> tuple[int, int, int]:
    """The colour of a token that was moved so far on a scale that ends at `most`."""
    share = min(kl / most, 1.0)
    red, green, blue = (round(pale + share * (strong - pale)) for pale, strong in zip(PALE, STRONG, strict=True))
    return red, green, blue


def show(explanation: Explanation, console: Console) -> None:
    """Print an explanation: the answer coloured by KL with the judge's verdicts in it, and a table of what was tried."""
    console.print(_coloured(explanation.tokens, explanation.verdicts, explanation.most))
    for line in headlines(explanation):
        console.print(line, markup=False, highlight=False)
    for each in explanation.sent_back:
        console.print(why(each, explanation.threshold), style="bold", markup=False, highlight=False)
        table = Table("", "harm", "mean log p", "text")
        if each.flagged:
            flagged = _coloured(each.flagged, each.verdicts, explanation.most, each.after)
            table.add_row(Text("taken back", "red"), spoken(each.verdicts[-1].harm), "", flagged)
        for number, candidate in enumerate(each.candidates, start=1):
            style = "bold green" if candidate.chosen else "green" if candidate.passes else "red"
            text = _coloured(candidate.tokens, (), explanation.most)
            table.add_row(Text(f"{number} {fate(candidate)}", style), spoken(candidate.harm), f"{candidate.logp:.2f}", text)
        console.print(table)


def _coloured(tokens: Sequence[Token], verdicts: Sequence[Verdict], most: float, n_before: int = 0) -> Text:
    """Tokens coloured by KL, each of the judge's verdicts after the last token that it read."""
    said = {verdict.after: verdict for verdict in verdicts}
    text = Text()
    for n, token in enumerate(tokens, start=n_before + 1):
        steered = None if token.kl is None else Style(color="black", bgcolor="#{:02x}{:02x}{:02x}".format(*shade(token.kl, most)))
        text.append(token.text, steered)
        if n in said:
            mark = "✓" if said[n].passes else "✗"
            text.append(f" {mark}{spoken(said[n].harm)} ", "green" if said[n].passes else "red")
    return text
