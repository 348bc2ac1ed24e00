"""A protected model guards every call, or it does not load; no argument of a call changes what passes."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from helpers.entries import ANCHOR, JUDGE, TARGET, TRUSTED
from helpers.strategies import chats_of, texts
from helpers.transformers_names import CACHE
from helpers.variety import mostly_slow
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    pipeline,
)

from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.protected.generate import protected_generate
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language


def test_an_empty_subfolder_means_the_whole_repository(protected_folder, specialist, alignbeam):
    """Evaluation harnesses always pass `subfolder`."""
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    expected = specialist[0].generate(ids, custom_generate=alignbeam, max_new_tokens=30, do_sample=False)
    model = AutoModelForCausalLM.from_pretrained(protected_folder, subfolder="", **TRUSTED)
    assert torch.equal(model.generate(ids, max_new_tokens=30, do_sample=False), expected)
    config = AutoConfig.from_pretrained(protected_folder, **TRUSTED)
    with pytest.raises(ValueError, match="`subfolder` must be left out"):
        AutoModelForCausalLM.from_pretrained(protected_folder, config=config, subfolder="target", **TRUSTED)


LOAD = """
import sys, transformers
for name, options in (
    ("AutoModelForCausalLM", {}),
    ("AutoModelForCausalLM", {"trust_remote_code": False}),
    ("LlamaForCausalLM", {}),
    ("LlamaForCausalLM", {"trust_remote_code": True}),
    ("AutoModel", {"trust_remote_code": True}),
    ("AutoModelForSequenceClassification", {"trust_remote_code": True}),
):
    try:
        getattr(transformers, name).from_pretrained(sys.argv[1], **options)
    except (OSError, ValueError) as error:
        print("REFUSED", name)
    else:
        print("LOADED", name, options)
"""


def test_without_trust_nothing_is_loaded(in_a_process, protected_folder):
    """In a process of its own: once trusted, the class stays registered for the life of a process."""
    done = in_a_process(LOAD, protected_folder)
    assert done.returncode == 0, done.stderr
    assert "LOADED" not in done.stdout
    assert done.stdout.count("REFUSED") == 6


@pytest.mark.filterwarnings("ignore:You are using a model of type")
@pytest.mark.parametrize("auto", [LlamaForCausalLM, AutoModelForCausalLM])
def test_another_class_loads_no_weights(auto, protected_folder):
    inside = str(Path(protected_folder) / "target")
    places = [(protected_folder, {})] if auto is LlamaForCausalLM else []
    if auto is AutoModelForCausalLM:  # on the folder inside, the target's own class starts from its default size, and fails
        places += [
            (inside, {}),
            (protected_folder, {"subfolder": "target"}),
            (protected_folder, {"subfolder": "target", **TRUSTED}),
        ]
    for place, options in places:
        with pytest.raises((OSError, ValueError)):
            auto.from_pretrained(place, **options)


def test_a_trusted_configuration_does_not_stand_in_for_trust(protected_folder):
    config = AutoConfig.from_pretrained(protected_folder, **TRUSTED)
    for trusted in (False, None):
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForCausalLM.from_pretrained(protected_folder, config=config, trust_remote_code=trusted)


class Streamed(list):
    """A streamer that keeps the tokens it gets."""

    put = list.append
    ended = 0

    def end(self):
        self.ended += 1


def test_a_server_that_loads_a_protected_model_is_guarded(protected_folder, specialist, alignbeam):
    """As `transformers serve` (5.23): it looks up the first architecture among transformers' classes, then streams."""
    architecture = AutoConfig.from_pretrained(protected_folder, **TRUSTED).architectures[0]
    options = {"revision": "main", "dtype": "auto", "device_map": "cpu", "attn_implementation": None, "tqdm_class": None}
    model = getattr(transformers, architecture).from_pretrained(protected_folder, **options, **TRUSTED)
    tokenizer = AutoProcessor.from_pretrained(protected_folder, revision="main", **TRUSTED)
    for kind in ("harmful", "general"):
        inputs = encode(chats_of(kind, 1), specialist[1])
        expected = specialist[0].generate(**inputs, custom_generate=alignbeam, max_new_tokens=30)
        config = copy.deepcopy(model.generation_config)
        config.max_new_tokens = 30
        streamed = Streamed()
        with torch.enable_grad():
            output = model.generate(**inputs, streamer=streamed, generation_config=config, tokenizer=tokenizer)
        assert torch.equal(output, expected)
        assert torch.equal(torch.cat([part.flatten() for part in streamed]), expected[0])
        assert streamed.ended == 1


def test_a_copy_of_a_protected_model_is_guarded(protected, specialist):
    copied = copy.deepcopy(protected[0])
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    assert torch.equal(copied.generate(ids, max_new_tokens=30), protected[0].generate(ids, max_new_tokens=30))
    assert copied.generate.model is copied


def test_a_pipeline_that_loads_a_protected_model_is_guarded(protected_folder):
    chat = pipeline("text-generation", model=protected_folder, **TRUSTED)
    (output,) = chat(chats_of("harmful", 1)[0], max_new_tokens=40, do_sample=False)
    assert GroundTruth(stored_language()).refusal(output["generated_text"][-1]["content"])


def rewrite(change):
    """Damage that changes the generation config."""

    def damage(folder):
        file = folder / "generation_config.json"
        config = json.loads(file.read_text())
        change(config)
        file.write_text(json.dumps(config))

    return damage


def settings(**values):
    """Damage that changes the protection's settings."""
    return rewrite(lambda config: config["alignbeam"].update(values))


ENTRY = Path("custom_generate") / "hub_protected_generate.py"
#: Ways to damage a protected folder.
DAMAGE = {
    "no strategy": lambda folder: shutil.rmtree(folder / "custom_generate"),
    "no entry": lambda folder: (folder / ENTRY).unlink(),
    "an entry that does not load": lambda folder: (folder / ENTRY).write_text("1 / 0\n"),
    "no names": rewrite(lambda config: config.pop("alignbeam")),
    "no judge": rewrite(lambda config: config["alignbeam"].pop("judge")),
    "an anchor that is missing": settings(anchor="/no/such/anchor"),
    "a judge that is missing": settings(judge="/no/such/judge"),
    "an unknown setting": settings(treshold=0.1),
    "a setting out of range": settings(threshold=7),
    "no generation config": lambda folder: (folder / "generation_config.json").unlink(),
    "a requirement that is not met": lambda folder: (folder / "custom_generate" / "requirements.txt").write_text("torch>=99.0\n"),
    "no target": lambda folder: shutil.rmtree(folder / "target"),
    "no model class": lambda folder: (folder / "hub_protected_model.py").unlink(),
}


@pytest.mark.parametrize(
    "damage",
    mostly_slow(DAMAGE, ("no strategy", "an entry that does not load", "no names", "a judge that is missing", "no target")),
)
def test_a_protected_folder_that_cannot_guard_does_not_load(damage, protected_folder, tmp_path):
    folder = tmp_path / "protected"
    shutil.copytree(protected_folder, folder)
    AutoModelForCausalLM.from_pretrained(folder, **TRUSTED)
    DAMAGE[damage](folder)
    with pytest.raises((OSError, ValueError, ImportError, ZeroDivisionError, AttributeError)):
        AutoModelForCausalLM.from_pretrained(folder, **TRUSTED)


def test_no_argument_of_a_call_bypasses_the_guard(protected, specialist, alignbeam, tmp_path):
    model = protected[0]
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    for name, value in {
        "custom_generate": alignbeam,
        "judge": lambda c, r: torch.zeros(len(r)),
        "judge_profile": "safe-unsafe",
        "judge_rubric": "yes-no",
        "judge_threshold": 0.9,
        "judge_template": "user: hello\nassistant: ok",
        "judge_labels": {"safe": 0.0},
        "judge_tokenizer": specialist[1],
        "judge_revision": "main",
        "anchor_revision": "main",
        "anchor_tokenizer": specialist[1],
        "preset": "paper",
        "threshold": 1.0,
        "judge_after": 400,
        "alpha": 0.1,
        "num_candidates": 1,
        "conversations": [[{"role": "user", "content": "What is good for a cold?"}]],
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` is fixed by the protected model and must be left out"):
            model.generate(ids, **{name: value})
    expected = model.generate(ids, max_new_tokens=30)
    byte_level = AutoTokenizer.from_pretrained(ANCHOR)
    assert torch.equal(model.generate(ids, tokenizer=byte_level, max_new_tokens=30), expected)  # the model uses its own
    model.generation_config.alignbeam["threshold"] = 1.0  # the settings are those it was loaded with
    try:
        assert torch.equal(model.generate(ids, max_new_tokens=30), expected)
    finally:
        del model.generation_config.alignbeam["threshold"]
    with pytest.raises(ValueError, match="`num_beams` must be left out"):
        model.generate(ids, num_beams=2, max_new_tokens=3)
    with pytest.raises(ValueError, match='`cache_implementation` must not be "paged"'):
        model.generate(ids, cache_implementation="paged")
    for name in ("generate_batch", "init_continuous_batching", "save_pretrained", "push_to_hub"):
        with pytest.raises(ValueError, match=f"`{name}` must not be used on a protected model"):
            getattr(model, name)(str(tmp_path / "x"))
    assert model.generation_config.alignbeam["judge"] == JUDGE
    with pytest.raises(ValueError, match="generation_config.json must name anchor and judge"):
        protected_generate(ids, model=specialist[0])


def test_the_target_reads_what_the_judge_reads(protected, specialist):
    model, ids = protected[0], encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    cache = model(ids[:, :-1], use_cache=True)[CACHE]
    harmless = [[{"role": "user", "content": "What is good for a cold?"}]]
    for name, arguments in {
        "conversations": {"inputs_embeds": embeds, "conversations": harmless},
        "inputs_embeds": {"inputs_embeds": embeds},
        "inputs_embeds` ": {"input_ids": torch.full_like(ids, 5), "inputs_embeds": embeds},
        CACHE: {"input_ids": torch.full_like(ids, 5), CACHE: cache},
        "mems": {"input_ids": torch.full_like(ids, 5), "mems": torch.ones(1)},
    }.items():
        with pytest.raises(ValueError, match=f"`{name.removesuffix('` ')}` .*must be left out"):
            model.generate(**arguments, max_new_tokens=3)
    empty = {CACHE: DynamicCache()}
    assert torch.equal(model.generate(ids, **empty, max_new_tokens=3), model.generate(ids, max_new_tokens=3))


def test_the_callers_own_generation_config_still_guards(protected, specialist):
    ids = encode(chats_of("harmful", 1), specialist[1])["input_ids"]
    end = specialist[1].eos_token_id
    output = protected[0].generate(ids, generation_config=GenerationConfig(max_new_tokens=30, eos_token_id=end, pad_token_id=3))
    assert GroundTruth(stored_language()).refusal(specialist[1].decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def test_stop_strings_of_the_targets_own_configuration_end_answers(protected_folder, protected, tmp_path):
    """`generate` takes the tokenizer away from a strategy, and would then ask for it at every call."""
    folder = Path(shutil.copytree(protected_folder, tmp_path / "protected"))
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_strings": ["safe", "Sorry", "not", "dangerous"]}))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, **TRUSTED), protected[1]
    (whole,), (cut,) = (texts((each, tokenizer), chats_of("harmful", 1)) for each in (protected[0], model))
    assert len(cut) < len(whole)
    assert whole.startswith(cut)
    config = GenerationConfig(max_new_tokens=40, eos_token_id=tokenizer.eos_token_id, pad_token_id=3)
    ids = encode(chats_of("harmful", 1), tokenizer)["input_ids"]
    for given in (config, copy.deepcopy(model.generation_config)):
        output = model.generate(ids, generation_config=given, max_new_tokens=40)
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == cut
    entry = {"model": copy.deepcopy(protected[0]), "max_new_tokens": 40}
    entry["model"].generation_config = copy.deepcopy(entry["model"].generation_config)
    entry["model"].generation_config.stop_strings = ["safe", "Sorry", "not", "dangerous"]
    for _ in range(2):  # the entry reads them once
        output = protected_generate(ids, **entry)
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == cut
    config.stop_strings = last = whole.split()[-2]  # the caller's own come first
    output = model.generate(ids, generation_config=config)
    answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert answer == whole[: whole.index(last) + len(last)]


def test_the_card_names_the_guard(protected_folder):
    folder = Path(protected_folder)
    card = (folder / "README.md").read_text()
    assert "custom_generate" in card
    assert all(name in card for name in (TARGET, ANCHOR, JUDGE))
    assert "{{" not in card
