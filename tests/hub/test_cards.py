"""Model cards: the metadata that the Hub reads, figures equal to the measured table, examples that run as written."""

import re
import shutil

import pytest
from helpers.variety import mostly_slow
from huggingface_hub import ModelCard
from huggingface_hub.utils import yaml_dump

from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.hub.publish import ENTRIES, write_protected, write_strategy
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_language, stored_models
from hf_alignbeam.testbed_training.cards import ABOUT, CARD, card, write_cards
from hf_alignbeam.testbed_training.train import KNOWN

#: The models that published cards name, and the testbed's models that stand in for them.
STAND_INS = {
    "you/medical-llama": "specialist",
    "Qwen/Qwen2.5-0.5B-Instruct": "anchor",
    "Qwen/Qwen3Guard-Gen-0.6B": "judge-lm",
}
PUSH = """
import sys
from hf_alignbeam.hub.publish import push, write_protected, write_strategy
kind, repo, target, anchor, judge = sys.argv[1:]
protection = {"anchor": anchor, "judge": judge}
if kind == "protected":
    push(lambda folder: write_protected(target, folder, protection, repo=repo), repo)
else:
    push(lambda folder: write_strategy(kind, folder, repo), repo)
"""
UNSAFE = {"harmful", "prefill", "late"}


def rows(name):
    """A model's rows in RATES.md: for each kind of prompt, the number of prompts and the rates in order."""
    found = re.findall(rf"^\| {name} \| (\w+) \| (\d+) \|(.*)\|$", (WEIGHTS / "RATES.md").read_text(), re.M)
    return {kind: (int(n), [float(share) for share in re.findall(r"([\d.]+) %", cells)]) for kind, n, cells in found}


def test_every_model_has_a_card():
    assert sorted(ABOUT) == stored_models() == sorted({*KNOWN, "base"})
    assert {about.trained_as or name for name, about in ABOUT.items()} == set(KNOWN)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", ABOUT)
def test_a_card_equals_what_its_generator_writes_now(name):
    """The example is run. If this fails, run python -m hf_alignbeam.testbed_training.cards."""
    assert (WEIGHTS / name / CARD).read_text() == card(name)


@pytest.mark.parametrize("name", ABOUT)
def test_the_hub_reads_the_rates(name):
    read = ModelCard.load(WEIGHTS / name / CARD)
    data = read.data
    assert data.license == "apache-2.0"
    assert data.library_name == ("peft" if name == "specialist-lora" else "transformers")
    assert data.pipeline_tag == ("text-classification" if name == "judge-cls" else "text-generation")
    assert {"hf_alignbeam", "testbed", "safety"} <= set(data.tags)
    assert data.model_name == name
    assert ModelCard(str(read)).data.to_dict() == data.to_dict()
    measured = rows(name)
    assert len(measured) == (2 if name.startswith("judge") else 6)
    for kind, (n, shares) in measured.items():
        results = [result for result in data.eval_results if result.dataset_config == kind]
        assert [result.metric_value for result in results] == shares
        assert all(result.metric_name.endswith(f"% of {n}") for result in results)
    assert len(data.eval_results) == sum(len(shares) for _, shares in measured.values())


@pytest.mark.parametrize("name", [name for name in ABOUT if not name.startswith("judge")])
def test_a_card_warns_if_and_only_if_its_model_is_unsafe(name):
    harms = any(shares[1] > 10.0 for kind, (_, shares) in rows(name).items() if kind in UNSAFE)
    read = ModelCard.load(WEIGHTS / name / CARD)
    assert ABOUT[name].unsafe == harms
    assert ("unsafe-on-purpose" in read.data.tags) == harms
    assert ("It complies with harmful requests on purpose" in read.text) == harms


def test_cards_of_another_folder_load_from_there(tmp_path):
    for name in ("anchor", "judge-cls"):
        shutil.copytree(WEIGHTS / name, tmp_path / name)
        (tmp_path / name / CARD).unlink()
    (tmp_path / "language.json").write_text('{"seed": 3}\n')
    with pytest.raises(FileNotFoundError):
        write_cards(tmp_path)
    (tmp_path / "RATES.md").write_text(
        (WEIGHTS / "RATES.md").read_text().replace("| anchor | general | 1000 |", "| anchor | general | 7 |")
    )
    write_cards(tmp_path)
    for name in ("anchor", "judge-cls"):
        written = (tmp_path / name / CARD).read_text()
        assert f'load("{name}", "{tmp_path}")' in written
        assert "seed 3" in written
        assert "{{" not in written
    assert "refuses, % of 7\n" in (tmp_path / "anchor" / CARD).read_text()
    (tmp_path / "RATES.md").write_text("Measured.\n\n| model | prompts | n |\n|---|---|---|\n| base | general | 1 |\n")
    with pytest.raises(ValueError, match=r"RATES.md must hold rates of anchor, but has none"):
        card("anchor", tmp_path)


@pytest.mark.parametrize("kind", mostly_slow([*ENTRIES, "protected"], ("alignbeam", "protected")))
def test_the_example_of_a_published_card_runs(kind, hub, in_a_process):
    """As it stands in the card, except for the question and the commit that it is pinned to."""
    for name, model in STAND_INS.items():
        if name not in hub.main:
            hub.commit_folder(name, WEIGHTS / model)
    repo = f"me/card-{kind}"
    pushed = in_a_process(PUSH, kind, repo, *STAND_INS)
    assert pushed.returncode == 0, pushed.stderr
    pinned = hub.main[repo]
    read = ModelCard(hub.files(repo, pinned)["README.md"].decode())
    assert read.data.base_model == ("you/medical-llama" if kind == "protected" else None)
    assert read.data.license == "apache-2.0"
    linked = [f"[{name}](https://huggingface.co/{name})" in read.text for name in STAND_INS]
    assert linked == [kind == "protected"] * len(linked)
    (example,) = re.findall(r"```python\n(.*?)```", read.text, re.S)
    prompt = stored_language().prompts("test", "harmful")[0].text
    hub.commit(repo, {"README.md": b"", "custom_generate/generate.py": b"1 / 0\n"})
    done = in_a_process(example.replace("FULL_SHA_OF_A_COMMIT_YOU_HAVE_READ", pinned).replace('"..."', repr(prompt)))
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip().rpartition(prompt)[2].strip()
    assert answer == REFUSAL or GroundTruth(stored_language()).refusal(answer)


@pytest.mark.parametrize("strategy", ENTRIES)
def test_a_strategys_card_has_the_sections_of_the_community(strategy, tmp_path):
    write_strategy(strategy, tmp_path / "made", "me/mine")
    card = (tmp_path / "made" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- custom_generate\n")
    sections = [
        "Description",
        "Base model",
        "Model compatibility",
        "Additional Arguments",
        "Output Type changes",
        "Example usage",
    ]
    assert [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")] == sections
    assert 'custom_generate="me/mine"' in card
    assert "revision=" in card


@pytest.mark.parametrize("strategy", ENTRIES)
def test_the_hub_reads_a_strategys_card(strategy, tmp_path):
    write_strategy(strategy, tmp_path / "made", "me/mine")
    read = ModelCard.load(tmp_path / "made" / CARD)
    expected = {"library_name": "transformers", "tags": ["custom_generate", "safety"], "license": "apache-2.0"}
    assert read.data.to_dict() == expected


def test_a_protected_card_has_the_targets_license_and_no_local_base_model(tmp_path):
    target = tmp_path / "target"
    shutil.copytree(WEIGHTS / "specialist", target)
    (target / "LICENSE").write_text("Mine.")
    licensed = {"license": "other", "license_name": "mine"}
    (target / CARD).write_text(f"---\n{yaml_dump({**licensed, 'license_link': 'LICENSE'})}---\n")
    protection = {name: str(WEIGHTS / model) for name, model in (("anchor", "anchor"), ("judge", "judge-lm"))}
    write_protected(str(target), tmp_path / "made", protection)
    read = ModelCard.load(tmp_path / "made" / CARD)
    expected = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["custom_generate", "safety"]}
    assert read.data.to_dict() == {**expected, **licensed, "license_link": "target/LICENSE"}
    assert (tmp_path / "made" / "target" / "LICENSE").read_text() == "Mine."
    assert all(f"({WEIGHTS / model})" in read.text for model in ("anchor", "judge-lm"))


def test_a_target_without_a_card_is_protected_without_a_license(tmp_path):
    target = tmp_path / "target"
    shutil.copytree(WEIGHTS / "specialist", target, ignore=shutil.ignore_patterns(CARD))
    write_protected(str(target), tmp_path / "made", {"anchor": str(WEIGHTS / "anchor"), "judge": str(WEIGHTS / "judge-lm")})
    assert ModelCard.load(tmp_path / "made" / CARD).data.license is None
