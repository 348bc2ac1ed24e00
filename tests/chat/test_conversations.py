"""Conversations as messages of plain text, and prompts as messages and a prefill."""

import json

import pytest

from hf_alignbeam.chat.begun_answers import continued, messages_with_prefill
from hf_alignbeam.chat.conversations import (
    ParsedPrompt,
    alternate_roles,
    as_message_lists,
    as_messages,
    merge_system,
    prompt_from_messages,
)


def test_conversations_are_checked():
    assert as_messages("Hi") == [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match=r"must have 'role' and 'content' \(or 'tool_calls'\), got {'text': 'x'}"):
        as_messages([{"text": "x"}])
    with pytest.raises(ValueError, match="must have 'role' and 'content'"):
        as_messages([{"role": 1, "content": "x"}])
    with pytest.raises(ValueError, match=r"A conversation must hold some text, got ' '"):
        as_messages(" ")
    with pytest.raises(ValueError, match="must be a string or a list of messages, got 5"):
        as_messages(5)
    with pytest.raises(ValueError, match="'content' must be a string, got None"):
        as_messages([{"role": "user", "content": None}])


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def test_parts_and_calls_of_tools_are_read_as_text():
    parts = [{"type": "text", "text": "Will it "}, {"type": "text", "text": "rain?"}]
    assert as_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "Will it rain?"}]
    called = as_messages(
        [
            {"role": "user", "content": "Will it rain?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL, {"name": "sky", "arguments": '{"n": 1}'}]},
            {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        ]
    )
    assert [message["content"] for message in called[1:]] == [
        'weather {"city": "Paris"}\nsky {"n": 1}',
        'I look.\nweather {"city": "Paris"}',
    ]
    assert all(message.keys() == {"role", "content"} for message in called)
    with pytest.raises(ValueError, match="'content' must be a string, got .*image.*neither anchor nor judge reads"):
        as_messages([{"role": "user", "content": [*parts, {"type": "image", "url": "x"}]}])


def test_an_assistant_message_at_the_end_is_the_prefill():
    question, start = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Mix"}
    prompt = prompt_from_messages([question, start])
    assert prompt == ParsedPrompt([question], b"Mix", b"")
    assert messages_with_prefill(prompt) == [question, start]
    assert messages_with_prefill(prompt_from_messages([question])) == [question]
    with pytest.raises(ValueError, match="must hold a user message, got an assistant's alone"):
        prompt_from_messages([start])


def test_a_continued_prompt_drops_its_leading_whitespace_once():
    prompt = ParsedPrompt([{"role": "user", "content": "How?"}], b"", b" ")
    assert continued(prompt, b"") == prompt
    assert continued(continued(prompt, b" Mix"), b" it") == ParsedPrompt(prompt.messages, b"Mix it", b"")


def test_merged_messages_keep_every_word():
    messages = [{"role": role, "content": role[0]} for role in ("user", "tool", "system", "assistant", "user")]
    assert alternate_roles(messages) == [
        {"role": "user", "content": "s\n\nu\n\nt"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "u"},
    ]
    assert merge_system(messages) == messages
    assert merge_system(messages[2:]) == [{"role": "assistant", "content": "s\n\na"}, {"role": "user", "content": "u"}]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
@pytest.mark.parametrize(
    ("call", "text"),
    [
        ({"function": {"name": "weather"}}, "weather"),
        ({"function": {"name": "weather", "arguments": None}}, "weather"),
        ({"name": "weather", "arguments": "Paris"}, "weather Paris"),
        ({"function": {"name": "weather", "arguments": {}}}, "weather {}"),
    ],
)
def test_a_tool_call_needs_neither_content_nor_arguments(content, call, text):
    messages = as_messages([{"role": "user", "content": "Rain?"}, {"role": "assistant", **content, "tool_calls": [call]}])
    assert messages[1] == {"role": "assistant", "content": text}


def test_a_tool_call_without_a_name_is_refused():
    with pytest.raises(ValueError, match="must have the 'name' of its function, got {'arguments': 'x'}"):
        as_messages([{"role": "assistant", "tool_calls": [{"arguments": "x"}]}])


LONE = json.loads('"\\ud83d"')


@pytest.mark.parametrize(
    "conversation", [LONE, [{"role": "assistant", "content": f"So {LONE}"}], [{"role": "user", "content": [{"text": LONE}]}]]
)
def test_a_lone_surrogate_is_refused_by_name(conversation):
    """JSON may hold it, and no tokenizer reads it."""
    with pytest.raises(ValueError, match="A message must be text that UTF-8 can encode, got a lone surrogate"):
        as_messages(conversation)


@pytest.mark.parametrize("conversations", [(), iter(()), 5, "Hi", {"role": "user", "content": "Hi"}])
def test_what_is_no_collection_of_conversations_is_refused_by_name(conversations):
    with pytest.raises(ValueError, match="`conversations` must hold one conversation a prompt, got"):
        as_message_lists(conversations)


def test_a_generator_of_conversations_is_read_once():
    assert as_message_lists(text for text in ("Hi", "Ho")) == [as_messages("Hi"), as_messages("Ho")]
