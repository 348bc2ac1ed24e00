"""Servers waited for."""

import time
import urllib.error
import urllib.request

import pytest

#: Seconds within which a server answers.
PATIENCE = 120


def wait_for(url, server, log):
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    pytest.fail(f"no answer within {PATIENCE} s: {log.read_text()[-3000:]}")
