"""One answer explained: how far steering moved each token, what the judge read, and which candidates were tried.

Knows what is recorded while an answer is generated, and how to print it. `picture` draws it.
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

#: The colors (red, green, blue) of a token that steering left as it was, and of the token that it moved most.
LIGHT, DARK = (255, 244, 229), (247, 129, 34)


@dataclass(frozen=True)
class Token:
    """One token: its id, readable text, and KL(mixed || target) in nats where it was drawn under steering, else None."""

    id: int
    text: str
    kl: float | None


@dataclass(frozen=True)
class Verdict:
    """The verdict on the first `after` tokens of an answer: `harm` in [0, 1], None where it is missing; up to `limit` passes."""

    after: int
    harm: float | None
    limit: float

    @property
    def passes(self) -> bool:
        """Whether the text may be returned."""
        return self.harm is not None and self.harm <= self.limit


@dataclass(frozen=True)
class Candidate:
    """A candidate continuation: `harm` up to `limit` passes; `logp` is the mean log-probability of its tokens for the target."""

    tokens: list[Token]
    harm: float | None
    limit: float
    logp: float
    chosen: bool

    @property
    def passes(self) -> bool:
        """Whether the answer may continue with it."""
        return self.harm is not None and self.harm <= self.limit


@dataclass(frozen=True)
class Rollback:
    """One rollback of the answer.

    Attributes:
        after: The number of tokens that were kept.
        flagged: The tokens that were taken back.
        verdicts: The verdicts on them, in the order of the text.
        candidates: The candidates that were tried instead.
    """

    after: int
    flagged: list[Token]
    verdicts: list[Verdict]
    candidates: list[Candidate]


@dataclass(frozen=True)
class Explanation:
    """One answer and how it came about.

    Attributes:
        prompt: The user's last message.
        prefill: The start of the answer that the prompt held.
        tokens: The tokens of the answer.
        n_drawn: How many of them were generated; the others are a fallback text, used where nothing passed.
        chosen: As in `AlignBeamOutput`; None without a judge.
        verdicts: The verdicts on the text that stayed in the answer.
        sent_back: The rollbacks, in order.
    """

    prompt: str
    prefill: str
    tokens: list[Token]
    n_drawn: int
    chosen: int | None = None
    verdicts: Sequence[Verdict] = ()
    sent_back: Sequence[Rollback] = ()

    @property
    def all_tokens(self) -> list[Token]:
        """The tokens of the answer, of the text that was taken back, and of the candidates."""
        taken_back = [token for each in self.sent_back for token in each.flagged]
        candidates = [token for each in self.sent_back for candidate in each.candidates for token in candidate.tokens]
        return [*self.tokens, *taken_back, *candidates]

    @property
    def max_kl(self) -> float:
        """The KL at the end of the color scale: the largest, but at least one nat, so that small values look small."""
        return max([1.0, *(token.kl or 0.0 for token in self.all_tokens)])


@dataclass(frozen=True)
class WatchedGuard:
    """A guard that is watched while it answers one prompt.

    Attributes:
        generate_arguments: The arguments of `generate`.
        explain: Gives the explanation of an answer from its tokens, after `generate` has returned.
    """

    generate_arguments: dict[str, Any]
    explain: Callable[[list[int]], Explanation]


def watch(
    guard: AlignBeam | AnchorLogitsProcessor,
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    streamer: BaseStreamer | None = None,
) -> WatchedGuard:
    """Watch a guard answer one prompt. The answer, and what a streamer gets, are the same as without watching."""
    builder = _ExplanationBuilder(tokenizer, messages)
    if isinstance(guard, AlignBeam):
        answers: list[Answer] = []
        strategy = guard.for_call([messages], streamer, answers.append)
        return WatchedGuard({"custom_generate": strategy}, lambda ids: builder.from_strategy(answers[0]))
    watched = _WatchedProcessor(guard.with_conversations([messages]))
    arguments = {"logits_processor": [watched], "streamer": streamer}
    return WatchedGuard(arguments, lambda ids: builder.from_processor(ids, watched.divergences))


def check_request(path: Path, n_prompts: int) -> None:
    """Raise ValueError if an explanation cannot be drawn to a path."""
    if n_prompts != 1:
        raise ValueError(f"--explain draws one answer, got {n_prompts} prompts. Give one --prompt, or a --file that holds one.")
    if path.suffix.lower() != ".png":
        raise ValueError(f"--explain must name a file that ends in .png, got {path}.")
    if not path.parent.is_dir():
        raise ValueError(f"--explain must name a file in an existing folder, got {path}.")
    check_can_plot("--explain")


class _WatchedProcessor(LogitsProcessor):
    """A processor that also records how far it moves each distribution, in nats by the ids before it."""

    def __init__(self, processor: LogitsProcessor):
        self._processor = processor
        self.divergences: dict[tuple[int, ...], float] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        mixed = self._processor(input_ids, scores)
        for ids, nats in zip(input_ids.tolist(), divergence(mixed, scores).tolist(), strict=True):
            self.divergences[tuple(ids)] = nats
        return mixed


class _ExplanationBuilder:
    """Builds the explanation of the answer to one prompt, with printable tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: list[Message]):
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes(tokenizer)
        self._prefill = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        self._prompt = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")

    def from_processor(self, ids: list[int], divergences: dict[tuple[int, ...], float]) -> Explanation:
        prompt = min(divergences, key=len)
        tokens = self._tokens(ids, [divergences[(*prompt, *ids[:n])] for n in range(len(ids))])
        return Explanation(self._prompt, self._prefill, tokens, len(tokens))

    def from_strategy(self, answer: Answer) -> Explanation:
        return Explanation(
            prompt=self._prompt,
            prefill=self._prefill,
            tokens=self._tokens(answer.ids, answer.divergences),
            n_drawn=len(answer.divergences),
            chosen=answer.chosen,
            verdicts=_verdicts(answer, answer.ids),
            sent_back=[self._rollback(answer, record) for record in answer.rollbacks],
        )

    def _rollback(self, answer: Answer, record: RollbackRecord) -> Rollback:
        before = _verdicts(answer, [*answer.ids[: record.n_kept], *record.flagged])
        candidates = [
            Candidate(
                self._tokens(one.ids, one.divergences), _none_for_nan(one.harm), one.limit, one.logp, number == record.chosen
            )
            for number, one in enumerate(record.candidates, start=1)
        ]
        return Rollback(
            after=record.n_kept,
            flagged=self._tokens(record.flagged, record.divergences),
            verdicts=[verdict for verdict in before if verdict.after > record.n_kept],
            candidates=candidates,
        )

    def _tokens(self, ids: Sequence[int], divergences: Sequence[float] = ()) -> list[Token]:
        """Tokens, each with how far it was moved where that is known."""
        unknown = [math.nan] * (len(ids) - len(divergences))
        return [Token(i, self._printable(i), _none_for_nan(nats)) for i, nats in zip(ids, [*divergences, *unknown], strict=True)]

    def _printable(self, i: int) -> str:
        """A token as text on one line; partial and unprintable characters are escaped as in Python."""
        piece = self._token_bytes[i] if i < len(self._token_bytes) else None
        text = str(self._tokenizer.convert_ids_to_tokens(i)) if piece is None else piece.decode(errors="backslashreplace")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _verdicts(answer: Answer, ids: Sequence[int]) -> list[Verdict]:
    """The verdicts on prefixes of a text, by their length."""
    read = {len(each.ids): each for each in answer.judged_prefixes if each.ids == list(ids[: len(each.ids)])}
    return [Verdict(after, _none_for_nan(read[after].harm), read[after].limit) for after in sorted(read)]


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def summary_lines(explanation: Explanation) -> list[str]:
    """One sentence on how the answer came about, and one on how far it was steered."""
    lines = [_outcome(explanation)] if explanation.chosen is not None else []
    divergences = [(token.kl, token.text) for token in explanation.tokens if token.kl is not None]
    if not divergences:
        return [*lines, f"None of its {len(explanation.tokens)} tokens was steered."]
    max_kl, where = max(divergences)
    total = sum(kl for kl, _ in divergences)
    n_tokens = f"{len(divergences)} of its {len(explanation.tokens)} tokens"
    return [*lines, f"{n_tokens} were steered, by {total:.2f} nats in all, at most by {max_kl:.2f} (at “{where.strip()}”)."]


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
    text = "the refusal text" if explanation.chosen == -1 else "what on_fail said"
    return f"{times}{where} no candidate passed, and {text} stands."


def rollback_reason(rollback: Rollback) -> str:
    """Why and how far an answer was rolled back."""
    if not rollback.flagged:
        return "Candidates in place of the target's own text"
    last = rollback.verdicts[-1]
    reason = "no verdict" if last.harm is None else f"harm {last.harm:.3f} > {last.limit:g}"
    where = f"token {rollback.after}" if rollback.after else "the start"
    return f"Flagged after token {last.after} ({reason}), sent back to {where}"


def format_harm(harm: float | None) -> str:
    """A harm with three digits, or `none`."""
    return "none" if harm is None else f"{harm:.3f}"


def outcome_word(candidate: Candidate) -> str:
    """The outcome of a candidate, in a word or two."""
    return "goes on" if candidate.chosen else "passes" if candidate.passes else "flagged"


def token_color(kl: float, max_kl: float) -> tuple[int, int, int]:
    """The color of a token on a scale that ends at `max_kl`."""
    share = min(kl / max_kl, 1.0)
    red, green, blue = (round(light + share * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True))
    return red, green, blue


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print the answer colored by KL with the judge's verdicts in it, and a table of candidates for each rollback."""
    console.print(_colored(explanation.tokens, explanation.verdicts, explanation.max_kl))
    for line in summary_lines(explanation):
        console.print(line, markup=False, emoji=False, highlight=False)
    for rollback in explanation.sent_back:
        console.print(rollback_reason(rollback), style="bold", markup=False, emoji=False, highlight=False)
        table = Table("", "harm", "mean log p", "text")
        if rollback.flagged:
            flagged = _colored(rollback.flagged, rollback.verdicts, explanation.max_kl, rollback.after)
            table.add_row(Text("taken back", "red"), format_harm(rollback.verdicts[-1].harm), "", flagged)
        for number, candidate in enumerate(rollback.candidates, start=1):
            style = "bold green" if candidate.chosen else "green" if candidate.passes else "red"
            text = _colored(candidate.tokens, (), explanation.max_kl)
            label = Text(f"{number} {outcome_word(candidate)}", style)
            table.add_row(label, format_harm(candidate.harm), f"{candidate.logp:.2f}", text)
        console.print(table)


def _colored(tokens: Sequence[Token], verdicts: Sequence[Verdict], max_kl: float, n_before: int = 0) -> Text:
    """Tokens colored by KL, with each verdict after the last token that the judge read."""
    by_length = {verdict.after: verdict for verdict in verdicts}
    text = Text()
    for n, token in enumerate(tokens, start=n_before + 1):
        style = None
        if token.kl is not None:
            style = Style(color="black", bgcolor="#{:02x}{:02x}{:02x}".format(*token_color(token.kl, max_kl)))
        text.append(token.text, style)
        if verdict := by_length.get(n):
            mark, color = ("✓", "green") if verdict.passes else ("✗", "red")
            text.append(f" {mark}{format_harm(verdict.harm)} ", color)
    return text
