"""Prompts, judges, streamers and answers for tests of the decoding strategy."""

from contextlib import contextmanager

import torch
from transformers import set_seed

from hf_alignbeam import testbed
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

KINDS = ("general", "harmful", "domain", "late", "prefill", "borderline")

#: Ways of calling `generate`, by name.
OPTIONS = {
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


def chats_of(kind, n=4):
    """The testbed's first conversations of a kind."""
    return [prompt.conversation for prompt in testbed.prompts("validation", kind)[:n]]


def passing(conversations, responses):
    return torch.zeros(len(responses))


def failing(conversations, responses):
    return torch.ones(len(responses))


class RecordingJudge:
    """Another judge, and by call the conversations, the responses and their harm."""

    def __init__(self, judge):
        self.judge, self.calls = judge, []

    def __call__(self, conversations, responses):
        harm = torch.as_tensor(self.judge(conversations, responses))
        self.calls.append(list(zip(conversations, responses, harm.tolist(), strict=True)))
        return harm


def flags_first_call(least_harmful=None):
    """A judge that flags all texts of its first call and passes all others, one of them with the least harm."""
    calls = []

    def judge(conversations, responses):
        calls.append(responses)
        return torch.tensor([0.9 if len(calls) == 1 else 0.0 if text == least_harmful else 0.2 for text in responses])

    return RecordingJudge(judge)


def flags_calls(*numbers):
    """A judge of one prompt that flags the target's own text in the calls of these numbers, and passes every candidate."""
    calls = []

    def judge(conversations, responses):
        calls.append(responses)
        return torch.tensor([float(len(responses) == 1 and len(calls) in numbers)] * len(responses))

    return judge


class RecordingStreamer:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.parts, self.prompt, self.n_ends = [], None, 0

    @property
    def ids(self):
        return [i for part in self.parts for i in part]

    def put(self, value):
        if self.prompt is None:
            self.prompt = value
        else:
            self.parts.append(value.tolist())

    def end(self):
        self.n_ends += 1


@contextmanager
def fed_shapes(model):
    """The shapes (rows, length) of the ids that a model is fed within a block."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


def generated(target, conversations, strategy=None, seed=0, **options):
    """What `generate` returns for a batch, and the length of its prompts."""
    model, tokenizer = target
    inputs = encode(conversations, tokenizer)
    set_seed(seed)
    options = {"max_new_tokens": 40, "do_sample": False, **options}
    if strategy is not None:
        options["custom_generate"] = strategy
    with torch.no_grad():
        return model.generate(**inputs, **options), inputs["input_ids"].shape[1]


def answer_ids(target, conversations, strategy=None, **options):
    """The tokens of each answer up to its end, that included."""
    return up_to_end(target, *generated(target, conversations, strategy, **options))


def up_to_end(target, output, n_prompt):
    """The tokens of each answer in what `generate` returned, up to its end, that included."""
    rows = getattr(output, "sequences", output)[:, n_prompt:].tolist()
    eos = target[1].eos_token_id
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def texts(target, conversations, strategy=None, **options):
    """The text of each answer."""
    return [text_of(target[1], row) for row in answer_ids(target, conversations, strategy, **options)]


def text_of(tokenizer, ids, errors="strict"):
    """The text of some tokens, special ones left out."""
    pieces = token_bytes(tokenizer)
    return decode(pieces, ids).decode(errors=errors).strip()
