"""Every setting of every strategy gives the same tokens at every door, None and defaults included, or the same error."""

import copy
import json

import pytest
from helpers.commands import run
from helpers.entries import ANCHOR, CALLS, GUARD, JUDGE, TARGET, TRUSTED
from helpers.searches import framed
from helpers.strategies import chats_of, text_of
from helpers.variety import mostly_slow
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, EmbeddingSteerer, PlausibleAnswer
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.evaluation.recipe import parse_recipe
from hf_alignbeam.evaluation.systems import RecipeModels, build
from hf_alignbeam.hub.protected.generate import ProtectedGenerate
from hf_alignbeam.hub.publish import write_protected
from hf_alignbeam.hub.shared_arguments import setting_names
from hf_alignbeam.presets import PAPER, PROCESSOR, TSA
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges

CLASSES = {"anchor-logits": AnchorLogitsProcessor, "alignbeam": AlignBeam, "embedding-steerer": EmbeddingSteerer}
NEVER = {"n_steps": None, "n_watch": None, "template": None}
#: Groups of settings that are given at once, as JSON can hold them. Each setting is in one of its strategy's groups.
GROUPS = {
    "anchor-logits": [
        {},
        NEVER,
        {"n_steps": None},
        {"n_watch": None},
        {"alpha": 0.9, "n_steps": 2, "n_watch": 1},
        {"mixing": "linear", "translation": "drop", "n_lookahead": 0},
        {"preset": "paper", "n_steps": None},
    ],
    "alignbeam": [
        {},
        {**NEVER, "judge_after": None, "judge_every": None, "judge_timeout": None, "on_fail": None, "audit": None},
        {"judge_after": None},
        {"n_steps": None, "judge_after": 2},
        {"n_watch": None, "judge_after": 2, "alpha": 1.0},
        {"judge_after": 3, "judge_every": 2, "judge_timeout": 60.0, "num_candidates": 1, "threshold": 0.02},
        {"judge_after": 3, "judge_every": None, "alpha": 0.3, "n_steps": 2, "n_watch": 1},
        {"escalation": "always", "choice": "safest", "on_judge_error": "raise", "min_start": 1.0, "candidate_threshold": 0.05},
        {"mixing": "linear", "translation": "drop", "n_lookahead": 0},
        {"refusal": "Nein.", "threshold": 0.0},
        {"preset": "paper", "n_steps": None},
    ],
    "embedding-steerer": [
        {},
        {"optimizer": None, "judge_timeout": None},
        {"kinds": ["span"], "mu": 0.3, "spread": 2.0, "positions": "all", "seed": 4},
        {"first": False, "eta": 1.0, "estimator": "forward", "n_probes": 3, "cone": 0.9, "relative": False, "widen": 3.0},
        {"cache": False, "max_calls": 3, "max_generations": 5, "probe_temperature": 1.0, "judge_timeout": 60.0},
        {"max_batch_tokens": 60, "threshold": 0.9},
        {"refusal": "Nein.", "max_calls": 1},
    ],
}
PRESETS = {"anchor-logits": PROCESSOR, "alignbeam": {"paper": PAPER}, "embedding-steerer": {"tsa": TSA}}
PER_CALL = {"conversations", "streamer"}
#: Settings that are given everywhere, to keep a search short.
SHORT = {"embedding-steerer": {"max_calls": 3, "n_probes": 2, "max_generations": 6}}
#: Settings that JSON cannot hold; the tests of AlignBeam and of the search give them to the object.
CALLABLES = {"on_fail", "optimizer", "template", "audit"}
NEW = {"max_new_tokens": 14, "do_sample": False}


@pytest.fixture(scope="module")
def doors(specialist, thin, anchor, strategy_folder):
    """For each strategy, its doors by name: functions from settings to the ids of the answer to one prompt."""
    judges, recipe_models = stored_judges(), {}
    target = {"specialist": specialist, "thin": thin}
    prompts = {"anchor-logits": chats_of("late", 2)[1:], "alignbeam": chats_of("late", 2)[1:], "embedding-steerer": framed(1)}
    kinds = {"anchor-logits": "anchor-logits", "alignbeam": "alignbeam", "embedding-steerer": "steerer"}

    def made(strategy):
        model, tokenizer = target[CALLS[strategy][0]]
        inputs = encode(prompts[strategy], tokenizer)

        def answer(output):
            ids = output[0, inputs["input_ids"].shape[1] :].tolist()
            return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids

        def by_object(settings):
            settings = {**PRESETS[strategy].get(settings.get("preset"), {}), **settings}
            settings.pop("preset", None)
            if strategy == "anchor-logits":
                guard = AnchorLogitsProcessor(*anchor, tokenizer, **settings)
                return answer(model.generate(**inputs, logits_processor=[guard], **NEW))
            if strategy == "alignbeam":
                guard = AlignBeam(*anchor, tokenizer, judges["judge-lm"], **settings)
                return answer(model.generate(**inputs, custom_generate=guard, **NEW))
            steerer = EmbeddingSteerer(model, tokenizer, judges["judge-cls"], PlausibleAnswer(*anchor), **settings)
            return answer(steerer.generate(prompts[strategy], **NEW))

        models = {name: str(WEIGHTS / each) for name, each in CALLS[strategy][1].items()}
        loaded = model.load_custom_generate(strategy_folder(strategy), trust_remote_code=True)

        def by_folder(settings):
            return answer(loaded(**inputs, model=model, tokenizer=tokenizer, **models, **NEW, **settings))

        def by_protected(settings):
            protected = copy.copy(model)
            protected.generation_config = copy.deepcopy(model.generation_config)
            protected.generation_config.alignbeam = json.loads(json.dumps({**GUARD, **settings}))
            return answer(ProtectedGenerate(protected, tokenizer)(**inputs, **NEW))

        def by_recipe(settings):
            name = f"testbed:{CALLS[strategy][0]}"
            recipe = {"model": name, "anchor": "testbed:anchor", "prompts": "testbed:general", "max_new_tokens": 14}
            recipe |= {"judge": "testbed:judge-lm" if strategy == "alignbeam" else "testbed:judge-cls"}
            system = {"name": "x", "system": kinds[strategy], **settings}
            parsed = parse_recipe({**recipe, "refusal": "I cannot help with that.", "systems": [system]})
            once = recipe_models.setdefault(strategy, RecipeModels(parsed, parsed.models[0]))
            (response,) = build(parsed.systems[0], once)(prompts[strategy])
            return response.ids

        found = {"object": by_object, "folder": by_folder, "recipe": by_recipe}
        return {**found, "protected": by_protected} if strategy == "alignbeam" else found

    return {strategy: made(strategy) for strategy in CLASSES}


@pytest.mark.parametrize("strategy", GROUPS)
def test_every_setting_is_in_a_group(strategy):
    known = setting_names(CLASSES[strategy]) - PER_CALL
    assert known == {name for group in GROUPS[strategy] for name in group} - {"preset"}
    values = {name for group in GROUPS[strategy] for name, value in group.items() if value is not None}
    assert known - CALLABLES == values - {"preset"} | {name for name in known - CALLABLES if name in NEVER}


#: Of each kind: None, numbers, choices, a preset.
QUICK = [("anchor-logits", 1), ("anchor-logits", 6), *(("alignbeam", n) for n in (1, 5, 7)), ("embedding-steerer", 3)]


@pytest.mark.parametrize(
    ("strategy", "number"), mostly_slow([(each, n) for each, groups in GROUPS.items() for n in range(len(groups))], QUICK)
)
def test_every_door_gives_the_same_tokens(strategy, number, doors):
    settings = {**SHORT.get(strategy, {}), **GROUPS[strategy][number]}
    expected = doors[strategy]["object"](settings)
    assert expected
    for name, door in doors[strategy].items():
        if not (name == "protected" and "preset" in settings):
            assert door(settings) == expected, name


@pytest.mark.parametrize("strategy", GROUPS)
def test_none_is_refused_by_name_at_every_door_where_it_is_no_value(strategy, doors):
    """Where it is one, it is in a group above."""
    values = {name for group in GROUPS[strategy] for name, value in group.items() if value is None}
    for name in sorted(setting_names(CLASSES[strategy]) - PER_CALL - values):
        for door in doors[strategy].values():
            with pytest.raises(ValueError, match=f"`{name}` must"):
                door({name: None})


@pytest.mark.parametrize(
    ("strategy", "name", "others"),
    [
        pytest.param("anchor-logits", "n_watch", {}, marks=pytest.mark.slow),
        ("anchor-logits", "n_steps", {"preset": "paper"}),
        ("alignbeam", "judge_after", {"judge_after": 4}),
    ],
)
def test_none_is_not_the_default(strategy, name, others, doors):
    expected = doors[strategy]["object"]({**others, name: None})
    assert expected != doors[strategy]["object"](others)
    for door in [each for each in doors[strategy] if each != "object" and not ("preset" in others and each == "protected")]:
        assert doors[strategy][door]({**others, name: None}) == expected


def test_null_in_a_protected_folder_is_none(doors, tmp_path):
    settings = {"judge_after": None, "n_steps": None, "judge_timeout": None, "alpha": 1.0}
    write_protected(TARGET, tmp_path / "protected", {**GUARD, **settings})
    assert json.loads((tmp_path / "protected" / "generation_config.json").read_text())["alignbeam"].items() >= settings.items()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "protected", **TRUSTED)
    inputs = encode(chats_of("late", 2)[1:], AutoTokenizer.from_pretrained(tmp_path / "protected"))
    ids = model.generate(**inputs, **NEW)[0, inputs["input_ids"].shape[1] :].tolist()
    expected = doors["alignbeam"]["object"](settings)
    assert ids[: len(expected)] == expected
    for name in ("judge_after", "n_steps"):  # nor is None a way to leave a fixed setting out
        with pytest.raises(ValueError, match=f"`{name}` is fixed by the protected model"):
            model.generate(**inputs, **{name: None})


#: For each command, settings that it has no options for, and some that it has.
TYPED = {
    "anchor-logits": {"n_steps": None, "n_watch": None, "mixing": "linear", "translation": "drop"},
    "alignbeam": {"judge_after": None, "n_steps": 3, "refusal": "Nein.", "choice": "safest", "on_judge_error": "raise"},
    "embedding-steerer": {
        **SHORT["embedding-steerer"],
        "kinds": ["span"],
        "positions": "all",
        "cache": False,
        "refusal": "Nein.",
    },
}


def options(settings):
    typed = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    return [part for name, value in typed.items() for part in ("--set", f"{name}={value}")]


@pytest.mark.parametrize("strategy", TYPED)
def test_a_command_takes_every_setting_too(strategy, doors, specialist, thin, tmp_path):
    target, models = CALLS[strategy]
    prompt = framed(1) if strategy == "embedding-steerer" else chats_of("late", 2)[1:]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"messages": prompt[0]}))
    named = [part for name, model in models.items() for part in (f"--{name}", WEIGHTS / model)]
    command = ("steer" if strategy == "embedding-steerer" else "generate", "--model", WEIGHTS / target, *named)
    files = ("--file", tmp_path / "prompts.jsonl", "--to", tmp_path / "out", "--max-new-tokens", NEW["max_new_tokens"])
    done = run(*command, *files, *options(TYPED[strategy]))
    assert done.exit_code == 0, done.output
    tokenizer = {"specialist": specialist, "thin": thin}[target][1]
    expected = text_of(tokenizer, doors[strategy]["object"](TYPED[strategy]))
    if strategy == "embedding-steerer":
        (record,) = json.loads((tmp_path / "out" / "steered.json").read_text())["prompts"]
        assert expected == (record["text"] if record["outcome"] in ("clean", "steered") else "Nein.")
    else:
        assert json.loads((tmp_path / "out").read_text())["answer"] == expected
    done = run(*command, *files, "--set", "judge_aftr=3")
    assert done.exit_code == 2
    assert "--set must name a setting of" in done.output


def test_protect_stores_what_is_typed(tmp_path):
    typed = {**TYPED["alignbeam"], "judge_every": None}
    done = run("protect", "--model", TARGET, "--anchor", ANCHOR, "--judge", JUDGE, *options(typed), "--to", tmp_path / "made")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "made" / "generation_config.json").read_text())["alignbeam"].items() >= typed.items()
    for wrong in ("judge_after", "=3", "anchor=x"):
        done = run("protect", "--model", TARGET, "--anchor", ANCHOR, "--judge", JUDGE, "--set", wrong, "--to", tmp_path / "made")
        assert done.exit_code == 2
