"""Judges behind an HTTP endpoint.

* `moderation_api`: A moderation endpoint as judge, through OpenAI's client library.
* `from_url`: The judge behind a URL, by the kind of its endpoint.
"""
