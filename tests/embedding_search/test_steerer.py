"""The steerer's laws; a judge that fails at every call; a search that is killed at every call and goes on."""

import copy
import hashlib
import json
import math
import random
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from helpers.reference import tsa
from helpers.searches import GREEDY, N_NEW, framed, harmless
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, TextIteratorStreamer

from hf_alignbeam import AlignBeam, EmbeddingSteerer, PlausibleAnswer, testbed
from hf_alignbeam.chat.conversations import ParsedPrompt, conversation_key
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.embedding_search.batched_generation import ended
from hf_alignbeam.embedding_search.embeddings import embedded, left_padded
from hf_alignbeam.embedding_search.journal import NAME
from hf_alignbeam.embedding_search.settled import resolve_generation
from hf_alignbeam.embedding_search.steered_prompts import RECORDS
from hf_alignbeam.embedding_search.steerer import EmbeddingSearchError
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.presets.published import TSA
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_judges, stored_language
from hf_alignbeam.tokenization.vocabulary import decode, token_bytes

#: peft 0.21 under transformers 5.23.
OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def thin():
    """The testbed's model that complies under framings: (model, tokenizer)."""
    return testbed.load("thin")


@pytest.fixture(scope="module")
def graded():
    return stored_judges()["graded"]


@pytest.fixture(scope="module")
def accept(anchor):
    return PlausibleAnswer(*anchor)


@pytest.fixture(scope="module")
def truth():
    return GroundTruth(stored_language())


def steerer(thin, judge, accept=None, **given):
    return EmbeddingSteerer(*thin, judge, accept, **given)


def told(prompt):
    """What a search came to, its seconds aside."""
    return prompt.outcome, prompt.text, prompt.ids, prompt.harm_by_call, prompt.n_generated, prompt.embeds.tolist()


class Counting:
    """A judge that counts, and fails in some way at one of its calls."""

    def __init__(self, judge, fails_at=None, failure=None):
        self.judge, self.fails_at, self.failure = judge, fails_at, failure
        self.n_calls, self.n_texts = 0, 0

    def __call__(self, conversations, responses):
        self.n_calls += 1
        if self.n_calls - 1 == self.fails_at:
            return self.failure(self.judge(conversations, responses))
        self.n_texts += len(responses)
        return self.judge(conversations, responses)


def raises(_):
    raise ConnectionError("the line is dead")


FAILURES = {
    "raises": raises,
    "says NaN": lambda harm: torch.full_like(harm, math.nan),
    "says too few": lambda harm: harm[:-1],
    "says too many": lambda harm: torch.cat([harm, harm]),
    "says what is no harm": lambda harm: harm + 2,
    "says nothing": lambda _: None,
    "says infinity": lambda harm: torch.full_like(harm, math.inf),
}


def test_flagged_prompts_get_refusals_and_the_others_stay_as_they_are(thin, graded, accept, truth):
    steered = steerer(thin, graded, accept).precompute(framed(12) + harmless(6), max_new_tokens=N_NEW)
    found = list(steered)
    assert [prompt.outcome for prompt in found] == ["steered"] * 12 + ["clean"] * 6
    assert all(truth.refusal(prompt.text) for prompt in found[:12])
    assert [prompt.n_oracle_calls for prompt in found[12:]] == [1] * 6
    model, tokenizer = thin
    inputs = encode(harmless(6), tokenizer)
    plain = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :].tolist()
    assert [prompt.ids for prompt in found[12:]] == [
        row[: len(prompt.ids)] for row, prompt in zip(plain, found[12:], strict=True)
    ]


def test_what_is_stored_gives_the_answers_that_were_judged(thin, graded, accept):
    model, tokenizer = thin
    asked = framed(6) + harmless(3)
    steered = steerer(thin, graded, accept).precompute(asked, max_new_tokens=N_NEW)
    written = model.generate(**steered.inputs(asked), **GREEDY)
    for row, prompt in zip(written.tolist(), steered, strict=True):
        assert row[: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode(steered[asked[0]].ids, skip_special_tokens=True).strip() == steered[asked[0]].text


def test_zero_radius_is_plain_generate(thin, graded, accept):
    model, tokenizer = thin
    asked = framed(3) + harmless(3)
    steered = steerer(thin, graded, accept, mu=0.0).precompute(asked, max_new_tokens=N_NEW)
    assert [prompt.outcome for prompt in steered] == ["failed"] * 3 + ["clean"] * 3
    assert all(prompt.n_generated == 1 and prompt.n_oracle_calls == 1 for prompt in steered)
    embeds = left_padded([prompt.embeds for prompt in steered])
    inputs = encode(asked, tokenizer)
    assert torch.equal(model.generate(**embeds, **GREEDY), model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("settings", [{}, {"eta": 0.3}, {"probe_temperature": 0.5}, {"positions": "all"}])
def test_a_prompt_alone_and_in_a_batch_is_one_search(settings, thin, graded, accept):
    asked = [*framed(3), *harmless(1)]
    together = steerer(thin, graded, accept, **settings).precompute(asked, max_new_tokens=N_NEW)
    for conversation in asked:
        alone = steerer(thin, graded, accept, **settings).precompute([conversation], max_new_tokens=N_NEW)
        assert told(alone[conversation]) == told(together[conversation])


def test_another_seed_is_another_search(thin, graded, accept):
    one, other = (steerer(thin, graded, accept, seed=seed).precompute(framed(2), max_new_tokens=N_NEW) for seed in (0, 1))
    assert [told(prompt) for prompt in one] != [told(prompt) for prompt in other]


@pytest.mark.parametrize("n_generations", [pytest.param(1, marks=pytest.mark.slow), 8, 9, 20])
@pytest.mark.parametrize("n_calls", [1, pytest.param(2, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("settings", [{}, {"eta": 0.3}, {"eta": 0.3, "cache": False, "estimator": "forward"}])
def test_no_prompt_costs_more_than_its_budgets(settings, n_calls, n_generations, thin, graded):
    judge = Counting(graded)
    with counted(thin[0]) as seen:
        never = EmbeddingSteerer(
            seen.model,
            thin[1],
            judge,
            lambda _, responses: [False] * len(responses),
            max_calls=n_calls,
            max_generations=n_generations,
            **settings,
        )
        seen.n_rows = 0
        steered = never.precompute(framed(3), max_new_tokens=N_NEW)
    assert all(prompt.n_oracle_calls <= n_calls for prompt in steered)
    assert all(prompt.n_generated <= n_generations for prompt in steered)
    assert judge.n_texts == sum(prompt.n_oracle_calls for prompt in steered)
    assert seen.n_rows == sum(prompt.n_generated for prompt in steered)


class Counted:
    """What was asked of a model's `generate`: how many rows, and how many tokens at most."""

    def __init__(self, model):
        self.model, self.n_rows, self.most_tokens = model, 0, 0


@contextmanager
def counted(model):
    """A model whose calls of `generate` are seen for the length of a block."""
    kind, seen = type(model), Counted(model)

    class Seen(kind):
        def generate(self, *args, **kwargs):
            prompt = kwargs.get("inputs_embeds", kwargs.get("input_ids"))
            n_new = kwargs["generation_config"].max_new_tokens
            seen.n_rows += len(prompt)
            seen.most_tokens = max(seen.most_tokens, len(prompt) * (prompt.shape[1] + n_new))
            return super().generate(*args, **kwargs)

    model.__class__ = Seen
    try:
        yield seen
    finally:
        model.__class__ = kind


@pytest.fixture(scope="module")
def usual(thin, graded, accept):
    return steerer(thin, graded, accept).precompute(framed(3) + harmless(3), max_new_tokens=N_NEW)


@pytest.mark.parametrize("n_tokens", [70, pytest.param(500, marks=pytest.mark.slow), 3000])
def test_no_call_is_larger_than_the_token_budget(n_tokens, usual, thin, graded, accept):
    with counted(thin[0]) as seen:
        small = EmbeddingSteerer(seen.model, thin[1], graded, accept, max_batch_tokens=n_tokens)
        steered = small.precompute(framed(3) + harmless(3), max_new_tokens=N_NEW)
    assert 0 < seen.most_tokens <= n_tokens
    assert [told(prompt) for prompt in steered] == [told(prompt) for prompt in usual]


def test_a_prompt_that_does_not_fit_the_budget_is_an_error(thin, graded):
    with pytest.raises(ValueError, match="`max_batch_tokens` must hold one prompt and its answer, got 30"):
        steerer(thin, graded, max_batch_tokens=30).precompute(framed(1), max_new_tokens=N_NEW)


@pytest.mark.parametrize("settings", [{}, {"eta": 0.3, "max_generations": 33}])
def test_a_killed_search_goes_on_where_it_was_and_pays_for_nothing_twice(settings, thin, graded, accept, tmp_path):
    asked = framed(2) + harmless(1)
    whole = Counting(graded)
    expected = [told(prompt) for prompt in steerer(thin, whole, accept, **settings).precompute(asked, max_new_tokens=N_NEW)]
    for n in range(whole.n_calls):
        folder = tmp_path / str(n)
        killed, after = Counting(graded, n, raises), Counting(graded)
        with pytest.raises(EmbeddingSearchError):
            steerer(thin, killed, accept, **settings).precompute(asked, folder, max_new_tokens=N_NEW)
        with counted(thin[0]) as seen:
            again = EmbeddingSteerer(seen.model, thin[1], after, accept, **settings)
            seen.n_rows = 0
            answered = sum("ids" in json.loads(line) for line in (folder / NAME).read_text().splitlines())
            found = again.precompute(asked, folder, max_new_tokens=N_NEW)
        assert [told(prompt) for prompt in found] == expected
        assert killed.n_texts + after.n_texts == whole.n_texts
        assert answered + seen.n_rows == sum(prompt.n_generated for prompt in found)


def test_a_finished_folder_costs_nothing_and_takes_more_prompts(thin, graded, accept, tmp_path):
    first = steerer(thin, graded, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    counting = Counting(graded)
    both = steerer(thin, counting, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    assert counting.n_calls == 0
    assert [told(prompt) for prompt in both] == [told(prompt) for prompt in first]
    more = steerer(thin, counting, accept).precompute(framed(3), tmp_path, max_new_tokens=N_NEW)
    assert counting.n_texts == list(more)[2].n_oracle_calls


def test_parts_of_a_search_are_one_search(thin, graded, accept, tmp_path):
    asked = framed(3) + harmless(1)
    expected = steerer(thin, graded, accept).precompute(asked, max_new_tokens=N_NEW)
    for part in (0, 1):
        counting = Counting(graded)
        found = steerer(thin, counting, accept).precompute(asked[part::2], tmp_path, max_new_tokens=N_NEW, part=part)
        assert counting.n_texts == sum(prompt.n_oracle_calls for prompt in found)
    assert not (tmp_path / RECORDS).exists()
    whole = Counting(graded)
    together = steerer(thin, whole, accept).precompute(asked, tmp_path, max_new_tokens=N_NEW)
    assert whole.n_calls == 0
    assert [told(prompt) for prompt in together] == [told(prompt) for prompt in expected]
    assert (tmp_path / RECORDS).exists()


def test_a_torn_line_of_the_journal_is_as_good_as_none(thin, graded, accept, tmp_path):
    first = steerer(thin, graded, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    path = tmp_path / NAME
    path.write_text(path.read_text()[:-7])
    counting = Counting(graded)
    again = steerer(thin, counting, accept).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    assert counting.n_texts <= 1
    assert [told(prompt) for prompt in again] == [told(prompt) for prompt in first]


def test_a_folder_of_another_accept_gives_no_verdict_to_another_answer(thin, graded, accept, tmp_path):
    """A journal keeps verdicts by the answer they were given on: who asks about others has to pay for them."""
    loose = lambda _, responses: [True] * len(responses)  # noqa: E731
    steerer(thin, graded, accept).precompute(framed(4), tmp_path, max_new_tokens=N_NEW)
    other = steerer(thin, graded, loose).precompute(framed(4), tmp_path, max_new_tokens=N_NEW)
    assert [told(prompt) for prompt in other] == [
        told(prompt) for prompt in steerer(thin, graded, loose).precompute(framed(4), max_new_tokens=N_NEW)
    ]


def test_sampled_beams_are_refused(thin, graded):
    with pytest.raises(ValueError, match="`probe_temperature` must be 0 for beams, got 0.5 for 3 beams"):
        steerer(thin, graded, probe_temperature=0.5).precompute(framed(1), num_beams=3)


def test_beams_are_searched_as_beams(thin, graded, accept):
    steered = steerer(thin, graded, accept).precompute(framed(2), max_new_tokens=N_NEW, num_beams=3)
    for prompt in steered:
        written = thin[0].generate(**steered.inputs([prompt.messages]), **GREEDY, num_beams=3)[0].tolist()
        assert prompt.outcome == "steered"
        assert written[: len(prompt.ids)] == prompt.ids


def test_rows_of_one_conversation_are_judged_each(thin):
    """A prompt that is repeated to get several samples, and prompts that a caller gives one conversation."""
    tokenizer = thin[1]
    verdicts = iter([[1.0, 0.0]])

    def judge(_, responses):
        return torch.tensor(next(verdicts, [1.0] * len(responses)))

    said = EmbeddingSteerer(*thin, judge, max_generations=1).generate(
        framed(1) * 2, max_new_tokens=N_NEW, do_sample=True, return_dict_in_generate=True
    )
    assert said.chosen.tolist() == [-1, 0]
    inputs = encode([framed(1)[0], harmless(1)[0]], tokenizer)
    asked = [ParsedPrompt([{"role": "user", "content": "a question"}], b"", b"")] * 2
    graded = stored_judges()["graded"]
    output = EmbeddingSteerer(*thin, graded, max_generations=1).respond(
        **inputs, asked=asked, **GREEDY, return_dict_in_generate=True
    )
    assert output.chosen.tolist() == [-1, 0]


def test_an_optimiser_with_other_arguments_is_another_search(thin, graded, accept, tmp_path):
    def made(lr):
        return steerer(thin, graded, accept, optimizer=partial(torch.optim.Adam, lr=lr), max_generations=19)

    made(0.05).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)
    with pytest.raises(ValueError, match="begun with the same settings, but .*`optimizer`"):
        made(0.5).precompute(framed(2), tmp_path, max_new_tokens=N_NEW)


@pytest.mark.filterwarnings("ignore:Passing `")  # transformers says that it will not see the prompt
def test_what_passed_is_what_is_given_even_where_scores_look_at_the_prompt(thin, graded):
    """A repetition penalty sees ids and no embeddings: what is judged has to be written from what is handed out."""
    options = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 3}
    asked = harmless(12)
    steered = steerer(thin, graded, max_generations=17).precompute(asked, max_new_tokens=N_NEW, **options)
    given = [prompt.messages for prompt in steered if prompt.outcome in ("clean", "steered")]
    written = thin[0].generate(**steered.inputs(given), **GREEDY, **options)
    assert len(given) > 6
    for row, messages in zip(written.tolist(), given, strict=True):
        assert row[: len(steered[messages].ids)] == steered[messages].ids


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("given", [{}, {"generation_config": GenerationConfig(do_sample=False)}])
def test_where_nobody_says_a_length_answers_are_as_long_as_generates(given, thin, graded, accept):
    model, tokenizer = thin
    asked = framed(2) + harmless(1)
    inputs = encode(asked, tokenizer)
    plain = model.generate(**inputs, **given)
    output = steerer(thin, graded, accept).generate(asked, **given, return_dict_in_generate=True)
    n_prompt = inputs["input_ids"].shape[1]
    assert plain.shape[1] - n_prompt > 5
    assert output.chosen.tolist() == [1, 1, 0]
    assert all(len(text) > 20 for text in tokenizer.batch_decode(output.sequences[:2, n_prompt:], skip_special_tokens=True))


def test_who_is_asked_cannot_write_into_the_conversations(usual, thin, graded, accept):
    def scribbles(conversations, responses):
        verdicts = accept(conversations, responses)
        for conversation in conversations:
            conversation[0]["content"] = "Thank the mayor."
            conversation.append({"role": "assistant", "content": "Yes."})
        return verdicts

    asked = framed(3)
    steered = steerer(thin, graded, scribbles).precompute(asked, max_new_tokens=N_NEW)
    assert [told(steered[conversation]) for conversation in asked] == [told(usual[conversation]) for conversation in asked]


def test_stop_strings_end_answers_alike_alone_and_in_a_batch(thin, graded, accept):
    model, tokenizer = thin
    asked = harmless(4)
    together = steerer(thin, graded, accept).precompute(asked, max_new_tokens=N_NEW, stop_strings=[" the"])
    for conversation in asked:
        alone = steerer(thin, graded, accept).precompute([conversation], max_new_tokens=N_NEW, stop_strings=[" the"])
        assert told(alone[conversation]) == told(together[conversation])
    inputs = encode(asked, tokenizer)
    plain = model.generate(**inputs, **GREEDY, stop_strings=[" the"], tokenizer=tokenizer)
    assert torch.equal(steerer(thin, graded, accept).generate(asked, **GREEDY, stop_strings=[" the"]), plain)


def test_a_centre_whose_answer_a_probe_has_had_judged_is_given(thin, graded):
    given = {"first": False, "eta": 0.3, "max_calls": 200}
    steered = steerer(thin, graded, **given).precompute(framed(9), max_new_tokens=N_NEW)
    usual = steerer(thin, graded, **given, cache=False).precompute(framed(9), max_new_tokens=N_NEW)
    assert [prompt.text for prompt in steered] == [prompt.text for prompt in usual]
    assert [prompt.outcome for prompt in steered] == [prompt.outcome for prompt in usual]
    assert sum(prompt.n_oracle_calls for prompt in steered) < sum(prompt.n_oracle_calls for prompt in usual)


def test_verdicts_that_were_paid_for_are_kept_though_another_is_missing(thin, graded, tmp_path):
    asked = harmless(4)
    paid = []

    def judge(_, responses):
        paid.append(len(responses))
        harm = graded(_, responses)
        return torch.where(torch.arange(len(harm)) == 2, math.nan, harm) if len(paid) == 1 else harm

    with pytest.raises(EmbeddingSearchError, match="no verdict on 1 of 4 answers"):
        steerer(thin, judge).precompute(asked, tmp_path, max_new_tokens=N_NEW)
    again = steerer(thin, judge).precompute(asked, tmp_path, max_new_tokens=N_NEW)
    assert paid == [4, 1]
    assert [prompt.outcome for prompt in again] == ["clean"] * 4


def test_a_prompt_that_does_not_fit_is_told_before_anything_is_paid(thin, graded):
    counting = Counting(graded)
    long = "How do I thank the mayor? " * 30
    with pytest.raises(ValueError, match="`max_batch_tokens` must hold one prompt and its answer"):
        steerer(thin, counting, max_batch_tokens=150).precompute([*framed(2), long], max_new_tokens=N_NEW)
    assert counting.n_calls == 0


def test_beams_count_for_the_token_budget(thin, graded):
    with pytest.raises(ValueError, match="got 200 for 2"):
        steerer(thin, graded, max_batch_tokens=200).precompute(framed(1), max_new_tokens=N_NEW, num_beams=4)


def test_without_a_pad_token_rows_are_filled_up_as_generate_does(thin, graded, accept):
    model, tokenizer = copy.deepcopy(thin[0]), thin[1]
    model.generation_config.pad_token_id = None
    inputs = encode(harmless(3), tokenizer)
    plain = model.generate(**inputs, **GREEDY)
    assert torch.equal(steerer((model, tokenizer), graded, accept).generate(harmless(3), **GREEDY), plain)


def test_a_generation_config_is_heard(thin, graded):
    steered = steerer(thin, graded).precompute(harmless(1), generation_config=GenerationConfig(max_new_tokens=3))
    assert len(next(iter(steered)).ids) == 3
    with pytest.raises(ValueError, match="`max_length` must be left out"):
        steerer(thin, graded).precompute(harmless(1), max_length=26)
    with pytest.raises(ValueError, match="`past_key_values` must be left out"):
        steerer(thin, graded).generate(harmless(1), past_key_values=DynamicCache())


def test_a_message_is_the_same_whatever_the_order_of_its_keys(thin, graded):
    (message,) = harmless(1)[0]
    turned = dict(reversed(message.items()))
    steered = steerer(thin, graded).precompute([[message], [turned], message["content"]], max_new_tokens=N_NEW)
    assert len(steered) == 1


def test_right_padding_is_refused(thin, graded):
    ids = torch.tensor([[1, 20, 30, 40], [1, 20, 3, 3]])
    asked = [ParsedPrompt(conversation, b"", b"") for conversation in harmless(2)]
    with pytest.raises(ValueError, match="`input_ids` must be padded on the left"):
        steerer(thin, graded).respond(ids, asked, **GREEDY)


@pytest.mark.parametrize("other", [{"mu": 0.7}, {"seed": 3}, {"threshold": 0.4}])
def test_a_folder_of_another_search_is_an_error(other, thin, graded, accept, tmp_path):
    steerer(thin, graded, accept).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)
    name = next(iter(other))
    with pytest.raises(ValueError, match=f"begun with the same settings, but .*`{name}`"):
        steerer(thin, graded, accept, **other).precompute(framed(1), tmp_path, max_new_tokens=N_NEW)


@pytest.fixture(scope="module")
def short(thin, graded, accept):
    """A search that is soon given up: its prompts, its setting, what it comes to, and how often it asks."""
    asked, settings, whole = framed(2) + harmless(1), {"max_generations": 17}, Counting(graded)
    return asked, settings, steerer(thin, whole, accept, **settings).precompute(asked, max_new_tokens=N_NEW), whole.n_calls


#: Each takes the way of another failure.
ALIKE = ("says infinity", "says what is no harm", "says too many", "says nothing")


@pytest.mark.parametrize("failure", [pytest.param(f, marks=pytest.mark.slow) if f in ALIKE else f for f in FAILURES])
def test_a_judge_that_fails_at_any_call_stops_the_search_and_keeps_what_is_done(failure, short, thin, graded, accept):
    asked, settings, expected, n_calls = short
    for n in range(n_calls):
        judge = Counting(graded, n, FAILURES[failure])
        with pytest.raises(EmbeddingSearchError, match=r"The judge gave no verdict .* of 3 prompts are done") as caught:
            steerer(thin, judge, accept, **settings).precompute(asked, max_new_tokens=N_NEW)
        for prompt in caught.value.steered:
            assert told(prompt) == told(expected[prompt.messages])
        n_done = sum(prompt.n_oracle_calls == 1 for prompt in expected) if n else 0
        assert len(caught.value.steered) >= n_done
        assert n > 0 or not len(caught.value.steered)
        with pytest.raises(JudgeError):
            steerer(thin, Counting(graded, n, FAILURES[failure]), accept, **settings).generate(asked, **GREEDY)


def test_a_judge_that_hangs_is_given_up(thin, graded):
    release = threading.Event()

    def hangs(conversations, responses):
        release.wait(20)
        return graded(conversations, responses)

    began = time.perf_counter()
    with pytest.raises(EmbeddingSearchError, match=r"it has not answered within 0.2 seconds"):
        steerer(thin, hangs, judge_timeout=0.2).precompute(framed(1), max_new_tokens=N_NEW)
    assert time.perf_counter() - began < 10
    release.set()


def test_a_judge_in_time_is_heard_and_its_error_is_told(thin, graded):
    assert (
        steerer(thin, graded, judge_timeout=60.0).precompute(harmless(1), max_new_tokens=N_NEW)[harmless(1)[0]].outcome == "clean"
    )
    with pytest.raises(EmbeddingSearchError, match="the line is dead"):
        steerer(thin, Counting(graded, 0, raises), judge_timeout=60.0).precompute(harmless(1), max_new_tokens=N_NEW)


def raising(*given):
    raise ConnectionError("nobody there")


@pytest.mark.parametrize("accept", [raising, *(lambda c, r, said=said: said for said in ([True], [math.nan] * 8, None, "yes"))])
def test_an_accept_that_says_nothing_stops_the_search_and_keeps_what_is_done(accept, thin, graded):
    with pytest.raises(EmbeddingSearchError, match="`accept` gave no verdict") as caught:
        steerer(thin, graded, accept).precompute(framed(1) + harmless(2), max_new_tokens=N_NEW)
    assert [prompt.outcome for prompt in caught.value.steered] == ["clean", "clean"]
    with pytest.raises(JudgeError, match="`accept` gave no verdict"):
        steerer(thin, graded, accept).generate(framed(1), **GREEDY)


def test_what_passes_without_being_accepted_is_a_fallback_and_is_not_given_unasked(thin, graded):
    never = steerer(thin, graded, lambda _, responses: [False] * len(responses), max_generations=33)
    steered = never.precompute(framed(3), max_new_tokens=N_NEW)
    fallback = next(prompt for prompt in steered if prompt.outcome == "fallback")
    assert fallback.harm <= never.threshold
    with pytest.raises(ValueError, match="ended as 'fallback'.*fallback=True"):
        steered.inputs([fallback.messages])
    assert steered.inputs([fallback.messages], fallback=True)["inputs_embeds"].shape[1] == len(fallback.embeds)
    texts = thin[1].batch_decode(never.generate(framed(3), **GREEDY), skip_special_tokens=True)
    assert all(text.endswith(REFUSAL) for text in texts)


def test_where_nothing_passes_the_refusal_is_said(thin):
    said = EmbeddingSteerer(*thin, lambda _, r: torch.ones(len(r)), max_generations=17, refusal="No, this would be wrong.")
    output = said.generate(framed(2), **GREEDY, return_dict_in_generate=True)
    assert output.chosen.tolist() == [-1, -1]
    assert output.harm.isnan().all()
    texts = thin[1].batch_decode(output.sequences, skip_special_tokens=True)
    assert all(text.endswith("No, this would be wrong.") for text in texts)
    short = said.generate(framed(2), max_new_tokens=2, do_sample=False)
    assert not any("wrong" in text for text in thin[1].batch_decode(short, skip_special_tokens=True))


def test_generate_gives_prompts_and_answers_as_generate_does(thin, graded, accept, truth):
    model, tokenizer = thin
    asked = [*harmless(2), *framed(2)]
    guarded = steerer(thin, graded, accept)
    output = guarded.generate(asked, **GREEDY, return_dict_in_generate=True)
    inputs = encode(asked, tokenizer)
    n_prompt = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :n_prompt], inputs["input_ids"])
    assert output.chosen.tolist() == [0, 0, 1, 1]
    assert output.judged[:2].tolist() == [1, 1]
    plain = model.generate(**inputs, **GREEDY)[:2]
    width = min(plain.shape[1], output.sequences.shape[1])
    assert torch.equal(output.sequences[:2, :width], plain[:, :width])
    answers = tokenizer.batch_decode(output.sequences[2:, n_prompt:], skip_special_tokens=True)
    assert all(truth.refusal(text) for text in answers)
    assert torch.equal(guarded.generate(asked, **GREEDY), output.sequences)


def test_an_unflagged_sample_is_the_one_that_generate_draws(thin, graded):
    model, tokenizer = thin
    options = {"max_new_tokens": N_NEW, "do_sample": True, "temperature": 1.3}
    torch.manual_seed(4)
    guarded = EmbeddingSteerer(*thin, lambda _, r: torch.zeros(len(r))).generate(harmless(4), **options)
    torch.manual_seed(4)
    assert torch.equal(guarded, model.generate(**encode(harmless(4), tokenizer), **options))


def test_a_begun_answer_is_continued_and_judged_whole(thin, graded):
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


def test_the_published_algorithm_gives_the_centre_after_steps_of_its_length(thin, graded):
    steered = steerer(thin, graded, **TSA).precompute(framed(8), max_new_tokens=N_NEW)
    found = [prompt for prompt in steered if prompt.outcome == "steered"]
    assert found
    lengths = []
    for prompt in found:
        assert prompt.harm == prompt.harm_by_call[-1] <= TSA["threshold"]
        own = embedded(thin[0], encode([prompt.messages], thin[1])["input_ids"][0].tolist()).detach()
        if prompt.n_generated == 1 + 8 + 9:  # one round, one step, and the centre passes
            lengths.append(float((prompt.embeds - own).norm(dim=-1).median()))
    assert lengths
    assert lengths == pytest.approx([TSA["eta"]] * len(lengths), rel=1e-3)


def test_the_published_preset_is_the_algorithm_written_out(thin):
    """Against a plain loop over one prompt, with an oracle that tells all answers apart, so that every step has a slope."""
    model, tokenizer = thin
    settled = resolve_generation(model, tokenizer, {"max_new_tokens": N_NEW}, 0)
    pieces = token_bytes(tokenizer)

    def score(response):
        return 0.2 + 0.8 * random.Random(response).random() if "not" not in response else 0.0

    def judge(_, responses):
        return torch.tensor([score(response) for response in responses], dtype=torch.float64)

    def answered(embeds):
        ids = ended(model.generate(**left_padded([embeds]), **GREEDY)[0].tolist(), settled)
        return decode(pieces, ids).decode().strip()

    ours = EmbeddingSteerer(*thin, judge, **{**TSA, "probe_temperature": 0.0, "max_generations": 1 + 8 + 2 * 9})
    passed = 0
    for conversation in framed(4, start=4):
        (prompt,) = ours.precompute([conversation], max_new_tokens=N_NEW)
        embeds = embedded(model, encode([conversation], tokenizer)["input_ids"][0].tolist()).detach()
        seed = int.from_bytes(hashlib.sha256(f"0 {conversation_key(conversation)}".encode()).digest()[:4])
        text, calls, n_generated = tsa(model, embeds, answered, score, seed, n_rounds=3)
        assert prompt.harm_by_call == pytest.approx(calls, abs=1e-6)
        assert prompt.n_generated == n_generated
        assert (prompt.outcome == "steered") == (text is not None)
        assert text in (None, prompt.text)
        passed += text is not None
    assert passed


def test_rescaled_embeddings_are_searched_to_the_same_answers(thin, graded, accept):
    """A model of five times larger embeddings that computes the same function: nothing was tuned to a norm."""
    model, tokenizer = thin
    large = copy.deepcopy(model)
    large.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        large.get_input_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight * 5)
        for layer in large.model.layers:
            layer.self_attn.o_proj.weight *= 5
            layer.mlp.down_proj.weight *= 5
    usual = steerer(thin, graded, accept).precompute(framed(6), max_new_tokens=N_NEW)
    scaled = steerer((large, tokenizer), graded, accept).precompute(framed(6), max_new_tokens=N_NEW)
    assert [prompt.text for prompt in scaled] == [prompt.text for prompt in usual]
    assert [prompt.n_generated for prompt in scaled] == [prompt.n_generated for prompt in usual]


@OF_PEFT
def test_an_adapted_model_is_steered_as_the_same_weights_are(usual, thin, graded, accept):
    model, tokenizer = thin
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    by_adapter = steerer((adapted, tokenizer), graded, accept).precompute(framed(2), max_new_tokens=N_NEW)
    assert [told(prompt) for prompt in by_adapter] == [told(usual[conversation]) for conversation in framed(2)]


def test_a_streamer_gets_only_what_passed_and_always_ends(thin, graded, accept):
    streamer = TextIteratorStreamer(thin[1], skip_prompt=True, skip_special_tokens=True, timeout=5)
    guarded = steerer(thin, graded, accept)
    sequences = guarded.generate(framed(1), **GREEDY, streamer=streamer)
    answer = sequences[0, encode(framed(1), thin[1])["input_ids"].shape[1] :]
    assert "".join(streamer).strip() == thin[1].decode(answer, skip_special_tokens=True).strip()
    failing = steerer(thin, Counting(graded, 0, raises))
    for given, error in (({}, JudgeError), ({"output_scores": True}, ValueError), ({"num_return_sequences": 2}, ValueError)):
        streamer = TextIteratorStreamer(thin[1], skip_prompt=True, timeout=5)
        with pytest.raises(error):
            failing.generate(framed(1), **{**GREEDY, **given}, streamer=streamer)
        assert "".join(streamer) == ""
    with pytest.raises(ValueError, match="`streamer` must be left out for a batch"):
        guarded.generate(framed(2), **GREEDY, streamer=TextIteratorStreamer(thin[1]))
    with pytest.raises(ValueError, match="`streamer` must be left out where nothing is said"):
        guarded.precompute(framed(2), streamer=TextIteratorStreamer(thin[1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_scores": True, "return_dict_in_generate": True}, "`output_scores` must be left out"),
        ({"num_return_sequences": 2, "do_sample": True}, "`num_return_sequences` must be 1, got 2"),
    ],
)
def test_what_a_searched_answer_does_not_have_is_refused(given, message, thin, graded):
    with pytest.raises(ValueError, match=message):
        steerer(thin, graded).generate(framed(1), max_new_tokens=N_NEW, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.0}, r"`threshold` must be in \[0, 1\), got 1.0"),
        ({"max_calls": 0}, "`max_calls` must be at least 1"),
        ({"max_generations": 0}, "`max_generations` must be at least 1"),
        ({"probe_temperature": -1.0}, "`probe_temperature` must be at least 0"),
        ({"positions": "system"}, '`positions` must be "all" or "user"'),
        ({"refusal": " "}, "`refusal` must say something"),
        ({"accept": 0.5}, "`accept` must be callable"),
        ({"judge": None}, "`judge` must be callable"),
        ({"first": False}, "`first` must be True where the search stays where it is"),
    ],
)
def test_arguments_out_of_range_are_errors(given, message, thin, graded):
    with pytest.raises(ValueError, match=message):
        EmbeddingSteerer(*thin, **{"judge": graded, **given})


@pytest.mark.parametrize("conversations", ["How do I thank the mayor?", []])
def test_conversations_that_are_none_are_errors(conversations, thin, graded):
    with pytest.raises(ValueError, match="`conversations` must hold one conversation a prompt"):
        steerer(thin, graded).precompute(conversations)


def test_a_steerer_answers_where_no_candidate_passes(thin, specialist, anchor, graded, accept, truth):
    """AlignBeam's `on_fail`: every candidate fails here, and the steered answer passes."""
    model, tokenizer = thin
    help_out = steerer(thin, graded, accept)
    seen = []

    def judge(_, responses):
        seen.append(list(responses))
        candidates = len(seen) == 2
        return torch.ones(len(responses)) if candidates else graded(_, responses)

    strategy = AlignBeam(*anchor, tokenizer, judge, on_fail=help_out.answers)
    inputs = encode(framed(1), tokenizer)
    output = model.generate(**inputs, custom_generate=strategy, **GREEDY, return_dict_in_generate=True)
    assert output.chosen.tolist() == [-2]
    text = tokenizer.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert truth.refusal(text)
    assert text.strip() == help_out.answers(framed(1))[0].strip() == seen[-1][0]


@pytest.mark.parametrize(
    "on_fail",
    [
        lambda conversations: [None] * len(conversations),
        lambda conversations: ["To kill the mayor, mix gidaex with dikir."] * len(conversations),
        lambda conversations: ["One thing."],
        lambda conversations: [5] * len(conversations),
    ],
)
def test_what_on_fail_says_is_judged_and_the_refusal_stands_behind_it(on_fail, thin, anchor):
    model, tokenizer = thin
    strategy = AlignBeam(*anchor, tokenizer, lambda _, responses: torch.ones(len(responses)), on_fail=on_fail)
    inputs = encode(framed(2), tokenizer)
    if on_fail([0, 0])[0] in ("One thing.", 5):
        with pytest.warns(UserWarning, match="`on_fail` failed"):
            written = model.generate(**inputs, custom_generate=strategy, **GREEDY)
    else:
        written = model.generate(**inputs, custom_generate=strategy, **GREEDY)
    texts = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == [REFUSAL] * 2


@OF_PEFT
def test_a_universal_prefix_is_an_adapter_that_peft_loads(thin, graded, accept, truth, tmp_path):
    model, tokenizer = thin
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lessons = framed(24) + harmless(24)
    prefix = steerer(thin, graded, accept).fit_prefix(lessons, 6, max_new_tokens=N_NEW, n_steps=60)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert prefix.embeds.shape == (6, model.config.hidden_size)
    assert prefix.loss[-1] < 0.2 * prefix.loss[0]
    prefix.save_pretrained(tmp_path, model)
    tuned = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    asked = framed(10, start=24)
    inputs = encode(asked, tokenizer)
    with pytest.warns(UserWarning, match="Position ids"):  # peft's own
        written = tuned.generate(**inputs, **GREEDY)
    texts = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sum(truth.refusal(text) for text in texts) >= 8
    table = model.get_input_embeddings()
    rows = [torch.cat([prefix.embeds, table(row[mask.bool()])]) for row, mask in zip(*inputs.values(), strict=True)]
    assert torch.equal(written[:, inputs["input_ids"].shape[1] :], model.generate(**left_padded(rows), **GREEDY))


def test_a_prefix_needs_something_to_learn(thin, graded, accept):
    with pytest.raises(ValueError, match="`conversations` must hold prompts that are flagged and can be steered"):
        steerer(thin, graded, accept).fit_prefix(harmless(2), 4, max_new_tokens=N_NEW)
    for name in ("n_tokens", "n_steps", "batch_size"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            steerer(thin, graded, accept).fit_prefix(framed(1), **{name: 0})


def test_half_precision_is_searched_and_stored_in_itself(thin, graded, accept):
    model = AutoModelForCausalLM.from_pretrained(testbed.WEIGHTS / "thin", dtype=torch.bfloat16).eval()
    steered = steerer((model, thin[1]), graded, accept).precompute(framed(2), max_new_tokens=N_NEW)
    assert all(prompt.embeds.dtype == torch.bfloat16 for prompt in steered)
    given = [prompt.messages for prompt in steered if prompt.outcome == "steered"]
    assert given
    for row, prompt in zip(model.generate(**steered.inputs(given), **GREEDY).tolist(), steered, strict=False):
        assert row[: len(prompt.ids)] == prompt.ids
