"""Fields that start as a sphere: close to slope (|x| - radius), whatever skip and weight norm."""

import pytest
import torch

from pipeline.draw import Draw, sample_keys
from pipeline.fields.activations import Relu, Softplus
from pipeline.fields.bind import bind
from pipeline.fields.derivatives import value_and_gradient
from pipeline.fields.geometric import distance_layers
from pipeline.fields.initializers import start_rows
from pipeline.fields.mlp import MLP, Layer


def started(inputs, layers, seeds=16):
    model = MLP(inputs, layers)
    draw = Draw.of(sample_keys([str(i) for i in range(seeds)]), seed=0, stage="start")
    return bind(model, start_rows(model, [name for name, _ in model.named_parameters()], draw))


def ball(n=16, p=200):
    """Points of the box, the same for every network."""
    x = torch.rand(1, p, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return x.expand(n, p, 3)


@pytest.mark.parametrize("skip", [None, 2])
@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize(("radius", "slope"), [(0.5, 2.0), (1.0, 1.0), (0.3, 1.0)])
def test_wide_networks_start_as_the_sphere(skip, weight_norm, radius, slope):
    """SAL's code is slope 2 and radius 0.5, IGR's slope 1 and radius 1; both have bias -1.

    A network of width 256 is off by about 0.13 of the length of x, the mean of 16 by half of it.
    """
    options = {"radius": radius, "slope": slope, "skip": skip, "weight_norm": weight_norm}
    field = started(3, distance_layers(3, 256, 4, Relu(), **options))
    error = field(ball())[..., 0] - slope * (ball().norm(dim=-1) - radius)
    assert error.abs().mean() < 0.18 * slope
    assert error.mean(0).abs().mean() < 0.09 * slope


def test_without_the_division_by_sqrt_2_the_sphere_is_another():
    layers = distance_layers(3, 256, 4, Relu(), radius=0.5, skip=2)
    whole = [Layer(**{**vars(layer), "skip_scale": 1.0}) for layer in layers]
    wanted = ball().norm(dim=-1) - 0.5
    right, wrong = ((started(3, t)(ball())[..., 0] - wanted).abs().mean() for t in (layers, whole))
    assert wrong > 2 * right


def test_a_sharp_softplus_starts_with_gradients_near_length_1():
    field = started(3, distance_layers(3, 256, 4, Softplus(100.0), radius=0.5))
    value, slope = value_and_gradient(field, ball())
    assert (value - (ball().norm(dim=-1) - 0.5)).abs().mean() < 0.17
    assert (slope.norm(dim=-1) - 1).abs().mean() < 0.2
    plain = started(3, distance_layers(3, 256, 4, Softplus(100.0), geometric=False))
    assert (value_and_gradient(plain, ball())[1].norm(dim=-1) - 1).abs().mean() > 0.8


def test_skips_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"skip: 4 is not a hidden layer 1 \.\. 3"):
        distance_layers(3, 16, 4, Relu(), skip=4)
    with pytest.raises(ValueError, match="width 16 leaves no room for a skip of 35 inputs"):
        distance_layers(35, 16, 4, Relu(), skip=2)


def test_the_skip_scale_is_written_down():
    table = MLP(3, distance_layers(3, 16, 3, Relu(), skip=1)).describe("net")
    assert [line.get("skip_scale") for line in table] == [None, pytest.approx(0.5**0.5), None, None]
    assert table[-1]["init"]["weight"]["rule"] == "normal"
