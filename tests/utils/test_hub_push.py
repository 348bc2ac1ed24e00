"""Folders on the Hub: pushed in one commit, or not at all."""

import pytest

PUSH = """
import sys
from pathlib import Path
from hf_alignbeam.utils.hub_push import push_folder
print(push_folder(Path(sys.argv[1]), sys.argv[2], "Add files", deleted=sys.argv[3:]))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "inner" / "b.txt").write_bytes(b"two")
    return tmp_path


def test_a_folder_is_pushed_in_one_commit_that_also_deletes(folder, hub, in_a_process):
    hub.commit("owner/pushed", {"old.txt": b"old", "kept.txt": b"kept"})
    result = in_a_process(PUSH, folder, "owner/pushed", "old.txt")
    assert result.returncode == 0, result.stderr
    sha = hub.main["owner/pushed"]
    assert result.stdout.strip() == f"{hub.url}/owner/pushed/commit/{sha}"
    assert hub.files("owner/pushed", sha) == {"kept.txt": b"kept", "a.txt": b"one", "inner/b.txt": b"two"}
    assert (
        sum("/commit/" in request.path and request.path.startswith("/api/models/owner/pushed") for request in hub.requests) == 1
    )


@pytest.mark.parametrize("status", [403, None])
def test_a_push_that_fails_is_an_oserror_that_names_the_repository(status, folder, hub, in_a_process):
    hub.commit("owner/closed", {"kept.txt": b"kept"})
    hub.failures["api/models/owner/closed/commit"] = status
    try:
        result = in_a_process(PUSH, folder, "owner/closed")
    finally:
        del hub.failures["api/models/owner/closed/commit"]
    assert result.returncode != 0
    assert "OSError: owner/closed could not be pushed: " in result.stderr
    assert hub.files("owner/closed", "main") == {"kept.txt": b"kept"}
