"""The search around one prompt: how its probes are drawn, and how their harm moves the center."""

import math

import pytest
import torch

from hf_alignbeam.embedding_search.zeroth_order import (
    MAX_WIDENING,
    SHARED,
    SPAN,
    SPAN_LENGTH,
    ProbeSampler,
    SearchConfig,
    antithetic_gradient,
    clamp_to_cone,
    forward_gradient,
)

DEFAULTS = {
    "mu": 1.0,
    "kinds": ("independent",),
    "spread": 1.0,
    "eta": 0.0,
    "n_probes": 8,
    "estimator": "antithetic",
    "optimizer": None,
    "relative": True,
    "cone": 0.2,
    "widen": 1.5,
}


def config(**settings):
    return SearchConfig(**{**DEFAULTS, **settings})


def sampler_of(embeds, perturbable=None, seed=0, **settings):
    positions = torch.ones(len(embeds), dtype=torch.bool) if perturbable is None else perturbable
    return ProbeSampler(embeds, positions, config(**settings), seed)


@pytest.fixture
def embeds():
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(3))


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def test_both_estimates_are_the_gradient_of_a_quadratic():
    target, at, mu = normal(2, 4), torch.zeros(2, 4), 0.05
    exact = 2 * (at - target)

    def harm(points):
        return (points - target).square().sum((-1, -2))

    noise = normal(4000, 2, 4)
    forward = forward_gradient(noise, harm(at + mu * noise), float(harm(at)), mu)
    both = antithetic_gradient(noise, harm(at + mu * noise), harm(at - mu * noise), mu)
    for estimate in (forward, both):
        assert torch.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0) > 0.99
        assert estimate.norm() == pytest.approx(float(exact.norm()), rel=0.1)


def test_probes_without_a_verdict_do_not_count():
    noise = normal(4, 2, 3)
    known = forward_gradient(noise[:2], torch.tensor([1.0, 3.0]), 0.5, 0.1)
    some = forward_gradient(noise, torch.tensor([1.0, 3.0, math.nan, math.nan]), 0.5, 0.1)
    assert torch.allclose(some, known)
    assert not forward_gradient(noise, torch.full((4,), math.nan), 0.5, 0.1).any()


def test_zero_radius_leaves_the_prompt_unchanged(embeds):
    assert torch.equal(sampler_of(embeds, mu=0.0).probes(), embeds.expand(8, -1, -1))


def test_antithetic_probes_lie_opposite_each_other(embeds):
    probes = sampler_of(embeds).probes()
    assert torch.allclose(probes[:4] + probes[4:], 2 * embeds.expand(4, -1, -1), atol=1e-5)


def test_the_noise_is_as_long_as_the_embeddings_times_mu():
    embeds = normal(40, 256) * 7.0
    noise = sampler_of(embeds, mu=0.5).probes() - embeds
    rms = embeds.norm(dim=-1).square().mean().sqrt()
    assert noise.norm(dim=-1).square().mean().sqrt() == pytest.approx(0.5 * float(rms), rel=0.02)


def test_absolute_noise_has_mu_as_its_standard_deviation():
    embeds = normal(40, 256) * 7.0
    assert (sampler_of(embeds, mu=0.1, relative=False).probes() - embeds).std() == pytest.approx(0.1, rel=0.02)


def test_a_model_with_larger_embeddings_is_searched_alike(embeds):
    small, large = sampler_of(embeds, eta=0.3), sampler_of(5 * embeds, eta=0.3)
    for _ in range(3):
        assert torch.allclose(5 * small.probes(), large.probes(), rtol=1e-4, atol=1e-4)
        for sampler in (small, large):
            sampler.update([0.1, 0.2, 0.9, 0.4, 0.3, 0.8, 0.0, 0.5], 0.5, all_alike=False)
    assert small.has_moved


def test_within_a_round_the_length_of_the_noise_increases():
    embeds = normal(30, 200)
    noise = (sampler_of(embeds, spread=2.0).probes() - embeds).norm(dim=(-1, -2))[:4]
    lengths = noise / embeds.norm()
    assert lengths.tolist() == pytest.approx([0.5, 2 ** (-1 / 3), 2 ** (1 / 3), 2.0], rel=0.05)


def test_kinds_of_noise_are_used_in_turn(embeds):
    long = normal(60, 64)
    sampler = sampler_of(long, kinds=("independent", "shared", "span"), n_probes=6, estimator="forward")
    noise = sampler.probes() - long
    length = noise.norm(dim=-1)  # (6, T)
    assert (length[[0, 1, 3, 4]] > 0).all()
    for span in length[[2, 5]]:
        inside = span.nonzero()[:, 0].tolist()
        assert inside == list(range(inside[0], inside[0] + round(SPAN * 60)))
        assert span[inside].mean() == pytest.approx(SPAN_LENGTH * float(length[0].mean()), rel=0.1)
    cosines = [float(torch.cosine_similarity(each[0], each[1:], dim=-1).mean()) for each in noise[[0, 1]]]
    assert cosines[0] == pytest.approx(0.0, abs=0.1)
    assert cosines[1] == pytest.approx(SHARED**2, abs=0.1)
    perturbable = torch.tensor([False, True, True, False, True])
    spans = sampler_of(embeds, perturbable, kinds=("span",)).probes()
    assert torch.equal(spans[:, ~perturbable], embeds[~perturbable].expand(8, -1, -1))
    assert ((spans != embeds).any(-1).sum(-1) == 1).all()


def test_other_positions_are_never_perturbed(embeds):
    perturbable = torch.tensor([False, True, True, False, True])
    sampler = sampler_of(embeds, perturbable, eta=0.5)
    for _ in range(3):
        probes = sampler.probes()
        assert torch.equal(probes[:, ~perturbable], embeds[~perturbable].expand(8, -1, -1))
        assert (probes[:, perturbable] != embeds[perturbable]).all()
        sampler.update([0.1, 0.2, 0.9, 0.4, 0.3, 0.8, 0.0, 0.5], 0.5, all_alike=False)
    assert torch.equal(sampler.center[~perturbable], embeds[~perturbable])


def test_a_step_moves_every_position_by_eta_against_the_estimate(embeds):
    sampler = sampler_of(embeds, eta=0.1, estimator="forward", cone=-1.0)
    noise = sampler.probes() - embeds
    harm = [0.1, 0.2, 0.9, 0.4, 0.3, 0.8, 0.0, 0.5]
    sampler.update(harm, 0.5, all_alike=False)
    moved = sampler.center - embeds
    rms = float(embeds.norm(dim=-1).square().mean().sqrt())
    assert moved.norm(dim=-1).tolist() == pytest.approx([0.1 * rms] * 5, rel=1e-3)
    uphill = (noise * (torch.tensor(harm) - 0.5)[:, None, None]).mean(0)
    assert torch.cosine_similarity(moved, -uphill, dim=-1).min() > 0.999


def test_a_torch_optimizer_takes_the_steps(embeds):
    sampler = sampler_of(embeds, optimizer=lambda tensors: torch.optim.SGD(tensors, lr=0.01), cone=-1.0)
    sampler.probes()
    sampler.update([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], 1.0, all_alike=False)
    first = sampler.center - embeds
    assert sampler.has_moved
    assert first.abs().sum() > 0
    sampler.probes()
    sampler.update([math.nan] * 8, 1.0, all_alike=False)
    assert torch.equal(sampler.center, embeds + first)


def test_random_search_does_not_move_the_center(embeds):
    sampler = sampler_of(embeds)
    for _ in range(3):
        sampler.probes()
        sampler.update([0.1, 0.2, 0.9, 0.4, 0.3, 0.8, 0.0, 0.5], 0.5, all_alike=False)
    assert torch.equal(sampler.center, embeds)
    assert not sampler.has_moved


def second_length(embeds, all_alike, **settings):
    """The length of the noise in the second round, after one in which all answers did the same harm."""
    sampler = sampler_of(embeds, **settings)
    sampler.probes()
    sampler.update([1.0] * 8, 1.0, all_alike=all_alike)
    return float((sampler.probes() - sampler.center).norm())


@pytest.mark.parametrize(("eta", "after_others"), [(0.0, 2.0), (0.3, 1.0)])
def test_a_moving_center_widens_the_noise_only_if_all_answers_are_the_same(embeds, eta, after_others):
    before = second_length(embeds, True, widen=1.0, eta=eta)
    assert second_length(embeds, True, widen=2.0, eta=eta) == pytest.approx(2.0 * before, rel=1e-4)
    assert second_length(embeds, False, widen=2.0, eta=eta) == pytest.approx(after_others * before, rel=1e-4)


def test_noise_is_widened_up_to_a_bound(embeds):
    sampler, never = sampler_of(embeds, widen=2.0), sampler_of(embeds, widen=1.0)
    for _ in range(10):
        sampler.update([1.0] * 8, 1.0, all_alike=False)
    assert float((sampler.probes() - embeds).norm()) == pytest.approx(
        MAX_WIDENING * float((never.probes() - embeds).norm()), rel=1e-4
    )


def test_every_seed_has_its_own_noise(embeds):
    assert torch.equal(sampler_of(embeds, seed=1).probes(), sampler_of(embeds, seed=1).probes())
    assert not torch.equal(sampler_of(embeds, seed=1).probes(), sampler_of(embeds, seed=2).probes())


def test_the_cone_turns_back_rows_outside_it_and_keeps_their_length():
    start, moved = normal(50, 6), 3 * torch.randn(50, 6, generator=torch.Generator().manual_seed(8))
    before = torch.cosine_similarity(moved, start, dim=-1)
    turned = clamp_to_cone(moved, start, 0.2)
    after = torch.cosine_similarity(turned, start, dim=-1)
    assert (before < 0.2).any()
    assert (before >= 0.2).any()
    assert torch.allclose(after[before < 0.2], torch.tensor(0.2), atol=1e-4)
    assert torch.equal(turned[before >= 0.2], moved[before >= 0.2])
    assert torch.allclose(turned.norm(dim=-1), moved.norm(dim=-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mu": -1.0}, "`mu` must be at least 0, got -1.0"),
        ({"mu": math.nan}, "`mu` must be at least 0, got nan"),
        ({"eta": -0.1}, "`eta` must be at least 0"),
        ({"kinds": ()}, "`kinds` must hold some of independent, shared, span"),
        ({"kinds": ("white",)}, "`kinds` must hold some of independent, shared, span"),
        ({"spread": 0.5}, "`spread` must be at least 1"),
        ({"n_probes": 0}, "`n_probes` must be a whole number of at least 1, got 0"),
        ({"n_probes": 3}, "`n_probes` must be even for antithetic pairs, got 3"),
        ({"estimator": "central"}, "`estimator` must be"),
        ({"cone": 2.0}, "`cone` must be a cosine"),
        ({"widen": 0.9}, "`widen` must be at least 1"),
        ({"mu": "1"}, "`mu` must be at least 0, got '1'"),
        ({"eta": None}, "`eta` must have a value, got None"),
        ({"n_probes": 8.0}, "`n_probes` must be a whole number of at least 1, got 8.0"),
        ({"relative": "no"}, "`relative` must be True or False, got 'no'"),
        ({"optimizer": "adam"}, "`optimizer` must be callable with a list of a tensor, got 'adam'"),
    ],
)
def test_arguments_out_of_range_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
