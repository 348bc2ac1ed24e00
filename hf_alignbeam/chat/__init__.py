"""Conversations, the chat templates that render them, and the way back from ids.

* `conversations`: Conversations as messages, and what a prompt asks.
* `refusal`: What is written where nothing passes, in the target's tokens: what somebody else has to say, and the refusal text.
* `templates`: Conversations as chat templates render them: for the target up to its answer, for an anchor and a judge word f...
* `template_parser`: Conversations recovered from a target's prompt ids: its chat template learned around sentinels, and read...
* `prompt_reader`: Where each row of a batch starts: what its prompt asks, and how the anchor's reading of that begins.
"""
