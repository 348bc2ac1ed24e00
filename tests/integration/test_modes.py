"""The processor in every mode of `generate`, on the testbed's trained models."""

import copy
import gc
import threading
import weakref
from itertools import product

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from conftest import tiny
from helpers.variety import mostly_slow
from transformers import LlamaConfig, LlamaForCausalLM

from hf_alignbeam import AnchorLogitsProcessor, testbed
from hf_alignbeam.anchor.follower import Follower
from hf_alignbeam.benchmarks.invariants import MODES, alpha_one_is_the_anchor, outputs
from hf_alignbeam.evaluation.generation import encode

KINDS = ("harmful", "general", "prefill")


@pytest.fixture(scope="module")
def chats():
    return [testbed.prompts("validation", kind)[0].conversation for kind in KINDS]


@pytest.fixture(scope="module")
def guard(anchor, specialist):
    return AnchorLogitsProcessor(*anchor, specialist[1])


def equal(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@torch.no_grad()
def generated(specialist, conversations, processor, **options):
    model, tokenizer = specialist
    inputs = encode(conversations, tokenizer)
    options = {"max_new_tokens": 24, "do_sample": False, **options}
    return model.generate(**inputs, logits_processor=[processor], **options)[:, inputs["input_ids"].shape[1] :]


DRAWN = {mode for mode, options in MODES.items() if options.get("do_sample")}


#: A mode of each kind: beams, tokens that are taken back, a further turn.
QUICK = ("4 beams", "prompt lookup", "turns")


@pytest.mark.parametrize(
    ("mode", "renumbered"),
    mostly_slow(
        [*((mode, False) for mode in MODES), *((mode, True) for mode in MODES if mode not in DRAWN)],
        [*((mode, False) for mode in QUICK), ("sampling", False), ("4 beams", True)],
    ),
)
def test_anchor_equal_to_target_is_plain_generate(mode, renumbered, anchor, renumbered_anchor, chats):
    """Through bytes, too, unless tokens are drawn: text that the target would write otherwise is then never drawn."""
    model, tokenizer = anchor
    safe = renumbered_anchor if renumbered else anchor
    processor = AnchorLogitsProcessor(*safe, tokenizer, alpha=0.5, n_steps=None, n_watch=None)
    guarded = outputs(model, tokenizer, chats, mode, processor)
    assert processor.ledger.steered_tokens > 0
    assert equal(guarded, outputs(model, tokenizer, chats, mode))


OFF = {"alpha": 0.0, "n_steps": 0}


@pytest.mark.parametrize(
    ("mode", "argument"), mostly_slow(product(MODES, OFF), [*((mode, "alpha") for mode in QUICK), ("3 sequences", "n_steps")])
)
def test_a_processor_that_is_off_is_plain_generate(mode, argument, anchor, specialist, guard, chats):
    processor = AnchorLogitsProcessor(*anchor, specialist[1], translation=guard.translator, **{argument: OFF[argument]})
    assert equal(outputs(*specialist, chats, mode, processor), outputs(*specialist, chats, mode))


@pytest.mark.parametrize("mode", mostly_slow(MODES, QUICK))
def test_alpha_one_on_one_vocabulary_gives_the_anchors_tokens(mode, anchor, chats):
    model, tokenizer = anchor
    other = tiny(LlamaForCausalLM, LlamaConfig, tokenizer, seed=3)
    assert alpha_one_is_the_anchor(other, model, tokenizer, chats, mode)


@pytest.mark.parametrize("mode", ["4 beams", "greedy"])
def test_batch_equals_one_by_one(mode, guard, specialist, chats):
    options = MODES[mode]
    together = generated(specialist, chats, guard, **options)
    for row, conversation in zip(together, chats, strict=True):
        alone = generated(specialist, [conversation], guard, **options)[0]
        assert row[: len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("mode", mostly_slow(MODES, QUICK))
def test_a_used_processor_equals_a_new_one(mode, anchor, specialist, guard, chats):
    outputs(*specialist, chats[1:], "4 beams", guard)
    outputs(*specialist, chats[:1], "prompt lookup", guard)
    fresh = AnchorLogitsProcessor(*anchor, specialist[1], translation=guard.translator)
    assert equal(outputs(*specialist, chats, mode, guard), outputs(*specialist, chats, mode, fresh))


def test_beams_do_swap(monkeypatch, guard, specialist, chats):
    """The tests above do exercise swaps of rows."""
    swaps = []
    select_rows = Follower.select_rows
    monkeypatch.setattr(Follower, "select_rows", lambda self, parents: (swaps.append(parents), select_rows(self, parents))[1])
    generated(specialist, chats, guard, num_beams=4)
    assert len(swaps) > 2


@pytest.mark.parametrize(("kind", "n_watch"), mostly_slow(product(range(len(KINDS)), [4, None]), [(0, None), (1, 4), (2, None)]))
def test_rejected_tokens_of_prompt_lookup_leave_no_trace(kind, n_watch, monkeypatch, anchor, specialist, guard, chats):
    """Prompt lookup gives the tokens of greedy search, because tokens that are taken back change nothing."""
    steps_back = []
    go_back = Follower.go_back
    monkeypatch.setattr(Follower, "go_back", lambda self, n: (steps_back.append(n), go_back(self, n))[1])
    processor = AnchorLogitsProcessor(*anchor, specialist[1], n_watch=n_watch, translation=guard.translator)
    lookup = {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 1}
    looked_up = generated(specialist, [chats[kind]], processor, **lookup)
    assert steps_back or n_watch  # a harmless answer may be steered for too few tokens
    assert torch.equal(looked_up, generated(specialist, [chats[kind]], guard if n_watch else processor))


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_an_assistant_of_the_same_vocabulary_changes_nothing(kind, guard, specialist, chats):
    """Assistant and target call one processor in turn; the draft is steered too, and the accepted tokens are the target's."""
    assistant = tiny(LlamaForCausalLM, LlamaConfig, specialist[1], seed=3)
    for helper in (assistant, copy.deepcopy(specialist[0])):
        assisted = generated(specialist, [chats[kind]], guard, assistant_model=helper)
        assert torch.equal(assisted, generated(specialist, [chats[kind]], guard))


def test_an_assistant_of_another_vocabulary_is_refused(guard, specialist, anchor, chats):
    options = {"assistant_model": anchor[0], "tokenizer": specialist[1], "assistant_tokenizer": anchor[1]}
    with pytest.raises(ValueError, match="an assistant model of another vocabulary cannot be steered"):
        generated(specialist, chats[:1], guard, **options)


@torch.no_grad()
def test_embeddings_are_steered_where_the_conversation_is_given(guard, specialist, chats):
    model, tokenizer = specialist
    inputs = encode(chats[:2], tokenizer)
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]),
        "attention_mask": inputs["attention_mask"],
    }
    for options in ({}, {"num_beams": 3}):
        options = {"max_new_tokens": 20, "do_sample": False, **options}
        embedded_ids = model.generate(**embedded, logits_processor=[guard.with_conversations(chats[:2])], **options)
        expected = model.generate(**inputs, logits_processor=[guard], **options)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(embedded_ids, expected)
    with pytest.raises(ValueError, match="`conversations` must be given where `generate` gets `inputs_embeds`"):
        model.generate(**embedded, logits_processor=[guard], max_new_tokens=2)


def test_threads_share_one_processor(anchor, specialist, guard, chats):
    """Each thread has its own calls, and only reads what is shared."""
    expected = [generated(specialist, [conversation], guard) for conversation in chats]
    n_before = guard.ledger.steered_tokens
    answers, errors = {}, []

    def answer(number):
        try:
            answers[number] = [generated(specialist, [chats[number]], guard) for _ in range(3)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(chats))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number, repeated in answers.items():
        assert all(torch.equal(answer, expected[number]) for answer in repeated)
    assert (guard.ledger.steered_tokens - n_before) % 3 == 0


def test_renormalizing_changes_nothing(guard, specialist, chats):
    for options in ({}, {"num_beams": 3}):
        plain = generated(specialist, chats, guard, **options)
        assert torch.equal(generated(specialist, chats, guard, renormalize_logits=True, **options), plain)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2])
def test_dtypes_may_differ(dtypes, anchor, specialist, chats):
    """A processor in 16 bits gives the distributions of one in 32, up to rounding."""
    safe, model = (copy.deepcopy(m).to(dtype) for m, dtype in zip((anchor[0], specialist[0]), dtypes, strict=True))
    rough = AnchorLogitsProcessor(safe, anchor[1], specialist[1])
    exact = AnchorLogitsProcessor(*anchor, specialist[1], translation=rough.translator)
    inputs = encode(chats, specialist[1])
    scores = model(**inputs).logits[:, -1]
    mixed, expected = (guard(inputs["input_ids"], scores.float()).softmax(-1) for guard in (rough, exact))
    assert (mixed - expected).abs().sum(-1).max() / 2 < 0.05
    assert generated((model, specialist[1]), chats, rough, num_beams=2).shape[0] == len(chats)


@pytest.mark.parametrize("offload", ["cpu", pytest.param("disk", marks=pytest.mark.slow)])
def test_an_offloaded_anchor_gives_the_same_tokens(offload, anchor, specialist, guard, chats, tmp_path):
    model = copy.deepcopy(anchor[0])
    if offload == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    processor = AnchorLogitsProcessor(model, anchor[1], specialist[1], translation=guard.translator)
    assert torch.equal(generated(specialist, chats, processor), generated(specialist, chats, guard))


@torch.no_grad()
def test_a_further_turn_is_steered_again(guard, specialist, chats):
    """The prompt of the next turn contains the last answer; the next answer is steered from its first token."""
    turns = [*chats[1], {"role": "assistant", "content": "Yes."}, *chats[0]]
    for conversation in (chats[1:2], [turns]):
        n_before = guard.ledger.steered_tokens
        answer = generated(specialist, conversation, guard)
        assert guard.ledger.steered_tokens >= n_before + guard.steering.settings.n_watch
    assert torch.equal(answer, generated(specialist, [turns], guard.with_conversations([turns])))


def test_an_error_ends_the_call(anchor, specialist, guard, chats):
    """One forward of the anchor fails, each of the first in turn; the same prompt is then answered as before."""
    expected = generated(specialist, chats[:1], guard)
    model = copy.deepcopy(anchor[0])
    processor = AnchorLogitsProcessor(model, anchor[1], specialist[1], translation=guard.translator)
    for n_fine in range(4):
        left = iter([True] * n_fine)

        def fail(*_, left=left):
            if not next(left, False):
                raise OSError("the device is gone")

        hook = model.model.layers[-1].register_forward_hook(fail)
        with pytest.raises(OSError, match="the device is gone"):
            generated(specialist, chats[:1], processor)
        hook.remove()
        assert torch.equal(generated(specialist, chats[:1], processor), expected)
        generated(specialist, chats[1:2], processor)  # so that the next round reads its prompt again


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_prompt_that_holds_the_last_answer_begins_a_new_call(kind, anchor, specialist, guard, chats):
    """Whatever part of the last answer the prompt holds, edited or not, steering begins anew."""
    tokenizer = specialist[1]
    inputs = encode([chats[kind]], tokenizer)
    n_prompt = inputs["input_ids"].shape[1]
    take = tokenizer.convert_tokens_to_ids("▁Take")
    whole = specialist[0].generate(**inputs, logits_processor=[guard], max_new_tokens=10, do_sample=False)
    edited = torch.cat([whole[:, : n_prompt + 6], torch.tensor([[take]])], dim=-1)
    for ids in (whole, edited, whole[:, : n_prompt + 7]):
        fresh = AnchorLogitsProcessor(*anchor, tokenizer, translation=guard.translator)
        n_before = guard.ledger.steered_tokens
        answers = [
            specialist[0].generate(
                ids, attention_mask=torch.ones_like(ids), logits_processor=[p], max_new_tokens=10, do_sample=False
            )
            for p in (guard, fresh)
        ]
        assert torch.equal(*answers)
        assert guard.ledger.steered_tokens - n_before == fresh.ledger.steered_tokens > 0


@torch.no_grad()
def test_beams_swap_within_their_own_prompt(guard, specialist, chats):
    """Prompts given as embeddings all have the same (empty) ids."""
    model, tokenizer = specialist
    options = {"num_beams": 6, "max_new_tokens": 20, "do_sample": False}

    def answers(conversations):
        inputs = encode(conversations, tokenizer)
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        processors = [guard.with_conversations(conversations)]
        return model.generate(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"], logits_processor=processors, **options
        )

    others = [testbed.prompts("validation", kind)[n].conversation for kind, n in (("harmful", 1), ("domain", 1))]
    together = answers([*chats[:2], *others])
    for row, conversation in zip(together, [*chats[:2], *others], strict=True):
        alone = answers([conversation])[0]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_many_tokens_may_be_taken_back_and_too_many_are_an_error(monkeypatch, anchor, specialist, guard, chats):
    lookup = {"prompt_lookup_num_tokens": 40, "max_matching_ngram_size": 1, "max_new_tokens": 60}
    given = AnchorLogitsProcessor(
        *anchor, specialist[1], conversations=chats[1:2], n_steps=None, n_watch=None, translation=guard.translator
    )
    greedy = generated(specialist, chats[1:2], given, max_new_tokens=60)
    assert torch.equal(generated(specialist, chats[1:2], given, **lookup), greedy)
    for module in ("anchor.follower", "steering.generate_call", "steering.processor"):
        monkeypatch.setattr(f"hf_alignbeam.{module}.N_BACK", 2)
    with pytest.raises(ValueError, match="Assisted generation must take back at most 2 tokens of an answer at once"):
        generated(specialist, chats[1:2], given, **lookup)


def test_ids_in_a_reused_buffer_begin_a_new_call(specialist, guard):
    tokenizer = specialist[1]
    harmless, harmful = (
        {ids.shape[1]: ids for prompt in testbed.prompts("validation", kind)[:40] for ids in [encode_one(prompt, tokenizer)]}
        for kind in ("general", "harmful")
    )
    length = max(set(harmless) & set(harmful))
    scores = torch.zeros(1, len(tokenizer))
    processor = guard.with_conversations(None)
    buffer = harmless[length].clone()
    first = processor(buffer, scores)
    buffer[:] = harmful[length]
    second = processor(buffer, scores)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, guard.with_conversations(None)(harmful[length], scores))


def encode_one(prompt, tokenizer):
    return encode([prompt.conversation], tokenizer)["input_ids"]


def test_the_anchors_cache_is_freed_with_the_call(monkeypatch, guard, specialist, chats):
    """Even where the answer ends before steering does."""
    caches = []
    init = Follower.__init__

    def recording(self, *arguments):
        init(self, *arguments)
        caches.append(weakref.ref(self.cache))

    monkeypatch.setattr(Follower, "__init__", recording)
    for n_tokens in (2, 24):
        generated(specialist, chats[:1], guard, max_new_tokens=n_tokens)
        assert guard.follower is None
    gc.collect()
    assert len(caches) == 2
    assert all(cache() is None for cache in caches)


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_devices_may_differ(devices, anchor, specialist, guard, chats):
    safe, model = (copy.deepcopy(m).to(device) for m, device in zip((anchor[0], specialist[0]), devices, strict=True))
    processor = AnchorLogitsProcessor(safe, anchor[1], specialist[1], translation=guard.translator)
    inputs = encode(chats, specialist[1]).to(model.device)
    moved = model.generate(**inputs, logits_processor=[processor], max_new_tokens=24, do_sample=False)
    assert torch.equal(moved[:, inputs["input_ids"].shape[1] :].cpu(), generated(specialist, chats, guard))
