import pytest
import torch
from helpers.reference import safe_decoding_by_loop
from hypothesis import given
from hypothesis import strategies as st

from hf_alignbeam.steering.mixing import N_COMMON, check_mixing, contrastive, linear, log_linear, paper, safe_decoding

P = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
Q = torch.tensor([[0.1, 0.0, 0.6, 0.3]])


def test_linear_by_hand():
    mixed = linear(P.log(), Q, 0.5).exp()
    expected = torch.tensor([[0.3, 0.15, 0.4, 0.0]]) / 0.85  # the target forbids the last token
    torch.testing.assert_close(mixed, expected)


def test_log_linear_by_hand():
    weights = torch.tensor([[(0.5 * 0.1) ** 0.5, 0.0, (0.2 * 0.6) ** 0.5, 0.0]])
    torch.testing.assert_close(log_linear(P.log(), Q, 0.5).exp(), weights / weights.sum())


def test_paper_adds_the_target_once_for_each_source_and_drops_the_other_tokens():
    n_sources = torch.tensor([[2.0, 0.0, 1.0, 1.0]])
    weights = torch.tensor([[2 * 0.5 * 0.5 + 0.5 * 0.1, 0.0, 0.5 * 0.2 + 0.5 * 0.6, 0.0]])
    torch.testing.assert_close(paper(P.log(), Q, 0.5, n_sources).exp(), weights / weights.sum())


@pytest.mark.parametrize("rule", [linear, log_linear])
def test_alpha_zero_is_the_target_and_one_the_anchor(rule):
    torch.testing.assert_close(rule(P.log(), Q, 0.0).exp(), P)
    allowed = torch.tensor([[0.1, 0.0, 0.6, 0.0]])
    torch.testing.assert_close(rule(P.log(), Q, 1.0).exp(), allowed / 0.7)


def test_safe_decoding_by_hand():
    target = torch.tensor([[0.4, 0.3, 0.15, 0.08, 0.04, 0.02, 0.01]])
    anchor = torch.tensor([[0.05, 0.1, 0.2, 0.3, 0.25, 0.06, 0.04]])
    # the likeliest six of both share the first five of `allowed` and token 5; their likeliest five only four
    moved = [0.4 - 3 * 0.35, 0.3 - 3 * 0.2, 0.15 + 3 * 0.05, 0.08 + 3 * 0.22, 0.04 + 3 * 0.21, 0.02 + 3 * 0.04, 0.0]
    expected = torch.tensor([[1e-8 if p < 0 else p for p in moved]])
    mixed = safe_decoding(target.log(), anchor, 3.0).exp()
    torch.testing.assert_close(mixed, expected / expected.sum())
    assert mixed[0, 6] == 0.0


@given(st.integers(0, 10_000), st.integers(3, 30), st.sampled_from([0.5, 1.0, 3.0]))
def test_safe_decoding_is_the_published_loop(seed, size, alpha):
    generator = torch.Generator().manual_seed(seed)
    target, anchor = torch.randn(2, 4, size, generator=generator).mul(2).softmax(-1)
    expected = [safe_decoding_by_loop(p, q, alpha, N_COMMON) for p, q in zip(target.tolist(), anchor.tolist(), strict=True)]
    torch.testing.assert_close(safe_decoding(target.log(), anchor, alpha).exp(), torch.tensor(expected))


def test_contrastive_by_hand():
    target = torch.tensor([[0.6, 0.2, 0.1, 0.1]])
    anchor = torch.tensor([[0.3, 0.5, 0.04, 0.16]])
    weights = torch.tensor([[0.3**1.5 * 0.6**-0.5, 0.5**1.5 * 0.2**-0.5, 0.0, 0.16**1.5 * 0.1**-0.5]])
    torch.testing.assert_close(contrastive(target.log(), anchor, 1.5).exp(), weights / weights.sum())


def test_contrastive_at_alpha_one_is_the_anchor_on_its_plausible_tokens():
    torch.testing.assert_close(contrastive(P.log(), Q, 1.0).exp(), torch.tensor([[0.1, 0.0, 0.6, 0.0]]) / 0.7)


def test_contrastive_compares_only_allowed_tokens():
    target = torch.tensor([[0.0, 0.3, 0.4, 0.3]])
    anchor = torch.tensor([[0.97, 0.02, 0.005, 0.005]])
    weights = torch.tensor([[0.0, 0.02**1.5 * 0.3**-0.5, 0.005**1.5 * 0.4**-0.5, 0.005**1.5 * 0.3**-0.5]])
    torch.testing.assert_close(contrastive(target.log(), anchor, 1.5).exp(), weights / weights.sum())


@pytest.mark.parametrize("rule", [safe_decoding, contrastive])
def test_forbidden_tokens_stay_forbidden_beyond_the_anchor(rule):
    for alpha in (1.0, 1.5, 3.0):
        logp = rule(P.log(), Q, alpha)
        assert logp[0, 3] == -torch.inf
        torch.testing.assert_close(logp.exp().sum(-1), torch.ones(1))


@pytest.mark.parametrize("rule", [linear, log_linear])
def test_forbidden_tokens_stay_forbidden(rule):
    for alpha in (0.0, 0.3, 1.0):
        assert rule(P.log(), Q, alpha)[0, 3] == -torch.inf


@pytest.mark.parametrize("rule", [linear, log_linear, contrastive])
def test_a_row_without_tokens_left_keeps_the_targets_distribution(rule):
    only_forbidden = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(rule(P.log(), only_forbidden, 1.0).exp(), P)


def test_arguments_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\] for the rule 'linear', got 1.5"):
        check_mixing("linear", 1.5)
    with pytest.raises(ValueError, match="`alpha` must be at least 0, and finite, for the rule 'safe_decoding', got -1"):
        check_mixing("safe_decoding", -1.0)
    with pytest.raises(ValueError, match="`alpha` must be at least 1, and finite, for the rule 'contrastive', got 0.7. 1 is the"):
        check_mixing("contrastive", 0.7)
    with pytest.raises(ValueError, match="`alpha`"):
        check_mixing("contrastive", float("inf"))
    with pytest.raises(
        ValueError, match="`mixing` must be one of linear, log_linear, paper, safe_decoding, contrastive, got 'sum'"
    ):
        check_mixing("sum", 0.5)
    with pytest.raises(ValueError, match="`alpha`"):
        check_mixing("linear", float("nan"))
