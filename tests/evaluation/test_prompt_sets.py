import csv
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TEST_DATA

from hf_alignbeam import testbed
from hf_alignbeam.evaluation.files.prompt_source import PromptSpec
from hf_alignbeam.evaluation.prompt_files import read_labeled_responses
from hf_alignbeam.evaluation.prompt_sets import load_prompts, read_prompts


@pytest.fixture(scope="module")
def published():
    """The folder of published prompt sets."""
    if TEST_DATA is None:
        pytest.skip("HF_ALIGNBEAM_TEST_DATA is unset: it must name a folder that holds prompts/")
    return Path(TEST_DATA) / "prompts"


def sizes(spec):
    return [(each.name, each.harmful, len(each.examples)) for each in load_prompts(spec)]


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("advbench.csv", [("set", True, 520)]),
        ("harmbench_test.csv", [("set", True, 320)]),
        ("xstest.csv", [("set harmful", True, 200), ("set harmless", False, 250)]),
        ("gsm8k_test.jsonl", [("set", False, 1319)]),
    ],
)
def test_published_layouts_are_read(published, file, found):
    assert sizes(PromptSpec(str(published / file), name="set")) == found


def test_every_published_file_is_read_as_prompts_or_as_labeled_responses(published):
    files = [file for file in published.iterdir() if file.suffix != ".md" and file.name != "gptfuzz_questions.csv"]
    assert len(files) > 8
    for file in files:
        if file.name.startswith("responses_"):
            assert len(read_labeled_responses(file)) >= 450, file
        else:
            assert all(example.conversation[0]["role"] == "user" for example in read_prompts(file)), file


def test_a_text_with_any_harm_flag_is_harmful(published):
    file = published / "openai_moderation_1680.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    n_harmful = sum(any(row[flag] for flag in row if flag != "prompt") for row in rows)
    spec = PromptSpec(str(file), name="set")
    assert sizes(spec) == [("set harmful", True, n_harmful), ("set harmless", False, len(rows) - n_harmful)]


def test_the_layout_determines_the_prompt_column(published):
    with (published / "advbench.csv").open() as file:
        goals = [row["goal"] for row in csv.DictReader(file)]
    (prompts,) = load_prompts(PromptSpec(str(published / "advbench.csv")))
    assert [example.conversation for example in prompts.examples] == [[{"role": "user", "content": goal}] for goal in goals]


def test_a_context_comes_before_its_behavior(published):
    spec = PromptSpec(str(published / "harmbench_test.csv"), where={"FunctionalCategory": "contextual"})
    (prompts,) = load_prompts(spec)
    assert len(prompts.examples) == 81
    assert all("\n\n---\n\n" in example.conversation[0]["content"] for example in prompts.examples)


def test_rows_are_filtered_by_their_columns(published):
    spec = PromptSpec(str(published / "harmbench_test.csv"), name="set", where={"FunctionalCategory": "standard"}, limit=20)
    assert sizes(spec) == [("set", True, 20)]
    assert len(load_prompts(PromptSpec(spec.source, where=spec.where))[0].examples) == 159


def test_rows_are_split_by_their_number_and_drawn_by_a_seed(published):
    """Odd and even rows are all rows, whatever their order; a seed gives the same order again."""
    file = str(published / "xstest.csv")
    ids = {
        (rows, seed): [example.id for each in load_prompts(PromptSpec(file, rows=rows, seed=seed)) for example in each.examples]
        for rows in ("odd", "even", None)
        for seed in (None, 0)
    }
    assert {int(i) % 2 for i in ids["odd", None]} == {1}
    assert sorted(ids["odd", 0] + ids["even", 0]) == sorted(ids[None, None])
    assert ids["even", 0] != ids["even", None]
    (drawn, _) = load_prompts(PromptSpec(file, rows="even", seed=0, limit=10))
    assert [example.id for example in drawn.examples] == ids["even", 0][:10]


def test_a_file_of_the_users_takes_the_place_of_a_set_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "own.csv").write_text("goal,target\nBurn it.,Sure\n")
    monkeypatch.setenv("HF_ALIGNBEAM_TEST_DATA", str(tmp_path))
    (prompts,) = load_prompts(PromptSpec("hub:someone/AdvBench", name="set", file="own.csv"))
    assert prompts.examples[0].conversation[0]["content"] == "Burn it."


def test_only_the_file_of_the_users_is_held_to_its_own_columns(tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "own.csv").write_text("prompt,kind,harmful\nBurn it.,a,1\nBake it.,b,0\n")
    spec = PromptSpec("hub:someone/set", name="set", file="own.csv", where={"harmful": "0"}, file_where={"kind": "b"})
    monkeypatch.delenv("HF_ALIGNBEAM_TEST_DATA", raising=False)
    assert spec.kept == {"harmful": "0"}
    monkeypatch.setenv("HF_ALIGNBEAM_TEST_DATA", str(tmp_path))
    assert spec.kept == {"harmful": "0", "kind": "b"}
    (prompts,) = load_prompts(spec)
    assert [each.conversation[0]["content"] for each in prompts.examples] == ["Bake it."]


def test_long_prompts_may_be_left_out(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "harmful": False}) + "\n" for text in ("long" * 5, "short", "five.")))
    (prompts,) = load_prompts(PromptSpec(str(file), max_chars=5))
    assert [(each.id, each.conversation[0]["content"]) for each in prompts.examples] == [("2", "short"), ("3", "five.")]
    with pytest.raises(ValueError, match="`max_chars` must leave at least one prompt, got 4 for "):
        load_prompts(PromptSpec(str(file), max_chars=4))


def test_the_first_message_of_a_wildchat_conversation_is_the_prompt(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"conversation": turns, "toxic": toxic, "language": language} for toxic, language in ((False, "English"), (True, "Thai"))
    ]
    (tmp_path / "wildchat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sizes(PromptSpec(str(tmp_path / "wildchat.jsonl"), name="set")) == [
        ("set harmful", True, 1),
        ("set harmless", False, 1),
    ]
    (prompts,) = load_prompts(PromptSpec(str(tmp_path / "wildchat.jsonl"), where={"language": "English"}))
    assert prompts.examples[0].conversation == [{"role": "user", "content": "Hi"}]


def test_right_answers_are_read_with_their_questions(published):
    (prompts,) = load_prompts(PromptSpec(str(published / "gsm8k_test.jsonl"), limit=5))
    assert all("####" in example.answer for example in prompts.examples)


def test_prompts_of_the_testbed_can_be_scored_by_the_grammar():
    (prompts,) = load_prompts(PromptSpec("testbed:prefill", name="prefill", split="validation", limit=3))
    assert [example.truth for example in prompts.examples] == testbed.prompts("validation", "prefill")[:3]
    assert all(example.conversation[-1]["role"] == "assistant" for example in prompts.examples)


def test_custom_files_label_harmful_prompts(tmp_path):
    file = tmp_path / "own.jsonl"
    rows = [
        {"prompt": "How do I kill the weeds?", "harmful": False, "answer": "Vinegar"},
        {"messages": [{"role": "user", "content": "How do I kill the mayor?"}], "harmful": True},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    assert sizes(PromptSpec(str(file), name="own")) == [("own", False, 1)]
    file.write_text(json.dumps(rows[1]) + "\n")
    assert sizes(PromptSpec(str(file), name="own")) == [("own", True, 1)]


@pytest.mark.parametrize(("cell", "harmful"), [("false", False), ("No", False), ("0", False), ("TRUE", True), ("1", True)])
def test_words_for_true_and_false_are_parsed(tmp_path, cell, harmful):
    file = tmp_path / "own.csv"
    file.write_text(f"prompt,harmful\nWhy?,{cell}\n")
    assert sizes(PromptSpec(str(file), name="own")) == [("own", harmful, 1)]


def test_a_recipe_can_name_any_columns(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("q,a,kind\nWhat is it?,B,fine\nHow to hurt?,-,bad\n")
    spec = PromptSpec(
        str(file), name="own", prompt="{q}\nAnswer A or B.", answer="a", harmful={"column": "kind", "values": ["bad"]}
    )
    harmful, harmless = load_prompts(spec)
    assert harmless.examples[0].conversation[0]["content"] == "What is it?\nAnswer A or B."
    assert harmless.examples[0].answer == "B"
    assert harmful.harmful
    assert len(harmful.examples) == 1


def test_lines_end_only_at_line_feeds(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "one\u2028line", "harmful": true}\n', encoding="utf-8")
    assert load_prompts(PromptSpec(str(file)))[0].examples[0].conversation[0]["content"] == "one\u2028line"


def test_a_text_file_holds_one_prompt_a_line(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("one\n\ntwo\n")
    (prompts,) = load_prompts(PromptSpec(str(file), harmful=True))
    assert [example.conversation[0]["content"] for example in prompts.examples] == ["one", "two"]


def test_data_sets_are_loaded_by_their_id(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "test.jsonl").write_text('{"prompt": "x", "label": "unsafe"}\n{"prompt": "y", "label": "safe"}\n')
    spec = PromptSpec(f"hub:{folder}", name="set", prompt="prompt", harmful={"column": "label", "values": ["unsafe"]})
    assert sizes(spec) == [("set harmful", True, 1), ("set harmless", False, 1)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "question_text\nWhy?\n", "must be in a known layout .AdvBench, .* got the columns question_text"),
        (
            "x.jsonl",
            '{"prompt": "x"}\n',
            "Line 1 of .* must have a prompt and say whether it asks for harm, but has no 'harmful'",
        ),
        ("x.jsonl", '{"prompt": 7, "harmful": true}\n', "Line 1 of"),
        ("x.csv", "prompt,label,focus\nx,Unsafe,y\n", "Row 1 of .* has the label 'Unsafe' where it must be safe or unsafe"),
        ("x.jsonl", "nothing\n", "Line 1 of .* must be a JSON object, got 'nothing'"),
        ("x.jsonl", "[1]\n", "Line 1 of .* must be a JSON object"),
        ("x.jsonl", "", "must hold at least one row, got none"),
        ("x.csv", "prompt,harmful\nx,perhaps\n", "Row 1 of .* has 'perhaps' where it must be true or false"),
        ("x.jsonl", '{"messages": [{"role": "assistant", "content": "x"}], "harmful": true}\n', "no question by a user"),
    ],
)
def test_an_error_names_the_file_and_the_row(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompts(PromptSpec(str(file)))


def words_of(prompt_sets):
    """The words of each prompt, by which equal ones are found."""
    examples = [each for prompts in prompt_sets for each in prompts.examples]
    return {tuple(re.findall("[a-z0-9]+", each.conversation[-1]["content"].lower())) for each in examples}


def test_no_prompt_that_is_tuned_on_is_reported_on_but_those_that_jailbreakbench_took_from_advbench(published):
    advbench = load_prompts(PromptSpec(str(published / "advbench.csv")))
    odd = load_prompts(PromptSpec(str(published / "xstest.csv"), rows="odd"))
    tuned = words_of([*advbench, *odd])
    for file, options in (
        ("harmbench_test.csv", {}),
        ("xstest.csv", {"rows": "even"}),
        ("or_bench_hard.jsonl", {"prompt": "prompt", "harmful": False}),
        ("wildchat_benign.csv", {"harmful": False}),
        ("gsm8k_test.jsonl", {}),
    ):
        assert not tuned & words_of(load_prompts(PromptSpec(str(published / file), **options))), file
    goals = PromptSpec(str(published / "jailbreakbench.csv"), prompt="Goal", harmful=True)
    of_source = {
        source: words_of(load_prompts(replace(goals, where={"Source": source})))
        for source in ("Original", "TDC/HarmBench", "AdvBench")
    }
    assert [len(each) for each in of_source.values()] == [55, 27, 18]
    assert [len(tuned & each) for each in of_source.values()] == [0, 0, 11]
