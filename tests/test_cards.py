"""Cards: what the Hub reads of them, figures against the table that was measured, examples as they stand there."""

import re
import shutil

import pytest
from huggingface_hub import ModelCard

from hf_alignbeam.testbed.cards import ABOUT, CARD, card, write_cards
from hf_alignbeam.testbed.store import WEIGHTS, stored_models
from hf_alignbeam.testbed.train import KNOWN

UNSAFE = {"harmful", "prefill", "late"}


def rows(name):
    """A model's figures in RATES.md, by prompts or exchanges: their number, and every rate in its order."""
    found = re.findall(rf"^\| {name} \| (\w+) \| (\d+) \|(.*)\|$", (WEIGHTS / "RATES.md").read_text(), re.M)
    return {kind: (int(n), [float(share) for share in re.findall(r"([\d.]+) %", cells)]) for kind, n, cells in found}


def test_every_model_has_a_card():
    assert sorted(ABOUT) == stored_models() == sorted({*KNOWN, "base"})
    assert {about.trained_as or name for name, about in ABOUT.items()} == set(KNOWN)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("name", ABOUT)
def test_a_card_is_what_its_rates_and_its_example_give_now(name):
    """The example is run. Where this fails: python -m hf_alignbeam.testbed.cards."""
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
def test_a_card_says_so_where_a_model_is_unsafe(name):
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
    with pytest.raises(ValueError, match=r"RATES.md must hold rates of anchor, and has none"):
        card("anchor", tmp_path)
