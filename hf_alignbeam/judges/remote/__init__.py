"""Judges behind an HTTP endpoint.

* `moderation_api`: A moderation endpoint as judge, through OpenAI's client library.
"""
