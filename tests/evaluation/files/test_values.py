"""What parsers let pass silently, or raise without a place, is one sentence that names the place and the way out."""

import json

import pytest

from hf_alignbeam.evaluation.files.values import check_value, parse_json, parse_yaml

YAML = {
    "a doubled key": ("a: 1\nb: {c: 1, c: 2}\n", "line 2 gives the key `c` again, which line 2 gives. Remove one"),
    "a doubled key at the top": ("model: x\nprompts: y\n\nmodel: z", "line 4 gives the key `model` again, which line 1 gives"),
    "a doubled key in another spelling": ('a: 1\n"a": 2', "line 2 gives the key `a` again"),
    "half a character": ('a: ["fine", "\\ud83d"]', r"got half a character, '\\ud83d'"),
    "half a character as a key": ('"\\udc00x": 1', "got half a character"),
    "deep lists": ("[" * 50_000, "must not be nested so deeply"),
    "deep, but parsed": ("a: " + "[" * 120 + "]" * 120, "must have at most 100 levels"),
    "a list of itself": ("a: &a [*a]", "must have at most 100 levels"),
    "a billion values": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
        "1,000,000 values",
    ),
    "no date": ("a: 2024-13-45", "month must be in 1..12"),
    "no number": ("a: " + "9" * 5000, "Exceeds the limit"),
    "no boolean": ("a: !!bool perhaps", "must be YAML: 'perhaps'"),
    "no timestamp": ("a: !!timestamp soon", "must be YAML"),
    "an object": ("a: !!python/object:os.system {}", "could not determine a constructor"),
    "a key without a hash": ("? [a]\n: 1", "found unhashable key"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "a tab": ("a:\n\tb: 1", "line 2"),
    "a control character": ("a: \x1b[2J", "special characters are not allowed"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_would_be_misread_is_an_error_with_its_place(case):
    text, message = YAML[case]
    with pytest.raises(ValueError, match="^The recipe r.yaml must") as caught:
        parse_yaml(text, "The recipe r.yaml")
    assert message.replace("\\\\", "\\") in str(caught.value)


def test_yaml_with_anchors_and_merged_keys_is_read():
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3, y: [*a, *a]}"
    assert parse_yaml(text, "") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3, "y": [{"x": 1}, {"x": 1}]}}


def test_json_keeps_every_value_and_reports_what_it_would_drop():
    value = {"a": [1, 2.5, None, True, "\U0001f600"], "b": {"a": {}}}
    assert parse_json(json.dumps(value), "") == value
    check_value(parse_json(json.dumps(value), ""), "")
    for text, message in (('{"a": {"b": 1, "b": 1}}', "given 'b' twice"), ('["\\ude00"]', "half a character")):
        with pytest.raises(ValueError, match=message.replace("given", "got")):
            check_value(parse_json(text, "x"), "x")
