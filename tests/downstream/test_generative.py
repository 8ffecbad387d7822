"""What each distribution promises: shapes, exact densities and inverses, guidance, independence."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from pipeline.downstream.codes import Space
from pipeline.downstream.denoisers import guided
from pipeline.downstream.generative import build_prior
from pipeline.downstream.networks import weight_tokens
from pipeline.downstream.normal_start import NormalStart
from pipeline.draw import Draw, sample_keys
from schemas.downstream import (
    Diffusion,
    Flow,
    Gaussian,
    RectifiedFlow,
    Sampling,
    WassersteinGan,
)

VECTOR = Space("latents/code", (6,))
GRID = Space("latents/grid", (8, 8, 3))
WEIGHTS = Space("params", (30,), (("a.weight", 0, (4, 5)), ("a.bias", 20, (10,))))
SMALL = {"width": 16, "depth": 2}


def draw_of(*numbers: int) -> Draw:
    return Draw.of(sample_keys([str(i) for i in numbers]), seed=0, stage="test")


def none(count: int) -> torch.Tensor:
    return torch.full((count,), -1)


@pytest.mark.parametrize("space", [VECTOR, GRID, WEIGHTS], ids=lambda s: s.kind)
@pytest.mark.parametrize("config", [Diffusion, RectifiedFlow])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_sample_does_not_depend_on_its_batch(space, config, classes):
    torch.manual_seed(0)
    prior = build_prior(config(**SMALL), space, space.shape, classes).eval()
    for parameter in prior.parameters():  # layers that start at zero would hide a mistake
        torch.nn.init.normal_(parameter, std=0.1)
    labels = torch.tensor([0, 2, 1]) if classes else none(3)
    sampling = Sampling(steps=3, guidance=2.0 if classes else 1.0)
    with torch.no_grad():
        together = prior.sample(draw_of(5, 6, 7), labels, sampling)
        alone = prior.sample(draw_of(6), labels[1:2], sampling)
    assert together.shape == (3, *space.shape)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("network", ["unet", "transformer", "mlp"])
def test_all_entries_see_each_other(network):
    """A network that cut a grid apart could not learn how its parts go together."""
    torch.manual_seed(0)
    model = build_prior(RectifiedFlow(network=network, **SMALL), GRID, GRID.shape, 0).network
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 8, 8, 3, requires_grad=True)
    out = model(x, torch.tensor([0.3]), none(1))
    (slope,) = torch.autograd.grad(out[0, 0, 0, 0], x)
    assert (slope.abs() > 0).all()


def test_tokens_are_tensors_or_equal_pieces_of_them():
    assert weight_tokens(WEIGHTS, 512) == [20, 10]
    assert weight_tokens(WEIGHTS, 8) == [6, 7, 7, 5, 5]
    gap = Space("params", (30,), (("a", 0, (4,)), ("b", 10, (4,))))
    with pytest.raises(ValueError, match="'b' begins at 10"):
        weight_tokens(gap, 8)


def test_guidance_moves_away_from_the_unconditional():
    def network(x, time, labels):
        return torch.where(labels < 0, 1.0, 3.0)[:, None].expand_as(x)

    x, time = torch.zeros(2, 1), torch.zeros(2)
    labels = torch.tensor([0, 1])
    for weight, expected in ((0.0, 1.0), (1.0, 3.0), (2.5, 6.0)):
        assert float(guided(network, x, time, labels, weight)[0]) == expected
    assert float(guided(network, x, time, none(2), 2.5)[0]) == 1.0


NORMAL = [RectifiedFlow, *(partial(Diffusion, predict=p) for p in ("noise", "x0", "velocity"))]


@pytest.mark.parametrize("config", NORMAL, ids=["flow", "noise", "x0", "velocity"])
def test_denoisers_that_have_learned_nothing_draw_from_the_normal_distribution(config):
    """Networks end in zero: what is drawn are the moments of the rows, by `start` alone."""
    torch.manual_seed(0)
    mix = torch.eye(6) + 0.4 * torch.randn(6, 6)
    rows = torch.randn(4000, 6) @ mix + 0.2  # as normalized ones: about zero
    prior = build_prior(config(**SMALL), VECTOR, (6,), 0).eval()
    prior.prepare(iter(rows.split(1500)))
    count = 3000
    with torch.no_grad():
        made = prior.sample(draw_of(*range(count)), none(count), Sampling(steps=100))
    torch.testing.assert_close(made.mean(0), rows.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(torch.cov(made.T), torch.cov(rows.T), rtol=0.1, atol=0.15)
    plain = build_prior(config(**SMALL, start="none"), VECTOR, (6,), 0).eval()
    plain.prepare(iter([rows]))
    with torch.no_grad():
        made = plain.sample(draw_of(*range(count)), none(count), Sampling(steps=20))
    assert (torch.cov(made.T) - torch.cov(rows.T)).abs().max() > 0.5


def test_the_start_is_the_regression_of_rows_on_noisy_rows():
    torch.manual_seed(0)
    rows = torch.randn(20_000, 3) @ torch.randn(3, 3) + 2
    noise = torch.randn_like(rows)
    start = NormalStart((3,))
    start.fit([rows])
    for signal in (0.2, 0.8):
        noisy = signal * rows + (1 - signal) * noise
        inputs = torch.cat([noisy, torch.ones(len(rows), 1)], 1)
        full = torch.full((len(rows),), signal)
        for found, wanted in zip(start(noisy, full, 1 - full), (rows, noise)):
            best = inputs @ torch.linalg.lstsq(inputs, wanted).solution
            torch.testing.assert_close(found, best, rtol=0, atol=0.15)


def test_rows_too_long_for_a_covariance_are_refused_where_it_is_asked_for():
    space = Space("latents/grid", (8, 8, 128))
    with pytest.raises(ValueError, match=r"method.start: rows of 8192 entries"):
        build_prior(RectifiedFlow(**SMALL, start="normal"), space, space.shape, 0)
    assert build_prior(RectifiedFlow(**SMALL), space, space.shape, 0).normal is None


@pytest.mark.parametrize("passes", [2, None])
def test_a_flow_inverts_exactly_and_its_density_is_the_jacobians(passes):
    torch.manual_seed(0)
    config = Flow(width=16, depth=1, transforms=3, passes=passes)
    prior = build_prior(config, VECTOR, (6,), 2).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows, labels = torch.randn(20, 6, dtype=torch.float64), torch.tensor([0, 1] * 10)
    given = prior._given(labels)
    there = given.transform(rows)
    torch.testing.assert_close(given.transform.inv(there), rows, rtol=0, atol=1e-4)
    one = prior._given(labels[:1]).transform
    jacobian = torch.autograd.functional.jacobian(lambda x: one(x[None])[0], rows[0])
    expected = torch.linalg.slogdet(jacobian).logabsdet
    expected = expected - 0.5 * (there[0].square().sum() + 6 * math.log(2 * math.pi))
    torch.testing.assert_close(prior.log_prob(rows, labels)[0], expected, rtol=0, atol=1e-6)


def test_a_normal_distribution_has_the_moments_of_its_rows():
    torch.manual_seed(0)
    mix = torch.randn(6, 6)
    rows = torch.randn(4000, 6) @ mix + 3
    prior = build_prior(Gaussian(), VECTOR, (6,), 0)
    prior.fit(rows, none(4000), 0)
    made = prior.sample(draw_of(*range(4000)), none(4000), Sampling())
    torch.testing.assert_close(made.mean(0), rows.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(torch.cov(made.T), torch.cov(rows.T), rtol=0.1, atol=0.5)
    reference = torch.distributions.MultivariateNormal(
        rows.mean(0), torch.cov(rows.T, correction=0)
    )
    found = prior.log_prob(rows[:50], none(50))
    torch.testing.assert_close(found, reference.log_prob(rows[:50]), rtol=0.02, atol=0.02)


def test_fewer_rows_than_entries_still_give_a_density():
    """The low-rank form against the covariance written out."""
    torch.manual_seed(0)
    space = Space("latents/code", (20,))
    rows = torch.randn(12, 3) @ torch.randn(3, 20) + 0.1 * torch.randn(12, 20)
    prior = build_prior(Gaussian(), space, (20,), 0)
    prior.fit(rows, none(12), 0)
    axes, deviation, rest = prior.axes[0], prior.deviation[0], prior.rest[0]
    assert axes.shape == (11, 20)
    outside = torch.eye(20) - axes.T @ axes
    whole = axes.T @ torch.diag(deviation**2) @ axes + rest**2 * outside
    reference = torch.distributions.MultivariateNormal(prior.mean[0], whole)
    other = torch.randn(5, 20)
    torch.testing.assert_close(
        prior.log_prob(other, none(5)), reference.log_prob(other), rtol=1e-3, atol=1e-2
    )
    made = prior.sample(draw_of(*range(3000)), none(3000), Sampling())
    torch.testing.assert_close(torch.cov(made.T), whole, rtol=0.2, atol=0.15)


def test_a_mixture_finds_the_clusters_and_the_classes():
    torch.manual_seed(0)
    labels = torch.arange(600) % 2
    side = (torch.arange(600) // 2 % 2)[:, None] * 2.0 - 1
    rows = 0.1 * torch.randn(600, 6) + labels[:, None] * 5 + side
    prior = build_prior(Gaussian(mixture=2), VECTOR, (6,), 2)
    prior.fit(rows, labels, 0)
    for label in (0, 1):
        centers = prior.mean[2 * label : 2 * label + 2].mean(1).sort().values
        torch.testing.assert_close(
            centers, torch.tensor([5.0 * label - 1, 5.0 * label + 1]), rtol=0, atol=0.05
        )
        made = prior.sample(draw_of(*range(50)), torch.full((50,), label), Sampling())
        assert ((made.mean(1) - 5 * label).abs() < 1.5).all()
    assert (
        prior.log_prob(rows[:10], labels[:10]).mean() > prior.log_prob(rows[:10], none(10)).mean()
    )
    with pytest.raises(ValueError, match="class 1 has 1 rows, a mixture of 2 needs 4"):
        prior.fit(rows[[0, 1, 2, 4, 6, 8]], labels[[0, 1, 2, 4, 6, 8]], 0)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="of the signal is left"):
        build_prior(Diffusion(times=10), VECTOR, (6,), 0)
    with pytest.raises(ValueError, match="unet needs grids"):
        build_prior(Diffusion(network="unet"), VECTOR, (6,), 0)
    with pytest.raises(ValueError, match="plain vectors of 6: use mlp"):
        build_prior(Diffusion(network="transformer"), VECTOR, (6,), 0)
    with pytest.raises(ValueError, match="principal components"):
        build_prior(Diffusion(network="transformer"), WEIGHTS, (5,), 0)
    with pytest.raises(ValueError, match="width 10 is not a multiple"):
        build_prior(Diffusion(width=10), WEIGHTS, (30,), 0)
    with pytest.raises(ValueError, match="has no density"):
        build_prior(WassersteinGan(), VECTOR, (6,), 0).log_prob(torch.zeros(1, 6), none(1))
