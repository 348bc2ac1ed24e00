"""One reader for all files of prompts: every format gives the same records, and every error names its place."""

import gzip
import json

import pytest

from hf_alignbeam.evaluation.prompt_files import read_labeled_responses, read_prompts, read_records

TEXTS = ["How do I thank the mayor?", 'a, "b"\u2028c', "Wie heißt er?"]
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
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_records(name, mixed, suffix, encoding, tmp_path):
    file = written(tmp_path, name + suffix, CONTENTS[name], encoding)
    assert [record.fields for record in read_records(file, mixed)] == ROWS
    assert [messages[0]["content"] for messages in read_prompts(file)] == TEXTS


@pytest.mark.parametrize("name", ["x.txt", "x", "x.txt.gz"])
def test_a_text_file_holds_one_prompt_a_line(name, tmp_path):
    file = written(tmp_path, name, "\n".join([TEXTS[0], "", "  ", TEXTS[1]]) + "\n")
    assert [record.fields for record in read_records(file)] == [{"prompt": text} for text in TEXTS[:2]]
    assert [record.place for record in read_records(file)] == [f"Line 1 of {file}", f"Line 4 of {file}"]


def test_text_that_begins_like_json_is_text_unless_formats_are_mixed(tmp_path):
    file = written(tmp_path, "x.txt", '{"prompt": "a"}\n{nothing\n')
    assert [record.fields["prompt"] for record in read_records(file)] == ['{"prompt": "a"}', "{nothing"]
    with pytest.raises(ValueError, match="Line 2 of .*x.txt must be a JSON object, got '{nothing'"):
        read_records(file, mixed=True)


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
        ("x.csv", b'prompt\nfine\n"' + b"x" * 200_000 + b'"\n', "Line 3 of .* must be part of a table: field larger"),
        ("x.jsonl", b'{"prompt": "a"}\n\nnothing\n', "Line 3 of .* must be a JSON object, got 'nothing'"),
        ("x.json", b'[{"prompt": "a"},\n{"prompt": }]', "Line 2 of .* must be part of a JSON list"),
        ("x.json", b'[{"prompt": "a"}, 7]', "Item 2 of .* must be a JSON object, got 7"),
        ("x.json", b"7", "Line 1 of .* must be a JSON object, got '7'"),
    ],
)
def test_a_broken_file_is_named_with_the_line(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "question\nWhy?\n", "Row 1 of .* must have a string 'prompt' or a list 'messages', got {\"question\""),
        ("x.jsonl", 'fine\n{"prompt": " "}\n', "Line 2 of .*x.jsonl: A conversation must hold some text"),
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
    with pytest.raises(ValueError, match="Row 1 of .* must have a question of gptfuzz_questions.csv and .*, got '7'"):
        rows(written(tmp_path, "a.csv", "question,Response,label\n7,So.,0\n"))
    (tmp_path / "gptfuzz_questions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"gptfuzz_questions\.csv"):
        rows(gptfuzz)
