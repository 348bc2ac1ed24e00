import copy
import warnings

import pytest
import torch
from conftest import tiny
from helpers.strategies import chats_of
from transformers import (
    ByT5Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)

from hf_alignbeam import AnchorLogitsProcessor, VocabularyTranslator
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.presets.processor import PROCESSOR

KINDS = ["general", "harmful", "late", "prefill"]


@torch.no_grad()
def tokens(model, tokenizer, chats, processor=None, /, **options):
    """The new tokens (rows, length), padded."""
    inputs = encode(chats, tokenizer)
    processors = None if processor is None else [processor]
    options = {"max_new_tokens": 32, "do_sample": False, **options}
    return model.generate(**inputs, logits_processor=processors, **options)[:, inputs["input_ids"].shape[1] :]


def trimmed(row, tokenizer):
    """The ids of a row up to its end, that included."""
    ids = row.tolist()
    end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
    return ids[:end]


@pytest.fixture
def guard(anchor, specialist, translator):
    return AnchorLogitsProcessor(*anchor, specialist[1], translation=translator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixing", ["log_linear", "linear"])
def test_anchor_equal_to_target_is_plain_generate(kind, mixing, anchor):
    model, tokenizer = anchor
    processor = AnchorLogitsProcessor(model, tokenizer, tokenizer, alpha=0.5, n_steps=None, n_watch=None, mixing=mixing)
    assert torch.equal(tokens(*anchor, chats_of(kind, 4), processor), tokens(*anchor, chats_of(kind, 4)))
    assert processor.ledger.steered_tokens > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_renumbered_anchor_equal_to_target_is_plain_generate(kind, anchor, renumbered_anchor):
    """Every step goes through bytes, tables and covers, because the anchor is the target with renumbered tokens."""
    processor = AnchorLogitsProcessor(*renumbered_anchor, anchor[1], alpha=0.5, n_steps=None, n_watch=None)
    assert torch.equal(tokens(*anchor, chats_of(kind, 4), processor), tokens(*anchor, chats_of(kind, 4)))
    assert processor.ledger.steered_tokens > 0


def test_anchor_equal_to_target_is_plain_generate_under_sampling(anchor):
    model, tokenizer = anchor
    chats = chats_of("general", 8)
    processor = AnchorLogitsProcessor(model, tokenizer, tokenizer, alpha=0.5, n_steps=None, n_watch=None)
    drawn = []
    for each in (processor, None):
        torch.manual_seed(3)
        drawn.append(tokens(*anchor, chats, each, do_sample=True, temperature=1.5, top_k=0))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"n_steps": 0}])
def test_alpha_zero_and_no_steps_are_plain_generate(arguments, anchor, specialist):
    processor = AnchorLogitsProcessor(*anchor, specialist[1], **arguments)
    chats = chats_of("harmful", 8)
    assert torch.equal(tokens(*specialist, chats, processor), tokens(*specialist, chats))
    assert processor.ledger.anchor_forwards == 0


@pytest.mark.parametrize("n_steps", [1, 4, None])
def test_alpha_one_on_one_vocabulary_gives_the_anchors_tokens(n_steps, byte_tokenizer):
    target, safe = (tiny(Qwen3ForCausalLM, Qwen3Config, byte_tokenizer, seed, head_dim=8) for seed in (1, 2))
    chats = chats_of("general", 3)
    processor = AnchorLogitsProcessor(safe, byte_tokenizer, byte_tokenizer, alpha=1.0, n_steps=n_steps, n_watch=None)
    guarded = tokens(target, byte_tokenizer, chats, processor, max_new_tokens=8)
    expected = tokens(safe, byte_tokenizer, chats, max_new_tokens=8)
    for row, safe_row in zip(guarded, expected, strict=True):
        n = min(n_steps or 8, len(trimmed(safe_row, byte_tokenizer)))
        assert row[:n].tolist() == safe_row[:n].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_batch_equals_one_by_one(kind, guard, specialist):
    chats = chats_of(kind, 6)
    together = tokens(*specialist, chats, guard)
    for row, conversation in zip(together, chats, strict=True):
        alone = tokens(*specialist, [conversation], guard)
        assert trimmed(row, specialist[1]) == trimmed(alone[0], specialist[1])


def test_one_object_serves_many_calls(anchor, specialist, guard):
    first, second = chats_of("harmful", 3), chats_of("domain", 5)
    for chats in (first, second, first):
        fresh = AnchorLogitsProcessor(*anchor, specialist[1])
        assert torch.equal(tokens(*specialist, chats, guard), tokens(*specialist, chats, fresh))


def test_given_conversations_equal_recovered_ones(guard, anchor, specialist):
    chats = chats_of("harmful", 3) + chats_of("prefill", 3)
    given = AnchorLogitsProcessor(*anchor, specialist[1], conversations=chats)
    assert torch.equal(tokens(*specialist, chats, guard), tokens(*specialist, chats, given))


def test_several_sequences_a_prompt(anchor, specialist):
    chats = chats_of("harmful", 2)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    drawn = []
    for given in (None, chats):
        torch.manual_seed(0)
        processor = AnchorLogitsProcessor(*anchor, specialist[1], conversations=given)
        drawn.append(tokens(*specialist, chats, processor, **options))
    assert drawn[0].shape[0] == 6
    assert torch.equal(*drawn)


def test_no_anchor_forward_after_the_last_steered_token(anchor, specialist):
    processor = AnchorLogitsProcessor(*anchor, specialist[1], n_steps=3, n_lookahead=0)
    n_forwards = []
    hook = anchor[0].register_forward_hook(lambda *_: n_forwards.append(1))
    chats = chats_of("general", 2)
    tokens(*specialist, chats, processor, max_new_tokens=20, min_new_tokens=20)
    hook.remove()
    assert len(n_forwards) == 3  # the prompt, and the tokens after each of the first two answers
    assert processor.ledger.anchor_forwards == 3
    assert processor.ledger.steered_tokens == 6
    assert processor.follower is None


def test_steering_ends_where_the_anchor_overrules_nothing(anchor):
    """Where the anchor equals the target, it is used for `n_watch` tokens, and the answer is the target's own."""
    processor = AnchorLogitsProcessor(*anchor, anchor[1], alpha=0.5, n_watch=3)
    chats = chats_of("general", 8)
    assert torch.equal(tokens(*anchor, chats, processor), tokens(*anchor, chats))
    assert processor.ledger.anchor_forwards == 3
    assert processor.ledger.steered_tokens == 3 * len(chats)


@pytest.mark.parametrize("ends", [{"stop_strings": ["or"]}, {"eos_token_id": [2, 300, 322]}, {"pad_token_id": 77}])
@pytest.mark.parametrize("do_sample", [False, True])
def test_padding_after_an_end_is_not_steered(do_sample, ends, anchor, specialist):
    """Also where an answer ends by something other than the tokenizer's EOS, or is padded with an id of another token."""
    chats = [*chats_of("harmful", 2), *chats_of("late", 2)]
    options = {"tokenizer": specialist[1], "do_sample": do_sample, "top_k": 1, **ends}
    processor = AnchorLogitsProcessor(*anchor, specialist[1], n_steps=None, n_watch=None)
    n_alone = [tokens(*specialist, [chat], processor, **options).shape[1] for chat in chats]
    n_before = processor.ledger.steered_tokens
    assert n_before == sum(n_alone)
    assert len(set(n_alone)) > 1
    tokens(*specialist, chats, processor, **options)
    assert processor.ledger.steered_tokens == 2 * n_before


def test_every_token_is_steered_where_nothing_is_padded(anchor, specialist, monkeypatch):
    """Without an EOS, `generate` writes every answer until all have stopped."""
    processor = AnchorLogitsProcessor(*anchor, specialist[1], n_steps=None, n_watch=None)
    chats = [*chats_of("harmful", 1), *chats_of("late", 1)]
    monkeypatch.setattr(specialist[0].generation_config, "eos_token_id", None)
    written = tokens(*specialist, chats, processor, stop_strings=["or"], tokenizer=specialist[1], pad_token_id=3)
    n_eos = int((written[:, :-1] == specialist[1].eos_token_id).sum())  # after it, a token of the target's own
    assert processor.ledger.steered_tokens == written.numel() - n_eos


def test_steering_continues_where_the_anchor_has_overruled(anchor, specialist):
    """Of two rows, the one in which the anchor has overruled the target stays steered; the other is as it is alone."""
    chats = [*chats_of("harmful", 1), *chats_of("general", 1)]
    processor = AnchorLogitsProcessor(*anchor, specialist[1], n_steps=None)
    guarded = tokens(*specialist, chats, processor)
    n_refusal = len(trimmed(guarded[0], specialist[1]))
    assert n_refusal > processor.steering.settings.n_watch
    assert processor.ledger.steered_tokens == n_refusal + processor.steering.settings.n_watch
    assert guarded[0].tolist() != tokens(*specialist, chats)[0].tolist()


def test_forbidden_tokens_stay_forbidden(guard, specialist):
    tokenizer = specialist[1]
    inputs = encode(chats_of("harmful", 2), tokenizer)
    scores = torch.randn(2, len(tokenizer))
    scores[:, ::3] = -torch.inf
    mixed = guard(inputs["input_ids"], scores)
    assert (mixed[:, ::3] == -torch.inf).all()
    assert torch.isfinite(mixed[:, 1::3]).any()


def test_processors_of_the_same_models_can_share_a_translator(guard, anchor, specialist):
    other = AnchorLogitsProcessor(*anchor, specialist[1], translation=guard.translator)
    assert other.translator is guard.translator
    assert torch.equal(tokens(*specialist, chats_of("harmful", 8), other), tokens(*specialist, chats_of("harmful", 8), guard))


@pytest.mark.parametrize("side", ["anchor_tokenizer", "tokenizer"])
def test_a_translator_of_other_tokenizers_is_refused(side, anchor, specialist, byte_tokenizer):
    given = {"anchor_tokenizer": anchor[1], "tokenizer": specialist[1]}
    other = VocabularyTranslator(**{**given, side: byte_tokenizer})
    with pytest.raises(ValueError, match=f"`translation` must be a translator built for this `{side}`"):
        AnchorLogitsProcessor(*anchor, specialist[1], translation=other)


def test_the_given_scores_are_not_changed(guard, specialist):
    inputs = encode(chats_of("harmful", 2), specialist[1])
    scores = torch.randn(2, len(specialist[1]), dtype=torch.bfloat16)
    before = scores.clone()
    mixed = guard(inputs["input_ids"], scores)
    assert torch.equal(scores, before)
    assert mixed.dtype == torch.bfloat16


def test_logits_may_be_wider_than_the_vocabulary(anchor, specialist):
    processor = AnchorLogitsProcessor(*anchor, specialist[1], alpha=1.0)
    inputs = encode(chats_of("harmful", 1), specialist[1])
    mixed = processor(inputs["input_ids"], torch.zeros(1, len(specialist[1]) + 28))
    assert mixed.shape[-1] == len(specialist[1]) + 28
    assert mixed.argmax() < len(specialist[1])


def test_mass_without_a_translation_stays_with_the_target(anchor, specialist):
    """The mixture is a distribution, whatever is lost."""
    for translation in ("bytes", "drop", "exact", "first"):
        processor = AnchorLogitsProcessor(*anchor, specialist[1], translation=translation, mixing="linear")
        inputs = encode(chats_of("general", 2), specialist[1])
        mixed = processor(inputs["input_ids"], torch.randn(2, len(specialist[1])))
        torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(2))


@pytest.mark.parametrize("preset", PROCESSOR)
def test_every_preset_changes_harmful_answers(preset, anchor, specialist):
    processor = AnchorLogitsProcessor(*anchor, specialist[1], **PROCESSOR[preset])
    chats = chats_of("harmful", 2)
    assert tokens(*specialist, chats, processor)[0].tolist() != tokens(*specialist, chats)[0].tolist()


@pytest.mark.parametrize("preset", ["safe_decoding", "contrastive"])
def test_rules_beyond_the_anchor_do_not_change_a_target_that_equals_it(preset, anchor):
    model, tokenizer = anchor
    processor = AnchorLogitsProcessor(model, tokenizer, tokenizer, **{**PROCESSOR[preset], "n_steps": None})
    for kind in ("general", "harmful"):
        assert torch.equal(tokens(*anchor, chats_of(kind, 4), processor), tokens(*anchor, chats_of(kind, 4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.2}, r"`alpha` must be in \[0, 1\] for the rule 'log_linear', got 1.2"),
        ({"alpha": -0.1, "mixing": "linear"}, r"`alpha` must be in \[0, 1\] for the rule 'linear', got -0.1"),
        ({"n_steps": -1}, "`n_steps` must be a whole number of at least 0, got -1"),
        ({"n_steps": True}, "`n_steps` must be a whole number of at least 0, got True"),
        ({"n_lookahead": 2.5}, "`n_lookahead` must be a whole number of at least 0, got 2.5"),
        ({"alpha": True}, r"`alpha` must be in \[0, 1\] for the rule 'log_linear', got True"),
        ({"n_watch": 0}, "`n_watch` must be a whole number of at least 1, got 0"),
        ({"n_lookahead": -2}, "`n_lookahead` must be a whole number of at least 0, got -2"),
        ({"mixing": "mean"}, "`mixing` must be one of .*, got 'mean'"),
        ({"translation": "nearest"}, "`rule` must be one of .*, got 'nearest'"),
        ({"conversations": [""]}, "A conversation must hold some text"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message, anchor, specialist):
    with pytest.raises(ValueError, match=message):
        AnchorLogitsProcessor(*anchor, specialist[1], **arguments)


def test_an_anchor_with_the_tokenizer_of_another_model_is_refused(anchor, specialist, piece_tokenizer):
    with pytest.raises(ValueError, match="`anchor_tokenizer` must belong to the anchor: it has .* tokens, but Qwen3"):
        AnchorLogitsProcessor(anchor[0], specialist[1], specialist[1])
    with pytest.raises(ValueError, match="`anchor_tokenizer` must belong to the anchor"):
        AnchorLogitsProcessor(specialist[0], anchor[1], specialist[1])


def test_an_eos_id_that_is_no_token_ends_no_answer(anchor, specialist, monkeypatch):
    """Some configurations have -1 where there is none."""
    expected = tokens(*specialist, chats_of("harmful", 1), AnchorLogitsProcessor(*anchor, specialist[1]))
    monkeypatch.setattr(anchor[0].generation_config, "eos_token_id", [-1, anchor[1].eos_token_id])
    processor = AnchorLogitsProcessor(*anchor, specialist[1])
    assert torch.equal(tokens(*specialist, chats_of("harmful", 1), processor), expected)


def test_the_warning_about_a_missing_template_names_the_users_line(anchor, specialist):
    plain = copy.deepcopy(anchor[1])
    plain.chat_template = None
    with pytest.warns(UserWarning, match="`anchor_tokenizer` has no chat template") as warned:
        AnchorLogitsProcessor(anchor[0], plain, specialist[1])
    assert warned[0].filename == __file__


def test_an_encoder_decoder_anchor_is_refused(anchor, specialist):
    model = T5ForConditionalGeneration(T5Config(vocab_size=800, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=4))
    with pytest.raises(ValueError, match="`anchor` must be a decoder, got the encoder-decoder T5"):
        AnchorLogitsProcessor(model, anchor[1], specialist[1])


def test_an_encoder_decoder_target_is_refused(guard, specialist):
    config = T5Config(vocab_size=len(specialist[1]), d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=4)
    config.decoder_start_token_id, config.pad_token_id = specialist[1].pad_token_id, specialist[1].pad_token_id
    model = T5ForConditionalGeneration(config)
    inputs = encode(chats_of("harmful", 1), specialist[1])
    with pytest.raises(ValueError, match="encoder-decoder"):
        model.generate(**inputs, logits_processor=[guard], max_new_tokens=3)


def test_empty_prompts_are_refused(guard, specialist):
    ids = torch.tensor([[specialist[1].bos_token_id]])
    with pytest.raises(ValueError, match="The prompt must hold some text"):
        specialist[0].generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[guard], max_new_tokens=2)


def test_one_dimensional_ids_are_refused(guard, specialist):
    with pytest.raises(ValueError, match=r"`input_ids` must have shape \(rows, length\), got \(3,\)"):
        guard(torch.tensor([1, 2, 3]), torch.zeros(3, len(specialist[1])))


@pytest.mark.parametrize("width", [100, 5000])
def test_scores_of_another_width_are_refused(width, guard, specialist):
    inputs = encode(chats_of("harmful", 1), specialist[1])
    with pytest.raises(ValueError, match=f"`scores` must be as wide as the target's vocabulary.*got {width}"):
        guard(inputs["input_ids"], torch.zeros(1, width))


def test_nan_from_the_anchor_is_an_error(anchor, specialist):
    broken = copy.deepcopy(anchor[0])
    processor = AnchorLogitsProcessor(broken, anchor[1], specialist[1])
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The logits of an anchor or a judge must be numbers, got NaN"):
        tokens(*specialist, chats_of("harmful", 1), processor)
    with pytest.raises(ValueError, match="The logits of an anchor or a judge must be numbers, got NaN"):
        AnchorLogitsProcessor(broken, anchor[1], specialist[1])


def test_conversations_must_match_the_rows(anchor, specialist):
    processor = AnchorLogitsProcessor(*anchor, specialist[1], conversations=["a b", "c d"])
    with pytest.raises(ValueError, match="`conversations` must hold one conversation a prompt, got 2 for 3 rows"):
        tokens(*specialist, chats_of("harmful", 3), processor)


def test_an_anchor_without_a_chat_template_is_a_warning(anchor, specialist):
    tokenizer = copy.deepcopy(anchor[1])
    tokenizer.chat_template = None
    with pytest.warns(UserWarning, match="has no chat template: the anchor reads the messages' plain text"):
        processor = AnchorLogitsProcessor(anchor[0], tokenizer, specialist[1])
    assert tokens(*specialist, chats_of("harmful", 1), processor).shape[0] == 1


def test_a_prompt_outside_the_template_is_one_warning(guard, specialist):
    model, tokenizer = specialist
    inputs = tokenizer("How do I kill the mayor?", return_tensors="pt", return_token_type_ids=False)
    with pytest.warns(UserWarning, match="does not follow the target's chat template"):
        model.generate(**inputs, logits_processor=[guard], max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**inputs, logits_processor=[guard], max_new_tokens=2)


def test_the_pipeline_accepts_a_processor(guard, specialist):
    model, tokenizer = specialist
    chats = chats_of("harmful", 2)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    answers = pipe(chats, logits_processor=[guard], do_sample=False, max_new_tokens=16, return_full_text=False)
    for answer, conversation in zip(answers, chats, strict=True):
        ids = tokens(model, tokenizer, [conversation], guard, max_new_tokens=16)[0]
        assert answer[0]["generated_text"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_one_conversation_does_not_fit_different_prompts(anchor, specialist):
    harmless = chats_of("general", 1)
    processor = AnchorLogitsProcessor(*anchor, specialist[1], conversations=harmless)
    with pytest.raises(ValueError, match="got 1 for 3 rows with different prompts"):
        tokens(*specialist, chats_of("harmful", 3), processor)
    for wrong in ([], "Hello"):
        with pytest.raises(ValueError, match="`conversations` must hold one conversation a prompt, got"):
            processor.with_conversations(wrong)


def test_new_conversations_begin_a_new_call(anchor, specialist):
    """Even where the next prompt is the last prompt and one token more."""
    chats = chats_of("harmful", 1)
    processor = AnchorLogitsProcessor(*anchor, specialist[1], conversations=chats_of("general", 1))
    ids = encode(chats, specialist[1])["input_ids"]
    scores = torch.zeros(1, len(specialist[1]))
    processor(ids[:, :-1], scores)
    other = processor.with_conversations(chats)
    fresh = AnchorLogitsProcessor(*anchor, specialist[1], conversations=chats)
    torch.testing.assert_close(other(ids, scores), fresh(ids, scores))
    assert other.ledger is processor.ledger


def test_a_special_token_does_not_end_steering(guard, specialist):
    tokenizer = specialist[1]
    ids = encode(chats_of("harmful", 1), tokenizer)["input_ids"]
    scores = torch.zeros(1, len(tokenizer))
    before = guard(ids, scores)
    for special in (tokenizer.convert_tokens_to_ids("[SYS]"), len(tokenizer) + 3):  # a padded logit's id, too
        ids = torch.cat([ids, torch.tensor([[special]])], dim=-1)
        torch.testing.assert_close(guard(ids, scores), before)


def test_an_answer_that_continues_after_its_eos_stays_steered(guard, specialist):
    tokenizer = specialist[1]
    ids = encode(chats_of("harmful", 1), tokenizer)["input_ids"]
    scores = torch.zeros(1, len(tokenizer))
    guard(ids, scores)
    ended = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=-1)
    assert torch.equal(guard(ended, scores), scores)
    further = torch.cat([ended, torch.tensor([[tokenizer.convert_tokens_to_ids("▁the")]])], dim=-1)
    assert not torch.equal(guard(further, scores), scores)


def test_an_anchor_in_training_mode_is_refused(anchor, specialist):
    model = copy.deepcopy(anchor[0]).train()
    with pytest.raises(ValueError, match="`anchor` must be in evaluation mode"):
        AnchorLogitsProcessor(model, anchor[1], specialist[1])


def test_a_row_does_not_depend_on_its_neighbors(anchor, specialist):
    """A row that continues after its EOS is steered in the same way alone and next to another row."""
    tokenizer = specialist[1]
    ids = encode(chats_of("harmful", 1), tokenizer)["input_ids"]
    certain = torch.zeros(1, len(tokenizer))
    certain[0, 50] = 30.0
    first_rows = []
    for n_rows in (1, 2):
        guard = AnchorLogitsProcessor(*anchor, tokenizer, n_watch=2)
        rows, scores = ids.expand(n_rows, -1), certain.expand(n_rows, -1).clone()
        guard(rows, scores)
        for written in (tokenizer.eos_token_id, 50, 50):
            new = torch.full((n_rows, 1), 50)
            new[0] = written
            rows = torch.cat([rows, new], dim=-1)
            result = guard(rows, scores)
        first_rows.append(result[0])
    torch.testing.assert_close(*first_rows, atol=1e-4, rtol=1e-3)


def test_a_tokenizer_without_a_tokenizers_backend_is_refused(anchor, specialist):
    with pytest.raises(ValueError, match="`tokenizer` must have a `tokenizers` backend, .* got ByT5Tokenizer"):
        AnchorLogitsProcessor(*anchor, ByT5Tokenizer())
