"""The doctor finds planted faults, and calls a healthy set-up healthy."""

import copy
import json

import pytest
import torch
from conftest import renumber
from tokenizers import Tokenizer, normalizers, processors
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedTokenizerFast, T5Config
from typer.testing import CliRunner

from hf_alignbeam import testbed
from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.cli.app import app
from hf_alignbeam.cli.diagnosis.examination import examine
from hf_alignbeam.cli.diagnosis.examined import ExaminedModel
from hf_alignbeam.testbed.exchanges import exchanges
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges, stored_language

TARGET, ANCHOR = str(WEIGHTS / "specialist"), str(WEIGHTS / "anchor")


@pytest.fixture(scope="module")
def pairs():
    """Harmful and harmless responses in the testbed's language."""
    whole = [e for e in exchanges(stored_language(), "validation", 60, 0) if e.response.endswith(".")]
    chosen = [*[e for e in whole if e.unsafe][:4], *[e for e in whole if not e.unsafe][:4]]
    return tuple((e.question, e.response, e.unsafe) for e in chosen)


def findings(specialist, anchor, judge=None, pairs=(), until=None, **changed):
    """The status and text of each check by its name, up to the check `until`."""
    examined = {"target": list(specialist), "anchor": list(anchor)}
    for name, value in changed.items():
        which, part = name.split("_")
        examined[which][part == "tokenizer"] = value
    results = {}
    load = None if judge is None else lambda: judge
    for finding in examine(*(ExaminedModel(name, *pair) for name, pair in examined.items()), load, pairs):
        results[finding.check] = finding.status, finding.text
        if finding.check == until:
            break
    return results


def rebuilt(tokenizer, change):
    """A tokenizer with a changed backend."""
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    change(inner)
    names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **names)
    made.chat_template = tokenizer.chat_template
    return made


def changed(thing, **attributes):
    """A copy with changed attributes."""
    other = copy.deepcopy(thing)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


def configured(model, **settings):
    other = copy.deepcopy(model)
    other.generation_config = GenerationConfig(**settings)
    return other


def test_a_healthy_set_up_is_healthy(specialist, anchor, pairs):
    results = findings(specialist, anchor, stored_judges()["judge-lm"], pairs)
    assert len(results) > 25
    assert {check: result for check, result in results.items() if result[0] != "green"} == {}


def check_of(plant, specialist, anchor):
    """The models with a planted fault, and the check that has to find it with its status and words."""
    model, tokenizer = specialist
    safe, safe_tokenizer = anchor
    match plant:
        case "another model's tokenizer":
            return {"anchor_tokenizer": tokenizer}, "anchor: logits width", "red", "another model's"
        case "another numbering":
            return {"anchor_tokenizer": renumber(*anchor)[1]}, "anchor: belongs together", "red", "hardly likelier"
        case "no template":
            return {"target_tokenizer": changed(tokenizer, chat_template=None)}, "target: template", "yellow", "no chat template"
        case "double BOS":
            bos = (tokenizer.bos_token, tokenizer.bos_token_id)
            doubled = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
            other = rebuilt(tokenizer, lambda inner: setattr(inner, "post_processor", doubled))
            return {"target_tokenizer": other}, "target: double BOS", "yellow", "add_special_tokens=False"
        case "lossy":
            other = rebuilt(safe_tokenizer, lambda inner: setattr(inner, "normalizer", normalizers.Lowercase()))
            return {"anchor_tokenizer": other}, "anchor: bytes", "yellow", "case is not kept"
        case "padded logits":
            padded = copy.deepcopy(model)
            padded.resize_token_embeddings(len(tokenizer) + 24, mean_resizing=False)
            return {"target_model": padded}, "target: logits width", "green", "padded, and taken care of"
        case "no EOS":
            silent = configured(model, pad_token_id=3)
            return {"target_model": silent}, "target: end of answers", "red", "names no EOS"
        case "NaN":
            broken = copy.deepcopy(safe)
            broken.model.norm.weight.data[0] = torch.nan
            return {"anchor_model": broken}, "anchor: numbers", "red", "NaN"
        case "another dtype":
            return {"anchor_model": copy.deepcopy(safe).to(torch.bfloat16)}, "pair: dtypes", "yellow", "dtypes differ"
        case "mixed dtypes":
            mixed = copy.deepcopy(safe)
            mixed.model.embed_tokens.to(torch.float64)
            return {"anchor_model": mixed}, "anchor: dtypes", "yellow", "several dtypes"
        case "recurrent":
            return {"anchor_model": build("Mamba", safe_tokenizer)}, "anchor: cache", "yellow", "recomputed at every step"
        case "encoder-decoder":
            shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
            other = AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=len(tokenizer), **shape)).eval()
            return {"target_model": other}, "target: decoder", "red", "encoder-decoder"
        case "training":
            return {"target_model": copy.deepcopy(model).train()}, "target: decoder", "red", "training mode"
        case "reasoning":
            thinking = tokenizer.chat_template + "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
            other = changed(tokenizer, chat_template=thinking)
            return {"target_tokenizer": other}, "target: template", "red", "reasoning"
        case "no embeddings":
            return {"target_model": build("Falcon-H1", tokenizer)}, "target: inputs_embeds", "yellow", "does not take it"
    raise AssertionError(plant)


PLANTS = (
    "another model's tokenizer",
    "another numbering",
    "no template",
    "double BOS",
    "lossy",
    "padded logits",
    "no EOS",
    "NaN",
    "another dtype",
    "mixed dtypes",
    "recurrent",
    "encoder-decoder",
    "training",
    "reasoning",
    "no embeddings",
)


@pytest.mark.filterwarnings("ignore")  # a broken set-up also gives warnings
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(plant, specialist, anchor):
    planted, check, status, words = check_of(plant, specialist, anchor)
    result = findings(specialist, anchor, until=check, **planted)[check]
    assert result[0] == status
    assert words in result[1]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_exit_status_is_the_worst_finding(pairs, tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [{"messages": question, "response": response, "harmful": harmful} for question, response, harmful in pairs]
    file.write_text("\n".join(map(json.dumps, lines)))
    healthy = run("doctor", TARGET, ANCHOR, WEIGHTS / "judge-cls", "--pairs", file)
    assert healthy.exit_code == 0, healthy.output
    assert "judge: known answers" in healthy.output
    bare = tmp_path / "bare"
    model, tokenizer = testbed.load("specialist")
    model.save_pretrained(bare)
    changed(tokenizer, chat_template=None).save_pretrained(bare)
    result = run("doctor", bare, ANCHOR, "--json")
    report = json.loads(result.stdout[result.stdout.index("{") :])
    assert result.exit_code == {"yellow": 1, "red": 2}[report["status"]]
    assert {"check": "target: template", "status": "yellow"}.items() <= next(
        each for each in report["findings"] if each["check"] == "target: template"
    ).items()


def test_a_folder_without_a_model_is_an_error_without_a_traceback(tmp_path):
    result = run("doctor", tmp_path, ANCHOR)
    assert result.exit_code == 2
    assert "Error:" in result.output
    assert "Traceback" not in result.output
