"""A log that survives the death of its writer."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hf_alignbeam.utils.jsonl_log import JsonlLog, append_shared, check_records, drop_torn_line, read_records


def write(path, *records):
    log = JsonlLog(path)
    log.append(*records)
    log.close()


def test_appended_records_are_read_back_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, {"n": 0}, {"n": 1})
    write(path, {"n": 2})
    assert list(read_records(path)) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_several_files_are_read_one_after_the_other(tmp_path):
    write(tmp_path / "a.jsonl", {"n": 0}, {"n": 1})
    write(tmp_path / "b.jsonl", {"n": 2})
    (tmp_path / "c.jsonl").touch()
    assert list(read_records(*sorted(tmp_path.iterdir()))) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert list(read_records()) == []


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\rb", "a\nb", "é\U0001f600", ""])
def test_line_separators_inside_a_record_do_not_end_its_line(text, tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, {"text": text}, {"text": "next"})
    assert path.read_bytes().count(b"\n") == 2
    assert list(read_records(path)) == [{"text": text}, {"text": "next"}]


def test_files_are_utf_8_in_any_locale(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import pathlib, sys; from hf_alignbeam.utils.jsonl_log import JsonlLog; "
        "JsonlLog(pathlib.Path(sys.argv[1])).append({'text': 'D\\u00e9sol\\u00e9'})"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, path], check=True, env=ascii_only)
    assert path.read_bytes() == '{"text": "Désolé"}\n'.encode()
    assert list(read_records(path)) == [{"text": "Désolé"}]


KILLED = """
import os, pathlib, signal, sys
from hf_alignbeam.utils.jsonl_log import JsonlLog
log = JsonlLog(pathlib.Path(sys.argv[1]))
log.append({"n": 0})
log.append({"n": 1}, {"n": 2})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_every_record_that_it_appended(tmp_path):
    path = tmp_path / "log.jsonl"
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -signal.SIGKILL
    assert list(read_records(path)) == [{"n": 0}, {"n": 1}, {"n": 2}]
    write(path, {"n": 3})
    assert list(read_records(path)) == [{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]


def test_wherever_a_file_is_torn_its_whole_lines_stay_and_more_can_be_appended(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in ("Désolé", "\u2028", "é")]
    data = b"".join(lines)
    for n_bytes in range(len(data) + 1):
        path.write_bytes(data[:n_bytes])
        whole = [json.loads(line) for n, line in enumerate(lines) if n_bytes >= len(b"".join(lines[: n + 1]))]
        assert list(read_records(path)) == whole
        write(path, {"text": "next"})
        assert list(read_records(path)) == [*whole, {"text": "next"}]


def test_reading_leaves_a_torn_line_to_its_writer(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n"')
    assert list(read_records(path)) == [{"n": 0}]
    assert path.read_bytes() == b'{"n": 0}\n{"n"'
    drop_torn_line(path)
    assert path.read_bytes() == b'{"n": 0}\n'


def test_dropping_a_torn_line_creates_no_file(tmp_path):
    drop_torn_line(tmp_path / "log.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_whole_line_that_is_not_json_is_an_error(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n"\n')
    with pytest.raises(ValueError, match="log.jsonl must hold JSON in UTF-8, but line 2 is not: .* Delete the line"):
        list(read_records(path))
    path.write_bytes(b"3\n")
    with pytest.raises(ValueError, match="one JSON object a line, but line 1 holds 3"):
        list(read_records(path))


def test_dataclasses_are_written_as_dictionaries(tmp_path):
    @dataclass
    class Cost:
        tokens: int

    write(tmp_path / "log.jsonl", {"cost": Cost(3)})
    assert list(read_records(tmp_path / "log.jsonl")) == [{"cost": {"tokens": 3}}]


def test_a_record_that_json_cannot_hold_is_an_error_and_writes_nothing(tmp_path):
    log = JsonlLog(tmp_path / "log.jsonl")
    with pytest.raises(TypeError):
        log.append({"n": 0}, {"n": object()})
    log.close()
    assert list(read_records(tmp_path / "log.jsonl")) == []


NULS = b"\0" * 40


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (b'{"n": 0}\n' + NULS, [0]),
        (NULS, []),
        (NULS + b"\n", []),
        (b'{"n": 0}\n' + NULS + b'": 1}\n{"n": 2}\n', [0, 2]),
        (b'{"n": 0}\n{"n": 1, "te' + NULS + b'\n{"n": 2}\n' + NULS, [0, 2]),
    ],
)
def test_nuls_that_a_power_cut_left_cost_only_their_own_lines(data, numbers, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(data)
    write(path, {"n": 9, "text": "\0"})
    assert [record["n"] for record in read_records(path)] == [*numbers, 9]


def test_a_log_has_one_writer_at_a_time_even_after_a_kill(tmp_path):
    path = tmp_path / "log.jsonl"
    first = JsonlLog(path)
    with pytest.raises(ValueError, match="of one run at a time, but another one writes to .*log.jsonl now"):
        JsonlLog(path)
    first.append({"n": 0})
    first.close()
    subprocess.run([sys.executable, "-c", KILLED, path])
    write(path, {"n": 3})
    assert [record["n"] for record in read_records(path)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("append", ["own", "shared"])
def test_a_full_disk_is_an_error_that_leaves_whole_lines_and_takes_more_later(append, full_at, tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path) if append == "own" else None
    add = log.append if log else lambda record: append_shared(path, record)
    add({"n": 0, "text": "x" * 300})
    with full_at(500), pytest.raises(OSError, match="File too large"):
        add({"n": 1, "text": "x" * 300})
    assert path.read_bytes().endswith(b'x"}\n')
    add({"n": 2})
    assert [record["n"] for record in read_records(path)] == [0, 2]
    if log:
        log.close()


def test_what_utf_8_cannot_hold_is_escaped(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, {"text": "a\ud800"}, {"text": "\u00e9"})
    assert path.read_bytes() == b'{"text": "a\\ud800"}\n{"text": "\xc3\xa9"}\n'
    assert list(read_records(path)) == [{"text": "a\ud800"}, {"text": "\u00e9"}]


APPENDING = """
import pathlib, sys
from hf_alignbeam.utils.jsonl_log import append_shared
for n in range(200):
    append_shared(pathlib.Path(sys.argv[1]), {"n": n, "text": "x" * 5000})
"""


def test_a_shared_file_loses_no_record_of_several_writers_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n"')
    writers = [subprocess.Popen([sys.executable, "-c", APPENDING, path]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(record["n"] for record in read_records(path)) == sorted([*range(200)] * 2)


KINDS = {"id", "answer"}, {"id", "error"}


@pytest.mark.parametrize(
    "contents", [None, "", '{"id": "", "answer": "So."}\n', '{"id": "", "error": "No."}\n{"x": 1}\n', '{"id": "7', '{"i']
)
def test_a_file_that_is_new_or_of_the_same_kind_may_be_written_to(contents, tmp_path):
    if contents is not None:
        (tmp_path / "out").write_text(contents)
    check_records(tmp_path / "out", "--to", *KINDS, torn=b'{"id": ')
    check_records(Path("/dev/null"), "--to", *KINDS)


@pytest.mark.parametrize(
    "contents",
    [
        "How do I bake?\n",
        '{"prompt": "How?"}\n',
        '{"answer": "18"}\n',
        '{"id": 1}',
        '{"notes": 1}',
        "a,b\n",
        "[1]\n",
        "{\n}\n",
        "\x00",
    ],
)
def test_a_file_of_something_else_is_not_written_to(contents, tmp_path):
    (tmp_path / "own").write_text(contents)
    with pytest.raises(ValueError, match="--to must be new, or as this wrote it before, but .*own holds something else"):
        check_records(tmp_path / "own", "--to", *KINDS, torn=b'{"id": "')
