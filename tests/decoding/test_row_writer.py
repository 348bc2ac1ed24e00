"""Where the anchor is mixed in among the processors of `generate`."""

import inspect
import re

import pytest
import torch
from helpers.strategies import chats_of, generated
from transformers import LogitsProcessor, WatermarkingConfig, WatermarkLogitsProcessor
from transformers.generation.utils import GenerationMixin

from hf_alignbeam.decoding.row_writer import WARPERS
from hf_alignbeam.steering.anchor_steering import AnchorSteering


def test_every_processor_that_transformers_puts_after_the_users_is_known():
    _, users, after = inspect.getsource(GenerationMixin._get_logits_processor).partition("_merge_criteria_processor_list(")
    assert users
    appended = set(re.findall(r"processors\.append\(\s*(\w+)\(", after))
    assert len(appended) >= 9
    assert appended <= {each.__name__ for each in WARPERS}
    assert "construct_processor" in after
    assert WatermarkLogitsProcessor in WARPERS


class Noting(LogitsProcessor):
    """A user's processor that notes when it is called."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, input_ids, scores):
        self.calls.append("user's")
        return scores


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_anchor_comes_after_the_users_processors_and_before_a_watermark(do_sample, specialist, strategy, monkeypatch):
    calls = []
    steer, mark = AnchorSteering.steer, WatermarkLogitsProcessor.__call__
    monkeypatch.setattr(AnchorSteering, "steer", lambda *given: calls.append("anchor") or steer(*given))
    monkeypatch.setattr(WatermarkLogitsProcessor, "__call__", lambda *given: calls.append("watermark") or mark(*given))
    flagging = strategy(lambda conversations, responses: torch.ones(len(responses)), judge_after=2, n_steps=3)
    generated(
        specialist,
        chats_of("general", 1),
        flagging,
        logits_processor=[Noting(calls)],
        watermarking_config=WatermarkingConfig(),
        do_sample=do_sample,
        max_new_tokens=6,
    )
    steered = [n for n, call in enumerate(calls) if call == "anchor"]
    assert steered
    assert all((calls[n - 1], calls[n + 1]) == ("user's", "watermark") for n in steered)
