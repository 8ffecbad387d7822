"""Priors of smoothness against closed forms, and what they do to a fit of few pixels."""

import math

import pytest
import torch

from pipeline import methods
from pipeline.draw import Draw, sample_keys
from pipeline.fitting import choose_path, fit_rows
from pipeline.objectives.photometric import ColorError
from pipeline.objectives.smoothness import SmoothColorError, hessian_norm, total_variation
from pipeline.samples import Batch, Pixels, load_samples
from tests.fitting.tables import picture_table

COORDS = torch.rand(2, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_plane_has_the_length_of_its_slope_and_no_second_derivatives():
    slope = torch.tensor([[3.0, 4.0], [0.0, -2.0]], dtype=torch.float64)  # of two channels

    def plane(x):
        return x @ slope.T + 1

    assert torch.allclose(total_variation(plane, COORDS), torch.full((2,), 3.5).double())
    assert (hessian_norm(plane, COORDS) < 2e-6).all()


def test_a_paraboloid_has_the_norm_of_its_hessian():
    def bowl(x):
        return 1.5 * x[..., :1] ** 2 + x[..., :1] * x[..., 1:]

    expected = torch.full((2,), math.sqrt(3**2 + 2 * 1**2)).double()
    assert torch.allclose(hessian_norm(bowl, COORDS), expected)


@pytest.mark.parametrize("prior", ["tv", "hessian"])
def test_the_points_of_the_prior_are_those_of_a_sample_and_step(prior):
    """Anew each step, over the whole square, the same whatever the batch; constant fields pay
    nothing but finite gradients."""
    seen = []

    def field(x):
        seen.append(x.detach())
        return (x * scale).sum(-1, keepdim=True)

    scale = torch.tensor(2.0, requires_grad=True)
    grid = Pixels(torch.zeros(3, 4, 2), torch.full((3, 4, 1), 0.5), torch.ones(3, 4))
    loss, draw = (
        SmoothColorError(prior, 0.5, 2000),
        Draw.of(sample_keys(["a", "b", "c"]), seed=0, stage="fit/0"),
    )
    terms = loss(field, Batch(grid=grid), draw)
    assert terms.keys() == {"mse", prior}
    if prior == "tv":
        assert torch.allclose(terms["tv"], torch.full((3,), 0.5 * 2 * math.sqrt(2)))
    points = seen[-1]
    assert points.shape == (3, 2000, 2)
    assert -1 <= points.min() < -0.99 < 0.99 < points.max() <= 1
    loss(field, Batch(grid=grid), draw.at(draw.step + 1))
    assert not torch.equal(seen[-1], points)
    some = Batch(grid=Pixels(grid.coords[1:2], grid.color[1:2], grid.weight[1:2]))
    loss(field, some, Draw(draw.keys[1:2], draw.step[1:2]))
    assert torch.equal(seen[-1][0], points[1])

    def flat(x):
        return ((scale - 2) * x**2).sum(-1, keepdim=True)

    (gradient,) = torch.autograd.grad(loss(flat, Batch(grid=grid), draw)[prior].sum(), scale)
    assert gradient.isfinite()


def test_rows_with_a_prior_are_the_same_in_any_company():
    table = picture_table([(12, 12)] * 4, held_out=0.8)
    config = methods.configure(
        "siren", settings={"width": 16, "depth": 2, "steps": 5, "prior": "hessian"}
    )
    samples = load_samples(table, "images")
    method = methods.build("siren", config, samples.form)
    many = fit_rows(method, {}, samples, seed=0, lanes=4).rows
    alone = fit_rows(method, {}, load_samples(table.slice(2, 1), "images"), seed=0).rows
    for name, value in many.items():
        assert torch.equal(value[2], alone[name][0])
    assert not choose_path(method)[0]  # the compiled loop knows no priors
    assert isinstance(methods.build("siren", methods.configure("siren"), samples.form)
                      .fit[0].updates[0].loss, ColorError)  # fmt: skip


def test_a_weight_without_a_prior_is_refused():
    samples = load_samples(picture_table([(8, 8)]), "images")
    config = methods.configure("siren", settings={"prior_weight": 0.1})
    with pytest.raises(ValueError, match=r"prior_weight = 0.1 has no effect without a prior"):
        methods.build("siren", config, samples.form)
