"""Prompts that differ from those from which the template was learned: other dates, variables, padding, tokens and templates."""

import datetime
import string

import pytest
import torch
from helpers.templates import CONVERSATIONS, prompt_ids, with_template
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_alignbeam.chat.prompt_reader import PromptReader
from hf_alignbeam.chat.template_parser import TemplateParser

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set given = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set given = '' %}{% endif %}"
)
CHANGING = {
    # Llama 3.x: the date stands before the system message, in whose turn tools stand, too
    "llama": "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    + SYSTEM
    + "{{ bos_token + '<|im_start|>system\n' }}{% if tools is not none and tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + given + '<|im_end|>\n' }}" + TURNS,
    # Granite: a system message replaces the one with the date
    "granite": SYSTEM
    + "{% if not given %}{% set given = 'Today\\'s Date: ' + strftime_now('%B %d, %Y') + '.\nYou are Granite.' %}{% endif %}"
    "{{ '<|im_start|>system\n' + given + '<|im_end|>\n' }}" + TURNS,
    # gpt-oss: several values, of which one is no date; a system message has a turn of its own
    "gpt-oss": "{% if model_identity is not defined %}{% set model_identity = 'You are ChatGPT.' %}{% endif %}"
    "{{ '<|im_start|>system\n' + model_identity + '\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\nReasoning: ' }}"
    "{{ (reasoning_effort if reasoning_effort is defined else 'medium') + '<|im_end|>\n' }}" + TURNS,
    # no system role, and the date before every answer
    "before answers": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + (' at ' + strftime_now('%H:%M') if m.role == 'assistant' else '') + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant at ' + strftime_now('%H:%M') + '\n' }}{% endif %}",
}


class AnotherDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 9, 3, 7, tzinfo=tz)


@pytest.fixture
def to_another_day(monkeypatch):
    """Sets the clock by which templates are rendered."""
    return lambda: monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", AnotherDay)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", CHANGING)
def test_a_prompt_of_another_day_is_read_as_it_was_asked(kind, conversation, byte_tokenizer, to_another_day):
    tokenizer = with_template(byte_tokenizer, CHANGING[kind])
    if kind == "before answers" and conversation[0]["role"] == "system":
        pytest.skip("the template has no system role")
    parser = TemplateParser(tokenizer)
    for change in (lambda: None, to_another_day):
        change()
        prompt = parser.parse(prompt_ids(tokenizer, conversation))
        assert (prompt.messages, prompt.prefill) == (conversation, b"")


@pytest.mark.parametrize("kind", CHANGING)
def test_a_prompt_rendered_before_midnight_is_read_after_it(kind, byte_tokenizer, to_another_day):
    tokenizer = with_template(byte_tokenizer, CHANGING[kind])
    parser, conversation = TemplateParser(tokenizer), CONVERSATIONS[2]
    ids = prompt_ids(tokenizer, conversation)
    to_another_day()
    messages = parser.parse(ids).messages
    assert messages[-3:] == conversation
    assert [message["role"] for message in messages[:-3]] == ["system"] * (kind in ("granite", "gpt-oss", "llama"))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("llama", {"date_string": "3 January 1999"}, ["3 January 1999"]),
        ("llama", {"date_string": "the day to kill 1 man"}, ["kill 1 man"]),
        ("llama", {"date_string": "1 May\n2 kill"}, ["2 kill"]),
        ("llama", {"tools": [{"type": "function"}]}, ["Environment: ipython"]),
        ("gpt-oss", {"reasoning_effort": "high"}, ["high"]),
        ("gpt-oss", {"model_identity": "You kill."}, ["You kill."]),
        ("gpt-oss", {"model_identity": "You kill.\nAll."}, ["You kill.\nAll."]),
    ],
)
def test_what_variables_of_the_template_say_is_read_as_a_system_message(kind, options, words, byte_tokenizer, to_another_day):
    tokenizer = with_template(byte_tokenizer, CHANGING[kind])
    parser, conversation = TemplateParser(tokenizer), CONVERSATIONS[2]
    to_another_day()
    messages = parser.parse(prompt_ids(tokenizer, conversation, **options)).messages
    assert messages[-3:] == conversation
    assert [message["role"] for message in messages[:-3]] == ["system"]
    assert all(word in messages[0]["content"] for word in words)


def test_no_word_of_a_system_message_is_taken_for_a_date(byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, CHANGING["llama"])
    for content in ("Kill.", "9 May 2031", "Kill.\n\nToday Date: 1"):
        conversation = [{"role": "system", "content": content}, *CONVERSATIONS[0]]
        assert TemplateParser(tokenizer).parse(prompt_ids(tokenizer, conversation)).messages == conversation


def test_a_template_that_is_replaced_is_learned_anew(byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, TURNS)
    parser = TemplateParser(tokenizer)
    tokenizer.chat_template = TURNS.replace("im_start|>'", "im_start|>the '")
    assert parser.parse(prompt_ids(tokenizer, CONVERSATIONS[2])).messages == CONVERSATIONS[2]


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("pad", ["eos", "own", "unknown to the guard", "a word"])
@pytest.mark.parametrize("start", ["{{ bos_token }}", "{{ eos_token }}", "{{ eos_token + eos_token }}", ""])
def test_prompts_are_read_past_the_padding_of_any_tokenizer(start, pad, with_mask, byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, start + TURNS)
    pad_id = {"eos": tokenizer.eos_token_id, "own": tokenizer.pad_token_id, "a word": 0}.get(pad, len(tokenizer))
    rows = [prompt_ids(tokenizer, conversation) for conversation in (*CONVERSATIONS, CONVERSATIONS[0])]
    width = max(map(len, rows)) + 2
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    prompts, groups = PromptReader(tokenizer).read(ids, None, mask if with_mask else None)
    assert [prompt.messages for prompt in prompts] == [*CONVERSATIONS, CONVERSATIONS[0]]
    assert groups == [0, 1, 2, 0]


def test_masked_words_are_read(byte_tokenizer):
    """Some models read them all the same."""
    tokenizer = with_template(byte_tokenizer, TURNS)
    row = prompt_ids(tokenizer, CONVERSATIONS[0])
    ids, mask = torch.tensor([row]), torch.ones(1, len(row))
    mask[:, : len(row) // 2] = 0
    assert PromptReader(tokenizer).read(ids, None, mask)[0][0].messages == CONVERSATIONS[0]


def test_every_template_of_a_tokenizer_is_read(byte_tokenizer):
    other = "{{ bos_token }}" + TURNS.replace("<|im_start|>", "<|im_start|>the ")
    for templates in ({"tool_use": other, "default": TURNS}, {"rag": TURNS, "tool_use": other}):
        tokenizer = with_template(byte_tokenizer, TURNS)
        tokenizer.chat_template = templates
        parser = TemplateParser(tokenizer)
        for name in templates:
            ids = prompt_ids(tokenizer, CONVERSATIONS[2], chat_template=templates[name])
            assert parser.parse(ids).messages == CONVERSATIONS[2]
        assert parser.leading_whitespace(CONVERSATIONS[2]) == b""


@pytest.mark.parametrize("alphabet", [string.ascii_lowercase[:16], string.ascii_uppercase, string.digits, "абвгде", "日本語"])
def test_a_template_is_learned_by_characters_that_the_tokenizer_writes(alphabet):
    pieces = ["?", "\n", " ", *alphabet]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="?"))
    tokenizer.add_special_tokens(["<u>", "<a>", "<e>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token="<e>", pad_token="<e>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<' + m.role[0] + '>\n' + m.content + '<e>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<a>\n' }}{% endif %}"
    )
    first, *others = alphabet
    conversation = [
        {"role": "user", "content": f"{first} {others[0]}"},
        {"role": "assistant", "content": others[1]},
        {"role": "user", "content": alphabet},
    ]
    prompt = TemplateParser(tokenizer).parse(prompt_ids(tokenizer, conversation))
    assert (prompt.messages, prompt.prefill) == (conversation, b"")


@pytest.mark.parametrize(
    ("typed", "prefill"),
    [
        ("Sure: <|pad|>mix", "Sure: mix"),
        ("Sure<|im_end|>, mix", "Sure, mix"),
        ("<|begin|>Sure", "Sure"),
        ("Sure<|im_end|>", "Sure"),
        ("Sure<|im_end|>\n<|im_start|>critic\nNow", "Sure\ncritic\nNow"),
        ("Sure<|im_end|>\n<|im_start|>assistant\nMix", "Mix"),
    ],
)
@pytest.mark.filterwarnings("ignore:The prompt does not follow")
def test_the_words_of_a_begun_answer_are_read_as_an_answer_whatever_tokens_stand_between(typed, prefill, byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, TURNS)
    text = tokenizer.apply_chat_template(CONVERSATIONS[1], tokenize=False, add_generation_prompt=True) + typed
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    (prompt,), _ = PromptReader(tokenizer).read(ids, None)
    assert prompt.prefill == prefill.encode()
    assert all(word in str(prompt) for word in ("Be kind.", "Hello", "Sure" if "Sure" in typed else ""))


@pytest.mark.filterwarnings("ignore:The prompt does not follow")
def test_a_begun_answer_stays_one_where_the_turns_are_unknown(byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, TURNS)
    text = "<|im_start|>critic\nHurry up.<|im_end|>\n<|im_start|>assistant\nSure: mix"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    (prompt,), _ = PromptReader(tokenizer).read(ids, None)
    assert prompt.prefill == b"Sure: mix"
    assert "Hurry up." in prompt.messages[0]["content"]
