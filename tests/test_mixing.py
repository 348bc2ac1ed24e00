import pytest
import torch

from hf_alignbeam.mixing import check_mixing, linear, log_linear, paper

P = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
Q = torch.tensor([[0.1, 0.0, 0.6, 0.3]])


def test_linear_by_hand():
    mixed = linear(P.log(), Q, 0.5).exp()
    expected = torch.tensor([[0.3, 0.15, 0.4, 0.0]]) / 0.85  # the target forbids the last token
    torch.testing.assert_close(mixed, expected)


def test_log_linear_by_hand():
    weights = torch.tensor([[(0.5 * 0.1) ** 0.5, 0.0, (0.2 * 0.6) ** 0.5, 0.0]])
    torch.testing.assert_close(log_linear(P.log(), Q, 0.5).exp(), weights / weights.sum())


def test_paper_counts_the_target_once_for_each_source_and_drops_the_rest():
    n_sources = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    weights = torch.tensor([[2 * 0.5 * 0.5 + 0.5 * 0.1, 0.0, 0.5 * 0.2 + 0.5 * 0.6, 0.0]])
    torch.testing.assert_close(paper(P.log(), Q, 0.5, n_sources).exp(), weights / weights.sum())


@pytest.mark.parametrize("rule", [linear, log_linear])
def test_alpha_zero_is_the_target_and_one_the_anchor(rule):
    torch.testing.assert_close(rule(P.log(), Q, 0.0).exp(), P)
    allowed = torch.tensor([[0.1, 0.0, 0.6, 0.0]])
    torch.testing.assert_close(rule(P.log(), Q, 1.0).exp(), allowed / 0.7)


@pytest.mark.parametrize("rule", [linear, log_linear])
def test_forbidden_stays_forbidden(rule):
    for alpha in (0.0, 0.3, 1.0):
        assert rule(P.log(), Q, alpha)[0, 3] == -torch.inf


@pytest.mark.parametrize("rule", [linear, log_linear])
def test_where_nothing_is_left_the_target_stands(rule):
    only_forbidden = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(rule(P.log(), only_forbidden, 1.0).exp(), P)


def test_arguments_are_named_when_refused():
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\] for the rule 'linear', got 1.5"):
        check_mixing("linear", 1.5)
    with pytest.raises(
        ValueError, match=r"`mixing` must be one of log_linear, linear, paper|linear, log_linear, paper, got 'sum'"
    ):
        check_mixing("sum", 0.5)
    with pytest.raises(ValueError, match="`alpha`"):
        check_mixing("linear", float("nan"))
