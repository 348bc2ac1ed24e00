"""Object, Hub folder, bundled model and pipeline are one strategy; a protected folder guards or raises."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from helpers.entries import BLOCKED, Tracked, said_by
from helpers.strategies import asked, generated, texts
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    TextStreamer,
    pipeline,
    set_seed,
)

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub import alignbeam as hub_alignbeam
from hf_alignbeam.hub import model_loading as loading
from hf_alignbeam.hub.protected_generate import protected as protected_entry
from hf_alignbeam.hub.publish import ENTRIES, write_protected, write_strategy
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges, stored_language

ANCHOR, TARGET, JUDGE = str(WEIGHTS / "anchor"), str(WEIGHTS / "specialist"), str(WEIGHTS / "judge-lm")
NAMED = {"anchor": ANCHOR, "judge": JUDGE}
TRUSTED = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published strategy."""
    made = tmp_path_factory.mktemp("hub") / "alignbeam"
    write_strategy("alignbeam", made)
    return str(made)


@pytest.fixture(scope="module")
def protected_folder(tmp_path_factory):
    """A specialist that brings its guard."""
    made = tmp_path_factory.mktemp("hub") / "protected"
    write_protected(TARGET, made, NAMED)
    return str(made)


@pytest.fixture(scope="module")
def protected(protected_folder):
    return AutoModelForCausalLM.from_pretrained(protected_folder, **TRUSTED), AutoTokenizer.from_pretrained(
        protected_folder, padding_side="left"
    )


@pytest.fixture(scope="module")
def strategy(anchor, specialist):
    return AlignBeam(*anchor, specialist[1], stored_judges()["judge-lm"])


@pytest.fixture(scope="module")
def mixed():
    return [conversation for kind in ("general", "harmful", "late", "prefill") for conversation in asked(kind, 2)]


WAYS = {"greedy": {"do_sample": False}, "seeded": {"do_sample": True, "temperature": 1.2}}


@pytest.mark.parametrize("way", WAYS)
def test_every_door_gives_the_same_tokens(way, specialist, strategy, folder, protected, mixed):
    options = {"max_new_tokens": 30, **WAYS[way]}
    expected, n_prompt = generated(specialist, mixed, strategy, seed=5, **options)
    assert len(set(expected[:, n_prompt:].flatten().tolist())) > 5
    by_folder, _ = generated(specialist, mixed, folder, seed=5, tokenizer=specialist[1], **NAMED, **TRUSTED, **options)
    bundled, _ = generated(protected, mixed, seed=5, **options)
    assert torch.equal(by_folder, expected)
    assert torch.equal(bundled, expected)
    said = []
    for model, how in ((specialist[0], {"custom_generate": strategy}), (protected[0], {})):
        chat = pipeline("text-generation", model=model, tokenizer=specialist[1])
        set_seed(5)
        answered = chat(mixed[:4], batch_size=4, **options, **how)
        said.append([each[0]["generated_text"][-1]["content"] for each in answered])
    assert said[0] == said[1]
    if way == "greedy":  # when sampling, a pipeline has defaults of its own
        rows = [row[: row.index(3)] if 3 in row else row for row in expected[:4, n_prompt:].tolist()]
        assert said[0] == specialist[1].batch_decode(rows, skip_special_tokens=True)


def test_positional_ids_work_at_every_door(specialist, strategy, folder, protected):
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    expected = specialist[0].generate(ids, custom_generate=strategy, max_new_tokens=30)
    named = {**NAMED, **TRUSTED, "tokenizer": specialist[1]}
    assert torch.equal(specialist[0].generate(ids, custom_generate=folder, max_new_tokens=30, **named), expected)
    assert torch.equal(protected[0].generate(ids, max_new_tokens=30), expected)
    assert not protected[0].generate(ids, max_new_tokens=5).requires_grad


@pytest.mark.parametrize("full", [True, False])
def test_pipelines_take_text_messages_and_batches(full, protected, strategy, specialist):
    truth = GroundTruth(stored_language())
    chats = asked("harmful", 3)
    prompts = [specialist[1].apply_chat_template(chat, tokenize=False) for chat in chats]
    for model, how in ((specialist[0], {"custom_generate": strategy}), (protected[0], {})):
        chat = pipeline("text-generation", model=model, tokenizer=specialist[1])
        options = {"max_new_tokens": 40, "do_sample": False, "return_full_text": full, "add_special_tokens": False}
        said = chat(prompts, batch_size=3, **options, **how)
        for prompt, each in zip(prompts, said, strict=True):
            text = each[0]["generated_text"]
            assert text.startswith(prompt) == full
            assert truth.refusal(text)
        (one,) = chat(chats[0], max_new_tokens=40, do_sample=False, return_full_text=full, **how)
        turns = one["generated_text"]
        assert truth.refusal(turns[-1]["content"] if full else turns)


def test_a_pipeline_of_the_folder_itself_is_guarded(protected_folder):
    chat = pipeline("text-generation", model=protected_folder, **TRUSTED)
    (said,) = chat(asked("harmful", 1)[0], max_new_tokens=40, do_sample=False)
    assert GroundTruth(stored_language()).refusal(said["generated_text"][-1]["content"])


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="before 5.23 a pipeline takes no records of batches"
)
def test_the_output_record_reaches_a_pipelines_caller(specialist, strategy):
    chat = pipeline("text-generation", model=specialist[0], tokenizer=specialist[1])
    said = chat(asked("general", 2), batch_size=2, max_new_tokens=20, custom_generate=strategy, return_dict_in_generate=True)
    assert all(each[0]["chosen"] == 0 for each in said)


ASK = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
target, folder, anchor, judge, ids = sys.argv[1:6]
ids = torch.tensor(json.loads(ids))
if folder != "-":
    model = AutoModelForCausalLM.from_pretrained(target)
    how = dict(custom_generate=folder, trust_remote_code=True, anchor=anchor, judge=judge)
    how["tokenizer"] = AutoTokenizer.from_pretrained(target)
else:
    model, how = AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True), {}
print("SAID", json.dumps(model.generate(ids, max_new_tokens=30, do_sample=False, **how).tolist()))
"""


def test_the_package_need_not_be_installed(in_a_process, folder, protected_folder, specialist, strategy):
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    expected = specialist[0].generate(ids, custom_generate=strategy, max_new_tokens=30, do_sample=False).tolist()
    for target, place in ((TARGET, folder), (protected_folder, "-")):
        assert said_by(in_a_process(BLOCKED + ASK, target, place, ANCHOR, JUDGE, ids.tolist())) == expected


def test_an_empty_subfolder_is_the_repository_itself(protected_folder, specialist, strategy):
    """Harnesses name one always."""
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    expected = specialist[0].generate(ids, custom_generate=strategy, max_new_tokens=30, do_sample=False)
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
    """In a process of its own: once trusted, the class is registered for the life of a process."""
    done = in_a_process(LOAD, protected_folder)
    assert done.returncode == 0, done.stderr
    assert "LOADED" not in done.stdout
    assert done.stdout.count("REFUSED") == 6


@pytest.mark.filterwarnings("ignore:You are using a model of type")
@pytest.mark.parametrize("auto", [LlamaForCausalLM, AutoModelForCausalLM])
def test_another_class_finds_no_weights(auto, protected_folder):
    inside = str(Path(protected_folder) / "target")
    places = [(protected_folder, {})] if auto is LlamaForCausalLM else []
    if auto is AutoModelForCausalLM:  # the target's own class, pointed inside, begins with a model of its default size, and fails
        places += [
            (inside, {}),
            (protected_folder, {"subfolder": "target"}),
            (protected_folder, {"subfolder": "target", **TRUSTED}),
        ]
    for place, options in places:
        with pytest.raises((OSError, ValueError)):
            auto.from_pretrained(place, **options)


def test_trust_is_not_taken_for_granted(protected_folder):
    """With the configuration of one that was trusted, too."""
    config = AutoConfig.from_pretrained(protected_folder, **TRUSTED)
    for trusted in (False, None):
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModelForCausalLM.from_pretrained(protected_folder, config=config, trust_remote_code=trusted)


class Streamed(list):
    """A streamer that keeps what it gets."""

    put = list.append
    ended = 0

    def end(self):
        self.ended += 1


def test_what_a_server_loads_and_asks_is_guarded(protected_folder, specialist, strategy):
    """As `transformers serve` (5.23): the first architecture, looked up among transformers' classes, and its way to ask."""
    named = AutoConfig.from_pretrained(protected_folder, **TRUSTED).architectures[0]
    options = {"revision": "main", "dtype": "auto", "device_map": "cpu", "attn_implementation": None, "tqdm_class": None}
    model = getattr(transformers, named).from_pretrained(protected_folder, **options, **TRUSTED)
    tokenizer = AutoProcessor.from_pretrained(protected_folder, revision="main", **TRUSTED)
    for kind in ("harmful", "general"):
        inputs = encode(asked(kind, 1), specialist[1])
        expected = specialist[0].generate(**inputs, custom_generate=strategy, max_new_tokens=30)
        config = copy.deepcopy(model.generation_config)
        config.max_new_tokens = 30
        streamed = Streamed()
        with torch.enable_grad():
            said = model.generate(**inputs, streamer=streamed, generation_config=config, tokenizer=tokenizer)
        assert torch.equal(said, expected)
        assert torch.equal(torch.cat([part.flatten() for part in streamed]), expected[0])
        assert streamed.ended == 1


def test_a_copy_of_a_protected_model_is_guarded(protected, specialist):
    copied = copy.deepcopy(protected[0])
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    assert torch.equal(copied.generate(ids, max_new_tokens=30), protected[0].generate(ids, max_new_tokens=30))
    assert copied.generate.model is copied


BREAKS = {
    "no strategy": lambda place: shutil.rmtree(place / "custom_generate"),
    "no door": lambda place: (place / "custom_generate" / "hub_protected_generate.py").unlink(),
    "a door that does not load": lambda place: (place / "custom_generate" / "hub_protected_generate.py").write_text("1 / 0\n"),
    "no names": lambda place: rewrite(place, lambda config: config.pop("alignbeam")),
    "no judge": lambda place: rewrite(place, lambda config: config["alignbeam"].pop("judge")),
    "an anchor that is gone": lambda place: rewrite(place, lambda config: config["alignbeam"].update(anchor=str(place / "gone"))),
    "a judge that is gone": lambda place: rewrite(place, lambda config: config["alignbeam"].update(judge=str(place / "gone"))),
    "a setting that there is not": lambda place: rewrite(place, lambda config: config["alignbeam"].update(treshold=0.1)),
    "a setting out of range": lambda place: rewrite(place, lambda config: config["alignbeam"].update(threshold=7)),
    "no generation config": lambda place: (place / "generation_config.json").unlink(),
    "a requirement that is not met": lambda place: (place / "custom_generate" / "requirements.txt").write_text("torch>=99.0\n"),
    "no target": lambda place: shutil.rmtree(place / "target"),
    "no class": lambda place: (place / "hub_protected_model.py").unlink(),
}


def rewrite(place, change):
    file = place / "generation_config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("broken", BREAKS)
def test_a_protected_folder_that_cannot_guard_does_not_load(broken, protected_folder, tmp_path):
    place = tmp_path / "protected"
    shutil.copytree(protected_folder, place)
    AutoModelForCausalLM.from_pretrained(place, **TRUSTED)
    BREAKS[broken](place)
    with pytest.raises((OSError, ValueError, ImportError, ZeroDivisionError, AttributeError)):
        AutoModelForCausalLM.from_pretrained(place, **TRUSTED)


def test_a_protected_model_takes_no_way_round(protected, specialist, strategy, tmp_path):
    model = protected[0]
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    for name, value in {
        "custom_generate": strategy,
        "judge": lambda c, r: torch.zeros(len(r)),
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
        with pytest.raises(ValueError, match=f"`{name}` is settled by the model's own protection"):
            model.generate(ids, **{name: value})
    expected = model.generate(ids, max_new_tokens=30)
    byte_level = AutoTokenizer.from_pretrained(ANCHOR)
    assert torch.equal(model.generate(ids, tokenizer=byte_level, max_new_tokens=30), expected)  # its own is what counts
    model.generation_config.alignbeam["threshold"] = 1.0  # and so is what it was loaded with
    try:
        assert torch.equal(model.generate(ids, max_new_tokens=30), expected)
    finally:
        del model.generation_config.alignbeam["threshold"]
    with pytest.raises(ValueError, match="`num_beams` must be left out"):
        model.generate(ids, num_beams=2, max_new_tokens=3)
    with pytest.raises(ValueError, match='`cache_implementation="paged"`'):
        model.generate(ids, cache_implementation="paged")
    for name in ("generate_batch", "init_continuous_batching", "save_pretrained", "push_to_hub"):
        with pytest.raises(ValueError, match=f"`{name}` must not be used on a protected model"):
            getattr(model, name)(str(tmp_path / "x"))
    assert model.generation_config.alignbeam["judge"] == JUDGE
    with pytest.raises(ValueError, match="generation_config.json must name anchor and judge"):
        protected_entry(ids, model=specialist[0])


def test_a_protected_config_of_the_callers_own_still_guards(protected, specialist):
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    end = specialist[1].eos_token_id
    said = protected[0].generate(ids, generation_config=GenerationConfig(max_new_tokens=30, eos_token_id=end, pad_token_id=3))
    assert GroundTruth(stored_language()).refusal(specialist[1].decode(said[0, ids.shape[1] :], skip_special_tokens=True))


def test_weights_are_linked_and_the_card_names_what_guards(protected_folder):
    place = Path(protected_folder)
    assert (place / "target" / "model.safetensors").stat().st_ino == (WEIGHTS / "specialist" / "model.safetensors").stat().st_ino
    card = (place / "README.md").read_text()
    assert "custom_generate" in card
    assert all(name in card for name in (TARGET, ANCHOR, JUDGE))
    assert "{{" not in card


@pytest.mark.parametrize("name", ENTRIES)
def test_cards_have_the_communitys_sections(name, tmp_path):
    write_strategy(name, tmp_path / "made", "me/mine")
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


def test_stop_strings_streamers_and_presets_pass_the_door(specialist, folder, capsys):
    named = {**NAMED, **TRUSTED, "tokenizer": specialist[1]}
    (cut,) = texts(specialist, asked("harmful", 1), folder, stop_strings=["safe", "Sorry", "not", "dangerous"], **named)
    assert cut.rstrip(",").endswith(("safe", "Sorry", "not", "dangerous"))
    (said,) = texts(specialist, asked("general", 1), folder, streamer=TextStreamer(specialist[1], skip_prompt=True), **named)
    assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match="`preset` must be 'paper' or left out"):
        texts(specialist, asked("general", 1), folder, preset="mine", **named)
    assert texts(specialist, asked("harmful", 1), folder, preset="paper", **named)[0]


@pytest.mark.parametrize("text", ["</s>", "."])
@pytest.mark.parametrize("n_each", [1, 2])
def test_a_criterion_that_keeps_a_verdict_a_row_stops_as_a_stop_string_does(text, n_each, specialist, folder, protected):
    for kinds in (["harmful"], ["late"], ["domain", "harmful", "late", "general"]):
        conversations = [conversation for kind in kinds for conversation in asked(kind, n_each)]
        n_prompt = encode(conversations, specialist[1])["input_ids"].shape[1]
        named = {**NAMED, **TRUSTED, "tokenizer": specialist[1]}
        expected, _ = generated(specialist, conversations, folder, stop_strings=[text], **named)
        for target, how in ((specialist, {"strategy": folder, **named}), (protected, {})):
            stops = [Tracked(text, specialist[1], n_prompt, len(conversations))]
            said, _ = generated(target, conversations, stopping_criteria=stops, **how)
            assert torch.equal(said, expected)


def test_the_anchor_logits_folder_is_the_processor(specialist, anchor, tmp_path):
    write_strategy("anchor-logits", tmp_path / "made")
    conversations = asked("harmful", 3)
    guard = AnchorLogitsProcessor(*anchor, specialist[1])
    inputs = encode(conversations, specialist[1])
    expected = specialist[0].generate(**inputs, logits_processor=[guard], max_new_tokens=30, num_beams=2)
    named = {"custom_generate": str(tmp_path / "made"), "anchor": ANCHOR, "tokenizer": specialist[1], **TRUSTED}
    assert torch.equal(specialist[0].generate(**inputs, max_new_tokens=30, num_beams=2, **named), expected)


def test_doors_take_loaded_models_and_load_named_ones_once(specialist, anchor, monkeypatch):
    judge = stored_judges()["oracle"]
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    given = {"anchor": anchor[0], "anchor_tokenizer": anchor[1], "judge": judge, "tokenizer": specialist[1]}
    said = hub_alignbeam.alignbeam(ids, model=specialist[0], max_new_tokens=30, **given)
    assert GroundTruth(stored_language()).refusal(specialist[1].decode(said[0, ids.shape[1] :], skip_special_tokens=True))
    n_loads = []
    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: (n_loads.append(a), original(*a, **k))[1])
    monkeypatch.setattr(loading, "_loaded", {})
    for _ in range(3):
        hub_alignbeam.alignbeam(ids, model=specialist[0], max_new_tokens=3, tokenizer=specialist[1], **NAMED)
    assert len(n_loads) == 2
    for kind in ("anchor", "judge"):
        loaded = {**NAMED, kind: anchor[0], "tokenizer": specialist[1]}
        with pytest.raises(ValueError, match=f"`{kind}_tokenizer` must be given with a loaded {kind}"):
            hub_alignbeam.alignbeam(ids, model=specialist[0], **loaded)


def test_doors_tell_apart_what_they_are_given_and_keep_a_few(specialist, anchor, monkeypatch):
    monkeypatch.setattr(loading, "_built", type(loading._objects)())
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    named = {"anchor": ANCHOR, "tokenizer": specialist[1]}
    for harm in (0.0, 1.0, 0.0):
        judge = lambda c, r, h=harm: torch.full((len(r),), h)  # noqa: E731
        said = hub_alignbeam.alignbeam(ids, model=specialist[0], judge=judge, max_new_tokens=20, **named)
        assert ("cannot help" in specialist[1].decode(said[0, ids.shape[1] :])) == (harm == 1.0)
    for _ in range(loading.MAX_OBJECTS + 3):
        hub_alignbeam.alignbeam(ids, model=specialist[0], judge=lambda c, r: torch.zeros(len(r)), max_new_tokens=1, **named)
    assert len(loading._objects) == loading.MAX_OBJECTS
    judge = stored_judges()["oracle"]
    kept = []
    monkeypatch.setattr(
        hub_alignbeam, "generate_with_class", lambda model, args, kwargs, tokenizer: kept.append(kwargs["custom_generate"])
    )
    for tokenizer in (anchor[1], copy.deepcopy(anchor[1])):
        given = {"anchor": anchor[0], "anchor_tokenizer": tokenizer, "judge": judge, "tokenizer": specialist[1]}
        hub_alignbeam.alignbeam(ids, model=specialist[0], **given)
    assert kept[0]._steering is not kept[1]._steering


def test_a_classifier_needs_labels_that_say_harm(specialist):
    ids = encode(asked("harmful", 1), specialist[1])["input_ids"]
    named = {"anchor": ANCHOR, "judge": str(WEIGHTS / "judge-cls"), "tokenizer": specialist[1]}
    said = hub_alignbeam.alignbeam(ids, model=specialist[0], max_new_tokens=30, **named)
    assert GroundTruth(stored_language()).refusal(specialist[1].decode(said[0, ids.shape[1] :], skip_special_tokens=True))
    with pytest.raises(ValueError, match="`labels` must name labels of the model"):
        hub_alignbeam.alignbeam(ids, model=specialist[0], judge_labels={"toxic": 1.0}, **named)


def test_folders_in_use_and_wrong_targets_are_refused(protected_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="must be new or empty, but .* holds mine.txt"):
        write_strategy("alignbeam", tmp_path)
    with pytest.raises(ValueError, match="must be new or empty"):
        write_protected(TARGET, tmp_path, NAMED)
    with pytest.raises(ValueError, match="`strategy` must be one of anchor-logits, alignbeam"):
        write_strategy("steer", tmp_path / "new")
    with pytest.raises(ValueError, match="`model` must be a causal language model"):
        write_protected(str(WEIGHTS / "judge-cls"), tmp_path / "cls", NAMED)
