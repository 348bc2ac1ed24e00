"""A published steerer gives what the object gives."""

import json

import pytest
import torch
from helpers.entries import BLOCKED, Tracked, said_by
from helpers.searches import GREEDY, framed, harmless
from transformers import pipeline

from hf_alignbeam import EmbeddingSteerer, PlausibleAnswer, testbed
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.hub.publish import write_strategy
from hf_alignbeam.presets.published import TSA
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges

NAMED = {"judge": str(WEIGHTS / "judge-cls"), "accept": str(WEIGHTS / "anchor")}
TRUSTED = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def thin():
    return testbed.load("thin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hub") / "steerer"
    write_strategy("embedding-steerer", made)
    return str(made)


@pytest.fixture(scope="module")
def steerer(thin, anchor):
    return EmbeddingSteerer(*thin, stored_judges()["judge-cls"], PlausibleAnswer(*anchor))


@pytest.fixture(scope="module")
def expected(thin, steerer):
    asked = framed(3) + harmless(2)
    inputs = encode(asked, thin[1])
    return inputs, steerer.generate(asked, **GREEDY)


def through(thin, folder, *args, **kwargs):
    return thin[0].generate(*args, custom_generate=folder, tokenizer=thin[1], **{**NAMED, **TRUSTED, **GREEDY, **kwargs})


def test_the_folder_gives_what_the_object_gives(thin, folder, expected):
    inputs, sequences = expected
    assert torch.equal(through(thin, folder, **inputs), sequences)
    output = through(thin, folder, **inputs, return_dict_in_generate=True)
    assert torch.equal(output.sequences, sequences)
    assert output.chosen.tolist() == [1, 1, 1, 0, 0]
    assert output.judged.tolist()[3:] == [1, 1]


def test_a_criterion_that_keeps_a_verdict_a_row_stops_no_probe(thin, folder, expected):
    inputs, sequences = expected
    stops = [Tracked(thin[1].eos_token, thin[1], inputs["input_ids"].shape[1], len(sequences))]
    assert torch.equal(through(thin, folder, **inputs, stopping_criteria=stops), sequences)


def test_ids_may_be_positional_and_without_a_mask(thin, folder, expected):
    inputs, sequences = expected
    assert torch.equal(through(thin, folder, inputs["input_ids"]), sequences)


def test_a_pipeline_says_the_same(thin, folder, expected):
    inputs, sequences = expected
    chat = pipeline("text-generation", model=thin[0], tokenizer=thin[1])
    asked = framed(3) + harmless(2)
    said = chat(asked, batch_size=5, custom_generate=folder, **NAMED, **TRUSTED, **GREEDY)
    texts = thin[1].batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [each[0]["generated_text"][-1]["content"].strip() for each in said] == [text.strip() for text in texts]


def test_judge_and_accept_may_be_objects_and_settings_have_names(thin, folder, anchor, expected):
    inputs, sequences = expected
    objects = {"judge": stored_judges()["judge-cls"], "accept": anchor[0], "anchor_tokenizer": anchor[1]}
    assert torch.equal(through(thin, folder, **inputs, **objects), sequences)
    never = through(thin, folder, **inputs, mu=0.0, refusal="No, this would be wrong.")
    texts = thin[1].batch_decode(never, skip_special_tokens=True)
    assert [text.endswith("No, this would be wrong.") for text in texts] == [True] * 3 + [False] * 2


def test_an_unflagged_sample_is_generates_own_at_the_door(thin, folder):
    inputs = encode(harmless(4), thin[1])
    options = {"do_sample": True, "temperature": 1.5, "top_k": 20}
    for seed in range(3):
        torch.manual_seed(seed)
        plain = thin[0].generate(**inputs, **{**GREEDY, **options})
        torch.manual_seed(seed)
        assert torch.equal(through(thin, folder, **inputs, **options, judge=lambda _, said: torch.zeros(len(said))), plain)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "best"}, "`preset` must be 'tsa' or left out, got 'best'"),
        ({"num_return_sequences": 2, "do_sample": True}, "`num_return_sequences` must be 1"),
        ({"mu": -1.0}, "`mu` must be at least 0"),
    ],
)
def test_what_the_door_does_not_know_is_told(given, message, thin, folder, expected):
    with pytest.raises(ValueError, match=message):
        through(thin, folder, **expected[0], **given)


def test_embeddings_are_no_prompt_to_search(thin, folder):
    with pytest.raises(ValueError, match="`input_ids` must be given, for it is their embeddings that are searched"):
        through(thin, folder, inputs_embeds=torch.zeros(1, 4, 72))


def test_the_published_preset_is_the_published_algorithm(thin, folder):
    inputs = encode(framed(2), thin[1])
    by_object = EmbeddingSteerer(*thin, stored_judges()["judge-cls"], **TSA).generate(
        framed(2), **GREEDY, return_dict_in_generate=True
    )
    output = through(thin, folder, **inputs, accept=None, preset="tsa", return_dict_in_generate=True)
    assert torch.equal(output.sequences, by_object.sequences)
    assert output.generated.tolist() == by_object.generated.tolist()


ASK = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
target, folder, judge, accept, ids = sys.argv[1:6]
model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
how = dict(custom_generate=folder, trust_remote_code=True, tokenizer=tokenizer, judge=judge, accept=accept)
said = model.generate(torch.tensor(json.loads(ids)), max_new_tokens=40, do_sample=False, **how)
print("SAID", json.dumps(said.tolist()))
"""


def test_the_package_need_not_be_installed(in_a_process, folder, expected):
    ids = expected[0]["input_ids"].tolist()
    done = in_a_process(BLOCKED + ASK, WEIGHTS / "thin", folder, *NAMED.values(), json.dumps(ids))
    assert said_by(done) == expected[1].tolist()
