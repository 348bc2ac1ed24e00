import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.variety import mostly_slow
from peft import AdaptionPromptConfig, LoraConfig, PromptTuningConfig, TrainableTokensConfig, get_peft_model
from transformers import LlamaForCausalLM, LogitsProcessor, pipeline

from hf_alignbeam import AnchorLogitsProcessor, testbed
from hf_alignbeam.benchmarks.invariants import MODES, outputs
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.inference.adapters import adapter_layers, adapters_off, base_of

# peft 0.21 under transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def adapted():
    """The testbed's LoRA specialist: (model, tokenizer)."""
    return testbed.load("specialist-lora")


@pytest.fixture(scope="module")
def base():
    return testbed.load("base")[0]


@pytest.fixture(scope="module")
def chats():
    return [testbed.prompts("validation", kind)[0].conversation for kind in ("harmful", "general", "domain")]


def random_adapter(model, **settings):
    """A model under an adapter with random weights."""
    model = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **settings)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.5)
    return model


def state(model):
    layers = adapter_layers(model)
    return (
        [parameter.requires_grad for parameter in model.parameters()],
        [(layer.disable_adapters, layer.active_adapters) for layer in layers],
    )


@torch.no_grad()
def test_adapters_off_gives_the_base_and_restores_the_state(adapted, base):
    model = adapted[0]
    before, layers = state(model), adapter_layers(model)
    alone, expected = model(input_ids=IDS).logits, base(input_ids=IDS).logits
    assert not torch.equal(alone, expected)
    with adapters_off(layers):
        assert torch.equal(model.get_base_model()(input_ids=IDS).logits, expected)
        with adapters_off(layers):
            assert torch.equal(model.get_base_model()(input_ids=IDS).logits, expected)
        assert torch.equal(model.get_base_model()(input_ids=IDS).logits, expected)
    assert state(model) == before
    with pytest.raises(KeyError), adapters_off(layers):
        raise KeyError
    assert state(model) == before
    assert torch.equal(model(input_ids=IDS).logits, alone)


@torch.no_grad()
def test_layers_that_an_adapter_replaces_are_turned_off_too(tiny_llama):
    model = random_adapter(tiny_llama, modules_to_save=["lm_head"], trainable_token_indices=[5, 6])
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data.add_(0.5)
    with adapters_off(adapter_layers(model)):
        assert torch.equal(model(input_ids=IDS).logits, tiny_llama(input_ids=IDS).logits)
    assert not torch.allclose(model(input_ids=IDS).logits, tiny_llama(input_ids=IDS).logits)


WRAPPED = {
    "trainable tokens": {"trainable_token_indices": [5, 6]},
    "LoRA on the embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "DoRA": {"use_dora": True},
}


@torch.no_grad()
@pytest.mark.parametrize("settings", [*WRAPPED.values(), None], ids=[*WRAPPED, "trainable tokens alone"])
def test_an_anchor_may_have_wrapped_layers(settings, tiny_llama, piece_tokenizer, chats):
    """As the adapted target whose base is the anchor, and as an anchor that carries adapters."""
    config = TrainableTokensConfig(token_indices=[5, 6], target_modules=["embed_tokens"])
    if settings is not None:
        config = LoraConfig(r=2, **{"target_modules": ["q_proj"], **settings})
    model = get_peft_model(copy.deepcopy(tiny_llama), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.5)
    off = {"alpha": 1.0, "n_steps": None, "n_watch": None}
    plain, adapted = (outputs(each, piece_tokenizer, chats, "greedy")[0] for each in (tiny_llama, model))
    base = AnchorLogitsProcessor("base", piece_tokenizer, piece_tokenizer, model=model, **off)
    assert torch.equal(outputs(model, piece_tokenizer, chats, "greedy", base)[0], plain)
    anchor = AnchorLogitsProcessor(model, piece_tokenizer, piece_tokenizer, **off)
    assert torch.equal(outputs(tiny_llama, piece_tokenizer, chats, "greedy", anchor)[0], adapted)


@torch.no_grad()
def test_the_active_adapter_of_several_comes_back(tiny_llama):
    model = random_adapter(tiny_llama)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter("second")
    before = state(model)
    with adapters_off(adapter_layers(model)):
        assert torch.equal(model(input_ids=IDS).logits, tiny_llama(input_ids=IDS).logits)
    assert state(model) == before
    assert model.active_adapter == "second"


def test_a_flag_without_effect_is_an_error(tiny_llama, monkeypatch):
    model = random_adapter(tiny_llama)
    layers = adapter_layers(model)
    monkeypatch.setattr(type(layers[0]), "disable_adapters", property(lambda self: False))
    with pytest.raises(RuntimeError, match="Adapters must be off"), adapters_off(layers):
        pass


@pytest.mark.parametrize("mode", mostly_slow(MODES, ("4 beams", "prompt lookup", "turns")))
def test_the_base_as_anchor_equals_the_base_loaded_separately(mode, adapted, base, chats):
    model, tokenizer = adapted
    shared = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model)
    separate = AnchorLogitsProcessor(base, tokenizer, tokenizer)
    for one, other in zip(
        outputs(model, tokenizer, chats, mode, shared),
        outputs(model, tokenizer, chats, mode, separate),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert shared.ledger == separate.ledger


@torch.no_grad()
@pytest.mark.parametrize("mode", ["greedy", "4 beams"])
def test_alpha_one_gives_the_bases_tokens(mode, adapted, base, chats):
    model, tokenizer = adapted
    guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model, alpha=1.0, n_steps=None, n_watch=None)
    assert torch.equal(outputs(model, tokenizer, chats, mode, guard)[0], outputs(base, tokenizer, chats, mode)[0])


@torch.no_grad()
def test_every_entry_point_gives_the_same_tokens(adapted, chats):
    """Through `PeftModel.generate`, the model inside it, a pipeline, and a model that carries the adapter itself."""
    model, tokenizer = adapted
    native = testbed.load("base")[0]
    native.load_adapter(str(testbed.WEIGHTS / "specialist-lora"))
    inner = model.get_base_model()
    expected = outputs(model, tokenizer, chats, "greedy", AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model))[0]
    for entry, owner in ((inner, model), (inner, inner), (native, native)):
        guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=owner)
        assert torch.equal(outputs(entry, tokenizer, chats, "greedy", guard)[0], expected)
    guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    result = pipe(chats[:1], logits_processor=[guard], do_sample=False, max_new_tokens=8, return_full_text=False)
    n_prompt = tokenizer.apply_chat_template(chats[:1], add_generation_prompt=True, return_tensors="pt")["input_ids"].shape[1]
    alone = outputs(model, tokenizer, chats[:1], "greedy", guard)[0]
    assert result[0][0]["generated_text"] == tokenizer.decode(alone[0, n_prompt:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("anchor", "model", "message"),
    [
        ("base", None, "`anchor` must be a model, or \"base\" with the adapted target as `model`, got 'base' with None"),
        ("bsae", "adapted", "got 'bsae' with a PeftModel"),
        ("plain", "adapted", "got a LlamaForCausalLM with a PeftModel"),
        ("base", "plain", '`model` must carry an adapter for `anchor="base"`, got LlamaForCausalLM without one'),
        ("base", "merged", "but they are merged into its weights"),
    ],
)
def test_a_model_without_a_base_is_refused(anchor, model, message, tiny_llama, piece_tokenizer):
    adapter = random_adapter(tiny_llama)
    if model == "merged":
        adapter.merge_adapter()
    given = {"adapted": adapter, "merged": adapter, "plain": tiny_llama, None: None}[model]
    safe = tiny_llama if anchor == "plain" else anchor
    with pytest.raises(ValueError, match=message):
        AnchorLogitsProcessor(safe, piece_tokenizer, piece_tokenizer, model=given)


def test_the_inside_of_a_peft_model_is_no_anchor(tiny_llama, piece_tokenizer):
    adapted = random_adapter(tiny_llama)
    with pytest.raises(ValueError, match=r'got the inside of a `PeftModel`, where its adapters are on.*give `anchor="base"`'):
        AnchorLogitsProcessor(adapted.get_base_model(), piece_tokenizer, piece_tokenizer)
    AnchorLogitsProcessor(adapted, piece_tokenizer, piece_tokenizer)  # an anchor may have an adapter
    with adapted.disable_adapter():
        AnchorLogitsProcessor(adapted.get_base_model(), piece_tokenizer, piece_tokenizer)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # peft 0.21, in the target's own forwards
def test_a_prompt_tuned_target_has_its_base(tiny_llama, piece_tokenizer, chats):
    """Prompt tuning adds no layers: the decoder inside is the base."""
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(copy.deepcopy(tiny_llama), settings).eval()
    assert type(base_of(model)) is LlamaForCausalLM
    guard = AnchorLogitsProcessor("base", piece_tokenizer, piece_tokenizer, model=model, alpha=1.0, n_steps=None, n_watch=None)
    plain = outputs(model, piece_tokenizer, chats, "greedy")[0]
    guarded = outputs(model, piece_tokenizer, chats, "greedy", guard)[0]
    assert torch.equal(guarded, outputs(tiny_llama, piece_tokenizer, chats, "greedy")[0])
    assert not torch.equal(guarded, plain)


def test_an_adapter_merged_after_the_guard_was_built_is_refused(tiny_llama, piece_tokenizer, chats):
    """The model under a merged adapter is the unsafe one."""
    model = random_adapter(tiny_llama)
    guard = AnchorLogitsProcessor("base", piece_tokenizer, piece_tokenizer, model=model)
    outputs(model, piece_tokenizer, chats, "greedy", guard)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into its weights"):
        outputs(model, piece_tokenizer, chats, "greedy", guard)
    model.unmerge_adapter()
    outputs(model, piece_tokenizer, chats, "greedy", guard)
    merged = model.merge_and_unload()
    with pytest.raises(ValueError, match="without one that can be turned off"):
        outputs(merged, piece_tokenizer, chats, "greedy", guard)


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}])
@pytest.mark.parametrize("owner", ["wrapped", "inner"])
def test_an_adapter_that_changes_its_base_is_refused(settings, owner, tiny_llama, piece_tokenizer):
    model = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(r=2, target_modules=["q_proj"], **settings)).eval()
    given = model if owner == "wrapped" else model.get_base_model()
    with pytest.raises(ValueError, match="`model` must leave the weights under its adapter as they were"):
        AnchorLogitsProcessor("base", piece_tokenizer, piece_tokenizer, model=given)


def test_an_adapter_without_layers_is_refused(tiny_llama, piece_tokenizer):
    settings = AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(tiny_llama), settings).eval()
    with pytest.raises(ValueError, match="without one that can be turned off"):
        AnchorLogitsProcessor("base", piece_tokenizer, piece_tokenizer, model=model)


def test_a_second_thread_is_refused_while_one_is_in_a_call(adapted, chats):
    """Even with a guard of its own; the first thread's answer is not disturbed, and a later call succeeds."""
    model, tokenizer = adapted
    guards = [AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model) for _ in range(2)]
    expected = outputs(model, tokenizer, chats, "greedy", guards[0])[0]
    started, refused = threading.Event(), threading.Event()
    results = []

    class WaitingProcessor(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = guards[0](input_ids, scores)
            started.set()
            refused.wait(30)
            return scores

    thread = threading.Thread(
        target=lambda: results.append(outputs(model, tokenizer, chats, "greedy", WaitingProcessor())[0]), name="first"
    )
    thread.start()
    started.wait(30)
    try:
        with pytest.raises(RuntimeError, match="used by one thread at a time, got MainThread while first is in a call"):
            guards[1](encode(chats, tokenizer)["input_ids"], torch.zeros(len(chats), len(tokenizer)))
    finally:
        refused.set()
        thread.join()
    assert torch.equal(results[0], expected)
    assert torch.equal(outputs(model, tokenizer, chats, "greedy", guards[1])[0], expected)


def test_threads_of_a_pool_take_turns(adapted, chats):
    """A thread that stays alive after its answer does not block the others."""
    model, tokenizer = adapted
    guard = AnchorLogitsProcessor("base", tokenizer, tokenizer, model=model)
    expected = outputs(model, tokenizer, chats, "greedy", guard)[0]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for pool in (one, other, one):
            assert torch.equal(pool.submit(outputs, model, tokenizer, chats, "greedy", guard).result()[0], expected)
