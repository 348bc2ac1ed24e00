"""What is reported of a call: the output's fields, the audit record and the ledger."""

import gc
import json
import sys
import weakref

import pytest
from helpers.strategies import RecordingJudge, RecordingStreamer, chats_of, fed_shapes, generated, passing

from hf_alignbeam.judges.failsafe import JudgeError


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


@pytest.mark.parametrize("options", [{"stop_strings": ["or"]}, {"eos_token_id": [2, 300, 322]}, {"pad_token_id": 77}])
@pytest.mark.parametrize("judge_after", [None, 5])
def test_steered_tokens_are_counted_up_to_the_end_of_each_text(judge_after, options, specialist, strategy, oracle):
    """Also where texts end by something other than the tokenizer's EOS, or are padded with an id of another token."""
    conversations = [*chats_of("harmful", 2), *chats_of("late", 2), *chats_of("domain", 1)]
    settings = {"judge_after": judge_after, "n_steps": None, "n_watch": None}
    options = {"return_dict_in_generate": True, **options}
    guard, answers = strategy(oracle, **settings), []
    output, _ = generated(specialist, conversations, guard.for_call(explain=answers.append), **options)
    alone = [generated(specialist, [each], strategy(oracle, **settings), **options) for each in conversations]
    assert output.steered.tolist() == [int(each.steered) for each, _ in alone]
    assert guard.ledger.steered_tokens == int(output.steered.sum())
    if judge_after is None:  # candidates to their ends, with one step for the first tokens of all
        written = [[len(candidate.ids) - 1 for each in answer.rollbacks for candidate in each.candidates] for answer in answers]
        assert output.steered.tolist() == [1 + sum(lengths) if lengths else 0 for lengths in written]
        assert len({max(lengths) for lengths in written if lengths}) > 1


def test_the_audit_record_holds_the_choice_and_no_word_of_the_text(specialist, strategy, oracle, mixed, tmp_path):
    records_kept, file = [], tmp_path / "audit.jsonl"
    for audit in (records_kept.append, file):
        output, _ = generated(specialist, mixed, strategy(oracle, audit=audit), return_dict_in_generate=True)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [{**r, "id": ""} for r in records] == [{**r, "id": ""} for r in records_kept]
    assert [r["chosen"] for r in records] == output.chosen.tolist()
    assert len({r["prompt_sha256"] for r in records}) == len(mixed)
    assert {(r["chosen"] == 0, r["threshold"]) for r in records} == {(True, 0.5), (False, 0.25)}  # what passed at its end
    assert all(r["judged"] >= 1 and r["target_tokens"] > 0 for r in records)
    assert not any(word in file.read_text() for word in ("kill", "poison", "weeds", "capital"))


def test_the_ledger_counts_forwards_tokens_and_verdicts(specialist, strategy, oracle, mixed):
    judge = RecordingJudge(oracle)
    counted = strategy(judge, judge_after=5)
    with fed_shapes(specialist[0]) as fed:
        generated(specialist, mixed, counted)
    ledger = counted.ledger
    assert (ledger.target_forwards, ledger.target_tokens) == (len(fed), sum(n_rows * length for n_rows, length in fed))
    assert ledger.judge_calls == len(judge.calls)
    assert ledger.judged == sum(map(len, judge.calls))
    assert ledger.seconds > 0.0


class HangsUp(RecordingStreamer):
    """A streamer whose reader leaves after the prompt and some pieces of the answer."""

    def __init__(self, n_pieces, error):
        super().__init__()
        self.n_left, self.error, self.n_put = n_pieces + 1, error, 0

    def put(self, ids):
        self.n_put += 1
        if not self.n_left:
            raise self.error("gone")
        self.n_left -= 1
        super().put(ids)


@pytest.mark.parametrize("error", [BrokenPipeError, KeyboardInterrupt])
@pytest.mark.parametrize("n_pieces", [0, 1])
def test_a_reader_who_leaves_leaves_a_record_of_what_left(n_pieces, error, specialist, strategy, oracle):
    records, streamer = [], HangsUp(n_pieces, error)
    guard = strategy(oracle, audit=records.append, streamer=streamer, judge_after=4, judge_every=4)
    with pytest.raises(error):
        generated(specialist, chats_of("general", 1), guard)
    begun, ended = records
    assert begun["begun"]
    assert begun["id"] == ended["id"]
    assert begun["prompt_sha256"] == ended["prompt_sha256"]
    assert ended["error"] == error.__name__
    assert ended["n_tokens"] >= len(streamer.ids)


def test_a_record_is_begun_before_the_first_token_leaves(specialist, strategy, oracle):
    seen, streamer = [], RecordingStreamer()
    guard = strategy(oracle, audit=lambda record: seen.append((len(streamer.ids), record)), streamer=streamer)
    output, n_prompt = generated(specialist, chats_of("harmful", 1), guard)
    (before, begun), (after, ended) = seen
    assert (before, begun["id"]) == (0, ended["id"])
    assert after == ended["n_tokens"] == output.shape[1] - n_prompt


@pytest.mark.parametrize("streams", [False, True])
def test_nothing_is_generated_where_no_record_can_be_written(streams, specialist, strategy, oracle, tmp_path):
    streamer = RecordingStreamer() if streams else None
    guard = strategy(oracle, audit=tmp_path / "missing" / "audit.jsonl", streamer=streamer)
    with fed_shapes(specialist[0]) as fed, pytest.raises(OSError, match="audit.jsonl"):
        generated(specialist, chats_of("general", 1), guard)
    assert not fed
    assert not streams or not streamer.ids


def test_no_text_is_returned_without_its_record(full_at, specialist, strategy, oracle, tmp_path):
    before = b'{"id": "1", "prompt_sha256": "2"}\n' * 9
    (tmp_path / "audit.jsonl").write_bytes(before)
    with full_at(310), pytest.raises(OSError, match="File too large"):
        generated(specialist, chats_of("general", 1), strategy(oracle, audit=tmp_path / "audit.jsonl"))
    assert (tmp_path / "audit.jsonl").read_bytes() == before


def test_a_call_that_fails_has_a_record_of_each_answer(specialist, strategy, mixed):
    def broken(conversations, responses):
        raise OSError("secret words")

    records = []
    with pytest.raises(RuntimeError):
        generated(specialist, mixed, strategy(broken, audit=records.append, on_judge_error="raise"))
    assert [record["error"] for record in records] == ["JudgeError"] * len(mixed)
    assert "secret" not in str(records)


class FailsOnce:
    """An audit that raises an error at its first record, and keeps the others."""

    def __init__(self, error):
        self.error, self.records, self.n_tried = error, [], 0

    def __call__(self, record):
        self.n_tried += 1
        if self.n_tried == 1:
            raise self.error
        self.records.append(record)


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_record_that_cannot_be_written_costs_no_other_record(kind, specialist, strategy):
    error = kind("disk full")
    audit, judge = FailsOnce(error), RecordingJudge(passing)
    guard = strategy(judge, audit=audit)
    with fed_shapes(specialist[0]) as fed, pytest.raises(kind) as caught:
        generated(specialist, chats_of("domain", 3), guard)
    assert caught.value is error
    assert caught.value.__context__ is None
    assert caught.value.__notes__ == [f"1 of 3 audit records could not be written: {error!r}"]
    assert [record["n_tokens"] > 0 for record in audit.records] == [True, True]
    assert guard.ledger.judge_calls == len(judge.calls) > 0
    assert guard.ledger.judged == 3 * len(judge.calls)
    assert guard.ledger.target_forwards == len(fed) > 0


@pytest.mark.parametrize(("raised", "kind"), [(KeyboardInterrupt, KeyboardInterrupt), (ValueError, JudgeError)])
def test_a_record_that_cannot_be_written_replaces_no_error(raised, kind, specialist, strategy):
    def judge(conversations, responses):
        raise raised("no verdict")

    audit = FailsOnce(OSError("disk full"))
    guard = strategy(judge, audit=audit, on_judge_error="raise")
    with pytest.raises(kind) as caught:
        generated(specialist, chats_of("domain", 2), guard)
    assert caught.value.__notes__[-1] == "1 of 2 audit records could not be written: OSError('disk full')"
    assert [record["error"] for record in audit.records] == [kind.__name__]
    assert guard.ledger.target_forwards > 0


def test_an_interrupt_while_records_are_written_is_not_lost_beside_another_error(specialist, strategy):
    def judge(conversations, responses):
        raise OSError("down")

    audit = FailsOnce(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        generated(specialist, chats_of("domain", 2), strategy(judge, audit=audit, on_judge_error="raise"))
    assert isinstance(caught.value.__context__, JudgeError)
    assert len(audit.records) == 1


def test_a_call_that_fails_with_its_audit_is_freed_at_once(specialist, strategy):
    """Its caches do not wait for the garbage collector."""
    freed, audit = [], FailsOnce(OSError("disk full"))

    def judge(conversations, responses):
        weakref.finalize(sys._getframe(1).f_locals["self"], freed.append, 1)
        return passing(conversations, responses)

    gc.disable()
    try:
        with pytest.raises(OSError, match="disk full"):
            generated(specialist, chats_of("domain", 2), strategy(judge, audit=audit))
        audit.error = None
        assert freed
    finally:
        gc.enable()
