"""HTML of answers: text coloured by how far steering moved it, whether it refuses, what the judge read, what it cost.

Knows what `answers.py` says, and the names in `style.css`. Every text is escaped; of what did not pass, no word is shown.
"""

from collections.abc import Iterator
from html import escape

from answers import Models, Said, conversation, guarded, plain

from hf_alignbeam.cli.explain import Explanation, Verdict, format_harm, outcome_word, summary_lines
from hf_alignbeam.steering.ledger import Ledger

PLAIN, GUARDED = "Plain", "Guarded"


def side_by_side(
    models: Models, prompt: str, begun: str, alpha: float, num_candidates: int, threshold: float
) -> Iterator[tuple[str, str]]:
    """Both panels, again and again while the answers are written, the plain one first; of bad input, a sentence."""
    left, right = panel(PLAIN), panel(GUARDED)
    try:
        messages = conversation(models, prompt, begun)
        for said in plain(models, messages):
            left = panel(PLAIN, said)
            yield left, right
        for said in guarded(models, messages, alpha=alpha, num_candidates=num_candidates, threshold=threshold):
            right = panel(GUARDED, said)
            yield left, right
    except ValueError as error:
        yield left, notice(GUARDED, str(error))


def panel(title: str, said: Said | None = None) -> str:
    """One answer: finished, being written, or not asked for."""
    parts = [f"<h2>{title}</h2>"]
    if said is not None:
        max_kl = 1.0 if said.explanation is None else said.explanation.max_kl
        begun = f"<i>{escape(said.begun)}</i>" if said.begun else ""
        runs = "".join(_run(text, nats, max_kl) for text, nats in said.runs)
        parts += [_outcome(said.refused), f'<p class="text" dir="auto">{(begun + runs).strip()}</p>']
        if said.explanation is not None:
            notes = "".join(f'<p class="note">{escape(line)}</p>' for line in summary_lines(said.explanation))
            parts += [_legend(max_kl) if "<mark" in runs else "", notes, _read(said.explanation)]
        if said.cost is not None:
            parts.append(_cost(said.cost))
    return f'<section class="answer">{"".join(parts)}</section>'


def notice(title: str, words: str) -> str:
    """A sentence in place of an answer."""
    return f'<section class="answer"><h2>{title}</h2><p class="notice" role="alert">{escape(words)}</p></section>'


def _outcome(refused: bool | None) -> str:
    if refused is None:
        return '<p class="outcome">… writing</p>'
    return '<p class="outcome refuses">✕ refuses</p>' if refused else '<p class="outcome">→ answers</p>'


def _run(text: str, nats: float | None, max_kl: float) -> str:
    """Some text; where steering moved it, its word is marked as strongly, with the figure as a tip."""
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


def _read(explanation: Explanation) -> str:
    """What the judge read, as a table."""
    head = f"<tr><th>the judge read</th><th>harm</th><th>passes to {explanation.threshold:g}</th></tr>"
    rows = (
        f'<tr class="{"passed" if passes else "flagged"}"><td>{what}</td>'
        f'<td><span class="harm" style="--harm: {harm or 0.0:.3f}"></span> {format_harm(harm)}</td><td>{became}</td></tr>'
        for what, harm, passes, became in _rows(explanation)
    )
    return f"<table>{head}{''.join(rows)}</table>"


def _rows(explanation: Explanation) -> Iterator[tuple[str, float | None, bool, str]]:
    """By text, in the order of the answer: what it is, its harm, whether that passes, and what became of it."""
    standing = {verdict.after: verdict for verdict in explanation.verdicts}
    for back in explanation.sent_back:
        yield from (_row(standing.pop(after), "✓ stays") for after in list(standing) if after <= back.after)
        yield from (_row(verdict, "✕ taken back") for verdict in back.verdicts)
        for number, one in enumerate(back.candidates, start=1):
            if one.chosen:
                standing.pop(back.after + len(one.tokens), None)
            yield f"candidate {number}", one.harm, one.passes, f"{'✓' if one.passes else '✕'} {outcome_word(one)}"
    yield from (_row(verdict, "✓ stays") for verdict in standing.values())


def _row(verdict: Verdict, became: str) -> tuple[str, float | None, bool, str]:
    return f"first {verdict.after} tokens", verdict.harm, verdict.passes, became


def _cost(cost: Ledger) -> str:
    """What an answer took, in figures."""
    figures = {
        "target forwards": cost.target_forwards,
        "anchor forwards": cost.anchor_forwards,
        "judge calls": cost.judge_calls,
        "texts judged": cost.judged,
        "seconds": f"{cost.seconds:.2f}",
    }
    return f'<dl class="cost">{"".join(f"<div><dt>{name}</dt><dd>{n}</dd></div>" for name, n in figures.items())}</dl>'
