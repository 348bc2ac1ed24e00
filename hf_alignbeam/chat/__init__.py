"""Conversations, the chat templates that render them, and prompts parsed back from token ids.

* `conversations`: Conversations as messages, and prompts as messages and the start of an answer.
* `refusal`: The target's tokens for a refusal or for a replacement answer.
* `templates`: Conversations rendered and encoded through chat templates.
* `template_parser`: Chat templates learned around placeholders, and prompt ids parsed by them.
* `prompt_reader`: A batch's prompts, and which rows share one.
"""
