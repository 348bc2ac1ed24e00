"""The records of published guards: how they are found, what each must say, and which guards are refused by name."""

import re
from dataclasses import asdict, replace

import pytest
import torch
from conftest import tiny
from helpers import ROOT
from helpers.guards import CHATML, GEMMA, GUARDS, LLAMA_3
from helpers.pages import tables
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_alignbeam.hub.judge_loading import JudgeSettings, load_judge
from hf_alignbeam.judges.profile import GuardProfile, profile_from_mapping
from hf_alignbeam.judges.profiles.general import ONE_TO_FIVE, SAFE_UNSAFE, YES_NO
from hf_alignbeam.judges.profiles.granite_guardian import GRANITE_GUARDIAN_4_1
from hf_alignbeam.judges.profiles.known import PROFILES, UNSUPPORTED, as_profile, find_profile, named_profile

PUBLISHED = [profile for profile in PROFILES if profile not in (SAFE_UNSAFE, YES_NO, ONE_TO_FIVE)]
GUIDE = ROOT / "examples" / "guides" / "guards.md"


def name_of(profile: GuardProfile) -> str:
    return profile.name


def test_names_are_unique():
    assert len({profile.name for profile in PROFILES}) == len(PROFILES)


@pytest.mark.parametrize("profile", PUBLISHED, ids=name_of)
def test_a_record_says_whose_it_is_and_where_it_was_read(profile):
    assert profile.model_ids
    assert profile.license
    assert profile.size
    assert profile.source


@pytest.mark.parametrize("profile", PROFILES, ids=name_of)
def test_a_record_is_found_by_its_name_and_can_be_written_as_plain_values(profile):
    assert named_profile(profile.name) is profile
    assert profile_from_mapping(asdict(profile)) == profile


@pytest.mark.parametrize("profile", PUBLISHED, ids=name_of)
def test_every_id_of_a_record_finds_it(profile):
    for pattern in profile.model_ids:
        model_id = pattern.replace("*", "")
        owner, name = model_id.split("/")
        assert find_profile(model_id, None) is profile
        assert find_profile(model_id.upper(), None) is profile
        assert find_profile(f"{model_id}@main", None) is profile
        assert find_profile(f"somebody/{name}", None) is profile
        assert find_profile(f"/models/{owner}--{name}/", None) is profile
        assert find_profile(f"C:\\models\\{name}", None) is profile
        assert find_profile(f"/cache/models--{owner}--{name}/snapshots/0a1b2c", None) is profile


@pytest.mark.parametrize(
    "model_id", ["Qwen/Qwen3-0.6B", "google/gemma-2-2b-it", "meta-llama/Llama-3.2-1B", "/wildguard/my-model", "", None]
)
def test_other_models_have_no_profile(model_id):
    assert find_profile(model_id, None) is None


TEMPLATES = [guard for guard in GUARDS if guard.template and named_profile(guard.profile).template_marks]


@pytest.mark.parametrize("guard", TEMPLATES, ids=lambda guard: guard.profile)
def test_a_copy_under_another_name_is_found_by_its_template(guard):
    assert find_profile("me/my-guard", guard.template).name == guard.profile


def test_no_chat_template_of_an_ordinary_model_is_taken_for_a_guards(real_tokenizer):
    real = [real_tokenizer(name).chat_template for name in ("qwen3", "llama2", "llama3", "deepseek_v3")]
    for template in [CHATML, LLAMA_3, GEMMA, *real]:
        assert find_profile("me/my-model", template) is None


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`profile` must be one of safe-unsafe, .*llama-guard.*, got 'lama-guard'"):
        named_profile("lama-guard")


@pytest.mark.parametrize("pattern", UNSUPPORTED)
def test_guards_that_cannot_be_judges_are_refused_by_name(pattern):
    model_id = pattern.replace("*", "0.6B")
    with pytest.raises(ValueError, match=re.escape(model_id)):
        find_profile(model_id, None)
    with pytest.raises(ValueError, match=model_id.rpartition("/")[2]):
        find_profile(f"/models/{model_id.replace('/', '--')}", None)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("judges", None, "a list of texts"),
        ("model_ids", 5, "a list of texts"),
        ("as_message", "false", "true or false"),
        ("answer_start", None, "a text"),
        ("system", 5, "a text or null"),
        ("max_messages", True, "a whole number or null"),
        ("threshold", "0.3", "a number or null"),
        ("threshold", True, "a number or null"),
        ("verdicts", {"a": "1"}, "numbers as values"),
        ("verdicts", {"a": True}, "numbers as values"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(key, value, rule):
    """As text, `false` would be true, and a list that is none a failure far away."""
    with pytest.raises(ValueError, match=f"`{key}` of a profile must (be|have) {rule}, got"):
        as_profile({"name": "mine", "verdicts": {"a": 0.0, "b": 1.0}, key: value})


def test_a_profile_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match="`profile` must be a name or a mapping, got 5"):
        as_profile(5)


@pytest.mark.parametrize(
    "said",
    [
        *({"threshold": value} for value in ("0.3", True, 0, float("nan"))),
        *({"labels": value} for value in (["unsafe"], {"unsafe": "1"}, {1: 1})),
        {"rubric": 5},
        {"template": 5},
    ],
)
def test_settings_of_a_wrong_type_are_refused_before_a_model_is_loaded(said):
    (name,) = said
    with pytest.raises(ValueError, match=rf"`(judge_)?{name}` must .*got"):
        JudgeSettings(**said)


def test_a_question_stands_after_the_response_and_not_beside_a_prompt():
    with pytest.raises(ValueError, match="`question` must be left out with a `prompt`"):
        replace(GRANITE_GUARDIAN_4_1, prompt="{response}")


def classifier(folder, tokenizer, labels):
    """A random classifier of texts in a folder, with the labels of a published one."""
    model = tiny(LlamaForSequenceClassification, LlamaConfig, tokenizer, seed=3, id2label=labels, num_labels=len(labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


CLASSIFIERS = [profile for profile in PUBLISHED if profile.prompt == "{response}"]


@pytest.mark.parametrize("profile", CLASSIFIERS, ids=name_of)
def test_a_known_classifier_reads_the_response_alone(profile, tmp_path, byte_tokenizer):
    labels = dict(enumerate([*profile.verdicts, "about somebody"]))
    folder = classifier(tmp_path / profile.model_ids[0].replace("/", "--"), byte_tokenizer, labels)
    judge = load_judge(folder, JudgeSettings())
    first, second = judge(["How are you?", "Whom do you hate, and why?"], ["Nobody at all."] * 2)
    torch.testing.assert_close(first, second)


def test_a_classifiers_profile_without_a_threshold_is_calibrated(byte_tokenizer):
    """One that is given by its values, as `null` in YAML; a random classifier tells nothing apart."""
    model = tiny(LlamaForSequenceClassification, LlamaConfig, byte_tokenizer, seed=3, id2label={0: "safe", 1: "unsafe"})
    torch.nn.init.zeros_(model.score.weight)
    settings = JudgeSettings(profile={"name": "mine", "verdicts": {"unsafe": 1.0}, "threshold": None})
    with pytest.raises(ValueError, match="must tell harmful from harmless exchanges"):
        load_judge(model, settings, judge_tokenizer=byte_tokenizer)


@pytest.mark.parametrize("profile", [p for p in PROFILES if p.judges == ("prompt",)], ids=name_of)
def test_a_guard_of_prompts_is_no_judge_of_responses(profile, tmp_path, byte_tokenizer):
    labels = dict(enumerate(profile.verdicts))
    folder = classifier(tmp_path / profile.model_ids[0].replace("/", "--"), byte_tokenizer, labels)
    with pytest.raises(ValueError, match=f"{profile.name} judges prompts only"):
        load_judge(folder)


def test_the_guide_lists_every_published_guard():
    rows = [row for table in tables(GUIDE.read_text()) for row in table[2:]]
    listed = {row[0].strip("`"): set(re.findall(r"`([^`]+)`", row[1])) for row in rows}
    assert listed == {profile.name: set(profile.model_ids) for profile in PUBLISHED}
    assert len(GUIDE.read_text().splitlines()) <= 80


@pytest.mark.parametrize("profile", PUBLISHED, ids=name_of)
def test_the_guide_says_of_each_guard_what_its_record_says(profile):
    (row,) = [row for table in tables(GUIDE.read_text()) for row in table[2:] if row[0] == f"`{profile.name}`"]
    assert re.findall(r"`([^`]+)` ([\d.]+)", row[2]) == [(text, f"{harm:g}") for text, harm in profile.verdicts.items()]
    assert row[3] == profile.license
    assert row[4] == profile.size
    assert (f"writes up to {profile.max_new_tokens} tokens" in row[5]) == (profile.verdict_after is not None)
