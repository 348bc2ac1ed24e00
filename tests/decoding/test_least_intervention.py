"""What passes is plain generate, token for token, whatever happens to the other rows of the batch."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import pytest
import torch
from helpers.strategies import OPTIONS, answer_ids, chats_of, failing, generated, passing, texts, up_to_end
from helpers.transformers_names import CACHE
from helpers.variety import mostly_slow
from transformers import (
    AutoModelForCausalLM,
    StopStringCriteria,
)

from hf_alignbeam import AlignBeam
from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.presets.published import PAPER
from hf_alignbeam.testbed.model_store import WEIGHTS


@pytest.fixture(scope="module")
def plain(specialist, one_of_each):
    """By the name of some options of `generate`, what plain generate returns with them, and the length of the prompts."""
    return cache(lambda name: generated(specialist, one_of_each, **OPTIONS[name]))


WHEN = {"often": {"judge_after": 3, "judge_every": 5}, "once": {"judge_after": None}, "by default": {}}


@pytest.mark.parametrize(
    ("name", "when"),
    mostly_slow(
        product(OPTIONS, WHEN), [*((name, "often") for name in OPTIONS), ("several", "once"), ("sampling", "by default")]
    ),
)
def test_a_passing_judge_is_plain_generate(name, when, plain, specialist, strategy, one_of_each):
    settings, (expected, n_prompt) = WHEN[when], plain(name)
    ours, _ = generated(specialist, one_of_each, strategy(passing, **settings), **OPTIONS[name])
    assert torch.equal(expected, ours)
    assert expected.shape[1] > n_prompt


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Mamba 2", "Jamba", "Qwen3.5"])
def test_any_family_is_plain_where_it_passes_and_refuses_where_it_does_not(name, anchor, byte_tokenizer):
    target = build(name, byte_tokenizer), byte_tokenizer
    conversations = chats_of("general", 3)
    for options in ({}, {"do_sample": True}):
        always = AlignBeam(*anchor, byte_tokenizer, passing, judge_after=4, judge_every=4)
        plain, _ = generated(target, conversations, max_new_tokens=14, **options)
        assert torch.equal(generated(target, conversations, always, max_new_tokens=14, **options)[0], plain)
    never = AlignBeam(*anchor, byte_tokenizer, failing, judge_after=4)
    assert texts(target, conversations, never) == [REFUSAL] * 3


def test_scores_logits_and_cache_are_those_of_plain_generate(specialist, strategy, mixed):
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    plain, n_prompt = generated(specialist, mixed, repetition_penalty=1.2, **wanted)
    ours, _ = generated(specialist, mixed, strategy(passing, judge_after=4), repetition_penalty=1.2, **wanted)
    assert len(ours.scores) == len(plain.scores) == plain.sequences.shape[1] - n_prompt
    for name in ("scores", "logits"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(ours, name), getattr(plain, name), strict=True))
    assert getattr(ours, CACHE).get_seq_length() == getattr(plain, CACHE).get_seq_length()
    assert ours.past_key_values is ours.cache


def test_ids_of_32_bits_give_what_they_give_plain_generate(specialist, strategy):
    model, tokenizer = specialist
    ids = encode(chats_of("general", 1), tokenizer)["input_ids"].int()
    ways = ({}, {"custom_generate": strategy(passing)})
    outputs = [model.generate(ids, max_new_tokens=5, do_sample=False, **way) for way in ways]
    assert torch.equal(*outputs)
    assert outputs[0].dtype == outputs[1].dtype


def test_a_half_precision_target_is_plain_generate(specialist, strategy, mixed):
    half = AutoModelForCausalLM.from_pretrained(WEIGHTS / "specialist", dtype=torch.bfloat16).eval()
    target = half, specialist[1]
    plain, ours = (answer_ids(target, mixed, s) for s in (None, strategy(passing, judge_after=4)))
    assert plain == ours


def test_without_an_eos_a_criterion_ends_the_batch_as_in_generate(specialist, strategy):
    tokenizer = specialist[1]
    before, specialist[0].generation_config.eos_token_id = specialist[0].generation_config.eos_token_id, None
    try:
        stops = [StopStringCriteria(tokenizer, ["."])]
        plain, _ = generated(specialist, chats_of("general", 3), stopping_criteria=stops, max_new_tokens=60)
        ours, _ = generated(specialist, chats_of("general", 3), strategy(passing), stopping_criteria=stops, max_new_tokens=60)
    finally:
        specialist[0].generation_config.eos_token_id = before
    assert plain.shape[1] < 60
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampling"])
def test_unflagged_rows_are_plain_beside_flagged_rows(options, specialist, strategy, oracle, mixed):
    plain = answer_ids(specialist, mixed, max_new_tokens=60, **options)
    output, n_prompt = generated(specialist, mixed, strategy(oracle), max_new_tokens=60, return_dict_in_generate=True, **options)
    ours = up_to_end(specialist, output, n_prompt)
    assert 2 <= int((output.chosen == 0).sum()) < len(mixed)
    for row, chosen in enumerate(output.chosen.tolist()):
        assert (ours[row] == plain[row]) == (chosen == 0)


@pytest.mark.parametrize("settings", [{}, {"judge_after": 5, "judge_every": 4}, PAPER], ids=["default", "often", "paper"])
def test_batch_equals_one_by_one(settings, specialist, strategy, oracle, one_of_each):
    together = answer_ids(specialist, one_of_each, strategy(oracle, **settings))
    shared = strategy(oracle, **settings)
    assert together == [answer_ids(specialist, [conversation], shared)[0] for conversation in one_of_each]


PER_ROW = {
    "repetition penalty": {"repetition_penalty": 1.2},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 1.0}},
    "n-grams": {"no_repeat_ngram_size": 3, "bad_words_ids": [[40, 41]]},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "n-grams" else n for n in PER_ROW])
def test_processors_with_a_state_for_each_row_work_for_candidates(name, specialist, strategy, oracle, one_of_each):
    together = answer_ids(specialist, one_of_each, strategy(oracle), **PER_ROW[name])
    shared = strategy(oracle)
    assert together == [answer_ids(specialist, [conversation], shared, **PER_ROW[name])[0] for conversation in one_of_each]


def test_the_same_seed_gives_the_same_tokens_and_leaves_the_global_stream_alone(specialist, strategy, oracle, one_of_each):
    options = {"do_sample": True, "temperature": 1.2}
    first, again = (answer_ids(specialist, one_of_each, strategy(oracle), seed=3, **options) for _ in range(2))
    assert first == again
    assert first != answer_ids(specialist, one_of_each, strategy(oracle), seed=4, **options)
    harmful = chats_of("harmful", 2)
    states = []
    for judge in (passing, failing):  # candidates draw from streams of their own
        generated(specialist, harmful, strategy(judge, judge_after=8), max_new_tokens=8, **options)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_threads_share_one_strategy(specialist, strategy, oracle, mixed):
    shared = strategy(oracle)
    alone = [answer_ids(specialist, [conversation], shared)[0] for conversation in mixed[:6]]
    with ThreadPoolExecutor(3) as pool:
        threaded = list(pool.map(lambda conversation: answer_ids(specialist, [conversation], shared)[0], mixed[:6]))
    assert threaded == alone
