"""The doctor's check of a judge: one that cannot judge is red, with a sentence that says why and what to do."""

import json
import os

import pytest
import torch
from helpers.commands import run
from transformers import BertConfig, BertForSequenceClassification

from hf_alignbeam.cli.diagnosis.judge_checks import CANNOT, KNOWN_PAIRS, known_pairs
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.model_store import WEIGHTS, load, stored_judges, stored_language

TARGET, ANCHOR = str(WEIGHTS / "specialist"), str(WEIGHTS / "anchor")


@pytest.fixture(scope="module")
def pairs():
    """Harmful and harmless responses in the testbed's language."""
    whole = [e for e in exchanges(stored_language(), "validation", 60, 0) if e.response.endswith(".")]
    chosen = [*[e for e in whole if e.unsafe][:4], *[e for e in whole if not e.unsafe][:4]]
    return tuple((e.question, e.response, e.unsafe) for e in chosen)


def scripted(harm_of, pairs=KNOWN_PAIRS):
    """A judge that knows which responses do harm, and what `harm_of` makes of that."""
    known = {response: harmful for _, response, harmful in pairs}
    return lambda conversations, responses: torch.tensor([harm_of(known[each], each) for each in responses])


def by_length(harmful, response):
    """Harm that has little to do with what is known."""
    return len(response) % 7 / 10


def raises(*given):
    raise ConnectionError("connection refused")


@pytest.mark.parametrize(
    ("judge", "status", "words"),
    [
        (scripted(lambda harmful, _: 0.9 if harmful else 0.1), "green", "AUC 1.00"),
        (scripted(lambda harmful, _: 0.4 if harmful else 0.1), "yellow", "passes 100 % of 16 harmful ones"),
        (scripted(lambda harmful, _: 0.4 if harmful else 0.1), "yellow", "alignbeam calibrate"),
        (scripted(lambda harmful, _: 0.9 if harmful else 0.8), "yellow", "flags 100 % of 24 harmless answers"),
        (scripted(lambda harmful, r: 0.5 if len(r) % 2 else 0.9 * harmful), "yellow", "That is weak"),
        (scripted(lambda harmful, _: 0.1 if harmful else 0.9), "red", "the wrong way round"),
        (scripted(lambda harmful, _: 0.3), "red", "the same of everything"),
        (scripted(by_length), "red", "cannot tell them apart"),
        (scripted(lambda harmful, _: torch.nan), "red", "no verdict on 40 of 40 known answers"),
        (raises, "red", "connection refused"),
    ],
)
def test_how_far_a_judge_tells_the_known_answers_apart(judge, status, words):
    result = known_pairs(judge, KNOWN_PAIRS)
    assert result.status == status, result.text
    assert words in result.text


def test_a_few_missing_verdicts_are_counted():
    judge = scripted(lambda harmful, r: torch.nan if len(r) % 11 == 0 else float(harmful))
    n_missing = sum(len(response) % 11 == 0 for _, response, _ in KNOWN_PAIRS)
    assert 0 < n_missing < 10
    result = known_pairs(judge, KNOWN_PAIRS)
    assert result.status == "yellow"
    assert f"no verdict on {n_missing} of 40" in result.text


def test_the_bound_of_chance_is_within_what_chance_gives():
    """With 16 harmful of 40 answers, a random order has an area with a standard error of .095."""
    n_harmful = sum(harmful for _, _, harmful in KNOWN_PAIRS)
    n = len(KNOWN_PAIRS)
    error = ((n + 1) / (12 * n_harmful * (n - n_harmful))) ** 0.5
    assert 0.5 + error < CANNOT + 0.005 < 0.5 + 2 * error


def test_a_judge_of_another_language_is_told_to_use_pairs(pairs):
    """The testbed's judges read no English."""
    judge = stored_judges()["judge-cls"]
    own = known_pairs(judge, pairs)
    assert own.status == "green"
    assert "--pairs" not in own.text
    other = known_pairs(judge, KNOWN_PAIRS)
    assert other.status == "red"
    assert "for a judge of another language, give --pairs" in other.text


def test_the_profile_and_the_threshold_in_use_are_shown(pairs):
    assert "profile safe-unsafe, own threshold 0.5: " in known_pairs(stored_judges()["judge-lm"], pairs).text


def judge_finding(*arguments):
    """What the doctor says of a judge, and its exit status."""
    result = run("doctor", TARGET, ANCHOR, *arguments, "--json")
    report = json.loads(result.stdout[result.stdout.index("{") :])
    assert "Traceback" not in result.output
    return next(each for each in report["findings"] if each["check"].startswith("judge: ")), result.exit_code


def test_a_model_that_is_no_guard_is_a_finding_that_names_what_it_wrote(no_guard):
    finding, status = judge_finding(no_guard)
    assert (finding["status"], status) == ("red", 2)
    assert "`model` must tell harmful from harmless exchanges" in finding["text"]
    assert "Nor does it answer as guards do" in finding["text"]
    assert "It would rather write '" in finding["text"]


def test_a_model_without_a_chat_template_is_a_finding_that_says_what_judges(tmp_path):
    """As a base model is."""
    model, tokenizer = load("judge-lm")
    model.save_pretrained(tmp_path)
    tokenizer = type(tokenizer).from_pretrained(WEIGHTS / "judge-lm")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    finding, status = judge_finding(tmp_path)
    assert (finding["status"], status) == ("red", 2)
    assert "judges nothing: use a guard or an instruction-tuned model" in finding["text"]
    assert "--judge-template" in finding["text"]


@pytest.fixture
def classifier(tmp_path):
    """Writes a random classifier with the labels that are given."""

    def written(labels):
        config = load("judge-cls")[0].config
        names = dict(enumerate(labels))
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        made = BertConfig(vocab_size=config.vocab_size, id2label=names, label2id={v: k for k, v in names.items()}, **shape)
        BertForSequenceClassification(made).save_pretrained(tmp_path)
        load("judge-cls")[1].save_pretrained(tmp_path)
        return tmp_path

    return written


def test_a_classifier_without_harmful_labels_is_a_finding_that_names_its_labels(classifier):
    finding, status = judge_finding(classifier(["LABEL_0", "LABEL_1"]))
    assert (finding["status"], status) == ("red", 2)
    assert "has LABEL_0, LABEL_1" in finding["text"]
    assert "--judge-labels LABEL=1" in finding["text"]


@pytest.mark.parametrize("judge", ["judge-lm", pytest.param("judge-cls", marks=pytest.mark.slow)])
def test_a_guard_of_prompts_only_is_refused_by_its_name(judge, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"name": "prompts-guard", "verdicts": {"unsafe": 1.0}, "judges": ["prompt"]}))
    finding, _ = judge_finding(WEIGHTS / judge, "--judge-profile", profile)
    assert finding["status"] == "red"
    assert "prompts-guard judges prompts only" in finding["text"]


def test_a_mistyped_option_is_an_error_and_no_finding():
    result = run("doctor", TARGET, ANCHOR, WEIGHTS / "judge-lm", "--judge-labels", "unsafe")
    assert result.exit_code == 2
    assert "--judge-labels must be a label and its harm" in result.output
    assert "target: decoder" not in result.output


@pytest.mark.real
@pytest.mark.skipif("HF_ALIGNBEAM_MODELS" not in os.environ, reason="HF_ALIGNBEAM_MODELS is unset: it names a folder of models")
def test_a_real_model_that_is_no_guard_is_explained():
    folder = os.path.join(os.environ["HF_ALIGNBEAM_MODELS"], "smollm2")
    finding, _ = judge_finding(folder, "--judge-profile", "safe-unsafe")
    assert finding["status"] == "red"
    assert "It would rather write '" in finding["text"]
    assert "use the profile one-to-five" in finding["text"]
