"""What is reported of a call: the output's fields, the audit record and the ledger."""

import json

from helpers.strategies import RecordingJudge, fed_shapes, generated


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


def test_the_audit_record_holds_the_choice_and_no_word_of_the_text(specialist, strategy, oracle, mixed, tmp_path):
    records_kept, file = [], tmp_path / "audit.jsonl"
    for audit in (records_kept.append, file):
        output, _ = generated(specialist, mixed, strategy(oracle, audit=audit), return_dict_in_generate=True)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records == records_kept
    assert [r["chosen"] for r in records] == output.chosen.tolist()
    assert len({r["prompt_sha256"] for r in records}) == len(mixed)
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
