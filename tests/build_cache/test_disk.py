"""Results on disk: kept for later calls, computed anew where a file is damaged, and no error where none can be written."""

import pytest

from hf_alignbeam.build_cache import disk
from hf_alignbeam.build_cache.disk import FOLDER_VARIABLE, kept_on_disk

VALUE = [[1, -1, 5], "naïve \x00\xff", None, [[[1, 2], [3]]]]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "a" / "b"))
    return tmp_path / "a" / "b"


def fail():
    raise AssertionError("computed although it was kept")


def test_a_value_is_computed_once(folder):
    assert kept_on_disk("kind", "key", lambda: VALUE) == VALUE
    assert kept_on_disk("kind", "key", fail) == VALUE
    assert kept_on_disk("kind", "other key", lambda: 1) == 1
    assert kept_on_disk("other kind", "key", lambda: 2) == 2
    assert kept_on_disk("kind", "key", fail) == VALUE
    assert len(list(folder.iterdir())) == 3


def test_none_is_not_kept(folder):
    assert kept_on_disk("kind", "key", lambda: None) is None
    assert kept_on_disk("kind", "key", lambda: True) is True
    assert kept_on_disk("kind", "key", fail) is True


def test_other_releases_keep_their_own(folder, monkeypatch):
    kept_on_disk("kind", "key", lambda: 1)
    monkeypatch.setattr(disk, "FORMAT", (*disk.FORMAT, "another"))
    assert kept_on_disk("kind", "key", lambda: 2) == 2


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\n1", b"no checksum", b"0" * 64 + b"\n[1]"])
def test_a_file_that_was_not_written_so_is_replaced(data, folder):
    kept_on_disk("kind", "key", lambda: VALUE)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(data)
    assert kept_on_disk("kind", "key", lambda: VALUE) == VALUE
    assert file.read_bytes() == whole


def test_every_cut_and_every_changed_byte_is_noticed(folder):
    kept_on_disk("kind", "key", lambda: VALUE)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for n in range(len(whole)):
        for damaged in (whole[:n], whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :]):
            file.write_bytes(damaged)
            assert kept_on_disk("kind", "key", lambda: "anew") == "anew"


def test_the_file_of_another_result_is_not_read(folder):
    kept_on_disk("kind", "key", lambda: 1)
    (first,) = folder.iterdir()
    kept_on_disk("kind", "other", lambda: 2)
    (second,) = set(folder.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    assert kept_on_disk("kind", "other", lambda: 2) == 2


def test_an_empty_variable_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    assert [kept_on_disk("kind", "key", lambda n=n: n) for n in range(2)] == [0, 1]
    assert not list(tmp_path.iterdir())


def test_the_folder_is_beside_what_the_hub_keeps(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.setattr(disk, "HF_HOME", str(tmp_path))
    kept_on_disk("kind", "key", lambda: 1)
    assert [path.name for path in tmp_path.iterdir()] == ["alignbeam"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file" / "folder"))
    assert [kept_on_disk("kind", "key", lambda n=n: n) for n in range(2)] == [0, 1]


def test_a_full_disk_is_no_error_and_leaves_nothing(folder, full_at):
    with full_at(100):
        assert kept_on_disk("kind", "key", lambda: "x" * 1000) == "x" * 1000
    assert not list(folder.iterdir())
    kept_on_disk("kind", "key", lambda: 1)
    assert kept_on_disk("kind", "key", fail) == 1
