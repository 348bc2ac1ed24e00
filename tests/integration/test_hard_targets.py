"""Quantized, mixed-precision, offloaded and reasoning models as target, anchor and judge, and conversations with tools."""

import copy
import importlib.util
import re
from dataclasses import replace
from functools import cache

import accelerate
import pytest
import torch
import transformers
from helpers.strategies import failing, passing
from helpers.templates import HARMONY, REASONING_OPENED, with_template
from helpers.variety import mostly_slow
from packaging.version import Version
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, LogitsProcessor

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, ClassifierJudge, EmbeddingSteerer, LLMJudge, testbed
from hf_alignbeam.benchmarks.invariants import anchor_equal_to_target_is_plain
from hf_alignbeam.chat.templates import REASONING_MARKERS
from hf_alignbeam.cli.diagnosis import model_checks, system_checks
from hf_alignbeam.cli.diagnosis.examined import ExaminedModel
from hf_alignbeam.embedding_search.fingerprint import model_sha256
from hf_alignbeam.embedding_search.steered_prompts import SteeredPrompts
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.anchor_logits import anchor_logits
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.judges.profiles.general import YES_NO
from hf_alignbeam.testbed.model_store import WEIGHTS

KINDS = ("harmful", "general", "prefill")
N_NEW = 16
REFUSED = "I cannot help with that."


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale per row, as quantized layers have them."""

    def __init__(self, linear):
        super().__init__()
        self.scale = nn.Parameter(linear.weight.detach().abs().amax(-1, keepdim=True) / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, hidden):
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale)


class OwnDtype(nn.Module):
    """A layer that computes in its own dtype, whatever the dtype of its input; `out` is the dtype of its output."""

    def __init__(self, linear, dtype, out):
        super().__init__()
        self.linear, self.out = copy.deepcopy(linear).to(dtype), out

    def forward(self, hidden):
        return self.linear(hidden.to(self.linear.weight.dtype)).to(self.out)


def with_replaced_layers(model, make):
    """A copy of a model in which `make` replaces every linear layer but the head."""
    model = copy.deepcopy(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.in_features > 8]
    for name in names:
        if name != "lm_head":
            model.set_submodule(name, make(model.get_submodule(name)))
    return model


def with_float32_head(model):
    model = copy.deepcopy(model).bfloat16()
    model.lm_head = OwnDtype(model.lm_head, torch.float32, torch.float32)
    return model


PRECISIONS = {
    "bfloat16": lambda model: copy.deepcopy(model).bfloat16(),
    "float16": lambda model: copy.deepcopy(model).half(),
    "bfloat16, its head in float32": with_float32_head,
    "float32, its layers in bfloat16": lambda model: with_replaced_layers(
        model, lambda each: OwnDtype(each, torch.bfloat16, torch.float32)
    ),
    "8 bits": lambda model: with_replaced_layers(model, Int8Linear),
}


@pytest.fixture(scope="module")
def prompts():
    return [testbed.prompts("validation", kind)[0].conversation for kind in KINDS]


@pytest.fixture(scope="module")
def translator(anchor, specialist):
    return AnchorLogitsProcessor(*anchor, specialist[1]).translator


@pytest.fixture(scope="module")
def judge_lm():
    return testbed.load("judge-lm")


@torch.no_grad()
def answers_of(model, tokenizer, conversations, n_new=N_NEW, **options):
    inputs = encode(conversations, tokenizer)
    answers = model.generate(**inputs, max_new_tokens=n_new, do_sample=False, **options)
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers[:, inputs["input_ids"].shape[1] :]]


def assert_laws_hold(target, tokenizer, anchor, anchor_tokenizer, translation, prompts):
    """Laws that hold in every precision: none compares a model with itself in another precision."""
    plain = answers_of(target, tokenizer, prompts)
    assert anchor_equal_to_target_is_plain(target, tokenizer, prompts, "greedy")
    off = AnchorLogitsProcessor(anchor, anchor_tokenizer, tokenizer, alpha=0.0, translation=translation)
    assert answers_of(target, tokenizer, prompts, logits_processor=[off]) == plain

    def strategy(judge):
        return AlignBeam(
            anchor, anchor_tokenizer, tokenizer, judge, judge_after=4, judge_every=4, refusal=REFUSED, translation=translation
        )

    assert answers_of(target, tokenizer, prompts, custom_generate=strategy(passing)) == plain
    refused = answers_of(target, tokenizer, prompts, custom_generate=strategy(failing))
    assert refused == [REFUSED] * len(prompts)


#: 16 bits, mixed dtypes, and weights that are no floating-point numbers.
QUICK = ("bfloat16", "float32, its layers in bfloat16", "8 bits")


@pytest.mark.parametrize("kind", mostly_slow(PRECISIONS, QUICK))
def test_the_laws_hold_in_every_precision(kind, anchor, specialist, translator, prompts):
    target, safe = PRECISIONS[kind](specialist[0]), PRECISIONS[kind](anchor[0])
    assert_laws_hold(target, specialist[1], safe, anchor[1], translator, prompts)


@pytest.mark.parametrize("kind", mostly_slow(PRECISIONS, QUICK[::2]))
def test_anchor_and_judge_agree_with_their_float32_versions(kind, anchor, specialist, translator, judge_lm, prompts):
    (model, tokenizer), (safe, safe_tokenizer), (reader, reader_tokenizer) = specialist, anchor, judge_lm
    exact, coarse = (
        AnchorLogitsProcessor(each, safe_tokenizer, tokenizer, translation=translator) for each in (safe, PRECISIONS[kind](safe))
    )
    answers = [answers_of(model, tokenizer, prompts, logits_processor=[guard]) for guard in (coarse, exact)]
    assert answers[0] == answers[1] != answers_of(model, tokenizer, prompts)
    questions, responses = [turns[:1] for turns in prompts] * 2, answers[0] + answers_of(model, tokenizer, prompts)
    verdicts = [LLMJudge(each, reader_tokenizer)(questions, responses) for each in (reader, PRECISIONS[kind](reader))]
    assert torch.allclose(*verdicts, atol=0.05)
    assert verdicts[0].max() - verdicts[0].min() > 0.5


@pytest.mark.parametrize("kind", mostly_slow(PRECISIONS, QUICK[::2]))
def test_a_batch_in_any_precision_equals_its_prompts_one_by_one(kind, anchor, specialist, translator, prompts):
    """In 16 bits padding changes the last places of scores, but not the tokens of a trained model."""
    target, safe, tokenizer = PRECISIONS[kind](specialist[0]), PRECISIONS[kind](anchor[0]), specialist[1]
    guard = AnchorLogitsProcessor(safe, anchor[1], tokenizer, translation=translator)
    for options in ({}, {"logits_processor": [guard]}):
        alone = [answers_of(target, tokenizer, [each], **options)[0] for each in prompts]
        assert answers_of(target, tokenizer, prompts, **options) == alone


@pytest.mark.parametrize("kind", mostly_slow(PRECISIONS, QUICK[::2]))
def test_searched_embeddings_have_the_models_dtype(kind, specialist, prompts):
    model, tokenizer = PRECISIONS[kind](specialist[0]), specialist[1]
    dtype = model.get_input_embeddings().weight.dtype
    searched = EmbeddingSteerer(model, tokenizer, failing, max_calls=2, max_generations=9).precompute(
        prompts[:1], max_new_tokens=4
    )
    assert next(iter(searched)).embeds.dtype == dtype
    steered = EmbeddingSteerer(model, tokenizer, passing).precompute(prompts[:1], max_new_tokens=4)
    inputs = steered.inputs(prompts[:1])
    assert inputs["inputs_embeds"].dtype == dtype
    (expected,) = answers_of(model, tokenizer, prompts[:1])
    answer = tokenizer.decode(model.generate(**inputs, max_new_tokens=N_NEW, do_sample=False)[0], skip_special_tokens=True)
    assert answer.strip() == expected


def test_the_doctor_names_every_dtype(specialist):
    told = model_checks.dtypes(ExaminedModel("target", PRECISIONS["8 bits"](specialist[0]), specialist[1]))
    assert told == ("green", "float32, int8 on cpu")


def quantization_config_for(library, n_bits):
    """The configuration with which transformers quantizes a model."""
    if library == "bitsandbytes":
        return transformers.BitsAndBytesConfig(load_in_8bit=n_bits == 8, load_in_4bit=n_bits == 4)
    if library == "optimum":
        return transformers.QuantoConfig(weights=f"int{n_bits}")
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(params=[("bitsandbytes", 8), ("bitsandbytes", 4), ("torchao", 8), ("optimum", 8), ("optimum", 4)], ids=str)
def quantized(request, tmp_path, byte_tokenizer, piece_tokenizer):
    """A target and an anchor with random weights, quantized by a library."""
    library, n_bits = request.param
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install hf-alignbeam[quantised]")
    loaded = []
    for seed, tokenizer in enumerate((piece_tokenizer, byte_tokenizer)):
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.4, **sizes, **ids)
        LlamaForCausalLM(config).save_pretrained(tmp_path / str(seed))
        made = AutoModelForCausalLM.from_pretrained(
            tmp_path / str(seed), quantization_config=quantization_config_for(library, n_bits), dtype=torch.float32
        )
        assert made.is_quantized
        loaded += [made.eval(), tokenizer]
    return loaded


@pytest.mark.filterwarnings("ignore")  # libraries warn of kernels that are not installed
def test_the_laws_hold_for_quantized_models(quantized, prompts):
    target, tokenizer, anchor, anchor_tokenizer = quantized
    prompts = prompts[:2]
    assert_laws_hold(target, tokenizer, anchor, anchor_tokenizer, "bytes", prompts)
    judge = LLMJudge(anchor, anchor_tokenizer, replace(YES_NO, verdicts={"a": 0.0, "b": 1.0}), threshold=0.5, probe=False)
    assert judge([turns[:1] for turns in prompts], ["Yes."] * 2).shape == (2,)
    steered = EmbeddingSteerer(target, tokenizer, passing).precompute(prompts, max_new_tokens=4)
    assert steered.sha256 == model_sha256(target) != model_sha256(anchor)
    for check in (model_checks.dtypes, system_checks.target_as_anchor):
        assert check(ExaminedModel("target", target, tokenizer)).status == "green"


#: A device map for the testbed's decoders: embeddings, head and most layers lie on the disk.
ON_DISK = {
    **{f"model.layers.{n}": "disk" for n in range(1, 4)},
    **dict.fromkeys(("model.embed_tokens", "lm_head"), "disk"),
    **dict.fromkeys(("model.layers.0", "model.norm", "model.rotary_emb"), "cpu"),
}


#: Before accelerate 1.15 its own hooks fail on tied weights, or where all of a model is on the disk.
OFFLOADS = pytest.mark.skipif(Version(accelerate.__version__) < Version("1.15"), reason="needs accelerate 1.15")


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory):
    """The testbed's models by name, each loaded once with most weights on the disk."""

    @cache
    def load(name):
        where = {"device_map": ON_DISK, "offload_folder": tmp_path_factory.mktemp("offload"), "dtype": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(WEIGHTS / name, **where).eval()
        assert model.device.type == "meta"
        return model

    return load


@OFFLOADS
def test_offloaded_target_anchor_and_judge_give_the_same_answers_as_in_memory(
    offloaded, anchor, specialist, translator, judge_lm, prompts
):
    def answers(target, safe, reader):
        guard = AnchorLogitsProcessor(safe, anchor[1], specialist[1], translation=translator)
        judge = LLMJudge(reader, judge_lm[1])
        strategy = AlignBeam(safe, anchor[1], specialist[1], judge, judge_after=4, judge_every=4, translation=translator)
        guards = ({}, {"logits_processor": [guard]}, {"custom_generate": strategy})
        return [answers_of(target, specialist[1], prompts, **options) for options in guards]

    in_memory = answers(specialist[0], anchor[0], judge_lm[0])
    assert answers(*map(offloaded, ("specialist", "anchor", "judge-lm"))) == in_memory
    assert in_memory[0] != in_memory[1] != in_memory[2]


@OFFLOADS
@pytest.mark.slow
def test_the_laws_hold_for_offloaded_models(offloaded, anchor, specialist, translator, prompts):
    assert_laws_hold(offloaded("specialist"), specialist[1], offloaded("anchor"), anchor[1], translator, prompts)


@OFFLOADS
def test_an_offloaded_classifier_judges_as_in_memory(tmp_path, prompts):
    model, tokenizer = testbed.load("judge-cls")
    other = AutoModelForSequenceClassification.from_pretrained(
        WEIGHTS / "judge-cls", device_map={"": "disk"}, offload_folder=tmp_path, dtype=torch.float32
    )
    assert {weight.device.type for weight in other.parameters()} == {"meta"}
    questions, responses = [turns[:1] for turns in prompts], ["Sorry, I will not do that.", "It is Robaes.", "Begin with a pan."]
    verdicts = [ClassifierJudge(each, tokenizer, {"unsafe": 1.0})(questions, responses) for each in (model, other.eval())]
    assert torch.equal(*verdicts)
    assert len(set(verdicts[0].tolist())) == len(responses)


@OFFLOADS
def test_an_offloaded_model_is_searched_and_recognized_as_in_memory(offloaded, specialist, judge_lm, prompts, tmp_path):
    found = []
    for model in (specialist[0], offloaded("specialist")):
        steerer = EmbeddingSteerer(model, specialist[1], LLMJudge(*judge_lm), max_calls=3, max_generations=17)
        found.append(steerer.precompute(prompts[:2], max_new_tokens=N_NEW))
    for one, other in zip(*found, strict=True):
        assert (one.outcome, one.ids, one.harm_by_call) == (other.outcome, other.ids, other.harm_by_call)
        assert torch.equal(one.embeds, other.embeds)
    found[0].save_pretrained(tmp_path)
    assert len(SteeredPrompts.from_pretrained(tmp_path, offloaded("specialist"))) == 2
    other = copy.deepcopy(specialist[0])
    other.model.layers[2].mlp.up_proj.weight.data[0] += 1.0
    other.save_pretrained(tmp_path / "other")
    other = AutoModelForCausalLM.from_pretrained(
        tmp_path / "other", device_map=ON_DISK, offload_folder=tmp_path / "offload", dtype=torch.float32
    )
    with pytest.raises(ValueError, match="must be the model that was searched"):
        SteeredPrompts.from_pretrained(tmp_path, other)


@OFFLOADS
def test_anchors_named_by_id_are_loaded_to_the_device_where_an_offloaded_target_computes(
    offloaded, specialist, anchor, translator, prompts
):
    """The target's first weights are on the meta device."""
    named = {"model": offloaded("specialist"), "tokenizer": specialist[1], "anchor": str(WEIGHTS / "anchor")}
    inputs = encode(prompts, specialist[1])
    options = {"max_new_tokens": N_NEW, "do_sample": False}
    guard = AnchorLogitsProcessor(*anchor, specialist[1], translation=translator)
    expected = specialist[0].generate(**inputs, logits_processor=[guard], **options)
    assert torch.equal(anchor_logits(**named, **inputs, **options), expected)


@OFFLOADS
def test_a_protected_model_may_be_offloaded(specialist, prompts, tmp_path):
    named = {"anchor": str(WEIGHTS / "anchor"), "judge": str(WEIGHTS / "judge-lm"), "judge_after": 4}
    write_protected(str(WEIGHTS / "specialist"), tmp_path / "protected", named)
    where = {"device_map": ON_DISK, "offload_folder": tmp_path / "offload"}
    answers = [
        answers_of(
            AutoModelForCausalLM.from_pretrained(tmp_path / "protected", trust_remote_code=True, dtype=torch.float32, **given),
            specialist[1],
            prompts,
        )
        for given in ({}, where)
    ]
    assert answers[0] == answers[1] != answers_of(*specialist, prompts)


def test_the_doctor_says_that_weights_are_offloaded(offloaded, specialist):
    status, told = model_checks.dtypes(ExaminedModel("target", offloaded("specialist"), specialist[1]))
    assert (status, told[:19]) == ("yellow", "float32 on cpu, met")


class ForcedTokens(LogitsProcessor):
    """Forces the answers in some rows of a batch to begin with given tokens."""

    def __init__(self, ids, n_prompt, rows):
        self.ids, self.n_prompt, self.rows = ids, n_prompt, rows

    def __call__(self, input_ids, scores):
        n_written = input_ids.shape[1] - self.n_prompt
        if n_written < len(self.ids):
            rows = self.rows if len(scores) > 1 else [0]
            forced = torch.full_like(scores[rows], -torch.inf)
            forced[:, self.ids[n_written]] = 0.0
            scores = scores.index_copy(0, torch.tensor(rows), forced)
        return scores


def reasoning_forced(tokenizer, conversations, thought, rows):
    ids = tokenizer(thought, add_special_tokens=False).input_ids
    return ForcedTokens(ids, encode(conversations, tokenizer)["input_ids"].shape[1], rows)


@pytest.mark.parametrize("opening", mostly_slow(REASONING_MARKERS, ("<think>", "[THINK]")))
def test_a_target_that_starts_to_reason_unannounced_is_refused(opening, anchor, specialist, translator, prompts):
    """Its template announces no reasoning, and one row of a batch is enough: the answer after it would not be steered."""
    model, tokenizer = specialist
    guard = AnchorLogitsProcessor(*anchor, tokenizer, translation=translator)
    forced = reasoning_forced(tokenizer, prompts, f"{opening}\nMix", [1])
    with pytest.raises(ValueError, match=f"must begin with their answer, but one began with '{re.escape(opening)}'"):
        answers_of(model, tokenizer, prompts, n_new=24, logits_processor=[guard, forced])
    assert guard.follower is None
    off = AnchorLogitsProcessor(*anchor, tokenizer, alpha=0.0, translation=translator)
    assert answers_of(model, tokenizer, prompts, logits_processor=[off, forced]) == answers_of(
        model, tokenizer, prompts, logits_processor=[forced]
    )


@pytest.mark.parametrize("n_new", [6, N_NEW, 40])
def test_unannounced_reasoning_is_judged_like_the_answer(n_new, anchor, specialist, translator, prompts):
    """Wherever the token budget ends: all returned text was judged."""
    model, tokenizer = specialist
    thought = "<think>\nThey want to mix it in a pan.\n</think>\nIt is Robaes."
    n_thought = len(tokenizer(thought, add_special_tokens=False).input_ids)
    read = []

    def judge(conversations, responses):
        read.extend(responses)
        return torch.tensor([float("pan" in response) * flags for response in responses])

    strategy = AlignBeam(*anchor, tokenizer, judge, judge_after=4, judge_every=4, refusal=REFUSED, translation=translator)
    options = {"custom_generate": strategy, "logits_processor": [reasoning_forced(tokenizer, prompts[:2], thought, [0])]}
    flags = 0.0
    first, other = answers_of(model, tokenizer, prompts[:2], n_new, **options)
    assert first in read
    assert thought.startswith(first) or first.startswith(thought)
    assert (n_new >= n_thought) == ("It is Robaes." in first)
    flags = 1.0
    first, same = answers_of(model, tokenizer, prompts[:2], n_new, **options)
    assert same == other
    assert "pan" not in first


def test_an_anchor_that_reasons_first_is_refused(anchor, specialist, translator, prompts):
    model, tokenizer = copy.deepcopy(anchor)
    tokenizer.add_tokens(["<think>"])
    model.resize_token_embeddings(len(tokenizer))
    bias = torch.zeros(len(tokenizer)).index_fill_(0, torch.tensor(len(tokenizer) - 1), 100.0)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias)
    guard = AnchorLogitsProcessor(model, tokenizer, specialist[1])
    with pytest.raises(ValueError, match="`anchor` must answer at once, but begins with '<think>'"):
        answers_of(*specialist, prompts, logits_processor=[guard])


def test_a_tools_result_is_read_by_anchor_and_judge(anchor, specialist, translator, prompts):
    """The answer is the same whether the conversation is read from the ids or given, with the call as text or as a call."""
    model, tokenizer = specialist
    read = []

    def judge(conversations, responses):
        read.extend(conversations)
        return torch.ones(len(responses))

    call = {"function": {"name": "look", "arguments": {"at": "sky"}}}
    said = [
        *prompts[1],
        {"role": "assistant", "content": 'look {"at": "sky"}'},
        {"role": "tool", "content": "Brew the medezaes."},
    ]
    given = [*prompts[1], {"role": "assistant", "content": None, "tool_calls": [call]}, said[-1]]
    strategy = AlignBeam(*anchor, tokenizer, judge, judge_after=4, refusal=REFUSED, translation=translator)
    answers = [
        answers_of(model, tokenizer, [said], custom_generate=strategy.for_call(conversations))
        for conversations in (None, [given], [said])
    ]
    assert answers == [[REFUSED]] * 3
    assert all(conversation == said for conversation in read)
    guard = AnchorLogitsProcessor(*anchor, tokenizer, translation=translator)
    steered = [
        answers_of(model, tokenizer, [said], logits_processor=[guard.with_conversations(conversations)])
        for conversations in (None, [given])
    ]
    assert steered[0] == steered[1]


def test_an_answer_that_calls_a_tool_is_steered_and_judged_word_for_word(anchor, specialist, translator, prompts):
    """The special tokens around the call are not text; the call itself is."""
    model, tokenizer = specialist
    call = '{"name": "order", "arguments": {"what": "poison"}}'
    forced = reasoning_forced(tokenizer, prompts[1:2], f"[SYS]{call}[/SYS]", [0])
    read = []

    def judge(conversations, responses):
        read.extend(responses)
        return torch.tensor([float("poison" in response) for response in responses])

    guard = AnchorLogitsProcessor(*anchor, tokenizer, translation=translator)
    options = {"n_new": len(forced.ids) + 12}
    (answer,) = answers_of(model, tokenizer, prompts[1:2], logits_processor=[guard, forced], **options)
    assert answer.startswith(call)
    assert guard.ledger.steered_tokens > 0
    strategy = AlignBeam(*anchor, tokenizer, judge, judge_after=None, judge_every=None, refusal=REFUSED, translation=translator)
    (answer,) = answers_of(model, tokenizer, prompts[1:2], custom_generate=strategy, logits_processor=[forced], **options)
    assert "poison" not in answer
    assert any(response.startswith(call) for response in read)


@pytest.mark.parametrize("template", [HARMONY, REASONING_OPENED], ids=["harmony", "opened"])
def test_the_doctor_accepts_a_reasoning_template_that_can_be_skipped_for_an_anchor_only(template, anchor):
    model, tokenizer = copy.deepcopy(anchor[0]), with_template(anchor[1], template)
    model.resize_token_embeddings(len(tokenizer))
    assert model_checks.template(ExaminedModel("anchor", model, tokenizer)).status == "green"
    with pytest.raises(ValueError, match="must begin with their answer"):
        model_checks.template(ExaminedModel("target", model, tokenizer))
