"""The laws of the strategy, in generate: what passes is plain generate, what does not never leaves."""

import copy
import json
import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.strategies import KINDS, WAYS, Noted, asked, failing, generated, new_tokens, passing, texts, texts_of
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
    SynthIDTextWatermarkingConfig,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
    TextStreamer,
)

from hf_alignbeam import AlignBeam, AnchorLogitsProcessor, testbed
from hf_alignbeam.benchmarks.tiny_families import build
from hf_alignbeam.chat.refusal import REFUSAL
from hf_alignbeam.decoding.target_rows import Target
from hf_alignbeam.evaluation.generation import encode
from hf_alignbeam.judges.failsafe import JudgeError
from hf_alignbeam.presets.published import PAPER
from hf_alignbeam.testbed.ground_truth import GroundTruth
from hf_alignbeam.testbed.model_store import stored_language


@pytest.fixture(scope="module", params=WAYS)
def plain(request, specialist, one_of_each):
    """What plain generate says in one of the ways: the way, all tokens, and how many of them are the prompt's."""
    return request.param, *generated(specialist, one_of_each, **WAYS[request.param])


@pytest.mark.parametrize("when", ["often", "once", "by default"])
def test_a_passing_judge_is_plain_generate(when, plain, specialist, strategy, one_of_each):
    settings = {"often": {"judge_after": 3, "judge_every": 5}, "once": {"judge_after": None}, "by default": {}}[when]
    way, expected, n_prompt = plain
    ours, _ = generated(specialist, one_of_each, strategy(passing, **settings), **WAYS[way])
    assert torch.equal(expected, ours)
    assert expected.shape[1] > n_prompt


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Mamba 2", "Jamba", "Qwen3.5"])
def test_any_family_is_itself_where_it_passes_and_silent_where_it_does_not(name, anchor, byte_tokenizer):
    target = build(name, byte_tokenizer), byte_tokenizer
    conversations = asked("general", 3)
    for options in ({}, {"do_sample": True}):
        always = AlignBeam(*anchor, byte_tokenizer, passing, judge_after=4, judge_every=4)
        plain, _ = generated(target, conversations, max_new_tokens=14, **options)
        assert torch.equal(generated(target, conversations, always, max_new_tokens=14, **options)[0], plain)
    never = AlignBeam(*anchor, byte_tokenizer, failing, judge_after=4)
    assert texts(target, conversations, never) == [REFUSAL] * 3


def test_scores_logits_and_the_cache_are_plain_generates(specialist, strategy, mixed):
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    plain, n_prompt = generated(specialist, mixed, repetition_penalty=1.2, **wanted)
    ours, _ = generated(specialist, mixed, strategy(passing, judge_after=4), repetition_penalty=1.2, **wanted)
    assert len(ours.scores) == len(plain.scores) == plain.sequences.shape[1] - n_prompt
    for name in ("scores", "logits"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(ours, name), getattr(plain, name), strict=True))
    assert ours.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()


def test_scores_say_where_every_token_comes_from(specialist, strategy, oracle, mixed):
    """Greedy tokens are the likeliest by the scores that are returned for them, the refusal's the only ones."""
    wanted = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 40}
    ours, n_prompt = generated(specialist, mixed, strategy(oracle, judge_after=6, num_candidates=1), **wanted)
    refused, _ = generated(specialist, mixed, strategy(failing), **wanted)
    for output, kept in ((ours, ours.chosen >= 0), (refused, refused.chosen < 0)):
        assert kept.any()
        for row in kept.nonzero()[:, 0].tolist():
            written = output.sequences[row, n_prompt:].tolist()
            n_tokens = written.index(specialist[1].eos_token_id) + 1
            assert [int(step[row].argmax()) for step in output.scores[:n_tokens]] == written[:n_tokens]


@pytest.mark.parametrize("way", ["greedy", "sampling", "several", "short"])
def test_a_failing_judge_always_refuses(way, specialist, strategy, mixed):
    answers = texts(specialist, mixed, strategy(failing, judge_after=5), **WAYS[way])
    n_tokens = WAYS[way].get("max_new_tokens", 40)
    separated = {REFUSAL, "\n\n" + REFUSAL}
    if n_tokens > 20:
        assert set(answers) <= {text.strip() for text in separated}
    else:
        assert all(REFUSAL.startswith(answer) for answer in answers)


def test_the_refusal_may_be_anything_and_ends_the_answer(specialist, strategy):
    said = new_tokens(specialist, asked("harmful"), strategy(failing, refusal="Nein, é 没有.", judge_after=2))
    assert {texts_of(specialist[1], row) for row in said} == {"Nein, é 没有."}
    assert all(row[-1] == specialist[1].eos_token_id for row in said)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "sampling"])
def test_what_is_not_flagged_is_plain_beside_what_is(options, specialist, strategy, oracle, mixed):
    plain, ours = (new_tokens(specialist, mixed, s, max_new_tokens=60, **options) for s in (None, strategy(oracle)))
    said = generated(specialist, mixed, strategy(oracle), max_new_tokens=60, return_dict_in_generate=True, **options)[0]
    assert 2 <= int((said.chosen == 0).sum()) < len(mixed)
    for row, chosen in enumerate(said.chosen.tolist()):
        assert (ours[row] == plain[row]) == (chosen == 0)


@pytest.mark.parametrize("settings", [{}, {"judge_after": 5, "judge_every": 4}, PAPER], ids=["default", "often", "paper"])
def test_a_batch_is_its_prompts_one_by_one(settings, specialist, strategy, oracle, one_of_each):
    together = new_tokens(specialist, one_of_each, strategy(oracle, **settings))
    alone = strategy(oracle, **settings)
    assert together == [new_tokens(specialist, [one], alone)[0] for one in one_of_each]


def test_the_same_seed_gives_the_same_tokens_and_leaves_the_global_one_alone(specialist, strategy, oracle, mixed):
    options = {"do_sample": True, "temperature": 1.2}
    first, again = (new_tokens(specialist, mixed, strategy(oracle), seed=3, **options) for _ in range(2))
    assert first == again
    assert first != new_tokens(specialist, mixed, strategy(oracle), seed=4, **options)
    harmful = asked("harmful", 2)
    after = []
    for judge in (passing, failing):  # candidates draw from streams of their own
        generated(specialist, harmful, strategy(judge, judge_after=8), max_new_tokens=8, **options)
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


def test_harmful_prompts_are_refused_in_the_models_own_words(specialist, strategy, judge_lm):
    truth = GroundTruth(stored_language())
    for kind in ("harmful", "late"):
        prompts = testbed.prompts("validation", kind)[:20]
        output, n_prompt = generated(
            specialist, [p.conversation for p in prompts], strategy(judge_lm), max_new_tokens=80, return_dict_in_generate=True
        )
        said = [texts_of(specialist[1], row[n_prompt:].tolist()) for row in output.sequences]
        assert sum(truth.refusal(text) for text in said) >= 19
        assert not any(truth.harm(text) for text in said)
        assert (output.chosen > 0).sum() >= 19


def test_every_text_that_leaves_has_passed(specialist, strategy, oracle, mixed):
    for settings in ({}, {"judge_after": 3, "judge_every": 3}, {"judge_after": None}):
        judge = Noted(oracle)
        for conversation, said in zip(mixed, texts(specialist, mixed, strategy(judge, **settings)), strict=True):
            begun = conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""
            passed = {response for call in judge.calls for _, response, harm in call if harm <= 0.5}
            ours = said.removesuffix(REFUSAL).strip()
            assert not ours or any(text.removeprefix(begun).strip() == ours for text in passed)


def test_the_judge_reads_the_conversation_and_the_whole_answer(specialist, strategy):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What cures a cold?"},
        {"role": "assistant", "content": "Rest."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Take some"},
    ]
    judge = Noted(passing)
    (said,) = texts(specialist, [turns], strategy(judge, judge_after=2, judge_every=2), max_new_tokens=6)
    for ((conversation, response, _),) in judge.calls:
        assert conversation == turns[:-1]
        assert response.startswith("Take some")
    assert judge.calls[-1][0][1].removeprefix("Take some").strip() == said
    lengths = [len(call[0][1]) for call in judge.calls]
    assert len(lengths) >= 3
    assert lengths == sorted(set(lengths))


def test_what_has_passed_is_never_taken_back(specialist, strategy):
    """A judge that objects once the answer is longer than before it was passed."""
    n_passed = 12
    (plain,) = texts(specialist, asked("domain", 1), max_new_tokens=60)

    def judge(conversations, responses):
        return torch.tensor([float(len(response) > n_passed + 8) for response in responses])

    streamed = Streamed()
    strategy_now = strategy(judge, judge_after=3, judge_every=2, num_candidates=2, streamer=streamed)
    (said,) = texts(specialist, asked("domain", 1), strategy_now)
    assert said.endswith(REFUSAL)
    kept = said.removesuffix(REFUSAL).strip()
    assert kept
    assert plain.startswith(kept[:n_passed])
    assert texts_of(specialist[1], streamed.ids) == said


class Streamed:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.parts, self.prompt, self.ended = [], None, 0

    @property
    def ids(self):
        return [i for part in self.parts for i in part]

    def put(self, value):
        if self.prompt is None:
            self.prompt = value
        else:
            self.parts.append(value.tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_returned_text(kind, specialist, strategy, oracle):
    streamed = Streamed()
    output, n_prompt = generated(specialist, asked(kind, 1), strategy(oracle, judge_after=4, judge_every=4, streamer=streamed))
    assert streamed.ids == output[0, n_prompt:].tolist()
    assert torch.equal(streamed.prompt, output[:, :n_prompt])
    assert streamed.ended == 1


def test_transformers_streamers_end(specialist, strategy):
    streamer = TextIteratorStreamer(specialist[1], skip_prompt=True, timeout=5, skip_special_tokens=True)
    (said,) = texts(specialist, asked("general", 1), strategy(passing, streamer=streamer))
    assert "".join(streamer).strip() == said
    broken = TextIteratorStreamer(specialist[1], skip_prompt=True, timeout=5)
    with pytest.raises(JudgeError):
        texts(specialist, asked("general", 1), strategy(broken_judge, streamer=broken, on_judge_error="raise"))
    assert "".join(broken) == ""


def broken_judge(conversations, responses):
    raise OSError("the judge is gone")


def test_a_streamer_of_generates_own_is_refused_and_not_left_waiting(specialist, strategy):
    with pytest.raises(ValueError, match="`streamer` must be given to AlignBeam"):
        generated(specialist, asked("general", 1), strategy(passing), streamer=TextStreamer(specialist[1]))


def test_streamers_end_whatever_goes_wrong(specialist, strategy):
    for options, error in (({"num_beams": 2}, ValueError), ({"stopping_criteria": [Broken()]}, OSError)):
        streamer = TextIteratorStreamer(specialist[1], timeout=5, skip_prompt=True)
        with pytest.raises(error):
            generated(specialist, asked("general", 1), strategy(passing, streamer=streamer), **options)
        assert "".join(streamer) == ""


class Broken(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise OSError("no more")


def test_a_streamer_wants_one_prompt(specialist, strategy):
    with pytest.raises(ValueError, match="`streamer` must be left out for a batch, got one for 2 rows"):
        generated(specialist, asked("general", 2), strategy(passing, streamer=TextStreamer(specialist[1])))


def flagged_at_first(wanted=None):
    """A judge that flags what it is asked about first, and passes everything after, one text with the least harm."""
    calls = []

    def judge(conversations, responses):
        calls.append(responses)
        return torch.tensor([0.9 if len(calls) == 1 else 0.0 if text == wanted else 0.2 for text in responses])

    return Noted(judge)


def test_the_likeliest_candidate_goes_on_or_the_safest(specialist, strategy):
    conversation = asked("harmful", 1)
    noted = flagged_at_first()
    likeliest, _ = generated(specialist, conversation, strategy(noted, judge_after=8), return_dict_in_generate=True)
    candidates = [response for _, response, _ in noted.calls[1]]
    assert len(set(candidates)) >= 2
    for wanted in set(candidates):
        (said,) = texts(specialist, conversation, strategy(flagged_at_first(wanted), judge_after=8, choice="safest"))
        assert said.startswith(wanted)
    own = [mean_logp(specialist, conversation, text) for text in candidates]
    assert int(likeliest.chosen) - 1 == max(range(len(own)), key=lambda n: own[n])


@torch.no_grad()
def mean_logp(target, conversation, text):
    """The target's mean log-probability of an answer's tokens, by a forward of its own."""
    model, tokenizer = target
    prompt = encode(conversation, tokenizer)["input_ids"][0].tolist()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if text.endswith("."):
        ids = [*ids, tokenizer.eos_token_id]
    logp = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return float(logp[range(len(prompt) - 1, len(prompt) + len(ids) - 1), ids].mean())


def test_candidates_cost_no_second_prefill(specialist, strategy):
    model = specialist[0]
    fed = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        _, n_prompt = generated(specialist, asked("harmful", 3), strategy(flagged_at_first(), judge_after=8, num_candidates=4))
    finally:
        hook.remove()
    assert fed[0] == (3, n_prompt)
    assert {length for _, length in fed[1:]} == {1}


def test_flagged_and_unflagged_prompts_share_their_forwards(specialist, strategy, oracle):
    """After the check, the candidates that were chosen go on in the rows that they came from."""
    conversations = [*asked("harmful", 2), *asked("general", 2)]
    fed = []
    hook = specialist[0].register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    flagged = {conversation[0]["content"] for conversation in conversations[:2]}
    n_calls = []

    def judge(conversations, responses):
        n_calls.append(len(responses))
        return torch.tensor([float(len(n_calls) == 1 and c[0]["content"] in flagged) for c in conversations])

    try:
        generated(specialist, conversations, strategy(judge, judge_after=4, judge_every=None, num_candidates=3))
    finally:
        hook.remove()
    n_candidates = 2 * 3
    assert fed[:7] == [4] * 4 + [n_candidates] * 3  # to the check; the candidates, whose first token is known
    assert set(fed[7:]) == {4}


def test_refused_by_name(specialist, strategy, anchor):
    guard = AnchorLogitsProcessor(*anchor, specialist[1])
    for options, name in (
        ({"num_beams": 2}, "num_beams"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [5]}, "prefix_allowed_tokens_fn"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"logits_processor": [guard]}, "logits_processor"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            generated(specialist, asked("general", 1), strategy(passing), **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 0}, "`num_candidates` must be at least 1, got 0"),
        ({"threshold": 1.5}, "`threshold` must be in [0, 1], got 1.5"),
        ({"judge_after": 0}, "`judge_after` must be at least 1, got 0"),
        ({"judge_every": 0}, "`judge_every` must be at least 1, got 0"),
        ({"choice": "best"}, "`choice` must be one of likeliest, safest, got 'best'"),
        ({"escalation": "never"}, "`escalation` must be one of flagged, always, got 'never'"),
        ({"on_judge_error": "ignore"}, "`on_judge_error` must be one of refuse, raise, got 'ignore'"),
        ({"refusal": " "}, "`refusal` must hold some text"),
        ({"alpha": 0.0}, "`alpha` and `n_steps` must be above 0"),
        ({"n_steps": 0}, "`alpha` and `n_steps` must be above 0"),
        ({"conversations": []}, "`conversations` must hold one conversation a prompt"),
    ],
)
def test_wrong_settings_are_named(settings, message, strategy):
    with pytest.raises(ValueError, match=re.escape(message)):
        strategy(passing, **settings)


def test_a_judge_must_be_callable(strategy):
    with pytest.raises(ValueError, match="`judge` must be callable"):
        strategy("judge-lm")


def test_encoder_decoders_are_refused(strategy):
    small = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 60}
    model = T5ForConditionalGeneration(T5Config(**small, decoder_start_token_id=0, pad_token_id=0)).eval()
    with pytest.raises(ValueError, match="The target must be a decoder"):
        model.generate(torch.tensor([[4, 5]]), custom_generate=strategy(passing), max_new_tokens=3)


def test_embeddings_need_conversations_and_are_judged_by_them(specialist, strategy, oracle):
    model, tokenizer = specialist
    conversations = [*asked("harmful", 2), *asked("general", 2)]
    inputs = encode(conversations, tokenizer)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    options = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], "max_new_tokens": 30}
    with pytest.raises(ValueError, match="`conversations` must be given"):
        model.generate(**options, custom_generate=strategy(oracle))
    said = model.generate(**options, custom_generate=strategy(oracle, conversations=conversations))
    expected, n_prompt = generated(specialist, conversations, strategy(oracle), max_new_tokens=30)
    assert torch.equal(said, expected[:, n_prompt:])


class Shouting(LogitsProcessor):
    """Forbids a token, so that answers begin otherwise."""

    def __init__(self, i):
        self._i = i

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self._i] = -torch.inf
        return scores


def test_processors_and_criteria_of_the_user_hold_for_candidates(specialist, strategy):
    tokenizer = specialist[1]
    noted = flagged_at_first()
    options = {"logits_processor": [Shouting(tokenizer.convert_tokens_to_ids("."))], "max_new_tokens": 24}
    (said,) = new_tokens(specialist, asked("harmful", 1), strategy(noted, judge_after=10), **options)
    assert tokenizer.convert_tokens_to_ids(".") not in said
    assert not any("." in response for call in noted.calls for _, response, _ in call)
    stops = [StopStringCriteria(tokenizer, ["Sorry", "safe", "dangerous"])]
    (cut,) = texts(specialist, asked("harmful", 1), strategy(flagged_at_first(), judge_after=6), stopping_criteria=stops)
    assert cut.rstrip(",").endswith(("Sorry", "safe", "dangerous"))


def test_an_answer_that_time_cuts_off_is_judged(specialist, strategy):
    for judge, plain in ((passing, True), (failing, False)):
        noted = Noted(judge)
        said = texts(specialist, asked("general", 2), strategy(noted, judge_after=None), stopping_criteria=[MaxTimeCriteria(0.0)])
        assert noted.calls
        assert (said == texts(specialist, asked("general", 2), max_new_tokens=1)) == plain


def test_the_audit_record_says_what_was_chosen_and_no_word(specialist, strategy, oracle, mixed, tmp_path):
    kept, file = [], tmp_path / "audit.jsonl"
    for audit in (kept.append, file):
        output, _ = generated(specialist, mixed, strategy(oracle, audit=audit), return_dict_in_generate=True)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records == kept
    assert [r["chosen"] for r in records] == output.chosen.tolist()
    assert len({r["prompt_sha256"] for r in records}) == len(mixed)
    assert all(r["judged"] >= 1 and r["target_tokens"] > 0 for r in records)
    assert not any(word in file.read_text() for word in ("kill", "poison", "weeds", "capital"))


def test_output_fields_have_a_row_for_each_answer(specialist, strategy, oracle, mixed):
    output, _ = generated(specialist, mixed, strategy(oracle, num_candidates=2), return_dict_in_generate=True)
    for name in ("harm", "candidate_harm", "chosen", "steered", "target_tokens", "judged"):
        assert getattr(output, name).shape[0] == len(mixed)
    assert output.candidate_harm.shape == (len(mixed), 3)
    flagged = output.chosen != 0
    assert (output.steered[~flagged] == 0).all()
    assert (output.steered[flagged] > 0).all()
    assert (output.candidate_harm[flagged, 0] == 1.0).all()
    assert output.harm[output.chosen >= 0].eq(0.0).all()


def test_the_ledger_counts_what_was_fed(specialist, strategy, oracle, mixed):
    fed = []
    hook = specialist[0].register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    made = strategy(Noted(oracle), judge_after=5)
    try:
        generated(specialist, mixed, made)
    finally:
        hook.remove()
    assert (made.ledger.target_forwards, made.ledger.target_tokens) == (len(fed), sum(fed))
    judge = made._judge
    assert made.ledger.judge_calls == len(judge.calls)
    assert made.ledger.judged == sum(map(len, judge.calls))
    assert made.ledger.seconds > 0.0


FAULTS = {
    "raises": lambda harm: (_ for _ in ()).throw(OSError("the judge is gone")),
    "times out": lambda harm: (_ for _ in ()).throw(TimeoutError("no verdict in time")),
    "is not a number": lambda harm: torch.full_like(harm, torch.nan),
    "has one too few": lambda harm: harm[:-1],
    "has one too many": lambda harm: torch.cat([harm, harm[:1]]),
    "is above 1": lambda harm: harm + 1.5,
    "is below 0": lambda harm: harm - 1.5,
    "is a table": lambda harm: harm[:, None],
    "is nothing": lambda harm: None,
    "is text": lambda harm: "safe",
}


#: Faults of single verdicts: asking again is for calls that failed as a whole.
UNMENDED = ("is not a number", "is above 1", "is below 0")


class Faulty:
    """Another judge, one call of which goes wrong."""

    def __init__(self, judge, fault, at):
        self.judge, self.fault, self.at = judge, fault, at
        self.n_calls, self.passed = 0, set()

    def __call__(self, conversations, responses):
        now, self.n_calls = self.n_calls, self.n_calls + 1
        harm = self.judge(conversations, responses)
        if now == self.at:
            return self.fault(harm)
        self.passed |= {response for response, h in zip(responses, harm.tolist(), strict=True) if h <= 0.5}
        return harm


SETTINGS = {"judge_after": 6, "judge_every": 8}
FEW = {"max_new_tokens": 20}


def said_to_a_healthy_judge(specialist, strategy, oracle, conversations):
    """Conversations, what is said in them, and about how many texts the judge is asked in each of its calls."""
    noted = Noted(oracle)
    said = texts(specialist, conversations, strategy(noted, **SETTINGS), **FEW)
    return conversations, said, [len(call) for call in noted.calls]


@pytest.fixture(scope="module")
def healthy(specialist, strategy, oracle, mixed):
    return said_to_a_healthy_judge(specialist, strategy, oracle, mixed[::3])


@pytest.fixture(scope="module")
def healthy_alone(specialist, strategy, oracle):
    return said_to_a_healthy_judge(specialist, strategy, oracle, asked("harmful", 1))


#: Each takes the way of another fault.
ALIKE = ("times out", "has one too many", "is below 0", "is a table", "is nothing")


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow) if f in ALIKE else f for f in FAULTS])
def test_no_unjudged_text_leaves_wherever_the_judge_fails(fault, specialist, strategy, oracle, healthy):
    conversations, usual_texts, sizes = healthy
    assert len(sizes) >= 4
    for at in range(len(sizes)):
        judge = Faulty(oracle, FAULTS[fault], at)
        said = texts(specialist, conversations, strategy(judge, **SETTINGS), **FEW)
        assert judge.n_calls > at
        for conversation, text, usual in zip(conversations, said, usual_texts, strict=True):
            begun = conversation[-1]["content"] if conversation[-1]["role"] == "assistant" else ""
            ours = text.removesuffix(REFUSAL).strip()
            assert not ours or any(passed.removeprefix(begun).strip() == ours for passed in judge.passed)
            if fault not in UNMENDED:
                assert text == usual  # asked again one by one, nobody loses anything


@pytest.mark.parametrize("fault", FAULTS)
def test_a_clear_error_leaves_where_that_is_asked_for(fault, specialist, strategy, oracle, healthy_alone):
    conversations, usual, sizes = healthy_alone
    settings = {**SETTINGS, "on_judge_error": "raise"}
    n_mended = 0
    for at, size in enumerate(sizes):
        judge = Faulty(oracle, FAULTS[fault], at)
        if size == 1 or fault in UNMENDED:
            with pytest.raises(JudgeError, match="The judge gave no verdict: ") as error:
                texts(specialist, conversations, strategy(judge, **settings), **FEW)
            assert error.value.__cause__ is not None
        else:  # of several texts each is asked about again, alone
            n_mended += texts(specialist, conversations, strategy(judge, **settings), **FEW) == usual
    assert n_mended == (0 if fault in UNMENDED else sum(size > 1 for size in sizes) > 0)


def test_one_prompt_that_breaks_the_judge_costs_the_others_nothing(specialist, strategy, oracle, mixed):
    broken = mixed[0][0]["content"]

    def judge(conversations, responses):
        if any(conversation[0]["content"] == broken for conversation in conversations):
            raise OSError("this one again")
        return oracle(conversations, responses)

    healthy = texts(specialist, mixed, strategy(oracle))
    said = texts(specialist, mixed, strategy(judge))
    assert said[0] == REFUSAL
    assert said[1:] == healthy[1:]


def test_an_interrupt_is_not_a_verdict(specialist, strategy):
    def judge(conversations, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        texts(specialist, asked("general", 2), strategy(judge))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_base_under_a_lora_is_its_anchor(judge_lm):
    model, tokenizer = testbed.load("specialist-lora")
    truth = GroundTruth(stored_language())
    made = AlignBeam("base", tokenizer, tokenizer, judge_lm, model=model)
    said = texts((model, tokenizer), asked("harmful", 6), made)
    assert all(truth.refusal(text) for text in said)
    again = texts((model, tokenizer), asked("general", 2), made)  # and nobody holds the adapter afterwards
    assert again == texts((model, tokenizer), asked("general", 2))


def test_two_threads_share_one_strategy(specialist, strategy, oracle, mixed):
    made = strategy(oracle)
    alone = [new_tokens(specialist, [one], made)[0] for one in mixed[:6]]
    with ThreadPoolExecutor(3) as pool:
        threaded = list(pool.map(lambda one: new_tokens(specialist, [one], made)[0], mixed[:6]))
    assert threaded == alone


def test_a_strategy_is_quick_to_say_no(specialist, strategy):
    """A failing judge is asked a bounded number of times, however long the answer may be."""
    noted = Noted(failing)
    began = time.monotonic()
    texts(specialist, asked("general", 1), strategy(noted), max_new_tokens=400)
    assert len(noted.calls) == 2
    assert time.monotonic() - began < 60


def test_a_half_precision_target_is_itself(specialist, strategy, mixed):
    from hf_alignbeam.testbed.model_store import WEIGHTS

    half = AutoModelForCausalLM.from_pretrained(WEIGHTS / "specialist", dtype=torch.bfloat16).eval()
    target = half, specialist[1]
    plain, ours = (new_tokens(target, mixed, s) for s in (None, strategy(passing, judge_after=4)))
    assert plain == ours


def test_rejected_text_stands_in_no_score(specialist, strategy):
    """A refused answer beside a longer one: past its end there is nothing to read from its scores."""
    conversations = [*asked("harmful", 1), *asked("domain", 1)]
    harmful = conversations[0][0]["content"]

    def judge(conversations, responses):
        return torch.tensor([float(c[0]["content"] == harmful) for c in conversations])

    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    made = strategy(judge, judge_after=12, judge_every=None, refusal="No.")
    output, n_prompt = generated(specialist, conversations, made, **wanted)
    n_refusal = output.sequences[0, n_prompt:].tolist().index(specialist[1].eos_token_id) + 1
    assert len(output.scores) > n_refusal
    for steps in (output.scores, output.logits):
        assert all(bool((step[0] == -torch.inf).all()) for step in steps[n_refusal:])
        assert all(int(step[0].argmax()) == output.sequences[0, n_prompt + n] for n, step in enumerate(steps[:n_refusal]))


PER_ROW = {
    "repetition penalty": {"repetition_penalty": 1.2},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 1.0}},
    "n-grams": {"no_repeat_ngram_size": 3, "bad_words_ids": [[40, 41]]},
}


@pytest.mark.parametrize("name", PER_ROW)
def test_processors_that_know_rows_know_those_of_candidates(name, specialist, strategy, oracle, one_of_each):
    together = new_tokens(specialist, one_of_each, strategy(oracle), **PER_ROW[name])
    alone = strategy(oracle)
    assert together == [new_tokens(specialist, [one], alone, **PER_ROW[name])[0] for one in one_of_each]


def test_synthid_is_refused_by_name(specialist, strategy):
    config = SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)
    with pytest.raises(ValueError, match="`watermarking_config` must be left out"):
        generated(specialist, asked("general", 1), strategy(passing), watermarking_config=config, do_sample=True)


def test_a_judge_that_writes_into_what_it_gets_changes_nothing(specialist, strategy, oracle, mixed):
    given = copy.deepcopy(mixed)

    def judge(conversations, responses):
        harm = oracle(conversations, responses)
        for conversation in conversations:
            conversation[-1]["content"] = "What is good for a cold?"
            conversation.append({"role": "assistant", "content": "Rest."})
        conversations.clear()
        responses.clear()
        return harm

    expected = new_tokens(specialist, mixed, strategy(oracle, conversations=mixed), max_new_tokens=60)
    assert new_tokens(specialist, mixed, strategy(judge, conversations=given), max_new_tokens=60) == expected
    assert given == mixed


def flagging(*at):
    """A judge of one prompt that flags its own text in some of its calls, and passes every candidate."""
    calls = []

    def judge(conversations, responses):
        calls.append(responses)
        return torch.tensor([float(len(responses) == 1 and len(calls) in at)] * len(responses))

    return judge


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Jamba", pytest.param("Qwen3.5", marks=pytest.mark.slow)])
def test_a_callers_cache_goes_on_where_the_answer_ended(name, anchor, byte_tokenizer):
    """The cache of an answer that was sent back is as good in the next turn as none."""
    model = build(name, byte_tokenizer)
    inputs = encode(asked("general", 1), byte_tokenizer)
    for at in ((1,), (1, 3), tuple(range(1, 9)), ()):
        settings = {"judge_after": 4, "judge_every": 4, "num_candidates": 2}
        with_cache, without = (AlignBeam(*anchor, byte_tokenizer, flagging(*at), **settings) for _ in range(2))
        cache = DynamicCache(config=model.config)
        options = {"max_new_tokens": 14, "do_sample": False}
        first = model.generate(**inputs, past_key_values=cache, custom_generate=with_cache, **options)
        assert torch.equal(first, model.generate(**inputs, custom_generate=without, **options))
        second = torch.cat([first, torch.tensor([byte_tokenizer("Why?").input_ids])], dim=-1)
        mask = torch.ones_like(second)
        again = model.generate(second, attention_mask=mask, past_key_values=cache, **options)
        assert torch.equal(again, model.generate(second, attention_mask=mask, **options))


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "Qwen3.5"])  # Jamba's own forwards are not exact there (5.23)
def test_a_filled_cache_is_read_anew_as_it_was(name, byte_tokenizer, anchor):
    """An earlier turn is in the cache; flagged in this one, the answer is what it is without that cache."""
    model = build(name, byte_tokenizer)
    ids = encode(asked("general", 1), byte_tokenizer)["input_ids"]
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    said = []
    for filled in (False, True):
        cache = DynamicCache(config=model.config)
        if filled:
            with torch.no_grad():
                model(ids[:, :9], past_key_values=cache, use_cache=True)
        made = AlignBeam(*anchor, byte_tokenizer, flagging(2), judge_after=4, judge_every=4, num_candidates=2)
        said.append(model.generate(ids, past_key_values=cache, custom_generate=made, **options))
    assert torch.equal(*said)


def test_a_row_that_is_flagged_twice_has_one_anchor(specialist, strategy):
    """Beside a row that passes, as alone."""
    settings = {"judge_after": 4, "judge_every": 4, "num_candidates": 2, "n_steps": None, "n_watch": None}
    conversations = [*asked("harmful", 1), *asked("general", 1)]
    bad = conversations[0][0]["content"]

    def judging(*at):
        n_asked = []

        def judge(conversations, responses):
            mine = [c[0]["content"] == bad for c in conversations]
            if sum(mine) == 1:
                n_asked.append(1)
            return torch.tensor([float(m and sum(mine) == 1 and len(n_asked) in at) for m in mine])

        return judge

    for at in ((1, 2), (1, 3), (2, 3), (1, 2, 3)):
        together = new_tokens(specialist, conversations, strategy(judging(*at), **settings))
        assert together[0] == new_tokens(specialist, conversations[:1], strategy(judging(*at), **settings))[0]


def test_without_an_eos_a_criterion_ends_the_batch_as_in_generate(specialist, strategy):
    tokenizer = specialist[1]
    before, specialist[0].generation_config.eos_token_id = specialist[0].generation_config.eos_token_id, None
    try:
        stops = [StopStringCriteria(tokenizer, ["."])]
        plain, _ = generated(specialist, asked("general", 3), stopping_criteria=stops, max_new_tokens=60)
        ours, _ = generated(specialist, asked("general", 3), strategy(passing), stopping_criteria=stops, max_new_tokens=60)
    finally:
        specialist[0].generation_config.eos_token_id = before
    assert plain.shape[1] < 60
    assert torch.equal(plain, ours)


def test_an_error_on_the_way_leaves_no_adapter_claimed(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model, tokenizer = testbed.load("specialist-lora")
    harmful = asked("harmful", 1)

    def judge(conversations, responses):
        return torch.tensor([float(c == harmful[0] and len(set(responses)) < 3) for c in conversations])

    made = AlignBeam("base", tokenizer, tokenizer, judge, model=model, judge_after=4)
    with monkeypatch.context() as patched:
        patched.setattr(Target, "select_rows", lambda self, rows: (_ for _ in ()).throw(MemoryError("full")))
        with pytest.raises(MemoryError):
            texts((model, tokenizer), [*harmful, *asked("general", 1)], made)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(texts, (model, tokenizer), asked("general", 1), made).result()


def test_a_begun_answer_is_judged_whole_where_the_conversation_leaves_it_out(specialist, strategy):
    (begun,) = asked("prefill", 1)
    judge = Noted(passing)
    generated(specialist, [begun], strategy(judge, conversations=[begun[:1]]))
    assert judge.calls[-1][0][1].startswith(begun[-1]["content"])


def test_half_a_refusal_is_not_said(specialist, strategy):
    for n_tokens in range(1, 12):
        (said,) = texts(specialist, asked("harmful", 1), strategy(failing, judge_after=1), max_new_tokens=n_tokens)
        assert said in ("", REFUSAL)


def test_a_harm_that_is_no_real_number_is_no_verdict(specialist, strategy):
    judge = lambda c, r: torch.zeros(len(r), dtype=torch.complex64)  # noqa: E731
    assert texts(specialist, asked("general", 2), strategy(judge)) == [REFUSAL] * 2
