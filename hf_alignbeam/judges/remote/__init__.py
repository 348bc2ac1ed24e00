"""Judges behind an HTTP endpoint.

* `endpoint`: A URL and a key, and how they are checked and shown.
* `http_client`: JSON requests to an endpoint: retries, time limits, sizes, no redirects.
* `moderation_api`: A moderation endpoint as judge.
* `guard_requests`: What a completion endpoint is asked, by a guard's profile.
* `guard_answers`: The verdict in what a completion endpoint answers.
* `chat_api`: A guard behind a completion endpoint as judge.
* `classify_api`: A sequence classifier behind `/classify` as judge.
* `from_url`: The judge behind a URL, by the kind of its endpoint.
"""
