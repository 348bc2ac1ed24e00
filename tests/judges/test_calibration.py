"""A judge's own threshold: found on known exchanges, reported as .5, and the same order of responses as before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam.judges.calibration import (
    CalibratedJudge,
    KnownVerdict,
    best_threshold,
    error_rates,
    own_threshold,
    separation,
    shifted,
)
from hf_alignbeam.judges.known_exchanges import EXCHANGES

#: Equal, or further apart than rounding.
HARM = st.integers(1, 999).map(lambda n: n / 1000)
THRESHOLD = st.integers(50, 950).map(lambda n: n / 1000)


@given(st.lists(HARM, min_size=1, max_size=20), THRESHOLD)
def test_the_threshold_becomes_one_half_and_the_order_stays(harm, threshold):
    values = torch.tensor([*harm, threshold], dtype=torch.float64)
    moved = shifted(values, threshold)
    assert moved[-1].item() == pytest.approx(0.5)
    assert ((moved > 0.5 + 1e-9) <= (values > threshold)).all()
    assert torch.equal(moved.argsort(stable=True), values.argsort(stable=True))


def test_certain_and_missing_verdicts_stay():
    moved = shifted(torch.tensor([0.0, 1.0, torch.nan]), 0.2)
    assert moved[:2].tolist() == [0.0, 1.0]
    assert moved[2].isnan()


@given(st.lists(HARM, min_size=1, max_size=20), st.lists(HARM, min_size=1, max_size=20), THRESHOLD)
def test_a_shifted_judge_has_a_shifted_threshold(harmful, harmless, threshold):
    """So a judge means the same with .5, however its scale is shifted."""
    verdicts = [*(KnownVerdict(h, True) for h in harmful), *(KnownVerdict(h, False) for h in harmless)]
    if separation(verdicts) <= 0.5:
        with pytest.raises(ValueError, match="must tell harmful from harmless"):
            own_threshold(verdicts)
        return
    moved = shifted(torch.tensor([each.harm for each in verdicts], dtype=torch.float64), threshold).tolist()
    own = own_threshold([each._replace(harm=h) for each, h in zip(verdicts, moved, strict=True)])
    assert own == pytest.approx(shifted(torch.tensor([own_threshold(verdicts)], dtype=torch.float64), threshold).item(), abs=1e-6)


def test_a_judge_that_separates_gets_the_middle_of_the_gap():
    verdicts = [KnownVerdict(h, h > 0.2) for h in (0.01, 0.1, 0.3, 0.35)]
    value = own_threshold(verdicts)
    assert 0.1 < value < 0.3
    assert error_rates(verdicts, value) == (0.0, 0.0)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.5, 1.0]), st.booleans()), max_size=30), st.sampled_from([0.0, 0.4, 0.45])
)
def test_rates_and_the_area_under_the_curve_are_what_counting_gives(rows, threshold):
    """Compared with counting responses and pairs of them; many have equal harm."""
    verdicts = [KnownVerdict(*row) for row in (*rows, (0.4, False), (0.4, True))]
    harmful, harmless = ([each.harm for each in verdicts if each.harmful is kind] for kind in (True, False))
    pairs = [(a, b) for a in harmful for b in harmless]
    assert separation(verdicts) == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
    flagged, passed = sum(h > threshold for h in harmless), sum(h <= threshold for h in harmful)
    assert error_rates(verdicts, threshold) == (flagged / len(harmless), passed / len(harmful))


def test_many_responses_are_counted_in_order_and_not_in_pairs():
    """Pairs of so many would take hours and gigabytes."""
    verdicts = [KnownVerdict(n / 60_000, n % 3 == 0) for n in range(60_000)]
    assert separation(verdicts) == pytest.approx(0.5, abs=1e-4)
    assert error_rates(verdicts, best_threshold(verdicts, 0.1))[0] == pytest.approx(0.1, abs=1e-4)


def test_a_callable_judge_is_calibrated_on_known_exchanges():
    """Its scale is squeezed into the lowest twentieth, where a threshold of .5 would flag nothing."""
    known = {(each.question, each.response): each.harmful for each in EXCHANGES}

    def squeezed(conversations, responses):
        harmful = [known[c[-1]["content"], r] for c, r in zip(conversations, responses, strict=True)]
        return torch.tensor([0.04 if each else 0.01 for each in harmful])

    judge = CalibratedJudge(squeezed)
    harm = judge([each.question for each in EXCHANGES], [each.response for each in EXCHANGES])
    assert [h > 0.5 for h in harm.tolist()] == [each.harmful for each in EXCHANGES]
    assert "threshold=0.0" in repr(judge)


@pytest.mark.parametrize("answer", [lambda n: torch.full((n,), 0.3), lambda n: torch.full((n,), torch.nan)])
def test_a_judge_that_says_the_same_of_everything_is_refused(answer):
    with pytest.raises(ValueError, match="A judge must"):
        CalibratedJudge(lambda conversations, responses: answer(len(responses)))


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match="`threshold` must be between 0 and 1"):
        CalibratedJudge(lambda c, r: torch.zeros(len(r)), threshold)


def test_the_best_threshold_keeps_to_the_wanted_rate():
    verdicts = [KnownVerdict(i / 100, i % 3 == 0 or i > 70) for i in range(100)]
    for rate in (0.0, 0.05, 0.3):
        assert error_rates(verdicts, best_threshold(verdicts, rate))[0] <= rate
    assert sum(error_rates(verdicts, best_threshold(verdicts))) == min(sum(error_rates(verdicts, i / 200)) for i in range(201))


def test_known_exchanges_are_balanced_and_distinct():
    assert len({(each.question, each.response) for each in EXCHANGES}) == len(EXCHANGES)
    assert 0.3 < sum(each.harmful for each in EXCHANGES) / len(EXCHANGES) < 0.6


def test_a_judges_own_threshold_lies_two_thirds_of_the_way_between_its_medians():
    """In log-odds: from log(1/4) to log 4 two thirds of the way are log(4) / 3."""
    verdicts = [KnownVerdict(h, False) for h in (0.1, 0.2, 0.3)] + [KnownVerdict(h, True) for h in (0.7, 0.8, 0.9)]
    assert own_threshold(verdicts) == pytest.approx(4 ** (1 / 3) / (1 + 4 ** (1 / 3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_harm_just_above_the_threshold_stays_above_it_in_any_type(dtype):
    """In bfloat16 .3008 is the next number above .3, and with a threshold of .3 it was rounded to .5, which passes."""
    above = torch.tensor([0.3], dtype=dtype)
    while above.double() <= 0.3:
        above = torch.nextafter(above, torch.tensor([1.0], dtype=dtype))
    harm = CalibratedJudge(lambda conversations, responses: above, 0.3)(["How?"], ["So."])
    assert harm.dtype == torch.float64
    assert harm > 0.5
