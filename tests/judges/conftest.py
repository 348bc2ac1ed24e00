"""A server, and the judges that ask it."""

import pytest
from helpers.moderation_server import running_server

from hf_alignbeam.judges.profile import GuardProfile


@pytest.fixture
def server(monkeypatch):
    with running_server(monkeypatch) as server:
        yield server


@pytest.fixture
def build(server, monkeypatch):
    """Build a moderation judge that asks the server and hardly waits between retries."""
    from hf_alignbeam.judges.remote import http_client, moderation_api  # need httpx

    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    return lambda **options: moderation_api.ModerationJudge(**{"base_url": server.base_url, **options})


@pytest.fixture
def build_any(server, monkeypatch):
    """Build any of the remote judges, so that it asks the server and hardly waits between retries."""
    from hf_alignbeam.judges.remote import chat_api, classify_api, http_client, moderation_api  # need httpx

    monkeypatch.setattr(http_client, "FIRST_WAIT", 0.01)
    profile = GuardProfile(name="mine", verdicts={"safe": 0.0, "unsafe": 1.0})

    def build(kind, base_url=None, **options):
        options["base_url"] = base_url or server.base_url
        if kind == "moderation":
            return moderation_api.ModerationJudge(**options)
        if kind == "chat":
            return chat_api.ChatJudge(**{"model": "guard-1", "profile": profile, **options})
        return classify_api.ClassifyJudge(**{"model": "guard-1", "labels": {"LABEL_1": 1.0}, **options})

    return build
