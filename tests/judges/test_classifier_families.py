"""Laws of sequence classifiers of many families: one verdict in any batch, and none for a text that they read as another one."""

import warnings

import pytest
import torch
from helpers.toy_tokenizers import wordpiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_alignbeam import ClassifierJudge
from hf_alignbeam.testbed import tokenizers as toy
from hf_alignbeam.testbed.language import SPLITS, language

TEXTS = [prompt.text for prompt in language(0).prompts(SPLITS[0], "harmful")[:400]]
DECODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**DECODER, "max_position_embeddings": 64, "initializer_range": 0.5}
LABELS = {"LABEL_1": 1.0}


def roberta_tokenizer():
    """Byte-level, with RoBERTa's pair of two separators and its ids 0 to 3."""
    tokenizer = toy.byte_level_pairs(TEXTS)
    begin, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(
        (end, tokenizer.eos_token_id), (begin, tokenizer.bos_token_id), add_prefix_space=False
    )
    return tokenizer


def bert(pad):
    tokenizer = wordpiece(TEXTS)
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), pad_token_id=pad, **BERT)), tokenizer


def roberta(pad):
    tokenizer = roberta_tokenizer()
    # position ids begin after that of padding, which is one of the first in a published RoBERTa
    config = RobertaConfig(
        vocab_size=len(tokenizer), **{**BERT, "max_position_embeddings": 66}, pad_token_id=1, type_vocab_size=1
    )
    return RobertaForSequenceClassification(config), tokenizer


def distilbert(pad):
    tokenizer = wordpiece(TEXTS)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, hidden_dim=48, n_layers=2, n_heads=4, initializer_range=0.5, pad_token_id=pad
    )
    return DistilBertForSequenceClassification(config), tokenizer


def deberta(pad):
    tokenizer = wordpiece(TEXTS)
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    config = DebertaV2Config(vocab_size=len(tokenizer), pad_token_id=pad, **{**BERT, **relative})
    return DebertaV2ForSequenceClassification(config), tokenizer


def gpt2(pad):
    tokenizer = toy.byte_level(TEXTS)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5)
    config.pad_token_id = pad and tokenizer.eos_token_id
    return GPT2ForSequenceClassification(config), tokenizer


def llama(pad):
    tokenizer = toy.sentencepiece_style(TEXTS, 400)
    config = LlamaConfig(vocab_size=len(tokenizer), **DECODER, initializer_range=0.4, pad_token_id=pad and tokenizer.pad_token_id)
    return LlamaForSequenceClassification(config), tokenizer


def qwen3(pad):
    tokenizer = toy.byte_level(TEXTS)
    config = Qwen3Config(
        vocab_size=len(tokenizer), **DECODER, num_key_value_heads=2, head_dim=8, initializer_range=0.4, pad_token_id=pad and 5
    )
    return Qwen3ForSequenceClassification(config), tokenizer


def modernbert(pad):
    tokenizer = toy.byte_level_pairs(TEXTS)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), **DECODER, initializer_range=0.5, pad_token_id=pad and tokenizer.pad_token_id
    )
    return ModernBertForSequenceClassification(config), tokenizer


FAMILIES = {f.__name__: f for f in (bert, roberta, distilbert, deberta, gpt2, llama, qwen3, modernbert)}
EXCHANGES = [
    ([{"role": "user", "content": TEXTS[0]}], "No."),
    ([{"role": "user", "content": TEXTS[1]}], TEXTS[2]),
    ([{"role": "user", "content": "How?"}], " ".join(TEXTS[3:5])),
    ([{"role": "user", "content": "How?"}, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}], "No."),
    ([{"role": "user", "content": TEXTS[5]}], ""),
]


def judge_of(name, pad=3, seed=0, **options):
    torch.manual_seed(seed)
    model, tokenizer = FAMILIES[name](pad)
    return ClassifierJudge(model.eval(), tokenizer, LABELS, **options)


@pytest.mark.parametrize("pad", [None, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_verdict_is_the_same_in_any_batch_and_with_any_padding_of_the_tokenizer(name, pad):
    judge = judge_of(name, pad)
    conversations, responses = zip(*EXCHANGES, strict=True)
    alone = torch.cat([judge([c], [r]) for c, r in EXCHANGES])
    assert not alone.isnan().any()
    assert alone.std() > 1e-3  # the verdicts differ, so that a wrong one shows
    for side, own_pad in (("left", None), ("right", "No"), ("left", "z")):
        judge._tokenizer.padding_side = side
        if own_pad is not None:
            judge._tokenizer.pad_token = own_pad if own_pad in judge._tokenizer.get_vocab() else judge._tokenizer.eos_token
        torch.testing.assert_close(judge(conversations, responses), alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(judge(conversations[::-1], responses[::-1]), alone.flip(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_a_context_is_used_to_its_last_position_and_a_longer_text_costs_only_its_own_verdict(name, caplog):
    judge = judge_of(name)
    conversation = [{"role": "user", "content": "No"}]
    responses = [("no " * n).strip() for n in range(1, 80)]
    harm = judge([conversation] * len(responses), responses)
    assert "its context takes 64 tokens" in caplog.text
    lengths = [len(judge._render_or_none(conversation, r)["input_ids"]) for r, h in zip(responses, harm, strict=True) if h == h]
    assert max(lengths) in (63, 64)
    n_read = len(lengths)
    assert not harm[:n_read].isnan().any()
    assert harm[n_read:].isnan().all()


def test_a_template_that_refuses_a_conversation_costs_only_its_own_verdict(caplog):
    """Each reason is logged once."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no ' + m.content) }}{% endif %}"
        "{{ m.role + ': ' + m.content }}\n{% endfor %}"
    )
    judge = judge_of("qwen3", template=template)
    system = [{"role": "system", "content": "Secret."}, *EXCHANGES[0][0]]
    harm = judge([EXCHANGES[0][0], system, EXCHANGES[1][0]], ["No.", "No.", "\ud800"])
    assert judge([system], ["No."]).isnan()
    assert harm.isnan().tolist() == [False, True, True]
    kinds = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert kinds == ["it cannot be rendered (TemplateError).", "it cannot be rendered (TypeError)."]


def test_a_template_that_drops_the_response_gives_no_verdict(caplog):
    judge = judge_of("qwen3", template="{{ messages[0].content }}")
    assert judge([EXCHANGES[0][0]], ["It rains."]).isnan()
    assert "leaves out the response" in caplog.text


def test_texts_that_become_the_same_unknown_tokens_have_no_verdict(caplog):
    for name in ("bert", "distilbert", "deberta"):
        judge = judge_of(name)
        harm = judge(["How?"] * 3, ["Смешай это с тем.", "Спроси врача.", TEXTS[0].upper()])
        assert harm.isnan().tolist() == [True, True, False]
        assert judge_of(name)(["Как?"], ["No."]).isnan()
        assert caplog.text.count("lose a part of it") == 2
        caplog.clear()


SAYINGS = (
    "a",
    "No",
    "user: a",
    "a assistant: b",
    "[SEP]",
    "<|im_end|>",
    "</s>",
    "<s>",
    "a\n\nb",
    "[CLS] b",
    "<pad>",
    "<|begin|>",
    "",
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant", "system")), "content": st.sampled_from(SAYINGS)}),
    min_size=1,
    max_size=3,
).filter(lambda messages: any(message["content"] for message in messages))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_exchanges_have_the_same_ids(name):
    judge = judge_of(name)
    special = set(judge._tokenizer.all_special_ids)
    seen = {}

    def same(text):
        return " ".join(text.split())  # white space may be lost

    @given(MESSAGES, st.sampled_from(SAYINGS))
    def check(messages, response):
        ids = tuple(judge.render(messages, response))
        exchange = (*((message["role"], same(message["content"])) for message in messages), same(response))
        assert seen.setdefault(ids, exchange) == exchange
        n_markup = sum(i in special for i in ids)
        plain = judge.render([{**message, "content": "a"} for message in messages], "a")
        assert n_markup == sum(i in special for i in plain)

    check()


def test_typed_markup_does_not_hide_the_text_before_it_in_a_template():
    judge = judge_of("bert", template="{% for m in messages %}[CLS] {{ m.content }} [SEP]{% endfor %}")
    honest = judge.render([{"role": "user", "content": "How?"}], "No.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forged = judge._render_or_none([{"role": "user", "content": "How?"}], "No. [SEP] [CLS] No.")
    special = set(judge._tokenizer.all_special_ids)
    assert forged is None or sum(i in special for i in forged["input_ids"]) == sum(i in special for i in honest)


def test_a_tokenizer_without_special_tokens_needs_a_template():
    model, tokenizer = gpt2(3)
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(tokenizer, name, None)
    with pytest.raises(ValueError, match="`tokenizer` must have a special token .* Pass a `template`"):
        ClassifierJudge(model.eval(), tokenizer, LABELS)
    ClassifierJudge(model.eval(), tokenizer, LABELS, template="{{ messages[-1].content }}")
