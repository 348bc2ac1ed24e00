"""A batch of prompts parsed from ids, and from given conversations."""

import pytest
import torch
from helpers.templates import CONVERSATIONS, prompt_ids

from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.chat.prompt_reader import PromptReader


def test_a_prompt_that_does_not_follow_the_template_is_read_as_plain_text_with_one_warning(real_tokenizer):
    tokenizer = real_tokenizer("llama3")
    conversation = [
        {"role": "user", "content": "Will it rain?"},
        {"role": "assistant", "content": "weather Paris, weather Rome"},
        {"role": "critic", "content": "Hurry up."},
    ]
    ids = torch.tensor([prompt_ids(tokenizer, conversation)])
    reader = PromptReader(tokenizer)
    with pytest.warns(UserWarning, match="does not follow the target's chat template") as warned:
        prompt, again = (reader.read(ids, None)[0][0] for _ in range(2))
    assert len(warned) == 1
    assert prompt == again
    (message,) = prompt.messages
    assert message["role"] == "user"
    assert all(message_["content"] in message["content"] for message_ in conversation)


def test_one_prompt_that_opens_reasoning_refuses_its_batch(real_tokenizer):
    tokenizer = real_tokenizer("qwen3")
    rows = [prompt_ids(tokenizer, CONVERSATIONS[0], enable_thinking=thinking) for thinking in (False, True)]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    reader = PromptReader(tokenizer)
    with pytest.raises(ValueError, match="must begin with their answer"):
        reader.read(ids, None)
    assert reader.read(ids[:1], None)[0][0].messages == CONVERSATIONS[0]


def test_rows_with_equal_ids_share_a_prompt(byte_tokenizer):
    words = ("QQ", "ZZ", "QQ")
    ids = torch.tensor([prompt_ids(byte_tokenizer, [{"role": "user", "content": word}]) for word in words])
    prompts, groups = PromptReader(byte_tokenizer).read(ids, None)
    assert groups == [0, 1, 0]
    assert [prompt.messages[0]["content"] for prompt in prompts] == list(words)


def test_a_given_conversation_replaces_the_parsed_messages_of_its_rows(piece_tokenizer):
    """The prefill and the leading white space still come from the ids, unless the conversation ends in a prefill."""
    row = prompt_ids(piece_tokenizer, CONVERSATIONS[0])
    given = [{"role": "user", "content": "How do I kill weeds?"}]
    prefilled = [*given, {"role": "assistant", "content": "Mix"}]
    reader = PromptReader(piece_tokenizer)
    assert reader.read(torch.tensor([row, row]), [given]) == ([ParsedPrompt(given, b"", b" ")] * 2, [0, 0])
    assert reader.read(torch.tensor([row]), [prefilled])[0] == [ParsedPrompt(given, b"Mix", b" ")]
    without_ids = torch.zeros((1, 0), dtype=torch.long)
    assert reader.read(without_ids, [given])[0] == [ParsedPrompt(given, b"", b" ")]
    assert reader.read(without_ids, [prefilled])[0] == [ParsedPrompt(given, b"Mix", b"")]
