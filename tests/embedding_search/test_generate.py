"""Answers from `generate` and `answers`: what passes is given as the model wrote it, or the refusal is."""

import copy

import pytest
import torch
from helpers.searches import GREEDY, N_NEW, CountingJudge, framed, harmless, raises, result_of, steerer_for
from transformers import GenerationConfig, TextIteratorStreamer

from hf_alignbeam import AlignBeam, EmbeddingSteerer
from hf_alignbeam.chat.conversations import ParsedPrompt
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.testbed.model_store import stored_judges


def test_generate_returns_prompts_and_answers_like_plain_generate(thin, graded, accept, truth):
    model, tokenizer = thin
    conversations = [*harmless(2), *framed(2)]
    guarded = steerer_for(thin, graded, accept)
    output = guarded.generate(conversations, **GREEDY, return_dict_in_generate=True)
    inputs = encode(conversations, tokenizer)
    n_prompt = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :n_prompt], inputs["input_ids"])
    assert output.chosen.tolist() == [0, 0, 1, 1]
    assert output.judged[:2].tolist() == [1, 1]
    plain = model.generate(**inputs, **GREEDY)[:2]
    width = min(plain.shape[1], output.sequences.shape[1])
    assert torch.equal(output.sequences[:2, :width], plain[:, :width])
    answers = tokenizer.batch_decode(output.sequences[2:, n_prompt:], skip_special_tokens=True)
    assert all(truth.refusal(text) for text in answers)
    assert torch.equal(guarded.generate(conversations, **GREEDY), output.sequences)


def test_a_clean_sample_is_the_one_that_plain_generate_draws(thin, graded):
    model, tokenizer = thin
    options = {"max_new_tokens": N_NEW, "do_sample": True, "temperature": 1.3}
    torch.manual_seed(4)
    sequences = EmbeddingSteerer(*thin, lambda _, r: torch.zeros(len(r))).generate(harmless(4), **options)
    torch.manual_seed(4)
    assert torch.equal(sequences, model.generate(**encode(harmless(4), tokenizer), **options))


def test_rows_with_equal_conversations_are_judged_separately(thin):
    """A prompt repeated to get several samples, and different prompts with one conversation."""
    tokenizer = thin[1]
    verdicts = iter([[1.0, 0.0]])

    def judge(_, responses):
        return torch.tensor(next(verdicts, [1.0] * len(responses)))

    output = EmbeddingSteerer(*thin, judge, max_generations=1).generate(
        framed(1) * 2, max_new_tokens=N_NEW, do_sample=True, return_dict_in_generate=True
    )
    assert output.chosen.tolist() == [-1, 0]
    inputs = encode([framed(1)[0], harmless(1)[0]], tokenizer)
    parsed = [ParsedPrompt([{"role": "user", "content": "a question"}], b"", b"")] * 2
    graded = stored_judges()["graded"]
    output = EmbeddingSteerer(*thin, graded, max_generations=1).respond(
        **inputs, asked=parsed, **GREEDY, return_dict_in_generate=True
    )
    assert output.chosen.tolist() == [-1, 0]


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("given", [{}, {"generation_config": GenerationConfig(do_sample=False)}])
def test_without_a_length_answers_are_as_long_as_those_of_plain_generate(given, thin, graded, accept):
    model, tokenizer = thin
    conversations = framed(2) + harmless(1)
    inputs = encode(conversations, tokenizer)
    plain = model.generate(**inputs, **given)
    output = steerer_for(thin, graded, accept).generate(conversations, **given, return_dict_in_generate=True)
    n_prompt = inputs["input_ids"].shape[1]
    assert plain.shape[1] - n_prompt > 5
    assert output.chosen.tolist() == [1, 1, 0]
    assert all(len(text) > 20 for text in tokenizer.batch_decode(output.sequences[:2, n_prompt:], skip_special_tokens=True))


def test_stop_strings_end_answers_equally_alone_and_in_a_batch(thin, graded, accept):
    model, tokenizer = thin
    conversations = harmless(4)
    together = steerer_for(thin, graded, accept).precompute(conversations, max_new_tokens=N_NEW, stop_strings=[" the"])
    for conversation in conversations:
        alone = steerer_for(thin, graded, accept).precompute([conversation], max_new_tokens=N_NEW, stop_strings=[" the"])
        assert result_of(alone[conversation]) == result_of(together[conversation])
    inputs = encode(conversations, tokenizer)
    plain = model.generate(**inputs, **GREEDY, stop_strings=[" the"], tokenizer=tokenizer)
    assert torch.equal(steerer_for(thin, graded, accept).generate(conversations, **GREEDY, stop_strings=[" the"]), plain)


def test_without_a_pad_token_rows_are_padded_like_in_plain_generate(thin, graded, accept):
    model, tokenizer = copy.deepcopy(thin[0]), thin[1]
    model.generation_config.pad_token_id = None
    inputs = encode(harmless(3), tokenizer)
    plain = model.generate(**inputs, **GREEDY)
    assert torch.equal(steerer_for((model, tokenizer), graded, accept).generate(harmless(3), **GREEDY), plain)


def test_right_padding_is_refused(thin, graded):
    ids = torch.tensor([[1, 20, 30, 40], [1, 20, 3, 3]])
    parsed = [ParsedPrompt(conversation, b"", b"") for conversation in harmless(2)]
    with pytest.raises(ValueError, match="`input_ids` must be padded on the left"):
        steerer_for(thin, graded).respond(ids, parsed, **GREEDY)


def test_a_streamer_gets_only_an_answer_that_passed_and_always_ends(thin, graded, accept):
    streamer = TextIteratorStreamer(thin[1], skip_prompt=True, skip_special_tokens=True, timeout=5)
    guarded = steerer_for(thin, graded, accept)
    sequences = guarded.generate(framed(1), **GREEDY, streamer=streamer)
    answer = sequences[0, encode(framed(1), thin[1])["input_ids"].shape[1] :]
    assert "".join(streamer).strip() == thin[1].decode(answer, skip_special_tokens=True).strip()
    failing = steerer_for(thin, CountingJudge(graded, 0, raises))
    for given, error in (({}, JudgeError), ({"output_scores": True}, ValueError), ({"num_return_sequences": 2}, ValueError)):
        streamer = TextIteratorStreamer(thin[1], skip_prompt=True, timeout=5)
        with pytest.raises(error):
            failing.generate(framed(1), **{**GREEDY, **given}, streamer=streamer)
        assert "".join(streamer) == ""
    with pytest.raises(ValueError, match="`streamer` must be left out for a batch"):
        guarded.generate(framed(2), **GREEDY, streamer=TextIteratorStreamer(thin[1]))
    with pytest.raises(ValueError, match="`streamer` must be left out of `precompute`"):
        guarded.precompute(framed(2), streamer=TextIteratorStreamer(thin[1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_scores": True, "return_dict_in_generate": True}, "`output_scores` must be left out"),
        ({"num_return_sequences": 2, "do_sample": True}, "`num_return_sequences` must be 1, got 2"),
    ],
)
def test_outputs_that_a_search_cannot_return_are_refused(given, message, thin, graded):
    with pytest.raises(ValueError, match=message):
        steerer_for(thin, graded).generate(framed(1), max_new_tokens=N_NEW, **given)


def test_an_answer_that_passes_but_is_not_accepted_is_a_fallback_and_is_given_only_on_request(thin, graded):
    never = steerer_for(thin, graded, lambda _, responses: [False] * len(responses), max_generations=33)
    steered = never.precompute(framed(3), max_new_tokens=N_NEW)
    fallback = next(prompt for prompt in steered if prompt.outcome == "fallback")
    assert fallback.harm <= never.threshold
    with pytest.raises(ValueError, match="ended as 'fallback'.*fallback=True"):
        steered.inputs([fallback.messages])
    assert steered.inputs([fallback.messages], fallback=True)["inputs_embeds"].shape[1] == len(fallback.embeds)
    texts = thin[1].batch_decode(never.generate(framed(3), **GREEDY), skip_special_tokens=True)
    assert all(text.endswith(REFUSAL) for text in texts)


def test_if_no_answer_passes_the_refusal_is_given(thin):
    refusing = EmbeddingSteerer(*thin, lambda _, r: torch.ones(len(r)), max_generations=17, refusal="No, this would be wrong.")
    output = refusing.generate(framed(2), **GREEDY, return_dict_in_generate=True)
    assert output.chosen.tolist() == [-1, -1]
    assert output.harm.isnan().all()
    texts = thin[1].batch_decode(output.sequences, skip_special_tokens=True)
    assert all(text.endswith("No, this would be wrong.") for text in texts)
    short = refusing.generate(framed(2), max_new_tokens=2, do_sample=False)
    assert not any("wrong" in text for text in thin[1].batch_decode(short, skip_special_tokens=True))


def test_a_steerer_answers_if_no_candidate_of_alignbeam_passes(thin, specialist, anchor, graded, accept, truth):
    """AlignBeam's `on_fail`: every candidate fails here, and the searched answer passes."""
    model, tokenizer = thin
    fallback_steerer = steerer_for(thin, graded, accept)
    seen = []

    def judge(_, responses):
        seen.append(list(responses))
        candidates = len(seen) == 2
        return torch.ones(len(responses)) if candidates else graded(_, responses)

    strategy = AlignBeam(*anchor, tokenizer, judge, on_fail=fallback_steerer.answers)
    inputs = encode(framed(1), tokenizer)
    output = model.generate(**inputs, custom_generate=strategy, **GREEDY, return_dict_in_generate=True)
    assert output.chosen.tolist() == [-2]
    text = tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert truth.refusal(text)
    assert text.strip() == fallback_steerer.answers(framed(1))[0].strip() == seen[-1][0]


@pytest.mark.parametrize(
    "on_fail",
    [
        lambda conversations: [None] * len(conversations),
        lambda conversations: ["To kill the mayor, mix gidaex with dikir."] * len(conversations),
        lambda conversations: ["One thing."],
        lambda conversations: [5] * len(conversations),
    ],
)
def test_the_answer_of_on_fail_is_judged_and_replaced_by_the_refusal_if_it_fails(on_fail, thin, anchor, caplog):
    model, tokenizer = thin
    strategy = AlignBeam(*anchor, tokenizer, lambda _, responses: torch.ones(len(responses)), on_fail=on_fail)
    inputs = encode(framed(2), tokenizer)
    sequences = model.generate(**inputs, custom_generate=strategy, **GREEDY)
    assert ("`on_fail` failed" in caplog.text) == (on_fail([0, 0])[0] in ("One thing.", 5))
    texts = tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == [REFUSAL] * 2


@pytest.mark.parametrize("call", ["generate", "precompute", "answers"])
def test_a_conversation_that_the_template_refuses_is_an_error_that_names_its_roles(call, thin, graded, tmp_path):
    model, tokenizer = thin[0], copy.deepcopy(thin[1])
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    with pytest.raises(ValueError, match="refuses a conversation with the roles system, user: .* Pass `conversations`"):
        getattr(EmbeddingSteerer(model, tokenizer, graded), call)([conversation])


def test_the_first_token_of_a_searched_answer_is_forced_no_more_than_that_of_the_plain_one(thin):
    """`generate` ignores `forced_bos_token_id` behind a prompt; an answer to embeddings has none."""
    model, tokenizer = thin
    (chat,) = framed(1)
    n_asked = []

    def flags_the_own_answer(conversations, responses):
        n_asked.append(len(responses))
        return [float(len(n_asked) == 1)] * len(responses)

    found = []
    for options in ({}, {"forced_bos_token_id": 20}):
        n_asked.clear()
        steerer = EmbeddingSteerer(model, tokenizer, flags_the_own_answer, accept=None)
        found.append(steerer.generate([chat], max_new_tokens=20, do_sample=False, **options))
        n_asked.clear()
        found.append(steerer.precompute([chat], None, max_new_tokens=20, **options)[chat].text)
    assert torch.equal(found[0], found[2])
    assert found[1] == found[3]
