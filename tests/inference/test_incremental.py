"""Texts that grow give the distributions of each text from scratch, and only new tokens are fed."""

import random

import pytest
import torch
from conftest import tiny
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.inference.engines import KeyValueEngine, RecomputeEngine
from hf_alignbeam.inference.incremental import IncrementalScorer


@torch.no_grad()
def from_scratch(model, texts):
    return torch.stack([model(torch.tensor([text])).logits[0, -1].log_softmax(-1) for text in texts])


def counted(model):
    """The shapes of the ids that a model is fed from here on, and the hook to remove."""
    shapes = []
    hook = model.register_forward_pre_hook(lambda module, args, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    return shapes, hook


@pytest.mark.parametrize("engine", [KeyValueEngine, RecomputeEngine])
@pytest.mark.parametrize("name", ["Llama", "Gemma 2"])
def test_any_history_equals_from_scratch(name, engine, byte_tokenizer):
    model, rng = build(name, byte_tokenizer), random.Random(3)
    scorer = IncrementalScorer(model, engine)
    heads = [[rng.randrange(5, 300) for _ in range(n)] for n in (3, 9, 6)]
    tails = [[rng.randrange(5, 300) for _ in range(12)] for _ in heads]
    for n in (2, 5, 5, 3, 12):  # grow, stay, shrink, grow; then other rows, in another order, and twice
        texts = [head + tail[:n] for head, tail in zip(heads, tails, strict=True)]
        torch.testing.assert_close(scorer.next_logp(texts, [3, 9, 6]), from_scratch(model, texts), atol=2e-4, rtol=1e-3)
    swapped = [[*texts[2][:-2], 7, 8], texts[0], texts[2], texts[0][:4]]
    torch.testing.assert_close(scorer.next_logp(swapped, [6, 3, 6, 3]), from_scratch(model, swapped), atol=2e-4, rtol=1e-3)
    new = [[9, 9, 9, 9], texts[0]]
    torch.testing.assert_close(scorer.next_logp(new, [2, 3]), from_scratch(model, new), atol=2e-4, rtol=1e-3)


def test_only_new_tokens_are_fed(byte_tokenizer, tiny_qwen):
    scorer = IncrementalScorer(tiny_qwen, KeyValueEngine)
    head, tail, suffix = list(range(10, 50)), list(range(60, 90)), [5, 6, 7]
    shapes, hook = counted(tiny_qwen)
    try:
        scorer.next_logp([head + tail[:10] + suffix], [40])
        scorer.next_logp([head + tail[:20] + suffix], [40])
        scorer.next_logp([head + tail[:20] + [8, 9]] * 3, [40] * 3)
    finally:
        hook.remove()
    assert [rows * n for rows, n in shapes] == [40, 12, 1, 12, 1, 3, 3]


def test_threads_do_not_share_a_cache(byte_tokenizer):
    from concurrent.futures import ThreadPoolExecutor

    model = tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed=4, head_dim=8)
    scorer = IncrementalScorer(model, KeyValueEngine)
    texts = [[list(range(k, k + 20)), list(range(k, k + 24))] for k in (10, 50, 90)]

    def score(pair):
        return [scorer.next_logp([text], [10]) for text in pair for _ in range(3)]

    with ThreadPoolExecutor(3) as pool:
        for pair, scores in zip(texts, pool.map(score, texts), strict=True):
            for logp, text in zip(scores, [text for text in pair for _ in range(3)], strict=True):
                torch.testing.assert_close(logp, from_scratch(model, [text]), atol=2e-4, rtol=1e-3)


def test_after_an_error_texts_are_fed_from_scratch(byte_tokenizer, tiny_qwen, monkeypatch):
    scorer = IncrementalScorer(tiny_qwen, KeyValueEngine)
    scorer.next_logp([[5, 6, 7, 8]], [2])
    with monkeypatch.context() as patched:
        patched.setattr(KeyValueEngine, "read", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            scorer.next_logp([[5, 6, 7, 8, 9]], [2])
    again = [[5, 6, 7, 8, 9, 10]]
    torch.testing.assert_close(scorer.next_logp(again, [2]), from_scratch(tiny_qwen, again), atol=2e-4, rtol=1e-3)
