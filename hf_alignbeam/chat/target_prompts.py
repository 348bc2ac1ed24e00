"""Conversations rendered as the target reads them, up to its next answer.

Knows the target's chat template. Knows no anchor and no judge: `templates` renders for them.
"""

from transformers import PreTrainedTokenizerBase

from hf_alignbeam.chat.conversations import Message
from hf_alignbeam.chat.templates import (
    bytes_with_special_tokens,
    default_template,
    encode_with_one_bos,
    is_template_error,
    placeholders,
)


def render_target_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """A conversation as the target reads it, up to its next answer; an assistant message at the end is left open.

    Raises:
        ValueError: The chat template refuses the conversation.
    """
    template = default_template(tokenizer)
    if template is None:
        return "\n\n".join(message["content"] for message in messages)
    has_prefill = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=not has_prefill,
            continue_final_message=has_prefill,
            enable_thinking=False,
        )
    except Exception as error:
        if not is_template_error(error):
            raise
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ValueError(
            f"The target's chat template refuses a conversation with the roles {roles}: {str(error).rstrip('.')}. "
            "Pass `conversations` with the roles and the order that it knows."
        ) from error
    return str(text)


def bytes_after_last_user(
    tokenizer: PreTrainedTokenizerBase, tokens: list[bytes | None], messages: list[Message]
) -> bytes | None:
    """What the target's prompt holds after the content of the last user message, a prefill included.

    None where there is no user message, or where the template refuses the conversation.
    """
    last = next((n for n in reversed(range(len(messages))) if messages[n]["role"] == "user"), None)
    if last is None:
        return None
    question = placeholders(tokenizer, tokens)[0]
    marked = [*messages[:last], {"role": "user", "content": question}, *messages[last + 1 :]]
    try:
        ids = encode_with_one_bos(tokenizer, render_target_prompt(tokenizer, marked))
    except ValueError:
        return None
    _, placeholder, after = bytes_with_special_tokens(tokenizer, tokens, ids).rpartition(question.encode())
    return after if placeholder else None
