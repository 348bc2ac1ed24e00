"""Answers to many embeddings, generated in batches."""

import pytest
import torch
from transformers import GenerationConfig

from hf_alignbeam.embedding_search.batched_generation import BatchedGenerator, GenerationRow, RowStreams, resolve_generation
from hf_alignbeam.embedding_search.embeddings import token_embeddings


@pytest.fixture
def prompts():
    return [[5, 20, 30, 40], [5, 21, 31, 41, 51, 61, 71], [5, 22]]


def generator(model, temperature=0.0, max_batch_tokens=10_000, **kwargs):
    config = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=3, do_sample=True, top_p=0.5)
    return BatchedGenerator(
        model, resolve_generation(model, None, {"generation_config": config, **kwargs}, 0), max_batch_tokens, temperature
    )


def answers(batched, rows):
    by_number = dict(pair for batch in batched.answers(rows) for pair in batch)
    return [by_number[n] for n in range(len(rows))]


def rows(model, prompts, seeds):
    return [GenerationRow(token_embeddings(model, ids).detach(), seed) for ids, seed in zip(prompts, seeds, strict=True)]


def test_embeddings_get_the_greedy_answer_of_their_ids(tiny_llama, prompts):
    for ids, answer in zip(prompts, answers(generator(tiny_llama), rows(tiny_llama, prompts, [0, 0, 0])), strict=True):
        plain = tiny_llama.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False)[0, len(ids) :].tolist()
        assert answer == plain


def test_a_row_samples_from_its_own_stream_in_any_batch(tiny_llama, prompts):
    probes = rows(tiny_llama, prompts, range(3))
    together = answers(generator(tiny_llama, 1.0), probes)
    assert together == [answers(generator(tiny_llama, 1.0), [probe])[0] for probe in probes]
    assert together == answers(generator(tiny_llama, 1.0, max_batch_tokens=14), probes)
    assert together != answers(generator(tiny_llama, 1.0), rows(tiny_llama, prompts, [9, 9, 9]))


def test_the_largest_score_is_a_sample_of_the_distribution():
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    for temperature in (1.0, 0.5):
        expected = torch.softmax(scores[0] / temperature, -1)
        streams = RowStreams([11], temperature)
        drawn = torch.stack([streams(torch.zeros(1, 1), scores).argmax(-1) for _ in range(6000)])
        shares = torch.bincount(drawn.flatten(), minlength=3) / 6000
        assert torch.allclose(shares, expected, atol=0.025)


def test_other_arguments_of_generate_are_passed_on(tiny_llama, prompts):
    def only_token_40(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([40]), 0.0)

    result = answers(generator(tiny_llama, logits_processor=[only_token_40]), rows(tiny_llama, prompts[:1], [0]))
    assert result == [[40] * 7]


def test_an_answer_is_cut_after_its_end_token_or_before_its_padding(tiny_llama):
    generation = resolve_generation(tiny_llama, None, {"eos_token_id": [9, 2], "pad_token_id": 3, "max_new_tokens": 5}, 0)
    assert generation.up_to_end([7, 8, 2, 3, 3]) == [7, 8, 2]
    assert generation.up_to_end([7, 8]) == [7, 8]
    assert generation.up_to_end([7, 8, 3, 3]) == [7, 8]
    assert generation.up_to_end([]) == []
