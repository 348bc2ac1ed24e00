"""Many embeddings answered at once."""

import pytest
import torch
from transformers import GenerationConfig

from hf_alignbeam.embedding import embedded
from hf_alignbeam.probing import Probe, Prober, RowStreams


@pytest.fixture
def prompts():
    return [[5, 20, 30, 40], [5, 21, 31, 41, 51, 61, 71], [5, 22]]


def prober(model, temperature=0.0, max_batch_tokens=10_000, **others):
    config = GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=3, do_sample=True, top_p=0.5)
    return Prober(model, max_batch_tokens, temperature, config, others)


def answered(each, probes):
    found = dict(pair for batch in each.answers(probes) for pair in batch)
    return [found[n] for n in range(len(probes))]


def test_ids_and_their_embeddings_have_one_greedy_answer(tiny_llama, prompts):
    by_ids = answered(prober(tiny_llama), [Probe(ids, 0) for ids in prompts])
    by_embeds = answered(prober(tiny_llama), [Probe(embedded(tiny_llama, ids).detach(), 0) for ids in prompts])
    assert by_ids == by_embeds
    for ids, answer in zip(prompts, by_ids, strict=True):
        plain = tiny_llama.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False)[0, len(ids) :].tolist()
        assert answer == plain


def test_a_row_samples_from_its_own_stream_whoever_else_is_there(tiny_llama, prompts):
    probes = [Probe(ids, seed) for seed, ids in enumerate(prompts)]
    together = answered(prober(tiny_llama, 1.0), probes)
    assert together == [answered(prober(tiny_llama, 1.0), [probe])[0] for probe in probes]
    assert together == answered(prober(tiny_llama, 1.0, max_batch_tokens=14), probes)
    assert together != answered(prober(tiny_llama, 1.0), [Probe(ids, 9) for ids in prompts])


def test_the_largest_score_is_a_sample_of_the_distribution():
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    for temperature in (1.0, 0.5):
        expected = torch.softmax(scores[0] / temperature, -1)
        streams = RowStreams([11] * 1, temperature)
        drawn = torch.stack([streams(torch.zeros(1, 1), scores).argmax(-1) for _ in range(6000)])
        shares = torch.bincount(drawn.flatten(), minlength=3) / 6000
        assert torch.allclose(shares, expected, atol=0.025)


def test_what_else_generate_is_given_reaches_it(tiny_llama, prompts):
    def only_token_40(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([40]), 0.0)

    found = answered(prober(tiny_llama, logits_processor=[only_token_40]), [Probe(prompts[0], 0)])
    assert found == [[40] * 7]


def test_an_answer_ends_with_its_end():
    class Endless:
        pass

    assert prober(Endless()).ended([7, 8, 2, 3, 3]) == [7, 8, 2]
    assert prober(Endless()).ended([7, 8]) == [7, 8]
