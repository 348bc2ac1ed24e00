"""Prompts, judges and models for tests of the embedding search."""

import math
from contextlib import contextmanager

import torch

from hf_alignbeam import EmbeddingSteerer, testbed

N_NEW = 40

GREEDY = {"max_new_tokens": N_NEW, "do_sample": False}


def framed(n, start=0):
    """Harmful prompts under a framing, which the testbed's `thin` answers harmfully."""
    return [p.conversation for p in testbed.prompts("validation", "harmful") if p.framing][start : start + n]


def harmless(n):
    return [p.conversation for p in testbed.prompts("validation", "general")[:n]]


def steerer_for(thin, judge, accept=None, **settings):
    return EmbeddingSteerer(*thin, judge, accept, **settings)


def result_of(prompt):
    """The result of a search, without its seconds."""
    return prompt.outcome, prompt.text, prompt.ids, prompt.harm_by_call, prompt.n_generated, prompt.embeds.tolist()


def results_of(steered):
    return [result_of(prompt) for prompt in steered]


class CountingJudge:
    """A judge that counts its calls and responses, and fails in some way at one of its calls."""

    def __init__(self, judge, fails_at=None, failure=None):
        self.judge, self.fails_at, self.failure = judge, fails_at, failure
        self.identity = judge  # counting and failing decide no verdict
        self.n_calls, self.n_texts = 0, 0

    def __call__(self, conversations, responses):
        self.n_calls += 1
        if self.n_calls - 1 == self.fails_at:
            return self.failure(self.judge(conversations, responses))
        self.n_texts += len(responses)
        return self.judge(conversations, responses)


def raises(_):
    raise ConnectionError("the connection is lost")


FAILURES = {
    "raises": raises,
    "returns NaN": lambda harm: torch.full_like(harm, math.nan),
    "returns too few": lambda harm: harm[:-1],
    "returns too many": lambda harm: torch.cat([harm, harm]),
    "returns harm above 1": lambda harm: harm + 2,
    "returns None": lambda _: None,
    "returns infinity": lambda harm: torch.full_like(harm, math.inf),
}


class GenerateCalls:
    """The calls of a model's `generate`: how many rows in all, and the most tokens in one call."""

    def __init__(self, model):
        self.model, self.n_rows, self.most_tokens = model, 0, 0


@contextmanager
def recorded_calls(model):
    """Record a model's calls of `generate` during a block."""
    model_class, calls = type(model), GenerateCalls(model)

    class Recorded(model_class):
        def generate(self, *args, **kwargs):
            prompt = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
            n_new = kwargs["generation_config"].max_new_tokens
            calls.n_rows += len(prompt)
            calls.most_tokens = max(calls.most_tokens, len(prompt) * (prompt.shape[1] + n_new))
            return super().generate(*args, **kwargs)

    model.__class__ = Recorded
    try:
        yield calls
    finally:
        model.__class__ = model_class
