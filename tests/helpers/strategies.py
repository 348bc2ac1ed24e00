"""Judges, prompts and answers for tests of the strategy."""

import torch
from transformers import (
    set_seed,
)

from hf_alignbeam import testbed
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

KINDS = ("general", "harmful", "domain", "late", "prefill", "borderline")


def passing(conversations, responses):
    return torch.zeros(len(responses))


def failing(conversations, responses):
    return torch.ones(len(responses))


class Noted:
    """A judge that keeps what it was asked."""

    def __init__(self, judge):
        self.judge, self.calls = judge, []

    def __call__(self, conversations, responses):
        harm = torch.as_tensor(self.judge(conversations, responses))
        self.calls.append(list(zip(conversations, responses, harm.tolist(), strict=True)))
        return harm


def asked(kind, n=4):
    return [prompt.conversation for prompt in testbed.prompts("validation", kind)[:n]]


def generated(target, conversations, strategy=None, seed=0, **options):
    model, tokenizer = target
    inputs = encode(conversations, tokenizer)
    set_seed(seed)
    options = {"max_new_tokens": 40, "do_sample": False, **options}
    if strategy is not None:
        options["custom_generate"] = strategy
    with torch.no_grad():
        return model.generate(**inputs, **options), inputs["input_ids"].shape[1]


def new_tokens(target, conversations, strategy=None, **options):
    """The tokens of each answer up to its end, that included."""
    output, n_prompt = generated(target, conversations, strategy, **options)
    rows = getattr(output, "sequences", output)[:, n_prompt:].tolist()
    ends = target[1].eos_token_id
    return [row[: row.index(ends) + 1] if ends in row else row for row in rows]


def texts(target, conversations, strategy=None, **options):
    rows = new_tokens(target, conversations, strategy, **options)
    pieces = token_bytes(target[1])
    return [decode(pieces, row).decode().strip() for row in rows]


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "renormalized": {"do_sample": True, "top_p": 0.9, "renormalize_logits": True},
    "several ends": {"eos_token_id": [2, 20, 21, 22]},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
    "without a cache": {"use_cache": False, "max_new_tokens": 12},
    "static cache": {"cache_implementation": "static", "max_new_tokens": 12},
    "short": {"max_new_tokens": 1},
}


def texts_of(tokenizer, ids):
    pieces = token_bytes(tokenizer)
    return decode(pieces, ids).decode().strip()
