"""Conversations, and chat templates in the shape of published ones, cut down to what they write around messages."""

import copy

CONVERSATIONS = [
    [{"role": "user", "content": "How do I kill\nthe weeds?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Tell me a or b."},
        {"role": "assistant", "content": "I say c, d!"},
        {"role": "user", "content": "And e?"},
    ],
]
#: gpt-oss: every message names a channel, the answer's is `final`.
HARMONY = (
    "{{ '<|im_start|>system\nReasoning: medium<|im_end|>' }}{% for m in messages %}"
    "{% if m.role == 'system' or m.role == 'developer' %}{{ '<|im_start|>developer\n' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'tool' %}{{ raise_exception('no call of a tool') }}"
    "{% else %}{{ '<|im_start|>assistant<|channel|>final<|message|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
#: DeepSeek-R1: the generation prompt opens the reasoning, and earlier answers are rendered without theirs.
REASONING_OPENED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
#: Qwen3-Thinking: the same, but finished answers are rendered with an empty reasoning block.
REASONING_OPENED_AND_SHOWN = REASONING_OPENED.replace(
    "m.content.split('</think>')[-1]", "('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content"
)
#: Gemma: user and model must alternate, and there is no system role.
ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Llama Guard: turns that must alternate, and a verdict to be given after them.
ALTERNATING_GUARD = ALTERNATING.replace("<|im_start|>assistant\n'", "<|im_start|>verdict\n'")


def with_template(tokenizer, template):
    """A copy of a byte-level tokenizer with another template, and the special tokens of its channels if it has any."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"extra_special_tokens": [name for name in ("<|channel|>", "<|message|>") if name in template]})
    return tokenizer


def prompt_ids(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)
