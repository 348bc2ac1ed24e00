"""Arguments that the strategy, or `generate` with it, refuses."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from helpers.strategies import chats_of, generated, passing, texts
from helpers.transformers_names import CACHE
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    StopStringCriteria,
    SynthIDTextWatermarkingConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, EmbeddingSteerer
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.evaluation.systems import CLASSES
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language


def test_arguments_of_generate_are_refused_by_name(specialist, strategy, anchor):
    guard = AnchorLogitsProcessor(*anchor, specialist[1])
    for options, name in (
        ({"num_beams": 2}, "num_beams"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [5]}, "prefix_allowed_tokens_fn"),
        ({"encoder_repetition_penalty": 1.5}, "encoder_repetition_penalty"),
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"logits_processor": [guard]}, "logits_processor"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            generated(specialist, chats_of("general", 1), strategy(passing), **options)


@pytest.mark.parametrize("name", ["encoder_repetition_penalty", "encoder_no_repeat_ngram_size"])
def test_an_embedding_search_refuses_settings_that_read_an_encoders_input(name, specialist):
    with pytest.raises(ValueError, match=f"`{name}` must be left out with an embedding search"):
        EmbeddingSteerer(*specialist, passing).generate(chats_of("general", 1), max_new_tokens=3, **{name: 2})


@pytest.mark.filterwarnings("ignore:You've set `(dola_layers|assistant_model)`")
@pytest.mark.parametrize("where", ["argument", "generation_config", "search"])
@pytest.mark.parametrize(
    "options",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high"},
        {"assistant_early_exit": 1},
        {"assistant_model": "assistant"},
        {"force_words_ids": [[5]], "num_beams": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_modes_that_are_not_known_are_refused_by_name(options, where, specialist, strategy):
    """An assistant would be dropped without a word, and so would the modes that transformers keeps on the Hub."""
    name = next(iter(options))
    if name == "assistant_model":
        options = {name: specialist[0]}
    elif where == "generation_config":
        options = {"generation_config": GenerationConfig(**options)}
    if where == "search":
        with pytest.raises(ValueError, match=f"`{name}` must be left out with an embedding search"):
            EmbeddingSteerer(*specialist, passing).generate(chats_of("general", 1), **{"max_new_tokens": 3, **options})
        return
    with pytest.raises(ValueError, match=f"`{name}` must be left out with AlignBeam"):
        generated(specialist, chats_of("general", 1), strategy(passing), **options)


def test_stop_strings_end_an_answer_of_a_strategy_object(specialist, strategy, judge_lm):
    """`generate` takes the tokenizer away from a strategy, and then asks for it."""
    chats = [*chats_of("domain", 1), *chats_of("harmful", 1)]
    stop = [texts(specialist, chats, strategy(judge_lm))[0].split()[3], "not"]
    criteria = [StopStringCriteria(specialist[1], stop)]
    expected, n_prompt = generated(specialist, chats, strategy(judge_lm), stopping_criteria=criteria)
    assert expected.shape[1] < n_prompt + 40
    for options in ({"stop_strings": stop}, {"stop_strings": stop, "tokenizer": specialist[1]}):
        assert torch.equal(generated(specialist, chats, strategy(judge_lm), **options)[0], expected)
    (one,) = texts(specialist, chats[:1], strategy(judge_lm), stop_strings=stop[0])
    assert one.endswith(stop[0])


@pytest.mark.parametrize("where", ["the model's own generation config", "`generation_config`"])
@pytest.mark.parametrize("setting", [{"stop_strings": ["."]}, {"token_healing": True}])
def test_settings_that_need_the_tokenizer_are_refused_where_it_is_lost(setting, where, specialist, strategy):
    (name,) = setting
    model = copy.copy(specialist[0])
    model.generation_config = copy.deepcopy(model.generation_config)
    options = {"generation_config": GenerationConfig(**setting), "tokenizer": specialist[1]}
    if where != "`generation_config`":
        options = {"tokenizer": specialist[1]}
        model.generation_config.update(**setting)
    with pytest.raises(ValueError, match=f"`{name}` must be left out of {where} with AlignBeam"):
        generated((model, specialist[1]), chats_of("general", 1), strategy(passing), **options)


def test_a_synthid_watermark_is_refused(specialist, strategy):
    config = SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)
    with pytest.raises(ValueError, match="`watermarking_config` must be left out"):
        generated(specialist, chats_of("general", 1), strategy(passing), watermarking_config=config, do_sample=True)


def test_encoder_decoders_are_refused(strategy):
    small = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 60}
    model = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0, pad_token_id=0)).eval()
    with pytest.raises(ValueError, match="The target must be a decoder"):
        model.generate(torch.tensor([[4, 5]]), custom_generate=strategy(passing), max_new_tokens=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 0}, "`num_candidates` must be a whole number of at least 1, got 0"),
        ({"threshold": 1.5}, "`threshold` must be in [0, 1], got 1.5"),
        ({"candidate_threshold": -0.1}, "`candidate_threshold` must be in [0, 1], got -0.1"),
        ({"candidate_threshold": None}, "`candidate_threshold` must have a value, got None"),
        ({"judge_after": 0}, "`judge_after` must be a whole number of at least 1, got 0"),
        ({"judge_every": 0}, "`judge_every` must be a whole number of at least 1, got 0"),
        ({"num_candidates": "3"}, "`num_candidates` must be a whole number of at least 1, got '3'"),
        ({"threshold": "0.5"}, "`threshold` must be in [0, 1], got '0.5'"),
        ({"judge_after": 2.5}, "`judge_after` must be a whole number of at least 1, got 2.5"),
        ({"min_start": True}, "`min_start` must be in [0, 1], got True"),
        ({"judge_timeout": "5"}, "`judge_timeout` must be above 0 seconds and finite, got '5'"),
        ({"alpha": "0.7"}, "`alpha` must be in [0, 1] for the rule 'log_linear', got '0.7'"),
        ({"n_steps": "20"}, "`n_steps` must be a whole number of at least 0, got '20'"),
        ({"n_watch": 1.5}, "`n_watch` must be a whole number of at least 1, got 1.5"),
        ({"choice": "best"}, "`choice` must be one of likeliest, safest, got 'best'"),
        ({"escalation": "never"}, "`escalation` must be one of flagged, always, got 'never'"),
        ({"on_judge_error": "ignore"}, "`on_judge_error` must be one of refuse, raise, got 'ignore'"),
        ({"refusal": " "}, "`refusal` must hold some text"),
        ({"alpha": 0.0}, "`alpha` and `n_steps` must be above 0"),
        ({"n_steps": 0}, "`alpha` and `n_steps` must be above 0"),
        ({"conversations": []}, "`conversations` must hold one conversation a prompt"),
        ({"streamer": 3}, "`streamer` must have the methods `put` and `end`, got 3"),
        ({"audit": 3}, "`audit` must be a path or a callable that gets each record, got 3"),
        ({"audit": Path(__file__).parent}, "`audit` must name a file, got the folder "),
        ({"on_fail": "refuse"}, "`on_fail` must be callable with conversations, got 'refuse'"),
        ({"template": 3}, "`template` must be a Jinja template or a callable from the prompt's text to the conversation, got 3"),
        ({"template": "{{ bad"}, "got '{{ bad' (unexpected end of template"),
        ({"template": "{{ messages | nothing }}"}, "(No filter named 'nothing')"),
    ],
)
def test_wrong_settings_are_named(settings, message, strategy):
    with pytest.raises(ValueError, match=re.escape(message)):
        strategy(passing, **settings)
    if "conversations" not in settings:
        with pytest.raises(ValueError, match=re.escape(message)):
            AlignBeam.check_settings(**settings)


def test_every_default_and_preset_passes_the_check_of_settings():
    for cls, presets in CLASSES.values():
        for preset in ({}, *presets.values()):
            cls.check_settings(**preset)


def test_a_streamer_of_a_call_is_checked(strategy):
    with pytest.raises(ValueError, match="`streamer` must have the methods `put` and `end`, got 3"):
        strategy(passing).for_call(streamer=3)


@pytest.mark.parametrize("anchor", [None, 3])
def test_an_anchor_that_is_no_model_is_named(anchor, specialist):
    tokenizer = specialist[1]
    for build in (
        lambda: AlignBeam(anchor, tokenizer, tokenizer, passing),
        lambda: AnchorLogitsProcessor(anchor, *[tokenizer] * 2),
    ):
        with pytest.raises(
            ValueError, match=f'`anchor` must be a model, or "base" .* got {"None" if anchor is None else "a int"}'
        ):
            build()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_what_holds_models_says_that_it_must_be_shared(duplicate, specialist, anchor, strategy, monkeypatch):
    """It says so before it has copied a model; a shallow copy shares them."""
    owners = [strategy(passing), EmbeddingSteerer(*specialist, passing), AnchorLogitsProcessor(*anchor, specialist[1])]
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda self, memo: pytest.fail("a weight must not be copied"))
    for owner in owners:
        with pytest.raises(TypeError, match="must be shared, got a deep copy or a pickle of it"):
            duplicate(owner)
        assert type(copy.copy(owner)) is type(owner)


def test_a_judge_must_be_callable(strategy):
    with pytest.raises(ValueError, match="`judge` must be callable"):
        strategy("judge-lm")


def test_embeddings_need_conversations_and_are_judged_by_them(specialist, strategy, oracle):
    model, tokenizer = specialist
    conversations = [*chats_of("harmful", 2), *chats_of("general", 2)]
    inputs = encode(conversations, tokenizer)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    options = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], "max_new_tokens": 30}
    with pytest.raises(ValueError, match="`conversations` must be given"):
        model.generate(**options, custom_generate=strategy(oracle))
    answers = model.generate(**options, custom_generate=strategy(oracle, conversations=conversations))
    expected, n_prompt = generated(specialist, conversations, strategy(oracle), max_new_tokens=30)
    assert torch.equal(answers, expected[:, n_prompt:])


def test_a_prompt_whose_earlier_turns_are_in_the_cache_alone_is_refused(specialist, strategy, oracle):
    """Neither anchor nor judge would read them."""
    model, tokenizer = specialist
    inputs = encode(chats_of("harmful", 1), tokenizer)
    n_read = inputs["input_ids"].shape[1] - 6
    options = {"attention_mask": inputs["attention_mask"], "max_new_tokens": 30, "do_sample": False}

    def filled():
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(inputs["input_ids"][:, :n_read], **{CACHE: cache}, use_cache=True)
        return {CACHE: cache}

    with pytest.raises(ValueError, match=f"`input_ids` must hold the whole conversation .* last 6 of {n_read + 6} tokens"):
        model.generate(inputs["input_ids"][:, n_read:], **filled(), custom_generate=strategy(oracle), **options)
    for ids, given in ((inputs["input_ids"], None), (inputs["input_ids"][:, n_read:], chats_of("harmful", 1))):
        output = model.generate(ids, **filled(), custom_generate=strategy(oracle, conversations=given), **options)
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert GroundTruth(stored_language()).refusal(answer)


def test_images_are_refused(byte_tokenizer, anchor):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(**size, vocab_size=len(byte_tokenizer))
    vision = CLIPVisionConfig(**size, image_size=8, patch_size=4, projection_dim=16)
    image = len(byte_tokenizer) - 2
    names = {"image_token_id": image, "image_token_index": image}  # before and since transformers 5.24
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, **names)).eval()
    ids = torch.tensor([[*byte_tokenizer("What is this?").input_ids, *[image] * 4]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 8, 8)}
    with pytest.raises(ValueError, match="must be left out with AlignBeam, got a .* anchor and judge read text, and no images"):
        model.generate(**inputs, custom_generate=AlignBeam(*anchor, byte_tokenizer, passing), max_new_tokens=3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers', as peft asks
def test_adapters_by_row_are_refused(specialist, strategy):
    """Candidates of a flagged row would be written by the adapters of other rows."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    model = get_peft_model(copy.deepcopy(specialist[0]), config, adapter_name="wild").eval()
    options = {"adapter_names": ["wild", "__base__"], "max_new_tokens": 3}
    generated((model, specialist[1]), chats_of("general", 2), **options)
    with pytest.raises(ValueError, match="`adapter_names` must be left out with AlignBeam"):
        generated((model, specialist[1]), chats_of("general", 2), strategy(passing), **options)
