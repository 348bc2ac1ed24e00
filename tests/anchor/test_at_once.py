"""Numbers that the rows of a batch read at once: how often a step reads from the device, and what it keeps there."""

from collections import Counter

import pytest
import torch
from helpers.strategies import chats_of

from hf_alignbeam.anchor.at_once import AgreeingTokens
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.steering.processor import AnchorLogitsProcessor

READS = ("tolist", "item", "cpu", "__float__", "__int__", "__bool__")
N_STEPS = 12


class OnHost(torch.Tensor):
    """A tensor that a read has brought to the CPU, and what is computed from it."""


class CountedSteps(AnchorLogitsProcessor):
    """A processor that counts the reads of its steps after the first, and the points and distributions that its rows keep."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reads, self.n_steps, self.is_counting = Counter(), 0, False
        self.n_points = self.n_kept = 0

    def __call__(self, input_ids, scores):
        self.is_counting = self.follower is not None
        try:
            return super().__call__(input_ids, scores)
        finally:
            self.n_steps += self.is_counting
            self.is_counting = False
            nodes = [node for row in self.follower.rows for node in row.nodes.values()]
            self.n_points = len(nodes)
            self.n_kept = sum(not isinstance(node.together, AgreeingTokens) for node in nodes)


@pytest.fixture
def steps_of(anchor, specialist, monkeypatch):
    """A function that steers the answers to so many prompts, and returns the processor with its counts."""

    def steer(n_rows):
        guard = CountedSteps(*anchor, specialist[1], n_steps=None, n_watch=None)

        def counted(name, read):
            def call(tensor, *args):
                is_read = guard.is_counting and type(tensor) is torch.Tensor
                guard.reads[name] += is_read
                found = read(tensor, *args)
                return found.as_subclass(OnHost) if name == "cpu" and is_read else found

            return call

        with monkeypatch.context() as context:
            for name in READS:
                context.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
            inputs = encode(chats_of("harmful", n_rows), specialist[1])
            specialist[0].generate(
                **inputs, logits_processor=[guard], max_new_tokens=N_STEPS, min_new_tokens=N_STEPS, do_sample=False
            )
        return guard

    return steer


def test_a_step_reads_as_often_for_many_rows_as_for_one(steps_of):
    """On a GPU each read waits for all that was launched before."""
    alone, together = steps_of(1), steps_of(12)
    assert alone.n_steps == together.n_steps == N_STEPS - 1
    assert 0 < alone.reads.total() / alone.n_steps <= 20
    assert together.reads.total() / together.n_steps <= alone.reads.total() / alone.n_steps + 6  # where any row looks ahead


def test_a_row_keeps_the_distributions_at_the_end_of_its_text_only(steps_of):
    guard = steps_of(12)
    assert guard.n_points > 12 * N_STEPS / 2
    assert guard.n_kept <= 12 * 4  # the end of each text, and what was looked ahead to after it
