"""Conversations, the chat templates that render them, and prompts parsed back from token ids.

* `conversations`: Conversations as messages, and prompts as messages and the start of an answer.
* `conversation_key`: The key under which a conversation is recorded.
* `begun_answers`: Prompts whose answer has begun.
* `refusal`: The target's tokens for a refusal or for a replacement answer.
* `refusal_words`: Whether a text refuses, by its words.
* `templates`: Conversations rendered for an anchor or a judge.
* `target_prompts`: Conversations rendered for the target.
* `chat_format`: A chat template as the text that it writes around messages, and texts parsed by it.
* `format_learning`: Chat templates learned around placeholders.
* `template_parser`: Prompt ids parsed into conversations.
* `prompt_reader`: A batch's prompts, and which rows share one.
"""
