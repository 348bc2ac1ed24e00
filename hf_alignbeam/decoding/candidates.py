"""Candidates for answers that were flagged: where they begin, how they are steered, how likely the target finds them.

Knows rows, scores and the anchor. Knows no judge, and not which candidate goes on (`choosing.py` does).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.decoding.row_batch import RowBatch, Steered, Writer, select_rows
from hf_alignbeam.steering.anchor_steering import AnchorSteering


@dataclass(frozen=True)
class Candidates:
    """Candidates for F answers, K for each, those of one answer side by side.

    Attributes:
        rows: The F * K of them; what is not live is none.
        logp: The mean log-probability of each one's tokens under the target.
        steps: By step, the scores and logits (F * K, V) that they were drawn by, where somebody wants them.
    """

    rows: RowBatch
    logp: list[float]
    steps: list[tuple[Tensor, Tensor]]


class Proposer:
    """What makes candidates.

    Args:
        writer: What rows are written by.
        steering: The anchor.
        num_candidates: K.
        min_start: How likely a first token must be, relative to the likeliest.
    """

    def __init__(self, writer: Writer, steering: AnchorSteering, num_candidates: int, min_start: float):
        self._writer = writer
        self._steering = steering
        self._n_each = num_candidates
        self._min_start = min_start

    def propose(
        self, rows: RowBatch, places: list[int], point: int, n_next: int | None, asked: Sequence[ParsedPrompt], keeps_steps: bool
    ) -> Candidates:
        """Candidates for some rows, from some point of theirs.

        They begin with the likeliest tokens of the mixture and go on as the target's answers do. Where there are several, the
        first is steered no longer than its anchor objects, the others as long as any may be: harm may come later.

        Args:
            rows: Where the answers are written.
            places: The F rows that are flagged.
            point: How many of their tokens stay.
            n_next: How many tokens the candidates get; None for all that they write.
            asked: What each of the answers answers, with what stays of it.
            keeps_steps: Whether somebody wants the scores.
        """
        n_each, writer = self._n_each, self._writer
        target = rows.target.branch(places, writer.n_written(rows) - point)
        answers = [rows.answers[row] for row in places]
        for answer in answers:  # what was read anew, where nothing could be cut
            answer.n_fed += target.n_tokens // len(answers)
        call = self._steering.begin(target.input_ids, asked, range(len(places)))
        moved = [rows.moved[row][:point] for row in places]
        made = RowBatch(target, answers, [True] * len(places), [None] * len(places), moved)
        made.steered = [Steered(call, call.first, list(range(len(places))))]
        with call.ended_by_errors():
            logits = rows.logits[point][places]  # (F, V)
            scores = writer.scores(made, logits)
            starts, active = self._starts(scores, self._steering.anchor_logp(call, call.first))  # (F, K)
            parents = [n for n in range(len(places)) for _ in range(n_each)]
            made = select_rows(made, parents)
            made.active = active.flatten().tolist()
            made.steered[0].point.overruled = [n_each == 1 or n % n_each > 0 for n in range(len(parents))]
            logits, scores, ids = logits[parents], scores[parents], starts.flatten()  # (F * K, V), (F * K,)
            logp = n_tokens = torch.zeros(len(parents), device=logits.device)
            steps = []
            while True:
                going = torch.tensor([end is None for end in made.ends], device=logits.device)
                own = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
                logp, n_tokens = logp + own.where(going, 0.0), n_tokens + going
                if keeps_steps:
                    steps.append((scores, logits))
                writer.write(made, ids, scores)
                if not made.going or writer.n_written(made) == n_next:
                    return Candidates(made, (logp / n_tokens).tolist(), steps)
                logits = writer.read(made)
                scores = writer.scores(made, logits)
                ids = writer.draw(made, scores)

    def _starts(self, scores: Tensor, anchor_logp: Tensor) -> tuple[Tensor, Tensor]:
        """The first tokens (F, K) of the candidates for F prompts, and which candidates (F, K) there are.

        A token that the mixture, or the anchor alone, finds far less likely than its likeliest only begins a muddle. Where that
        leaves a place free, the likeliest begins a second candidate.
        """
        least = math.log(self._min_start or 1e-30)
        values, starts = scores.topk(self._n_each, dim=-1)  # (F, K)
        proposed = anchor_logp.gather(-1, starts) >= anchor_logp.amax(-1, keepdim=True) + least
        active = (values >= values[:, :1] + least) & proposed & (values > -torch.inf)
        active[:, 0] = values[:, 0] > -torch.inf
        order = active.int().argsort(dim=-1, descending=True, stable=True)
        starts, active = starts.gather(-1, order), active.gather(-1, order)
        for row, n_live in enumerate(active.sum(-1).tolist()):
            if 0 < n_live < self._n_each and self._min_start:
                starts[row, n_live], active[row, n_live] = starts[row, 0], True
        return starts, active
