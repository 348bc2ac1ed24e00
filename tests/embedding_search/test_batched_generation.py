"""Many embeddings answered at once."""

import pytest
import torch
from transformers import GenerationConfig

from hf_alignbeam.embedding_search.batched_generation import BatchedGenerator, GenerationRow, RowStreams, ended
from hf_alignbeam.embedding_search.embeddings import embedded
from hf_alignbeam.embedding_search.settled import resolve_generation


@pytest.fixture
def prompts():
    return [[5, 20, 30, 40], [5, 21, 31, 41, 51, 61, 71], [5, 22]]


def prober(model, temperature=0.0, max_batch_tokens=10_000, **others):
    config = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=3, do_sample=True, top_p=0.5)
    return BatchedGenerator(
        model, resolve_generation(model, None, {"generation_config": config, **others}, 0), max_batch_tokens, temperature
    )


def answered(each, probes):
    found = dict(pair for batch in each.answers(probes) for pair in batch)
    return [found[n] for n in range(len(probes))]


def rows(model, prompts, seeds):
    return [GenerationRow(embedded(model, ids).detach(), seed) for ids, seed in zip(prompts, seeds, strict=True)]


def test_embeddings_and_their_ids_have_one_greedy_answer(tiny_llama, prompts):
    for ids, answer in zip(prompts, answered(prober(tiny_llama), rows(tiny_llama, prompts, [0, 0, 0])), strict=True):
        plain = tiny_llama.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False)[0, len(ids) :].tolist()
        assert answer == plain


def test_a_row_samples_from_its_own_stream_whoever_else_is_there(tiny_llama, prompts):
    probes = rows(tiny_llama, prompts, range(3))
    together = answered(prober(tiny_llama, 1.0), probes)
    assert together == [answered(prober(tiny_llama, 1.0), [probe])[0] for probe in probes]
    assert together == answered(prober(tiny_llama, 1.0, max_batch_tokens=14), probes)
    assert together != answered(prober(tiny_llama, 1.0), rows(tiny_llama, prompts, [9, 9, 9]))


def test_the_largest_score_is_a_sample_of_the_distribution():
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    for temperature in (1.0, 0.5):
        expected = torch.softmax(scores[0] / temperature, -1)
        streams = RowStreams([11], temperature)
        drawn = torch.stack([streams(torch.zeros(1, 1), scores).argmax(-1) for _ in range(6000)])
        shares = torch.bincount(drawn.flatten(), minlength=3) / 6000
        assert torch.allclose(shares, expected, atol=0.025)


def test_what_else_generate_is_given_reaches_it(tiny_llama, prompts):
    def only_token_40(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([40]), 0.0)

    found = answered(prober(tiny_llama, logits_processor=[only_token_40]), rows(tiny_llama, prompts[:1], [0]))
    assert found == [[40] * 7]


def test_an_answer_ends_with_its_end_or_where_it_was_filled_up(tiny_llama):
    settled = resolve_generation(tiny_llama, None, {"eos_token_id": [9, 2], "pad_token_id": 3, "max_new_tokens": 5}, 0)
    assert ended([7, 8, 2, 3, 3], settled) == [7, 8, 2]
    assert ended([7, 8], settled) == [7, 8]
    assert ended([7, 8, 3, 3], settled) == [7, 8]
    assert ended([], settled) == []
