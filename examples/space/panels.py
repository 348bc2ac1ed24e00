"""Answers as HTML: text colored by how far steering moved it, whether it refuses, the judge's verdicts, the cost.

Knows the answers of `answers.py` and the names in `style.css`. Escapes every text, and shows no word that did not pass.
"""

from collections.abc import Iterator
from contextlib import closing
from html import escape

from answers import Models, StreamedAnswer, checked_settings, conversation, guarded, plain

from hf_alignbeam.cli.explanation.explained import Candidate, Explanation, Verdict, format_harm, outcome_word, summary_lines
from hf_alignbeam.steering.ledger import Ledger

PLAIN, GUARDED = "Plain", "Guarded"


def side_by_side(
    models: Models, prompt: str, prefill: str, alpha: float, num_candidates: int, threshold: float
) -> Iterator[tuple[str, str]]:
    """Yield both panels while the answers are generated, the plain one first; for bad input, an error message.

    Checks all that it is given: requests come from anywhere, not from the page alone.
    """
    left, right = panel(PLAIN), panel(GUARDED)
    try:
        settings = checked_settings(alpha=alpha, num_candidates=num_candidates, threshold=threshold)
        messages = conversation(models, prompt, prefill)
        with closing(plain(models, messages)) as answers:
            for answer in answers:
                left = panel(PLAIN, answer)
                yield left, right
        with closing(guarded(models, messages, **settings)) as answers:
            for answer in answers:
                right = panel(GUARDED, answer)
                yield left, right
    except ValueError as error:
        yield left, notice(GUARDED, str(error))


def panel(title: str, answer: StreamedAnswer | None = None) -> str:
    """The panel of one answer: finished, in progress, or empty."""
    parts = [f"<h2>{title}</h2>"]
    if answer is not None:
        max_kl = 1.0 if answer.explanation is None else answer.explanation.max_kl
        prefill = f"<i>{escape(answer.prefill)}</i>" if answer.prefill else ""
        spans = "".join(_span(text, nats, max_kl) for text, nats in answer.spans)
        parts += [_outcome(answer.refused), f'<p class="text" dir="auto">{(prefill + spans).strip()}</p>']
        if answer.explanation is not None:
            notes = "".join(f'<p class="note">{escape(line)}</p>' for line in summary_lines(answer.explanation))
            parts += [_legend(max_kl) if "<mark" in spans else "", notes, _verdict_table(answer.explanation)]
        if answer.cost is not None:
            parts.append(_cost(answer.cost))
    return f'<section class="answer">{"".join(parts)}</section>'


def notice(title: str, words: str) -> str:
    """A panel with an error message in place of an answer."""
    return f'<section class="answer"><h2>{title}</h2><p class="notice" role="alert">{escape(words)}</p></section>'


def _outcome(refused: bool | None) -> str:
    if refused is None:
        return '<p class="outcome">… writing</p>'
    return '<p class="outcome refuses">✕ refuses</p>' if refused else '<p class="outcome">→ answers</p>'


def _span(text: str, nats: float | None, max_kl: float) -> str:
    """A piece of text; if it was steered, its word is colored by how far, with the value as a tooltip."""
    word = text.strip()
    if nats is None or not word:
        return escape(text)
    before, _, after = text.partition(word)
    tip = f'tabindex="0" data-tip="{nats:.2f} nats" style="--share: {min(nats / max_kl, 1.0):.3f}"'
    return f"{escape(before)}<mark {tip}>{escape(word)}</mark>{escape(after)}"


def _legend(max_kl: float) -> str:
    return (
        '<p class="legend">moved by steering: 0 <span class="scale"></span> '
        f"{max_kl:.1f} nats <span>(point at a word for its own)</span></p>"
    )


def _verdict_table(explanation: Explanation) -> str:
    """The judge's verdicts as a table."""
    head = "<tr><th>the judge read</th><th>harm</th><th>passes up to</th><th></th></tr>"
    rows = (
        f'<tr class="{"passed" if judged.passes else "flagged"}"><td>{what}</td>'
        f'<td><span class="harm" style="--harm: {judged.harm or 0.0:.3f}"></span> {format_harm(judged.harm)}</td>'
        f"<td>{judged.limit:g}</td><td>{outcome}</td></tr>"
        for what, judged, outcome in _rows(explanation)
    )
    return f"<table>{head}{''.join(rows)}</table>"


def _rows(explanation: Explanation) -> Iterator[tuple[str, Verdict | Candidate, str]]:
    """For each judged text, in the order of the answer: its name, its verdict, and its outcome."""
    kept = {verdict.after: verdict for verdict in explanation.verdicts}
    for rollback in explanation.sent_back:
        yield from (_row(kept.pop(after), "✓ stays") for after in list(kept) if after <= rollback.after)
        yield from (_row(verdict, "✕ taken back") for verdict in rollback.verdicts)
        for number, candidate in enumerate(rollback.candidates, start=1):
            if candidate.chosen:
                kept.pop(rollback.after + len(candidate.tokens), None)
            outcome = f"{'✓' if candidate.passes else '✕'} {outcome_word(candidate)}"
            yield f"candidate {number}", candidate, outcome
    yield from (_row(verdict, "✓ stays") for verdict in kept.values())


def _row(verdict: Verdict, outcome: str) -> tuple[str, Verdict, str]:
    return f"first {verdict.after} tokens", verdict, outcome


def _cost(cost: Ledger) -> str:
    """The cost of an answer."""
    figures = {
        "target forwards": cost.target_forwards,
        "anchor forwards": cost.anchor_forwards,
        "judge calls": cost.judge_calls,
        "texts judged": cost.judged,
        "seconds": f"{cost.seconds:.2f}",
    }
    return f'<dl class="cost">{"".join(f"<div><dt>{name}</dt><dd>{n}</dd></div>" for name, n in figures.items())}</dl>'
