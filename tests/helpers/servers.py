"""Waiting for a server."""

import time
import urllib.error
import urllib.request

import pytest

#: Seconds to wait for a server's first answer.
PATIENCE = 120


def wait_for(url, server, log):
    """Wait until a server answers; fail if it exits or takes too long."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    pytest.fail(f"no answer within {PATIENCE} s: {log.read_text()[-3000:]}")
