"""The entry of embedding-steerer generates what the object generates."""

import pytest
import torch
from helpers.entries import TRUSTED, PerRowCriterion
from helpers.searches import GREEDY, framed, harmless
from helpers.strategies import passing
from transformers import pipeline

from hf_alignbeam import EmbeddingSteerer
from hf_alignbeam.chat.refusal_words import refuses
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.presets.published import TSA
from hf_alignbeam.testbed.model_store import WEIGHTS, stored_judges

#: Two that the target answers harmfully, and a harmless one.
PROMPTS = framed(2) + harmless(1)
MODELS = {"judge": str(WEIGHTS / "judge-cls"), "accept": str(WEIGHTS / "anchor")}


@pytest.fixture(scope="module")
def folder(strategy_folder):
    return strategy_folder("embedding-steerer")


@pytest.fixture(scope="module")
def expected(thin, steerer):
    inputs = encode(PROMPTS, thin[1])
    return inputs, steerer.generate(PROMPTS, **GREEDY)


def generate(thin, folder, *args, **kwargs):
    return thin[0].generate(*args, custom_generate=folder, tokenizer=thin[1], **{**MODELS, **TRUSTED, **GREEDY, **kwargs})


def test_the_folder_generates_what_the_object_generates(thin, folder, expected):
    inputs, sequences = expected
    assert torch.equal(generate(thin, folder, **inputs), sequences)
    output = generate(thin, folder, **inputs, return_dict_in_generate=True)
    assert torch.equal(output.sequences, sequences)
    assert output.chosen.tolist() == [1, 1, 0]
    assert output.judged.tolist()[2:] == [1]


def test_only_refusals_are_accepted_by_name(thin, folder):
    """No anchor is needed for that."""
    inputs = encode(PROMPTS, thin[1])
    answers = generate(thin, folder, **inputs, accept="refusal")[:, inputs["input_ids"].shape[1] :]
    texts = thin[1].batch_decode(answers, skip_special_tokens=True)
    assert [refuses(text) for text in texts] == [True, True, False]


def test_a_criterion_with_per_row_state_stops_no_probe(thin, folder, expected):
    inputs, sequences = expected
    stops = [PerRowCriterion(thin[1].eos_token, thin[1], inputs["input_ids"].shape[1], len(sequences))]
    assert torch.equal(generate(thin, folder, **inputs, stopping_criteria=stops), sequences)


def test_ids_may_be_positional_and_have_no_mask(thin, folder, expected):
    inputs, sequences = expected
    assert torch.equal(generate(thin, folder, inputs["input_ids"]), sequences)


def test_a_pipeline_gives_the_same_answers(thin, folder, expected):
    inputs, sequences = expected
    chat = pipeline("text-generation", model=thin[0], tokenizer=thin[1])
    answers = chat(PROMPTS, batch_size=3, custom_generate=folder, **MODELS, **TRUSTED, **GREEDY)
    texts = thin[1].batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [answer["generated_text"][-1]["content"].strip() for (answer,) in answers] == [text.strip() for text in texts]


def test_judge_and_accept_may_be_objects_and_settings_are_passed_by_name(thin, folder, anchor, expected):
    inputs, sequences = expected
    objects = {"judge": stored_judges()["judge-cls"], "accept": anchor[0], "anchor_tokenizer": anchor[1]}
    assert torch.equal(generate(thin, folder, **inputs, **objects), sequences)
    refused = generate(thin, folder, **inputs, mu=0.0, refusal="No, this would be wrong.")
    texts = thin[1].batch_decode(refused, skip_special_tokens=True)
    assert [text.endswith("No, this would be wrong.") for text in texts] == [True] * 2 + [False]


def test_an_unflagged_sample_is_what_plain_generate_samples(thin, folder):
    inputs = encode(harmless(4), thin[1])
    options = {"do_sample": True, "temperature": 1.5, "top_k": 20}
    for seed in range(3):
        torch.manual_seed(seed)
        plain = thin[0].generate(**inputs, **{**GREEDY, **options})
        torch.manual_seed(seed)
        assert torch.equal(generate(thin, folder, **inputs, **options, judge=passing), plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "best"}, "`preset` must be 'tsa' or left out, got 'best'"),
        ({"num_return_sequences": 2, "do_sample": True}, "`num_return_sequences` must be 1"),
        ({"mu": -1.0}, "`mu` must be at least 0"),
        ({"mu": -1.0, "judge": "nowhere"}, "`mu` must be at least 0"),  # before it is loaded
        ({"template": "{{ bad"}, "`template` must be a Jinja template"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message, thin, folder, expected):
    with pytest.raises(ValueError, match=message):
        generate(thin, folder, **expected[0], **arguments)


def test_embeddings_cannot_replace_the_prompts_ids(thin, folder):
    with pytest.raises(ValueError, match="`input_ids` must be given, and `inputs_embeds` left out: the search starts from"):
        generate(thin, folder, inputs_embeds=torch.zeros(1, 4, 72))


def test_the_preset_tsa_is_the_published_algorithm(thin, folder):
    inputs = encode(framed(2), thin[1])
    by_object = EmbeddingSteerer(*thin, stored_judges()["judge-cls"], **TSA).generate(
        framed(2), **GREEDY, return_dict_in_generate=True
    )
    output = generate(thin, folder, **inputs, accept=None, preset="tsa", return_dict_in_generate=True)
    assert torch.equal(output.sequences, by_object.sequences)
    assert output.generated.tolist() == by_object.generated.tolist()
