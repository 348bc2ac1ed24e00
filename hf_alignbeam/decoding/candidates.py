"""CandidateGenerator: the candidates of answers that roll back: how they begin, and how they are steered and written.

Knows rows, scores and the anchor. Knows neither the judge nor which candidate is chosen (`rollback`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.decoding.policy import Policy
from hf_alignbeam.decoding.row_batch import RowBatch, SteeredRows
from hf_alignbeam.decoding.row_writer import RowWriter
from hf_alignbeam.steering.anchor_steering import AnchorSteering
from hf_alignbeam.steering.generate_call import GenerateCall
from hf_alignbeam.steering.mixing import PAPER_TOP_TOKENS


@dataclass(frozen=True)
class CandidateBatch:
    """The candidates for F answers, at most K for each, those of one answer side by side.

    Attributes:
        rows: The candidates (N rows).
        rows_of: By answer, the rows of its candidates.
        logp: By row, the mean log-probability of the candidate's tokens under the target.
        steps: By step, the scores and logits (N, V) from which the tokens were drawn; empty if they are not kept.
    """

    rows: RowBatch
    rows_of: list[range]
    logp: list[float]
    steps: list[tuple[Tensor, Tensor]]


class CandidateGenerator:
    """Writes candidates.

    Args:
        writer: The call's writer.
        steering: The anchor.
        policy: How many candidates an answer gets, and how likely their first tokens must be.
        keeps_steps: Whether to keep scores and logits.
    """

    def __init__(self, writer: RowWriter, steering: AnchorSteering, policy: Policy, keeps_steps: bool):
        self._writer = writer
        self._steering = steering
        self._policy = policy
        self._keeps_steps = keeps_steps

    def generate(
        self,
        batch: RowBatch,
        rows: list[int],
        n_kept: int,
        n_next: int | None,
        prompts: Sequence[ParsedPrompt],
    ) -> CandidateBatch:
        """Write candidates for some rows, after the first tokens of their answers.

        Candidates begin with the most likely tokens of the mixture, and continue as the target's answers do. Of several, the
        first is steered as the processor steers (`n_watch`), the others for all of `n_steps`, because harm may come later.

        Args:
            batch: The batch in which the answers are written.
            rows: The F flagged rows.
            n_kept: How many of their tokens are kept.
            n_next: How many tokens the answers will then have; None to write the candidates to their ends.
            prompts: The prompts of the rows, each continued by the tokens that are kept.
        """
        candidates = batch.branch(rows, n_kept)
        call = self._steering.begin(candidates.target.input_ids, prompts, range(len(rows)))
        candidates.steered = [SteeredRows(call, call.initial, list(range(len(rows))))]
        with call.ended_by_errors():
            logits = batch.logits[n_kept][rows]  # (F, V)
            scores = self._writer.scores(candidates, logits)
            first_ids, exists = self._first_tokens(scores, self._anchor_logp(call))  # (F, K)
            parents, numbers = (index.tolist() for index in exists.nonzero(as_tuple=True))  # (N,)
            candidates = candidates.select_rows(parents)
            candidates.steered[0].state.overruled = [self._policy.num_candidates == 1 or number > 0 for number in numbers]
            ends = exists.sum(-1).cumsum(0).tolist()
            rows_of = [range(start, end) for start, end in pairwise([0, *ends])]
            written = self._write(candidates, logits[parents], scores[parents], first_ids[exists], n_next)
            return CandidateBatch(candidates, rows_of, *written)

    def _write(
        self, candidates: RowBatch, logits: Tensor, scores: Tensor, ids: Tensor, n_next: int | None
    ) -> tuple[list[float], list[tuple[Tensor, Tensor]]]:
        """Write candidates from their first tokens `ids` (N,) to a length of `n_next`, or to their ends.

        Returns:
            Their `logp` and `steps`, as in `CandidateBatch`.
        """
        writer = self._writer
        logp = n_tokens = torch.zeros(len(ids), device=logits.device)
        steps = []
        while True:
            is_unfinished = torch.tensor([end is None for end in candidates.ends], device=logits.device)
            token_logp = logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)
            logp, n_tokens = logp + token_logp.where(is_unfinished, 0.0), n_tokens + is_unfinished
            if self._keeps_steps:
                steps.append((scores, logits))
            writer.write(candidates, ids, scores)
            if not candidates.unfinished or candidates.n_written == n_next:
                return (logp / n_tokens).tolist(), steps
            logits = writer.read(candidates)
            scores = writer.scores(candidates, logits)
            ids = writer.draw(candidates, scores)

    def _anchor_logp(self, call: GenerateCall) -> Tensor:
        """The translated log-probabilities (F, V) of the anchor alone, at the beginning of the candidates."""
        assert call.follower is not None
        rows = call.initial.steered_rows
        target_prob = torch.stack([call.initial.target_logp[row] for row in rows]).exp()
        if self._steering.settings.mixing == "paper":
            return call.follower.translate_top(target_prob, rows, PAPER_TOP_TOKENS)[0].log()
        return call.follower.predict(target_prob, rows).prob.log()

    def _first_tokens(self, scores: Tensor, anchor_logp: Tensor) -> tuple[Tensor, Tensor]:
        """The first tokens (F, K) of the candidates, and which of these candidates exist (F, K): at least the first.

        A token far below the most likely one, in the mixture or for the anchor alone, would begin an incoherent text. Where this
        leaves fewer than K candidates, the most likely token begins one more, unless `min_start` is 0.
        """
        min_logp = math.log(self._policy.min_start or 1e-30)
        n_candidates = min(self._policy.num_candidates, scores.shape[-1])
        values, first_ids = scores.topk(n_candidates, dim=-1)  # (F, K)
        anchor_agrees = anchor_logp.gather(-1, first_ids) >= anchor_logp.amax(-1, keepdim=True) + min_logp
        active = (values >= values[:, :1] + min_logp) & anchor_agrees & (values > -torch.inf)
        active[:, 0] = True
        order = active.int().argsort(dim=-1, descending=True, stable=True)
        first_ids, active = first_ids.gather(-1, order), active.gather(-1, order)
        for row, n_active in enumerate(active.sum(-1).tolist()):
            if n_active < n_candidates and self._policy.min_start:
                first_ids[row, n_active], active[row, n_active] = first_ids[row, 0], True
        return first_ids, active
