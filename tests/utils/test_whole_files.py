"""A file is replaced as a whole, or stays as it was."""

from pathlib import Path

import pytest

from hf_alignbeam.utils.whole_files import replace_bytes


def test_a_full_disk_leaves_the_old_file_and_nothing_else(full_at, tmp_path):
    path = tmp_path / "answers.jsonl"
    replace_bytes(path, b"old")
    with full_at(1000), pytest.raises(OSError, match="File too large"):
        replace_bytes(path, b"x" * 2000)
    assert [each.name for each in tmp_path.iterdir()] == ["answers.jsonl"]
    assert path.read_bytes() == b"old"


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"old")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_bytes(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["answers.jsonl"]
    assert path.read_bytes() == b"old"


def test_a_link_is_followed_and_a_device_is_written_to(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "target").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    replace_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600
    replace_bytes(tmp_path / ".." / tmp_path.name / "fresh", b"new")
    assert (tmp_path / "fresh").read_bytes() == b"new"
    replace_bytes(Path("/dev/null"), b"gone")
    assert not Path("/dev/null.part").exists()
