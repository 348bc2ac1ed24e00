"""The object, the Hub folder, the protected model and pipelines of each are one strategy: they give the same tokens."""

import copy

import pytest
import torch
import transformers
from helpers.entries import ANCHOR, GUARD, TRUSTED, PerRowCriterion
from helpers.strategies import chats_of, generated, texts
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    TextStreamer,
    pipeline,
    set_seed,
)

from hf_alignbeam import AnchorLogitsProcessor
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub import alignbeam as entry
from hf_alignbeam.hub import model_loading
from hf_alignbeam.hub.judge_loading import JudgeSettings, load_accept, load_judge
from hf_alignbeam.hub.model_loading import load_anchor, load_once
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges, stored_language


@pytest.fixture(scope="module")
def folder(strategy_folder):
    return strategy_folder("alignbeam")


@pytest.fixture(scope="module")
def mixed():
    return [conversation for kind in ("general", "harmful", "late", "prefill") for conversation in chats_of(kind, 2)]


WAYS = {"greedy": {"do_sample": False}, "seeded": {"do_sample": True, "temperature": 1.2}}


@pytest.mark.parametrize("way", WAYS)
def test_every_entry_gives_the_same_tokens(way, specialist, alignbeam, folder, protected, mixed):
    options = {"max_new_tokens": 30, **WAYS[way]}
    expected, n_prompt = generated(specialist, mixed, alignbeam, seed=5, **options)
    assert len(set(expected[:, n_prompt:].flatten().tolist())) > 5
    by_folder, _ = generated(specialist, mixed, folder, seed=5, tokenizer=specialist[1], **GUARD, **TRUSTED, **options)
    by_protected, _ = generated(protected, mixed, seed=5, **options)
    assert torch.equal(by_folder, expected)
    assert torch.equal(by_protected, expected)
    answers = []
    for model, guard in ((specialist[0], {"custom_generate": alignbeam}), (protected[0], {})):
        chat = pipeline("text-generation", model=model, tokenizer=specialist[1])
        set_seed(5)
        outputs = chat(mixed[:4], batch_size=4, **options, **guard)
        answers.append([output["generated_text"][-1]["content"] for (output,) in outputs])
    assert answers[0] == answers[1]
    if way == "greedy":  # when sampling, a pipeline has its own defaults
        rows = [row[: row.index(3)] if 3 in row else row for row in expected[:4, n_prompt:].tolist()]
        assert answers[0] == specialist[1].batch_decode(rows, skip_special_tokens=True)


def test_every_entry_takes_positional_ids(specialist, alignbeam, folder, protected):
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    expected = specialist[0].generate(ids, custom_generate=alignbeam, max_new_tokens=30)
    arguments = {**GUARD, **TRUSTED, "tokenizer": specialist[1]}
    assert torch.equal(specialist[0].generate(ids, custom_generate=folder, max_new_tokens=30, **arguments), expected)
    assert torch.equal(protected[0].generate(ids, max_new_tokens=30), expected)
    assert not protected[0].generate(ids, max_new_tokens=5).requires_grad


@pytest.mark.parametrize("full", [pytest.param(True, marks=pytest.mark.slow), False])
def test_pipelines_take_text_messages_and_batches(full, protected, alignbeam, specialist):
    truth = GroundTruth(stored_language())
    chats = chats_of("harmful", 3)
    prompts = [specialist[1].apply_chat_template(chat, tokenize=False) for chat in chats]
    for model, guard in ((specialist[0], {"custom_generate": alignbeam}), (protected[0], {})):
        chat = pipeline("text-generation", model=model, tokenizer=specialist[1])
        options = {"max_new_tokens": 40, "do_sample": False, "return_full_text": full, "add_special_tokens": False}
        outputs = chat(prompts, batch_size=3, **options, **guard)
        for prompt, (output,) in zip(prompts, outputs, strict=True):
            assert output["generated_text"].startswith(prompt) == full
            assert truth.refusal(output["generated_text"])
        (output,) = chat(chats[0], max_new_tokens=40, do_sample=False, return_full_text=full, **guard)
        turns = output["generated_text"]
        assert truth.refusal(turns[-1]["content"] if full else turns)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="before 5.23 a pipeline takes no records of batches"
)
def test_the_output_record_reaches_a_pipelines_caller(specialist, alignbeam):
    chat = pipeline("text-generation", model=specialist[0], tokenizer=specialist[1])
    outputs = chat(
        chats_of("general", 2), batch_size=2, max_new_tokens=20, custom_generate=alignbeam, return_dict_in_generate=True
    )
    assert all(output["chosen"] == 0 for (output,) in outputs)


def test_the_entry_passes_stop_strings_streamers_and_presets_on(specialist, folder, capsys):
    arguments = {**GUARD, **TRUSTED, "tokenizer": specialist[1]}
    (cut,) = texts(specialist, chats_of("harmful", 1), folder, stop_strings=["safe", "Sorry", "not", "dangerous"], **arguments)
    assert cut.rstrip(",").endswith(("safe", "Sorry", "not", "dangerous"))
    streamer = TextStreamer(specialist[1], skip_prompt=True)
    (answer,) = texts(specialist, chats_of("general", 1), folder, streamer=streamer, **arguments)
    assert answer in capsys.readouterr().out
    with pytest.raises(ValueError, match="`preset` must be 'paper' or left out"):
        texts(specialist, chats_of("general", 1), folder, preset="mine", **arguments)
    assert texts(specialist, chats_of("harmful", 1), folder, preset="paper", **arguments)[0]


BATCHES = (["harmful"], ["late"], ["domain", "harmful", "late", "general"])


@pytest.mark.parametrize(
    ("text", "n_each", "batches"),
    [
        ("</s>", 1, BATCHES[2:]),
        (".", 1, BATCHES),
        *(pytest.param(text, n, BATCHES, marks=pytest.mark.slow) for text, n in (("</s>", 1), ("</s>", 2), (".", 2))),
    ],
)
def test_a_criterion_with_per_row_state_stops_where_a_stop_string_does(text, n_each, batches, specialist, folder, protected):
    for kinds in batches:
        conversations = [conversation for kind in kinds for conversation in chats_of(kind, n_each)]
        n_prompt = encode(conversations, specialist[1])["input_ids"].shape[1]
        arguments = {**GUARD, **TRUSTED, "tokenizer": specialist[1]}
        expected, _ = generated(specialist, conversations, folder, stop_strings=[text], **arguments)
        for target, guard in ((specialist, {"strategy": folder, **arguments}), (protected, {})):
            criteria = [PerRowCriterion(text, specialist[1], n_prompt, len(conversations))]
            output, _ = generated(target, conversations, stopping_criteria=criteria, **guard)
            assert torch.equal(output, expected)


def test_the_anchor_logits_folder_steers_as_the_processor_does(specialist, anchor, strategy_folder):
    conversations = chats_of("harmful", 3)
    guard = AnchorLogitsProcessor(*anchor, specialist[1])
    inputs = encode(conversations, specialist[1])
    expected = specialist[0].generate(**inputs, logits_processor=[guard], max_new_tokens=30, num_beams=2)
    arguments = {"custom_generate": strategy_folder("anchor-logits"), "anchor": ANCHOR, "tokenizer": specialist[1], **TRUSTED}
    assert torch.equal(specialist[0].generate(**inputs, max_new_tokens=30, num_beams=2, **arguments), expected)


def decoded(specialist, ids, output):
    """The text of the first answer behind the prompt's ids."""
    return specialist[1].decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_entry_takes_loaded_models_and_loads_named_ones_once(specialist, anchor, monkeypatch):
    judge = stored_judges()["oracle"]
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    arguments = {"anchor": anchor[0], "anchor_tokenizer": anchor[1], "judge": judge, "tokenizer": specialist[1]}
    output = entry.alignbeam(ids, model=specialist[0], max_new_tokens=30, **arguments)
    assert GroundTruth(stored_language()).refusal(decoded(specialist, ids, output))
    loads = []
    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: (loads.append(a), original(*a, **k))[1])
    monkeypatch.setattr(model_loading, "_models", {})
    for _ in range(3):
        entry.alignbeam(ids, model=specialist[0], max_new_tokens=3, tokenizer=specialist[1], **GUARD)
    assert len(loads) == 2
    for kind in ("anchor", "judge"):
        arguments = {**GUARD, kind: anchor[0], "tokenizer": specialist[1]}
        with pytest.raises(ValueError, match=f"`{kind}_tokenizer` must be given with a loaded {kind}"):
            entry.alignbeam(ids, model=specialist[0], **arguments)


def test_a_revision_is_refused_where_nothing_is_loaded(specialist, anchor):
    ids, target = torch.tensor([[5, 6]]), {"model": specialist[0], "tokenizer": specialist[1]}
    given = {**target, "anchor": anchor[0], "anchor_tokenizer": anchor[1], "judge": lambda c, r: torch.zeros(len(r))}
    with pytest.raises(ValueError, match="`anchor_revision` must be left out for an anchor that is not named, got 'v1'"):
        entry.alignbeam(ids, **given, anchor_revision="v1")
    with pytest.raises(ValueError, match="`judge_revision` must be left out for a loaded judge, got 'v1'"):
        entry.alignbeam(ids, **given, judge_revision="v1")


def test_a_tokenizer_that_is_given_is_used_with_a_named_model(specialist):
    """It may have another chat template."""
    network, own = load_once(AutoModelForCausalLM, GUARD["anchor"], None, specialist[0].device)
    other = copy.deepcopy(own)
    assert load_anchor(GUARD["anchor"], None, specialist[0], specialist[1], other) == (network, other)
    assert load_anchor(GUARD["anchor"], None, specialist[0], specialist[1]) == (network, own)
    assert load_judge(GUARD["judge"], judge_tokenizer=(judge_tokenizer := copy.deepcopy(own)))._tokenizer is judge_tokenizer
    assert load_accept(GUARD["anchor"], None, specialist[0], other).identity[1] is other


def test_strategies_are_cached_by_their_arguments_and_only_a_few_are_kept(specialist, anchor, monkeypatch):
    monkeypatch.setattr(model_loading, "_objects", type(model_loading._objects)())
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    arguments = {"anchor": ANCHOR, "tokenizer": specialist[1]}
    for harm in (0.0, 1.0, 0.0):
        judge = lambda c, r, h=harm: torch.full((len(r),), h)  # noqa: E731
        output = entry.alignbeam(ids, model=specialist[0], judge=judge, max_new_tokens=20, **arguments)
        assert ("cannot help" in specialist[1].decode(output[0, ids.shape[1] :])) == (harm == 1.0)
    for _ in range(model_loading.MAX_OBJECTS + 3):
        entry.alignbeam(ids, model=specialist[0], judge=lambda c, r: torch.zeros(len(r)), max_new_tokens=1, **arguments)
    assert len(model_loading._objects) == model_loading.MAX_OBJECTS
    judge = stored_judges()["oracle"]
    strategies = []
    monkeypatch.setattr(
        entry, "call_class_generate", lambda model, args, kwargs, tokenizer: strategies.append(kwargs["custom_generate"])
    )
    for tokenizer in (anchor[1], copy.deepcopy(anchor[1])):
        arguments = {"anchor": anchor[0], "anchor_tokenizer": tokenizer, "judge": judge, "tokenizer": specialist[1]}
        entry.alignbeam(ids, model=specialist[0], **arguments)
    assert strategies[0]._steering is not strategies[1]._steering


def test_a_classifiers_labels_must_include_harmful_ones(specialist):
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    arguments = {"anchor": ANCHOR, "judge": str(WEIGHTS / "judge-cls"), "tokenizer": specialist[1]}
    output = entry.alignbeam(ids, model=specialist[0], max_new_tokens=30, **arguments)
    assert GroundTruth(stored_language()).refusal(decoded(specialist, ids, output))
    with pytest.raises(ValueError, match="`labels` must name labels of the model"):
        entry.alignbeam(ids, model=specialist[0], judge_labels={"toxic": 1.0}, **arguments)


def test_a_classifier_is_asked_by_no_rubric():
    with pytest.raises(ValueError, match=r"`judge_rubric` must be left out for a classifier, got 'yes-no'.*judge_labels"):
        load_judge(str(WEIGHTS / "judge-cls"), JudgeSettings(rubric="yes-no"))


def test_wrong_settings_are_refused_before_a_model_is_loaded(specialist):
    named = {"model": specialist[0], "tokenizer": specialist[1], "anchor": "nowhere", "judge": "nowhere"}
    for setting, message in (({"threshold": 2.0}, "`threshold` must be in"), ({"template": 3}, "`template` must be a Jinja")):
        with pytest.raises(ValueError, match=message):
            entry.alignbeam(torch.tensor([[5]]), **named, **setting)


@pytest.mark.parametrize("family", [(Qwen3ForSequenceClassification, Qwen3Config), (T5ForConditionalGeneration, T5Config)])
def test_what_is_no_decoder_is_refused_as_one(family, specialist, byte_tokenizer, tmp_path):
    """A decoder with a classifier's output layer would be loaded with one of random weights in its place."""
    model_class, config_class = family
    small = {"num_hidden_layers": 1, "num_layers": 1, "hidden_size": 16, "d_model": 16, "intermediate_size": 16, "d_ff": 16}
    model_class(config_class(**small, num_attention_heads=2, num_key_value_heads=2, head_dim=8)).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([[5]])
    with pytest.raises(ValueError, match=f"{tmp_path} must be a decoder that generates text, got another kind of model"):
        entry.alignbeam(ids, model=specialist[0], tokenizer=specialist[1], anchor=str(tmp_path), judge="nowhere")
