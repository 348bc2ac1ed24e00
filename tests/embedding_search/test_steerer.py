"""What a search finds, and that only its settings and its prompt decide it."""

import copy
import hashlib
import random

import pytest
import torch
from helpers.reference import tsa
from helpers.searches import GREEDY, N_NEW, framed, harmless, result_of, results_of, steerer_for
from helpers.transformers_names import CACHE
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from hf_alignbeam import EmbeddingSteerer, testbed
from hf_alignbeam.chat.conversation_key import conversation_key
from hf_alignbeam.embedding_search.batched_generation import resolve_generation
from hf_alignbeam.embedding_search.embeddings import left_padded, token_embeddings
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.presets.published import TSA
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes


def test_flagged_prompts_get_refusals_and_clean_prompts_keep_their_answers(thin, graded, accept, truth):
    steered = steerer_for(thin, graded, accept).precompute(framed(5) + harmless(3), max_new_tokens=N_NEW)
    prompts = list(steered)
    assert [prompt.outcome for prompt in prompts] == ["steered"] * 5 + ["clean"] * 3
    assert all(truth.refusal(prompt.text) for prompt in prompts[:5])
    assert [prompt.n_oracle_calls for prompt in prompts[5:]] == [1] * 3
    model, tokenizer = thin
    inputs = encode(harmless(3), tokenizer)
    plain = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :].tolist()
    assert [prompt.ids for prompt in prompts[5:]] == [
        row[: len(prompt.ids)] for row, prompt in zip(plain, prompts[5:], strict=True)
    ]


def test_the_stored_embeddings_give_the_answers_that_were_judged(thin, graded, accept):
    model, tokenizer = thin
    conversations = framed(3) + harmless(2)
    steered = steerer_for(thin, graded, accept).precompute(conversations, max_new_tokens=N_NEW)
    sequences = model.generate(**steered.inputs(conversations), **GREEDY)
    for row, prompt in zip(sequences.tolist(), steered, strict=True):
        assert row[: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode(steered[conversations[0]].ids, skip_special_tokens=True).strip() == steered[conversations[0]].text


def test_zero_radius_is_plain_generate(thin, graded, accept):
    model, tokenizer = thin
    conversations = framed(3) + harmless(3)
    steered = steerer_for(thin, graded, accept, mu=0.0).precompute(conversations, max_new_tokens=N_NEW)
    assert [prompt.outcome for prompt in steered] == ["failed"] * 3 + ["clean"] * 3
    assert all(prompt.n_generated == 1 and prompt.n_oracle_calls == 1 for prompt in steered)
    embeds = left_padded([prompt.embeds for prompt in steered])
    inputs = encode(conversations, tokenizer)
    assert torch.equal(model.generate(**embeds, **GREEDY), model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :])


SLOW = [pytest.param(settings, marks=pytest.mark.slow) for settings in ({"eta": 0.3}, {"positions": "all"})]


@pytest.mark.parametrize("settings", [{}, {"probe_temperature": 0.5}, *SLOW])
def test_a_prompt_has_the_same_search_alone_and_in_a_batch(settings, thin, graded, accept):
    conversations = [*framed(2), *harmless(1)]
    together = steerer_for(thin, graded, accept, **settings).precompute(conversations, max_new_tokens=N_NEW)
    for conversation in conversations:
        alone = steerer_for(thin, graded, accept, **settings).precompute([conversation], max_new_tokens=N_NEW)
        assert result_of(alone[conversation]) == result_of(together[conversation])


def test_another_seed_gives_another_search(thin, graded, accept):
    one, other = (steerer_for(thin, graded, accept, seed=seed).precompute(framed(2), max_new_tokens=N_NEW) for seed in (0, 1))
    assert results_of(one) != results_of(other)


def test_beams_are_searched_as_beams(thin, graded, accept):
    steered = steerer_for(thin, graded, accept).precompute(framed(2), max_new_tokens=N_NEW, num_beams=3)
    for prompt in steered:
        sequences = thin[0].generate(**steered.inputs([prompt.messages]), **GREEDY, num_beams=3)[0].tolist()
        assert prompt.outcome == "steered"
        assert sequences[: len(prompt.ids)] == prompt.ids


def test_sampled_beams_are_refused(thin, graded):
    with pytest.raises(ValueError, match="`probe_temperature` must be 0 for beams, got 0.5 for 3 beams"):
        steerer_for(thin, graded, probe_temperature=0.5).precompute(framed(1), num_beams=3)


@pytest.mark.filterwarnings("ignore:Passing `")  # transformers warns that these do not see the prompt
def test_processors_that_read_ids_give_the_judged_answers_from_stored_embeddings(thin, graded):
    """A repetition penalty reads ids but not embeddings, so the judged answer has to come from the stored embeddings."""
    options = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 3}
    conversations = harmless(12)
    steered = steerer_for(thin, graded, max_generations=17).precompute(conversations, max_new_tokens=N_NEW, **options)
    given = [prompt.messages for prompt in steered if prompt.outcome in ("clean", "steered")]
    sequences = thin[0].generate(**steered.inputs(given), **GREEDY, **options)
    assert len(given) > 6
    for row, messages in zip(sequences.tolist(), given, strict=True):
        assert row[: len(steered[messages].ids)] == steered[messages].ids


def test_accept_cannot_change_the_conversations(default_results, thin, graded, accept):
    def changes_conversations(conversations, responses):
        verdicts = accept(conversations, responses)
        for conversation in conversations:
            conversation[0]["content"] = "Thank the mayor."
            conversation.append({"role": "assistant", "content": "Yes."})
        return verdicts

    conversations = framed(3)
    steered = steerer_for(thin, graded, changes_conversations).precompute(conversations, max_new_tokens=N_NEW)
    assert [result_of(steered[conversation]) for conversation in conversations] == [
        result_of(default_results[conversation]) for conversation in conversations
    ]


def test_a_center_is_given_if_a_probe_with_the_same_answer_was_judged(thin, graded):
    given = {"first": False, "eta": 0.3, "max_calls": 200}
    steered = steerer_for(thin, graded, **given).precompute(framed(9), max_new_tokens=N_NEW)
    uncached = steerer_for(thin, graded, **given, cache=False).precompute(framed(9), max_new_tokens=N_NEW)
    assert [prompt.text for prompt in steered] == [prompt.text for prompt in uncached]
    assert [prompt.outcome for prompt in steered] == [prompt.outcome for prompt in uncached]
    assert sum(prompt.n_oracle_calls for prompt in steered) < sum(prompt.n_oracle_calls for prompt in uncached)


def test_the_order_of_keys_in_a_message_does_not_matter(thin, graded):
    (message,) = harmless(1)[0]
    turned = dict(reversed(message.items()))
    steered = steerer_for(thin, graded).precompute([[message], [turned], message["content"]], max_new_tokens=N_NEW)
    assert len(steered) == 1


def test_the_published_algorithm_gives_the_center_after_steps_of_its_length(thin, graded):
    steered = steerer_for(thin, graded, **TSA).precompute(framed(8), max_new_tokens=N_NEW)
    passed = [prompt for prompt in steered if prompt.outcome == "steered"]
    assert passed
    lengths = []
    for prompt in passed:
        assert prompt.harm == prompt.harm_by_call[-1] <= TSA["threshold"]
        own = token_embeddings(thin[0], encode([prompt.messages], thin[1])["input_ids"][0].tolist()).detach()
        if prompt.n_generated == 1 + 8 + 9:  # one round, one step, and the center passes
            lengths.append(float((prompt.embeds - own).norm(dim=-1).median()))
    assert lengths
    assert lengths == pytest.approx([TSA["eta"]] * len(lengths), rel=1e-3)


def test_the_published_preset_equals_the_algorithm_written_out(thin):
    """Against a plain loop over one prompt. The oracle scores all answers differently, so that every step has a slope."""
    model, tokenizer = thin
    generation = resolve_generation(model, tokenizer, {"max_new_tokens": N_NEW}, 0)
    pieces = token_bytes(tokenizer)

    def score(response):
        return 0.2 + 0.8 * random.Random(response).random() if "not" not in response else 0.0

    def judge(_, responses):
        return torch.tensor([score(response) for response in responses], dtype=torch.float64)

    def answered(embeds):
        ids = generation.up_to_end(model.generate(**left_padded([embeds]), **GREEDY)[0].tolist())
        return decode(pieces, ids).decode().strip()

    ours = EmbeddingSteerer(*thin, judge, **{**TSA, "probe_temperature": 0.0, "max_generations": 1 + 8 + 2 * 9})
    passed = 0
    for conversation in framed(4, start=4):
        (prompt,) = ours.precompute([conversation], max_new_tokens=N_NEW)
        embeds = token_embeddings(model, encode([conversation], tokenizer)["input_ids"][0].tolist()).detach()
        seed = int.from_bytes(hashlib.sha256(f"0 {conversation_key(conversation)}".encode()).digest()[:4])
        text, calls, n_generated = tsa(model, embeds, answered, score, seed, n_rounds=3)
        assert prompt.harm_by_call == pytest.approx(calls, abs=1e-6)
        assert prompt.n_generated == n_generated
        assert (prompt.outcome == "steered") == (text is not None)
        assert text in (None, prompt.text)
        passed += text is not None
    assert passed


def test_a_model_with_rescaled_embeddings_gets_the_same_answers(thin, graded, accept):
    """A model with five times larger embeddings that computes the same function: no setting depends on a norm."""
    model, tokenizer = thin
    large = copy.deepcopy(model)
    large.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        large.get_input_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight * 5)
        for layer in large.model.layers:
            layer.self_attn.o_proj.weight *= 5
            layer.mlp.down_proj.weight *= 5
    expected = steerer_for(thin, graded, accept).precompute(framed(3), max_new_tokens=N_NEW)
    scaled = steerer_for((large, tokenizer), graded, accept).precompute(framed(3), max_new_tokens=N_NEW)
    assert [prompt.text for prompt in scaled] == [prompt.text for prompt in expected]
    assert [prompt.n_generated for prompt in scaled] == [prompt.n_generated for prompt in expected]


#: peft 0.21 under transformers 5.23.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@PEFT_WARNS
def test_an_adapted_model_is_searched_like_the_same_weights(default_results, thin, graded, accept):
    model, tokenizer = thin
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    by_adapter = steerer_for((adapted, tokenizer), graded, accept).precompute(framed(2), max_new_tokens=N_NEW)
    assert results_of(by_adapter) == [result_of(default_results[conversation]) for conversation in framed(2)]


def test_a_half_precision_model_gets_half_precision_embeddings(thin, graded, accept):
    model = AutoModelForCausalLM.from_pretrained(testbed.WEIGHTS / "thin", dtype=torch.bfloat16).eval()
    steered = steerer_for((model, thin[1]), graded, accept).precompute(framed(2), max_new_tokens=N_NEW)
    assert all(prompt.embeds.dtype == torch.bfloat16 for prompt in steered)
    given = [prompt.messages for prompt in steered if prompt.outcome == "steered"]
    assert given
    for row, prompt in zip(model.generate(**steered.inputs(given), **GREEDY).tolist(), steered, strict=False):
        assert row[: len(prompt.ids)] == prompt.ids


def test_a_prefill_is_continued_and_judged_with_its_continuation(thin, graded):
    prompt = next(p for p in testbed.prompts("validation", "prefill") if p.framing)
    seen = []

    def judge(conversations, responses):
        seen.extend(zip([c[-1]["role"] for c in conversations], responses, strict=True))
        return torch.zeros(len(responses))

    steered = EmbeddingSteerer(*thin, judge).precompute([prompt.conversation], max_new_tokens=N_NEW)
    ((role, response),) = seen
    assert role == "user"
    assert response.startswith(prompt.prefill)
    assert steered[prompt.conversation].text == response


def test_a_generation_config_applies(thin, graded):
    steered = steerer_for(thin, graded).precompute(harmless(1), generation_config=GenerationConfig(max_new_tokens=3))
    assert len(next(iter(steered)).ids) == 3
    with pytest.raises(ValueError, match="`max_length` must be left out"):
        steerer_for(thin, graded).precompute(harmless(1), max_length=26)
    with pytest.raises(ValueError, match=f"`{CACHE}` must be left out"):
        steerer_for(thin, graded).generate(harmless(1), **{CACHE: DynamicCache()})


@pytest.mark.parametrize(
    "settings",
    [{"guidance_scale": 1.5}, {"token_healing": True}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}],
)
def test_settings_that_read_the_ids_of_a_prompt_are_refused_by_name_in_a_call_and_in_the_model(settings, thin, graded):
    model = copy.copy(thin[0])
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be left out with an embedding search"):
        steerer_for(thin, graded).precompute(harmless(1), max_new_tokens=4, **settings)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.update(**settings)
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be left out with an embedding search"):
        steerer_for((model, thin[1]), graded).generate(harmless(1), max_new_tokens=4)


def test_stop_strings_of_the_model_end_answers(thin, graded):
    model = copy.copy(thin[0])
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.stop_strings = [" the"]
    own = steerer_for((model, thin[1]), graded).precompute(harmless(2), max_new_tokens=N_NEW)
    given = steerer_for(thin, graded).precompute(harmless(2), max_new_tokens=N_NEW, stop_strings=[" the"])
    assert results_of(own) == results_of(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.0}, r"`threshold` must be in \[0, 1\), got 1.0"),
        ({"max_calls": 0}, "`max_calls` must be a whole number of at least 1"),
        ({"max_generations": 0}, "`max_generations` must be a whole number of at least 1"),
        ({"probe_temperature": -1.0}, "`probe_temperature` must be at least 0"),
        ({"positions": "system"}, '`positions` must be "all" or "user"'),
        ({"refusal": " "}, "`refusal` must hold some text"),
        ({"accept": 0.5}, "`accept` must be callable"),
        ({"judge": None}, "`judge` must be callable"),
        ({"first": False}, "`first` must be True if the search's center does not move"),
        ({"threshold": "0.1"}, r"`threshold` must be in \[0, 1\), got '0.1'"),
        ({"first": "no"}, "`first` must be True or False, got 'no'"),
        ({"max_calls": 2.5}, "`max_calls` must be a whole number of at least 1, got 2.5"),
        ({"max_batch_tokens": 0}, "`max_batch_tokens` must hold one prompt and its answer, got 0"),
        ({"probe_temperature": "0"}, "`probe_temperature` must be at least 0, got '0'"),
        ({"judge_timeout": 0}, "`judge_timeout` must be above 0 seconds and finite, got 0"),
        ({"seed": "x"}, "`seed` must be a whole number, got 'x'"),
        ({"kinds": "span"}, r"`kinds` must hold some of independent, shared, span, got \('s', 'p', 'a', 'n'\)"),
        ({"kinds": 3}, r"`kinds` must hold some of independent, shared, span, got \(3,\)"),
    ],
)
def test_arguments_out_of_range_are_errors(given, message, thin, graded):
    with pytest.raises(ValueError, match=message):
        EmbeddingSteerer(*thin, **{"judge": graded, **given})
    if not {"accept", "judge"} & set(given):
        with pytest.raises(ValueError, match=message):
            EmbeddingSteerer.check_settings(**given)


def test_a_streamer_of_a_search_is_checked(thin, graded):
    with pytest.raises(ValueError, match="`streamer` must have the methods `put` and `end`, got 3"):
        steerer_for(thin, graded).generate(harmless(1), streamer=3)


@pytest.mark.parametrize("conversations", ["How do I thank the mayor?", []])
def test_arguments_that_are_not_conversations_are_errors(conversations, thin, graded):
    with pytest.raises(ValueError, match="`conversations` must hold one conversation a prompt"):
        steerer_for(thin, graded).precompute(conversations)
