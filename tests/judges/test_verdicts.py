"""The probabilities of verdict texts: several, graded, of several tokens, after white space, in any letter case."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam.judges.verdicts import MIN_VERDICT_PROB, VerdictReader

TOKENS = [None, b"safe", b"un", b"unsafe", b"\n\n", b" Yes", b"no", b"not", b"harm", b"ful", b"S", b"**", b"1", b"10", b"", b"u"]
ID = {token: i for i, token in enumerate(TOKENS)}


def model(table):
    """A model that looks up what may follow the last tokens of a text: bytes written so far -> {token: probability}."""

    def next_logp(rows):
        logp = torch.full((len(rows), len(TOKENS)), -math.inf)
        for place, row in enumerate(rows):
            for token, prob in table[b"".join(TOKENS[i] or b"" for i in row[1:])].items():
                logp[place, ID[token]] = math.log(prob)
        return logp

    return next_logp


def read(verdicts, table, n_rows=1):
    return VerdictReader(TOKENS, verdicts).read([[0]] * n_rows, model(table))


def test_the_first_token_that_tells_texts_apart_decides():
    result = read({"safe": 0.0, "unsafe": 1.0}, {b"": {b"safe": 0.2, b"unsafe": 0.3, b"un": 0.1, b"no": 0.4}})
    assert result.prob.tolist() == pytest.approx([0.6])
    assert result.harm.tolist() == pytest.approx([0.4 / 0.6])


def test_white_space_and_markup_before_a_verdict_are_followed():
    table = {
        b"": {b"\n\n": 0.9, b"safe": 0.1},
        b"\n\n": {b"unsafe": 0.7, b"**": 0.3},
        b"\n\n**": {b"safe": 0.5, b"unsafe": 0.5},
    }
    result = read({"safe": 0.0, "unsafe": 1.0}, table)
    assert result.prob.tolist() == pytest.approx([1.0])
    assert result.harm.tolist() == pytest.approx([0.9 * (0.7 + 0.3 * 0.5)])


def test_texts_that_begin_with_the_same_token_are_told_apart_by_the_next():
    table = {b"": {b"harm": 0.8, b"un": 0.2}, b"harm": {b"ful": 0.75, None: 0.25}, b"un": {b"harm": 1.0}}
    result = read({"harm": 0.25, "harmful": 1.0, "unharmful": 0.0}, table)
    assert result.prob.tolist() == pytest.approx([1.0])
    assert result.harm.tolist() == pytest.approx([0.8 * (0.75 * 1.0 + 0.25 * 0.25)])


def test_a_longer_word_is_no_verdict():
    result = read({"no": 0.0, "1": 1.0}, {b"": {b"not": 0.5, b"10": 0.4, b"1": 0.1}})
    assert result.prob.tolist() == pytest.approx([0.1])
    assert result.harm.tolist() == pytest.approx([1.0])


def test_below_the_least_probability_there_is_no_verdict():
    low, high = MIN_VERDICT_PROB - 0.01, MIN_VERDICT_PROB + 0.01
    result = read({"yes": 1.0, "no": 0.0}, {b"": {b" Yes": low, b"safe": 1 - low}})
    assert result.harm.isnan().tolist() == [True]
    assert read({"yes": 1.0, "no": 0.0}, {b"": {b" Yes": high, b"safe": 1 - high}}).harm.tolist() == [1.0]


def test_endless_white_space_ends_without_a_verdict():
    class Endless(dict):
        def __missing__(self, key):
            return {b"\n\n": 1.0}

    assert read({"safe": 0.0, "unsafe": 1.0}, Endless(), n_rows=3).harm.isnan().all()


@given(st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4))
def test_harm_is_the_expectation_over_graded_texts(weights):
    total = sum(weights)
    prob = dict(zip([b"safe", b"unsafe", b" Yes", b"1"], [w / total for w in weights], strict=True))
    harm = {"safe": 0.0, "unsafe": 1.0, "yes": 0.5, "1": 0.25}
    expected = sum(prob[token] * harm[token.decode().strip().lower()] for token in prob)
    assert read(harm, {b"": prob}).harm.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ({"no": 0.0, " NO": 1.0}, "must be different texts"),
        ({"vert": 1.0, "no": 0.0}, "that the tokenizer can write, got 'vert'"),
    ],
)
def test_texts_that_cannot_be_told_apart_or_written_are_refused(verdicts, message):
    with pytest.raises(ValueError, match=message):
        VerdictReader(TOKENS, verdicts)
