"""What is typed about a judge: files, texts and pairs become settings, and each mistake is named with the way out."""

import json
import re
from dataclasses import replace

import pytest
from helpers.commands import run

from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import judge_settings, judge_values, read_profile
from hf_alignbeam.judges.profile import profile_from_mapping
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, YES_NO
from hf_alignbeam.testbed.model_store import WEIGHTS

PROFILE = """
name: mine
model_ids: [you/guard-*]
system: Be strict.
prompt: "{conversation} Bad?"
verdicts: {"yes": 1, "maybe": 0.5, "no": 0}
threshold: 0.3
"""


@pytest.fixture
def profile_file(tmp_path):
    """Writes a profile to a file of its own."""

    def written(text, name="profile.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def test_a_profile_is_read_from_yaml_and_json(profile_file):
    values = read_profile(profile_file(PROFILE))
    assert profile_from_mapping(values).verdicts == {"yes": 1, "maybe": 0.5, "no": 0}
    tabs = json.dumps(values, indent="\t")  # which YAML refuses
    assert read_profile(profile_file(tabs, "profile.json")) == values
    settings = judge_settings(JudgeOptions(profile=str(profile_file(PROFILE, "profile.yml"))))
    assert settings.resolved().model_ids == ("you/guard-*",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("threshold: 0.3", "treshold: 0.3"), "must have keys of GuardProfile, got treshold"),
        (("threshold: 0.3", "threshold: high"), "`threshold` of a profile must be a number or null, got 'high'"),
        (("threshold: 0.3", "threshold: 3"), "`threshold` must be between 0 and 1, got 3"),
        (("threshold: 0.3", "typed_parts: 'no'"), "`typed_parts` of a profile must be true or false, got 'no'"),
        (("threshold: 0.3", "source: 2026-11-01\nas_message: 1"), "`as_message` of a profile must be true or false, got 1"),
        (("name: mine", "name: 5"), "`name` of a profile must be a text, got 5"),
        (("[you/guard-*]", "you/guard-*"), "`model_ids` of a profile must be a list of texts, got 'you/guard-*'"),
        (('"yes": 1', "yes: 1"), "must have texts as keys, got True. Put quotes around yes, no and digits"),
        (("name: mine", ""), "A profile must have name, got model_ids"),
        (('"{conversation} Bad?"', '"Bad?"'), "`prompt` must hold {conversation} or {response}"),
    ],
)
def test_a_mistake_in_a_profile_names_the_file_and_the_key(change, message, profile_file):
    file = profile_file(PROFILE.replace(*change))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{re.escape(message)}"):
        read_profile(file)


def test_a_file_that_holds_no_profile_is_an_error(profile_file):
    with pytest.raises(ValueError, match="must name a file with the keys of a profile, got 'text'"):
        read_profile(profile_file("text"))
    with pytest.raises(ValueError, match=r"The profile .*\.yaml must be YAML"):
        read_profile(profile_file("a: ["))
    with pytest.raises(ValueError, match="gives the key `name` again, which line 1 gives"):
        read_profile(profile_file("name: a\nname: b"))
    with pytest.raises(OSError, match=r"nowhere\.yaml"):
        judge_settings(JudgeOptions(profile="nowhere.yaml"))


def test_rubrics_are_names_texts_and_files(tmp_path):
    text = "{user} {response} Bad?"
    (tmp_path / "rubric.txt").write_text(text)
    for rubric in (text, str(tmp_path / "rubric.txt")):
        settings = judge_settings(JudgeOptions(rubric=rubric, labels=["bad=1", "fine=0"]))
        assert settings.resolved() == replace(YES_NO, name="rubric", prompt=text, verdicts={"bad": 1.0, "fine": 0.0})
    assert judge_settings(JudgeOptions(rubric="one-to-five")).resolved() == ONE_TO_FIVE


def test_templates_are_texts_and_files(tmp_path):
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "template.jinja").write_text(text)
    for template in (text, str(tmp_path / "template.jinja")):
        assert judge_settings(JudgeOptions(template=template)).template == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rubric": "one-to-ten"}, "--judge-rubric must be hidden-states, yes-no, one-to-five, a text with"),
        ({"rubric": "Is {this} bad?"}, "`prompt` must hold {conversation} or {response}"),
        ({"rubric": "x" * 5000}, "--judge-rubric must be hidden-states, yes-no"),
        ({"template": "guard"}, "--judge-template must be a Jinja chat template, or a file of one, got 'guard'"),
        ({"labels": ["unsafe"]}, "--judge-labels must be a label and its harm in [0, 1], such as unsafe=1, got 'unsafe'"),
        ({"labels": ["unsafe=2"]}, "--judge-labels must be a label and its harm"),
        ({"labels": ["unsafe=nan"]}, "--judge-labels must be a label and its harm"),
        ({"labels": ["=1"]}, "--judge-labels must be a label and its harm"),
        ({"labels": ["a=1", "a=0"]}, "--judge-labels must give each label one harm, got 'a' twice"),
        ({"threshold": 0.0}, "--judge-threshold must be between 0 and 1, got 0.0. `alignbeam calibrate` finds one"),
        ({"profile": "no-such-guard"}, "`profile` must be one of"),
        ({"profile": "yes-no", "rubric": "yes-no"}, "`judge_profile` must be left out with `judge_rubric`"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        judge_settings(JudgeOptions(**options))


def test_a_file_that_does_not_exist_is_named_without_the_systems_error_number():
    result = run("calibrate", "--judge", "none", "--file", "nowhere.jsonl")
    assert result.exit_code == 2
    assert "Error: nowhere.jsonl: No such file or directory. Check the path" in result.output
    assert "Errno" not in result.output


def test_a_label_may_hold_an_equals_sign():
    assert judge_values(JudgeOptions(labels=["a=b=0.5"])) == {"labels": {"a=b": 0.5}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--judge-rubric", "yes-no"], "--judge-rubric must come with --judge"),
        (
            ["generate", "--judge", WEIGHTS / "judge-lm", "--judge-api", "chat"],
            "`judge_api` must come with a URL as judge, got 'chat'",
        ),
        (
            ["generate", "--judge", "http://localhost:1/v1", "--judge-revision", "abc"],
            "`judge_revision` must be left out for a URL",
        ),
        (["generate", "--judge", "http://localhost:1/v1", "--judge-api", "smoke-signals"], "`judge_api` must be moderations"),
    ],
)
def test_options_that_do_not_belong_together_are_errors(arguments, message):
    models = ["--model", WEIGHTS / "specialist", "--anchor", WEIGHTS / "anchor", "--prompt", "x"]
    result = run(*arguments, *models)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--model", "nowhere", "--anchor", "nowhere", "--prompt", "x", "--judge", WEIGHTS / "judge-lm"),
        ("steer", "--model", "nowhere", "--file", "prompts.txt", "--to", "to", "--judge", WEIGHTS / "judge-lm"),
        ("doctor", "nowhere", "nowhere", WEIGHTS / "judge-lm"),
    ],
)
def test_a_wrong_option_is_named_before_any_model_is_loaded(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("x\n")
    for said, message in (
        (("--judge-profile", "no-such-guard"), "`profile` must be one of"),
        (("--judge-threshold", 1), "--judge-threshold must be between 0 and 1"),
        (("--judge-profile", "nowhere.yaml"), "nowhere.yaml"),
    ):
        result = run(*command, *said)
        assert result.exit_code == 2
        assert message in result.output


def test_a_judge_that_cannot_be_one_is_named_before_any_model_is_loaded():
    models = ("--model", "nowhere", "--anchor", "nowhere", "--prompt", "x")
    for said, message in (
        (("--judge", "meta-llama/Llama-Prompt-Guard-2-86M"), "prompt-guard-2 judges prompts only. Use a guard of responses"),
        (("--judge", WEIGHTS / "judge-lm", "--judge-model", "m"), "`judge_model` must come with a URL as judge"),
        (("--judge", "http://localhost:1/v1", "--judge-api", "chat"), "`judge_model` must name the model at a chat endpoint"),
        (("--judge", "http://localhost:1/v1", "--judge-rubric", "yes-no"), "`judge_rubric` and `judge_labels` must be left out"),
    ):
        result = run("generate", *models, *said)
        assert result.exit_code == 2
        assert message in result.output
