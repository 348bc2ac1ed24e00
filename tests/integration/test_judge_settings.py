"""A judge is the same wherever it is named: no setting exists at one entry only, and each has the same effect at all."""

import inspect
import json
from dataclasses import fields, replace

import pytest
import torch
import typer
from helpers.commands import run
from helpers.entries import ANCHOR, JUDGE, TARGET, TRUSTED
from helpers.strategies import chats_of, texts
from helpers.variety import mostly_slow
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_alignbeam import AlignBeam, LLMJudge, testbed
from hf_alignbeam.cli.app import app
from hf_alignbeam.cli.judges.options import JudgeOptions
from hf_alignbeam.cli.judges.settings import judge_spec_values, load_optioned_judge
from hf_alignbeam.evaluation.recipe import JudgeSpec, parse_recipe
from hf_alignbeam.evaluation.systems import RecipeModels
from hf_alignbeam.hub import alignbeam, embedding_steerer
from hf_alignbeam.hub.judge_loading import JUDGE_ARGUMENTS, JudgeSettings, judge_from_arguments, load_judge
from hf_alignbeam.hub.protected.generate import check_protection
from hf_alignbeam.hub.publish import card_template, write_protected, write_strategy
from hf_alignbeam.judges.profiles.general import SAFE_UNSAFE, YES_NO
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language

NAMES = [each.name for each in fields(JudgeSettings)]
CPU = torch.device("cpu")
#: The default of `helpers.strategies.texts`.
MAX_NEW_TOKENS = 40
#: The verdicts of the testbed's guard the other way round, so that it flags harmless answers.
INVERTED = {"name": "inverted", "verdicts": {"safe": 1.0, "unsafe": 0.0}}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>verdict\n{% endif %}"
)
RUBRIC = "{response}"


def commands_with_a_judge():
    commands = typer.main.get_command(app).commands
    return {name: each for name, each in commands.items() if any(parameter.name == "judge" for parameter in each.params)}


def test_every_command_with_a_judge_has_every_option():
    commands = commands_with_a_judge()
    assert set(commands) == {"generate", "steer", "evaluate", "doctor", "calibrate", "tune", "protect"}
    expected = {f"--judge-{each.name}" for each in fields(JudgeOptions)}
    assert {f"--judge-{name}" for name in NAMES} | {"--judge-api", "--judge-model"} == expected
    for name, command in commands.items():
        assert expected <= {option for parameter in command.params for option in parameter.opts}, name


def test_every_option_reaches_the_settings(tmp_path):
    typed = {"profile": "safe-unsafe", "rubric": RUBRIC, "template": TEMPLATE, "labels": ["safe=1"], "threshold": 0.3}
    typed |= {"revision": "abc", "api": "chat", "model": "m"}
    assert set(typed) == {each.name for each in fields(JudgeOptions)}
    for name, value in typed.items():
        given = judge_spec_values(JudgeOptions(**{name: value}))
        assert given == {name: {"safe": 1.0} if name == "labels" else value}
        if name in NAMES:  # the others need a URL
            assert getattr(JudgeSpec("j", **given).settings, name) == given[name]


def test_a_recipe_the_hub_entries_and_a_protected_model_take_every_setting():
    assert set(NAMES) <= set(JudgeSpec.__pydantic_fields__)
    assert {*JUDGE_ARGUMENTS} == {*(f"judge_{name}" for name in NAMES), "judge_tokenizer"}
    assert set(JUDGE_ARGUMENTS) <= set(alignbeam.MODEL_ARGUMENTS)
    for name in NAMES:
        check_protection({"anchor": "a", "judge": "j", f"judge_{name}": None})
        for entry in (alignbeam.alignbeam, embedding_steerer.embedding_steerer):
            assert f"`judge_{name}`" in inspect.getdoc(entry)
        for card in ("alignbeam", "embedding-steerer"):
            assert f"`judge_{name}`" in card_template(card).read_text()


CASES = {
    "nothing": ({}, {}, lambda: LLMJudge(*testbed.load("judge-lm"))),
    "threshold": ({"threshold": 0.05}, {}, lambda: LLMJudge(*testbed.load("judge-lm"), threshold=0.05)),
    "profile": (
        {"profile": INVERTED},
        {},
        lambda: LLMJudge(*testbed.load("judge-lm"), replace(SAFE_UNSAFE, verdicts=INVERTED["verdicts"])),
    ),
    "known profile": ({"profile": "safe-unsafe"}, {}, lambda: LLMJudge(*testbed.load("judge-lm"), "safe-unsafe")),
    "labels": (
        {"labels": {"unsafe": 0.5}},
        {"labels": ["unsafe=0.5"]},
        lambda: LLMJudge(*testbed.load("judge-lm"), replace(SAFE_UNSAFE, verdicts={"safe": 0.0, "unsafe": 0.5})),
    ),
    "template": (
        {"template": TEMPLATE, "threshold": 0.3},
        {},
        lambda: LLMJudge(*testbed.load("judge-lm"), replace(SAFE_UNSAFE, chat_template=TEMPLATE), 0.3),
    ),
    "rubric": (
        {"rubric": RUBRIC, "labels": {"safe": 0.0, "unsafe": 1.0}, "threshold": 0.2},
        {"labels": ["safe=0", "unsafe=1"]},
        lambda: LLMJudge(*testbed.load("judge-lm"), replace(YES_NO, prompt=RUBRIC, verdicts={"safe": 0.0, "unsafe": 1.0}), 0.2),
    ),
}


@pytest.fixture(scope="module")
def judged():
    """Questions and responses, some of them harmful."""
    found = list(exchanges(stored_language(), "validation", 30, 3))
    return [each.question for each in found], [each.response for each in found]


@pytest.mark.parametrize("case", mostly_slow(CASES, ("profile", "template", "rubric")))
def test_every_entry_loads_the_same_judge(case, judged, specialist, tmp_path):
    values, typed, build = CASES[case]
    expected = build()(*judged)
    default = CASES["nothing"][2]()(*judged)
    assert ((expected - default).abs().nan_to_num(1.0).max() < 0.02) == (case in ("nothing", "known profile"))
    assert expected.isnan().sum() < len(expected)
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(values.get("profile")))
    files = {"profile": str(profile)} if isinstance(values.get("profile"), dict) else {}
    options = JudgeOptions(**{**values, **typed, **files})
    arguments = {f"judge_{name}": value for name, value in values.items()}
    write_protected(TARGET, tmp_path / "protected", {"anchor": ANCHOR, "judge": JUDGE, **arguments})
    stored = json.loads((tmp_path / "protected" / "generation_config.json").read_text())["alignbeam"]
    recipe = parse_recipe({"model": TARGET, "judge": {"name": JUDGE, **values}, "prompts": "x", "systems": "plain"})
    on_testbed = parse_recipe({**TESTBED_RECIPE, "judge": {"name": "testbed:judge-lm", **values}})
    entries = {
        "load_judge": load_judge(JUDGE, JudgeSettings(**values)),
        "a loaded model": load_judge(testbed.load("judge-lm")[0], JudgeSettings(**values), None, testbed.load("judge-lm")[1]),
        "command": load_optioned_judge(JUDGE, options, CPU),
        "recipe": RecipeModels(recipe, recipe.models[0]).load_judge(recipe.judge),
        "recipe on the testbed": RecipeModels(on_testbed, on_testbed.models[0]).load_judge(on_testbed.judge),
        "Hub entry": judge_from_arguments(JUDGE, {**arguments, "judge_tokenizer": None}, specialist[0]),
        "protected model": judge_from_arguments(stored["judge"], {**stored, "judge_tokenizer": None}, specialist[0]),
    }
    for name, judge in entries.items():
        torch.testing.assert_close(
            judge(*judged),
            expected,
            equal_nan=True,
            atol=3e-3,
            rtol=0.01,
            check_dtype=False,
            msg=lambda text, n=name: f"{n}: {text}",
        )


TESTBED_RECIPE = {"model": "testbed:specialist", "prompts": "testbed:general", "systems": "plain"}


def test_every_entry_gives_the_same_answers_with_a_judge_that_is_asked_otherwise(specialist, anchor, tmp_path):
    """The inverted judge flags the harmless answer, which the default one passes."""
    chats = chats_of("general", 1)
    judge = LLMJudge(*testbed.load("judge-lm"), replace(SAFE_UNSAFE, verdicts=INVERTED["verdicts"]), 0.4)
    expected = texts(specialist, chats, AlignBeam(*anchor, specialist[1], judge))
    default = texts(specialist, chats, AlignBeam(*anchor, specialist[1], LLMJudge(*testbed.load("judge-lm"))))
    assert expected != default
    said = {"judge_profile": INVERTED, "judge_threshold": 0.4}
    write_strategy("alignbeam", tmp_path / "strategy")
    folder = str(tmp_path / "strategy")
    named = {"anchor": ANCHOR, "judge": JUDGE, "tokenizer": specialist[1], **TRUSTED, **said}
    assert texts(specialist, chats, folder, **named) == expected
    (tmp_path / "profile.yaml").write_text('name: inverted\nverdicts: {"safe": 1, "unsafe": 0}\n')
    typed = ("--judge", JUDGE, "--judge-profile", tmp_path / "profile.yaml", "--judge-threshold", 0.4)
    models = ("--model", TARGET, "--anchor", ANCHOR)
    result = run("protect", *models, *typed, "--to", tmp_path / "protected")
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "protected", **TRUSTED)
    assert texts((model, AutoTokenizer.from_pretrained(tmp_path / "protected", padding_side="left")), chats) == expected
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": chats[0], "harmful": False}))
    limits = ("--max-new-tokens", MAX_NEW_TOKENS)
    result = run("generate", *models, *typed, *limits, "--file", prompts, "--to", tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "answers.jsonl").read_text())["answer"] == expected[0]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("systems: [alignbeam]\n")
    result = run("evaluate", recipe, *models, *typed, *limits, "--prompts", prompts, "--to", tmp_path / "evaluated")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "evaluated" / "answers-0.jsonl").read_text().splitlines()
    assert [record["text"] for record in map(json.loads, lines) if "text" in record] == expected


def test_a_search_and_a_calibration_ask_the_judge_as_they_are_told(tmp_path):
    prompts, labelled = tmp_path / "prompts.jsonl", tmp_path / "labelled.jsonl"
    prompts.write_text(json.dumps({"messages": chats_of("general", 1)[0]}))
    models = ("--model", WEIGHTS / "thin", "--judge", JUDGE, "--max-calls", 3, "--max-new-tokens", 30)
    for number, (said, outcome) in enumerate([((), "clean"), (("--judge-labels", "safe=1", "--judge-labels", "unsafe=0"), None)]):
        result = run("steer", *models, *said, "--file", prompts, "--to", tmp_path / str(number))
        assert result.exit_code == 0, result.output
        assert ("| clean | 1 |" in result.output) == (outcome == "clean")
    found = list(exchanges(stored_language(), "validation", 40, 2))
    lines = [{"messages": each.question, "response": each.response, "harmful": each.unsafe} for each in found]
    labelled.write_text("\n".join(map(json.dumps, lines)))
    areas = []
    for said in ((), ("--judge-labels", "safe=1", "--judge-labels", "unsafe=0")):
        result = run("calibrate", "--judge", JUDGE, "--file", labelled, *said)
        assert result.exit_code == 0, result.output
        areas.append(float(result.output.partition("AUC ")[2].split(" ")[0]))
    assert areas[0] == pytest.approx(1.0 - areas[1], abs=2e-3)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"judge": "https://example.com/v1"}, "`judge` of a protected model must be a Hub id or a folder"),
        ({"judge_profile": "no-such-guard"}, "must be one of"),
        ({"judge_profile": {"name": "x"}}, "must have verdicts"),
        ({"judge_profile": "safe-unsafe", "judge_rubric": "yes-no"}, "`judge_profile` must be left out"),
        ({"judge_profil": "safe-unsafe"}, "must hold settings of AlignBeam"),
    ],
)
def test_a_protected_model_is_not_written_with_wrong_settings(said, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_protected(TARGET, tmp_path / "protected", {"anchor": ANCHOR, "judge": JUDGE, **said})
    assert not (tmp_path / "protected").exists()


def test_a_profile_object_is_written_as_its_values(tmp_path):
    profile = replace(SAFE_UNSAFE, name="mine", model_ids=("you/guard",))
    write_protected(TARGET, tmp_path / "protected", {"anchor": ANCHOR, "judge": JUDGE, "judge_profile": profile})
    stored = json.loads((tmp_path / "protected" / "generation_config.json").read_text())["alignbeam"]
    assert JudgeSettings(profile=stored["judge_profile"]).resolved() == profile


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"profile": "no-such-guard"}, "`judge`: .*must be one of"),
        ({"revision": "abc"}, "`judge`: `judge_revision` must be left out for a folder"),
        ({"api": "chat"}, "`judge`: `judge_api` must come with a URL"),
        ({"name": "testbed:judge-lm", "api": "chat"}, "`judge`: `judge_api` must be left out for testbed:judge-lm"),
        ({"name": "meta-llama/Llama-Prompt-Guard-2-86M"}, "`judge`: .* judges prompts only"),
        ({"profile": "own.yaml"}, "`judge`: .*got 'own.yaml'. One of your own is given by its values"),
        ({"profile": {"name": "x", "verdicts": {True: 1.0}}}, "`judge`: .*got True. Put quotes around yes, no"),
        ({"profile": 5}, "`profile` of `judge` must be "),
        ({"profile": {"name": "x"}}, "`judge`: A profile must have verdicts"),
        ({"rubric": "Is {this} bad?"}, "`judge`: `prompt` must hold"),
        ({"labels": {"unsafe": 2.0}}, "`labels` of `judge` must be less than or equal to 1"),
        ({"threshold": 1.0}, "`threshold` of `judge` must be less than 1, got 1.0. `alignbeam calibrate`"),
        ({"template": 5}, "`template` of `judge` must be a valid string"),
        ({"profile": "yes-no", "rubric": "yes-no"}, "`judge`: `judge_profile` must be left out"),
    ],
)
def test_an_error_of_a_recipe_names_the_place(judge, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe({**TESTBED_RECIPE, "judge": {"name": JUDGE, **judge}})


def test_a_judge_that_is_a_function_cannot_be_asked_otherwise():
    def judge(conversations, responses):
        return torch.full((len(responses),), 0.2)

    with pytest.raises(ValueError, match="to be asked by a profile, a rubric, a template or labels, got"):
        load_judge(judge, JudgeSettings(profile="safe-unsafe"))
    with pytest.raises(ValueError, match="to be asked by a profile, a rubric, a template or labels, got"):
        load_judge(judge, JudgeSettings(rubric="hidden-states"))
    assert load_judge(judge, JudgeSettings(threshold=0.2))(["How?"], ["x"]).item() == pytest.approx(0.5)
