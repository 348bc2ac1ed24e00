"""A moderation server and the judge that asks it."""

import pytest
from helpers.moderation_server import moderation_server


@pytest.fixture
def server(monkeypatch):
    with moderation_server(monkeypatch) as server:
        yield server


@pytest.fixture
def build(server, monkeypatch):
    """Build a moderation judge that asks the server and hardly waits between retries."""
    from hf_alignbeam.judges.remote import http_client, moderation_api  # need httpx

    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    return lambda **options: moderation_api.ModerationJudge(**{"base_url": server.base_url, **options})
