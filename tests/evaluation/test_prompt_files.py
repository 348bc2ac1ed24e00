"""One reader for all files of prompts: every format gives the same records, and every error names its place."""

import csv
import gzip
import json

import pytest

from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.prompt_files import read_labeled_responses, read_records
from hf_alignbeam.evaluation.prompt_sets import load_prompts, read_prompts

TEXTS = ["How do I thank the mayor?", 'a, "b"\u2028c\x85d\x0ce', "Wie heißt er?"]
ROWS = [{"prompt": text, "harmful": "no"} for text in TEXTS]
CONTENTS = {
    "x.csv": "prompt,harmful\n" + "".join('"{}",no\n'.format(text.replace('"', '""')) for text in TEXTS),
    "x.tsv": "prompt\tharmful\n" + "".join('"{}"\tno\n'.format(text.replace('"', '""')) for text in TEXTS),
    "x.json": json.dumps(ROWS, indent=1, ensure_ascii=False),
    "x.jsonl": "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "lines.json": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
}


def written(folder, name, text, encoding="utf-8"):
    file = folder / name
    data = text.encode(encoding)
    file.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_records_to_every_command(name, suffix, encoding, tmp_path):
    file = written(tmp_path, name + suffix, CONTENTS[name], encoding)
    assert [record.fields for record in read_records(file)] == ROWS
    (compared,) = load_prompts(PromptSpec(str(file)))
    for examples in (read_prompts(file), compared.examples):
        assert [each.conversation for each in examples] == [[{"role": "user", "content": text}] for text in TEXTS]
        assert [each.place.endswith(f" of {file}") for each in examples] == [True] * 3


@pytest.mark.parametrize("name", ["x.txt", "x", "x.txt.gz"])
def test_a_text_file_holds_one_prompt_a_line(name, tmp_path):
    file = written(tmp_path, name, "\n".join([TEXTS[0], "", "  ", TEXTS[1]]) + "\n")
    assert [record.fields for record in read_records(file)] == [{"prompt": text} for text in TEXTS[:2]]
    assert [record.place for record in read_records(file)] == [f"Line 1 of {file}", f"Line 4 of {file}"]


MESSAGES = [{"role": "user", "content": "Hello"}]
#: Files by name, with their prompts: each is read as a person means it, or not at all.
MEANT = {
    "x.csv": ("goal,target\nWrite,Sure\n", ["Write"]),
    "behaviors.csv": (",Goal,Target,Behavior,Category\n0,Write,Sure,a,b\n", ["Write"]),
    "cells.csv": ('messages\n"[{""role"": ""user"", ""content"": ""Hello""}]"\n', ["Hello"]),
    "gsm.jsonl": ('{"question": "1 + 1?", "answer": "2"}\n', ["1 + 1?"]),
    "strings.json": ('["a", "b"]', ["a", "b"]),
    "string-lines.jsonl": ('"a"\n"b"', ["a", "b"]),
    "chats.json": (json.dumps([MESSAGES, MESSAGES]), ["Hello", "Hello"]),
    "chat-lines.jsonl": (f"{json.dumps(MESSAGES)}\n{json.dumps({'prompt': MESSAGES})}", ["Hello", "Hello"]),
    "mixed.txt": ('Hi\n{"prompt": "a"}\n', ["Hi", "a"]),
    "old-mac.txt": ("a\rb\r", ["a", "b"]),
    "like-a-table.txt": ("Question, please\nprompt,answer", ["Question, please", "prompt,answer"]),
    "like-json.txt": ("{{char}} is rude\n[INST] Hello\n{nothing\n'quoted', you say?", 4),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_file_is_read_as_it_is_meant(name, tmp_path):
    text, prompts = MEANT[name]
    read = [example.conversation[0]["content"] for example in read_prompts(written(tmp_path, name, text))]
    assert read == (prompts if isinstance(prompts, list) else text.split("\n"))


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_cell_of_a_table_may_be_as_long_as_a_json_text(name, tmp_path):
    limit, text = csv.field_size_limit(), "x" * 200_000
    (record,) = read_records(written(tmp_path, name, f"prompt\n{text}\n"))
    assert record.fields == {"prompt": text}
    assert csv.field_size_limit() == limit


def test_one_object_is_a_json_file_of_one_record(tmp_path):
    file = written(tmp_path, "x.json", json.dumps(ROWS[0], indent=2))
    assert [record.fields for record in read_records(file)] == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.txt", b"fine\n\xff\n", "Line 2 of .* must be text in UTF-8: .*Convert the file"),
        ("x.csv", b"prompt\nfine\n\xff\n", "Line 3 of .* must be text in UTF-8"),
        ("x.txt.gz", b"no gzip", "must be a complete gzip file, as its suffix says"),
        ("x.txt.gz", gzip.compress(b"cut off" * 99, mtime=0)[:-9], "must be a complete gzip file, as its suffix says"),
        ("x.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:12] + b"\xff" * 20, "must be a complete gzip file, as its suffix says"),
        ("x.jsonl", b'{"prompt": "a"}\n\nnothing\n', "Line 3 of .* must be a JSON object, got 'nothing'"),
        ("x.json", b'[{"prompt": "a"},\n{"prompt": }]', "Line 2 of .* must be part of a JSON list"),
        ("x.json", b'[{"prompt": "a"}, 7]', "Item 2 of .* must be a JSON object, got 7"),
        ("x.json", b"7", "Item 1 of .* must be a JSON object, got 7"),
        ("x.jsonl", b'[{"prompt": "a"}, {"prompt": "b"}]\n', "Line 1 of .* must be a JSON object, got .*file of its own"),
        ("x.txt", b'fine\n["a", "b"]\n', "Line 2 of .* must be a JSON object"),
        ("x.txt", b'[\n{"prompt": "a"}\n]\n', r"Line 1 of .* must be a JSON object, got '\['"),
        ("x.txt", b"goal,target\nWrite,Sure\n", "Line 1 of .* must be a prompt, got 'goal,target', which begins a table. Name"),
        ("x.txt", b"id;prompt\n", "which begins a table"),
        (
            "x.csv",
            b"prompt,harmful\nHow, then?,no\n",
            r"Row 1 of .* \(up to line 2\) must have 2 cells, .* got 3: .*Quote a cell",
        ),
        ("x.csv", b"prompt,harmful\nHow?\n", "Row 1 of .* must have 2 cells, .* got 1"),
        ("x.csv", b'prompt,harmful\n"open, no\nWhy,no\n', "Line 3 of .* must be part of a table: unexpected end"),
        ("x.csv", b"prompt,prompt\na,b\n", "Line 1 of .* must name each column once, got 'prompt' twice"),
        ("x.txt", b"fine\na\0b\n", "Line 2 of .* must be text in UTF-8, got a NUL"),
        ("x.parquet", b"PAR1", "must be a table .*, JSON .* or text .*, got the suffix .parquet"),
        ("x.yaml", b"- prompt: a", "got the suffix .yaml"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\\ud800 b"}\n', r"Line 2 of .* got half a character, '\\ud800'"),
        ("x.json", b'[{"prompt": "a"}, {"messages": [{"role": "\\udc41"}]}]', "Item 2 of .* got half a character"),
        ("x.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "Line 1 of .* must give each key once, got 'prompt' twice"),
        ("x.json", b'[{"prompt": "a"}, {"a": {"b": 1, "b": 2}}]', "Item 2 of .* must give each key once, got 'b' twice"),
        ("x.json", b"[" * 100_000, "x.json must not be nested so deeply"),
        ("x.jsonl", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "Line 1 of .* must have at most 100 levels"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "Line 1 of .* must hold numbers that can be read"),
    ],
)
def test_a_broken_file_is_named_with_the_line(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            "question\nWhy?\n",
            "Row 1 of .* must have 'prompt' or 'messages', or be in a known layout .*, got {\"question\"",
        ),
        ("x.txt", 'fine\n{"prompt": " "}\n', "Line 2 of .*x.txt: A conversation must hold some text"),
        (
            "x.jsonl",
            '{"messages": [{"role": 7, "content": "a"}]}',
            "Line 1 of .*x.jsonl: A message of `conversations` must have 'role' and 'content' .*, got {'role': 7",
        ),
        ("x.jsonl", '{"prompt": null}', "Line 1 of .*x.jsonl: A conversation must be a string or a list of messages, got None"),
        ("x.csv", 'messages\n"[{""role"": "\n', 'Row 1 of .* must have a list of messages in JSON, got {"messages"'),
        ("x.json", '[{"messages": [{"role": "user"}]}]', "Item 1 of .*x.json: A message of `conversations` must have 'role'"),
    ],
)
def test_a_record_without_a_conversation_is_named(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_prompts(written(tmp_path, name, text))


def test_labeled_responses_come_from_every_format_of_json(tmp_path):
    rows = [{"prompt": "Why?", "response": "No.", "harmful": False}, {"messages": [], "response": "No.", "harmful": False}]
    for name, text in (("x.json", json.dumps(rows[:1])), ("x.jsonl.gz", json.dumps(rows[0])), ("x", json.dumps(rows[0]))):
        (labeled,) = read_labeled_responses(written(tmp_path, name, text))
        assert (labeled.conversation, labeled.response, labeled.harmful) == ([{"role": "user", "content": "Why?"}], "No.", False)
    with pytest.raises(ValueError, match="Item 2 of .*x.json: A conversation must hold some text"):
        read_labeled_responses(written(tmp_path, "x.json", json.dumps(rows)))


@pytest.mark.parametrize("name", [name for name in CONTENTS if name != "x.json"])
def test_labels_are_the_same_in_every_format(name, tmp_path):
    text = (
        CONTENTS[name]
        .replace("prompt,harmful", "response,harmful,prompt")
        .replace("prompt\tharmful", "response\tharmful\tprompt")
    )
    text = text.replace(",no", ",no,Why?").replace("\tno", "\tno\tWhy?").replace('"prompt": ', '"prompt": "Why?", "response": ')
    read = read_labeled_responses(written(tmp_path, name, text, "utf-8-sig"))
    assert [(each.response, each.harmful) for each in read] == [(each, False) for each in TEXTS]
    assert {each.conversation[0]["content"] for each in read} == {"Why?"}


def test_labeled_responses_come_from_published_layouts(tmp_path):
    written(tmp_path, "gptfuzz_questions.csv", "index,text\n0,How?\n1,Why?\n")
    gptfuzz = written(tmp_path, "a.csv", 'question,Response,label\n1,"So,\n""so"".",0\n0,Thus.,1\n')
    xstest = written(
        tmp_path,
        "b.csv",
        "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label,gpt4_label\n"
        "1,homonyms,How?,Thus.,,,,1_full_compliance,\n2,contrast_homonyms,Why?,So.,,,,1_full_compliance,\n"
        "3,contrast_homonyms,Why?,No.,,,,2_full_refusal,\n4,contrast_homonyms,Why?,Well.,,,,3_partial_refusal,\n",
    )

    def rows(path):
        return [(each.conversation[0]["content"], each.response, each.harmful) for each in read_labeled_responses(path)]

    assert rows(gptfuzz) == [("Why?", 'So,\n"so".', False), ("How?", "Thus.", True)]
    assert rows(xstest) == [("How?", "Thus.", False), ("Why?", "So.", True), ("Why?", "No.", False), ("Why?", "Well.", False)]
    with pytest.raises(ValueError, match="Line 2 of .* must have 'prompt'"):
        rows(written(tmp_path, "c.jsonl", '{"prompt": "a", "response": "b", "harmful": false}\n{"prompt": "a"}\n'))
    with pytest.raises(ValueError, match="Row 1 of .* must have a question of gptfuzz_questions.csv and .*, got '7'"):
        rows(written(tmp_path, "a.csv", "question,Response,label\n7,So.,0\n"))
    with pytest.raises(ValueError, match="Row 1 of .* must have a final_label that begins with 1, 2 or 3, got ''"):
        rows(written(tmp_path, "c.csv", "type,prompt,completion,final_label\nhomonyms,How?,Thus.,\n"))
    (tmp_path / "gptfuzz_questions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"gptfuzz_questions\.csv"):
        rows(gptfuzz)
