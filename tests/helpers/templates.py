"""Chat templates in the shape of published ones, cut down to what they put around messages."""

import copy

#: gpt-oss: a channel for every message, the answer in the last one.
HARMONY = (
    "{{ '<|im_start|>system\nReasoning: medium<|im_end|>' }}{% for m in messages %}"
    "{% if m.role == 'system' or m.role == 'developer' %}{{ '<|im_start|>developer\n' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'tool' %}{{ raise_exception('no call of a tool') }}"
    "{% else %}{{ '<|im_start|>assistant<|channel|>final<|message|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
#: DeepSeek-R1 and its like: the generation prompt opens the reasoning, and earlier answers are shown without theirs.
OPENED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
#: Qwen3-Thinking: the same, finished answers being shown with an empty block.
OPENED_AND_SHOWN = OPENED.replace(
    "m.content.split('</think>')[-1]", "('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + m.content"
)
#: Gemma: the user and the model by turns, no system.
BY_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Llama Guard: a question to the judge around the turns, which must alternate.
GUARD_BY_TURNS = BY_TURNS.replace("<|im_start|>assistant\n'", "<|im_start|>verdict\n'")


def templated(tokenizer, template):
    """A copy of a byte-level tokenizer with another template, and its channels' tokens where it has any."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"extra_special_tokens": [name for name in ("<|channel|>", "<|message|>") if name in template]})
    return tokenizer
