"""What a callable draws from a stream of its own changes what nobody else draws."""

import random

import numpy as np
import pytest
import torch

from hf_alignbeam.utils.random_stream import RandomStream


def draw():
    return float(torch.rand(())), random.random(), float(np.random.rand())


def seeded():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)


def test_blocks_draw_one_stream_and_leave_the_others_alone():
    seeded()
    alone = [draw() for _ in range(4)]
    seeded()
    stream, inside, outside = RandomStream(), [], []
    for _ in range(4):
        with stream.drawing():
            inside.append(draw())
        outside.append(draw())
    assert inside == outside == alone


def test_an_error_or_a_new_seed_in_a_block_changes_nothing_outside():
    seeded()
    first, second = draw(), draw()
    seeded()
    stream = RandomStream()

    def fail():
        with stream.drawing():
            seeded(), draw(), int("x")

    with pytest.raises(ValueError, match="'x'"):
        fail()
    assert draw() == first
    with stream.drawing():
        assert draw() == second
