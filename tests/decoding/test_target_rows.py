"""Rows of a target that branch, are taken and come back read as from scratch."""

from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache

from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.decoding.target_rows import TargetRows

#: One of each kind of cache: keys and values of every token, of a window, and states that cannot be cut.
KINDS = ("Llama", "Gemma 2", "Mamba 2", "Jamba", "LFM2", "Qwen3.5")


def started(model, tokenizer, ids, mask, embeds=False):
    """A target as `generate` hands it to a strategy, and what plain greedy search writes."""
    taken = {}

    def note(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        taken["target"] = TargetRows(model, input_ids, generation_config, model_kwargs)
        return input_ids

    prompt = {"inputs_embeds": model.get_input_embeddings()(ids)} if embeds else {"input_ids": ids}
    model.generate(**prompt, attention_mask=mask, custom_generate=note, max_new_tokens=20)
    return taken["target"]


@torch.no_grad()
def from_scratch(model, rows, mask):
    """The logits (rows, V) after each row, read alone and without padding."""
    return torch.stack([model(input_ids=row[seen.bool()][None]).logits[0, -1] for row, seen in zip(rows, mask, strict=True)])


@pytest.fixture(scope="module", params=KINDS)
def family(request, byte_tokenizer):
    return build(request.param, byte_tokenizer), byte_tokenizer


@pytest.fixture
def prompts(byte_tokenizer):
    ids = torch.tensor(byte_tokenizer("How do I kill the weeds in the old garden?").input_ids[:12])
    padded = torch.stack([ids, torch.cat([torch.full((3,), byte_tokenizer.pad_token_id), ids[3:]])])
    return padded, (padded != byte_tokenizer.pad_token_id).long()


def grown(rows, mask, ids):
    new = torch.tensor(ids)
    return torch.cat([rows, new], dim=-1), torch.cat([mask, torch.ones_like(new)], dim=-1)


@torch.no_grad()
def test_rows_that_branch_go_on_as_from_scratch(family, prompts):
    model, tokenizer = family
    target = started(model, tokenizer, *prompts)
    target.next_logits()
    for i in ([40, 41], [42, 43], [44, 45]):
        target.write(torch.tensor(i))
        target.next_logits()
    branched = target.branch([1, 1, 0], n_back=2)
    branched.write(torch.tensor([50, 51, 52]))
    rows, mask = grown(*(each[[1, 1, 0]] for each in prompts), [[41, 50], [41, 51], [40, 52]])
    torch.testing.assert_close(branched.next_logits(), from_scratch(model, rows, mask), atol=2e-4, rtol=1e-3)
    branched.write(torch.tensor([53, 53, 53]))
    branched.select_rows([2, 0])
    rows, mask = grown(rows[[2, 0]], mask[[2, 0]], [[53], [53]])
    torch.testing.assert_close(branched.next_logits(), from_scratch(model, rows, mask), atol=2e-4, rtol=1e-3)
    target.write(torch.tensor([46, 47]))  # and where they came from is as it was
    rows, mask = grown(*prompts, [[40, 42, 44, 46], [41, 43, 45, 47]])
    torch.testing.assert_close(target.next_logits(), from_scratch(model, rows, mask), atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_rows_that_come_back_go_on_as_from_scratch(prompts, byte_tokenizer, tiny_qwen):
    target = started(tiny_qwen, byte_tokenizer, *prompts)
    target.next_logits()
    target.write(torch.tensor([40, 41]))
    target.next_logits()
    target.write(torch.tensor([42, 43]))
    other = target.branch([1], n_back=2)
    other.write(torch.tensor([60]))
    other.next_logits()
    other.write(torch.tensor([61]))
    assert target.absorb(other, [1])
    rows, mask = grown(*prompts, [[40, 42], [60, 61]])
    assert torch.equal(target.input_ids, rows)
    torch.testing.assert_close(target.next_logits(), from_scratch(tiny_qwen, rows, mask), atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_rows_that_have_read_less_do_not_come_back(prompts, byte_tokenizer, tiny_qwen):
    target = started(tiny_qwen, byte_tokenizer, *prompts)
    target.next_logits()
    target.write(torch.tensor([40, 41]))
    other = target.branch([1], n_back=1)
    assert not target.absorb(other, [1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["Llama", "Gemma 2"])
def test_embeddings_branch_too(name, prompts, byte_tokenizer):
    model = build(name, byte_tokenizer)
    target = started(model, byte_tokenizer, *prompts, embeds=True)
    target.next_logits()
    target.write(torch.tensor([40, 41]))
    target.next_logits()
    branched = target.branch([0, 1], n_back=1)
    branched.write(torch.tensor([50, 51]))
    rows, mask = grown(*prompts, [[50], [51]])
    torch.testing.assert_close(branched.next_logits(), from_scratch(model, rows, mask), atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_what_can_be_cut_is_read_once(prompts, byte_tokenizer, tiny_qwen):
    fed = []
    hook = tiny_qwen.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        target = started(tiny_qwen, byte_tokenizer, *prompts)
        target.next_logits()
        assert (target.cost.n_forwards, target.cost.n_tokens) == (1, 24)
        branched = target.branch([0, 1], n_back=0)
        branched.select_rows([0, 0, 0, 1, 1, 1])
        branched.write(torch.arange(40, 46))
        branched.next_logits()
    finally:
        hook.remove()
    assert fed == [(2, 12), (6, 1)]
    assert branched.cost is target.cost
    assert (target.cost.n_forwards, target.cost.n_tokens) == (2, 30)
    assert type(branched.cache) is DynamicCache


def test_every_step_after_the_prompt_runs_as_generate_decodes(byte_tokenizer, prompts, monkeypatch):
    """A GPU runs a model's experts otherwise in decoding steps: only so are the tokens those of plain generate."""
    model = build("Llama", byte_tokenizer)
    open_contexts, inside = [], []

    @contextmanager
    def decoding():
        open_contexts.append(True)
        yield
        open_contexts.pop()

    target = started(model, byte_tokenizer, *prompts)
    monkeypatch.setattr(model, "_optimize_model_for_decode", decoding)
    hook = model.register_forward_pre_hook(lambda *_: inside.append(len(open_contexts)))
    for _ in range(3):
        target.write(target.next_logits().argmax(-1))
    target.branch([1], 1)
    hook.remove()
    assert inside == [0, 1, 1]
