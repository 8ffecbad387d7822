"""Derivatives against closed forms and torch.autograd.functional, in float64."""

import math

import pytest
import torch

from pipeline.draw import Draw, sample_keys
from pipeline.fields.activations import Softplus, Tanh
from pipeline.fields.bind import bind
from pipeline.fields.conditioning import CodedField
from pipeline.fields.derivatives import (
    complex_product,
    divergence,
    gradient,
    hessian,
    jacobian,
    laplacian,
    second_derivatives,
    value_and_gradient,
    value_and_jacobian,
)
from pipeline.fields.initializers import start_once, start_rows
from pipeline.fields.mlp import MLP, Layer
from pipeline.fields.sine import sine_layers


def points(n, p, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, p, d, generator=generator, dtype=torch.float64) * 2 - 1


def network(kind, channels=2, n=3, d=3):
    """A bound network of float64 weights: shared, one a sample, or shared with codes."""
    draw = Draw.of(sample_keys([f"s{i}" for i in range(n)]), seed=0, stage="s")
    once = Draw.once(seed=0, stage="s")
    if kind == "coded":
        net = MLP(d + 4, [Layer(8, Tanh()), Layer(8, Softplus(3.0), skip=True), Layer(channels)])
        model = CodedField(4, net, std=1.0)
        names = [name for name, _ in model.named_parameters()]
        tensors = start_once(model, [x for x in names if "code" not in x], once)
        tensors |= start_rows(model, ["code.value"], draw)
    else:
        model = MLP(d, sine_layers(d, 8, 2, channels, omega_first=2.0, omega_hidden=1.0))
        names = [name for name, _ in model.named_parameters()]
        shared = kind == "shared"
        tensors = start_once(model, names, once) if shared else start_rows(model, names, draw)
    return bind(model, {name: value.double() for name, value in tensors.items()})


def one_point(field, i, coords):
    """The field of sample i as a function of one point, without batching."""

    def at(x):
        return field(coords.detach()[:, :1].clone().index_put((torch.tensor(i),), x[None]))[i, 0]

    return at


@pytest.mark.parametrize("kind", ["shared", "own", "coded"])
def test_all_operators_agree_with_single_points(kind):
    field, coords = network(kind), points(3, 4, 3)
    first, second = jacobian(field, coords), hessian(field, coords)
    assert first.shape == (3, 4, 2, 3)
    assert second.shape == (3, 4, 2, 3, 3)
    for i in range(3):
        for j in range(4):
            at = one_point(field, i, coords)
            alone = torch.autograd.functional.jacobian(at, coords[i, j])
            torch.testing.assert_close(first[i, j], alone)
            for c in range(2):
                alone = torch.autograd.functional.hessian(
                    lambda x, at=at, c=c: at(x)[c], coords[i, j]
                )
                torch.testing.assert_close(second[i, j, c], alone)
    value, slope, along = second_derivatives(field, coords)
    torch.testing.assert_close(value, field(coords))
    torch.testing.assert_close(slope, first)
    torch.testing.assert_close(along, second.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(laplacian(field, coords), along.sum(-1))
    torch.testing.assert_close(divergence(lambda x: jacobian(field, x), coords), along.sum(-1))
    value, slope = value_and_gradient(lambda x: field(x)[..., 1:], coords)
    torch.testing.assert_close(value, field(coords)[..., 1])
    torch.testing.assert_close(slope, first[:, :, 1])


def test_closed_forms():
    coords = points(2, 50, 3)
    radius = coords.norm(dim=-1)

    def sphere(x):
        return x.norm(dim=-1) - 0.5

    value, normal = value_and_gradient(sphere, coords)
    torch.testing.assert_close(value, radius - 0.5)
    torch.testing.assert_close(normal, coords / radius[..., None])
    torch.testing.assert_close(laplacian(sphere, coords), 2 / radius)
    projector = torch.eye(3, dtype=torch.float64) - normal[..., None] * normal[..., None, :]
    torch.testing.assert_close(hessian(sphere, coords), projector / radius[..., None, None])
    spin = divergence(lambda x: torch.stack([-x[..., 1], x[..., 0], x[..., 2] ** 2], -1), coords)
    torch.testing.assert_close(spin, 2 * coords[..., 2])


def test_a_complex_wave_solves_the_helmholtz_equation_with_complex_coefficients():
    """u = exp(i k.x): div(a grad u) = -k.(a k) u for a constant complex a on each axis."""
    coords = points(2, 20, 2)
    wave = torch.tensor([2.0, -3.0], dtype=torch.float64)
    a = torch.tensor([[1.0, 0.5], [0.3, -0.2]], dtype=torch.float64)  # [re/im, axis]

    def u(x):
        return torch.stack([(x @ wave).cos(), (x @ wave).sin()], -1)

    flux = divergence(
        lambda x: complex_product(a.expand(*x.shape[:2], 2, 2), jacobian(u, x), axis=-2), coords
    )
    factor = -(a * wave**2).sum(-1)
    torch.testing.assert_close(flux, complex_product(factor.expand(2, 20, 2), u(coords)))
    one = complex_product(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert one.tolist() == [-1.0, 0.0]
    assert second_derivatives(u, coords)[2].shape == (2, 20, 2, 2)


@pytest.mark.parametrize("kind", ["shared", "own", "coded"])
@pytest.mark.parametrize("operator", [gradient, laplacian, hessian])
def test_results_are_differentiable_by_parameters_and_coordinates(kind, operator):
    """Analytic derivatives of the operators' results against finite differences."""
    field, coords = network(kind, channels=1, n=2, d=2), points(2, 2, 2)
    leaves = [value.requires_grad_() for value in field._tensors.values()]

    def result(x, *_):
        return operator(field, x)

    inputs = (coords.requires_grad_(), *leaves)
    assert torch.autograd.gradcheck(result, inputs, eps=1e-6, atol=1e-6)


def test_nested_in_a_functional_derivative_and_traced():
    """The lane step takes gradients by `torch.func.vjp` and traces the whole of it."""
    coords = points(2, 8, 3)
    bound = network("own", channels=1, n=2)

    def loss(tensors):
        field = bind(bound._module, tensors)
        value, slope = value_and_gradient(field, coords)
        return (slope.norm(dim=-1) - 1).square().sum() + value.abs().sum()

    def step(tensors):
        value, pull = torch.func.vjp(loss, tensors)
        return value, pull(torch.ones_like(value))[0]

    leaves = {name: v.clone().requires_grad_() for name, v in bound._tensors.items()}
    plain = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        _, found = run(bound._tensors)
        for name, wanted in zip(leaves, plain):
            torch.testing.assert_close(found[name], wanted)


def test_rows_do_not_depend_on_their_neighbors():
    field, coords = network("own", n=3), points(3, 16, 3)
    alone = bind(field._module, {name: v[1:2] for name, v in field._tensors.items()})
    torch.testing.assert_close(laplacian(alone, coords[1:2])[0], laplacian(field, coords)[1])
    with torch.no_grad():  # metrics ask without a graph
        torch.testing.assert_close(laplacian(alone, coords[1:2])[0], laplacian(field, coords)[1])
    assert not value_and_jacobian(field, coords)[1].requires_grad


def test_wrong_shapes_are_named():
    coords = points(1, 2, 3)
    with pytest.raises(ValueError, match=r"one value a point, this field gives \(2,\)"):
        gradient(lambda x: x[..., :2], coords)
    with pytest.raises(ValueError, match="one component for each of the 3 axes"):
        divergence(lambda x: x[..., :2], coords)
    assert math.isclose(
        float(gradient(lambda x: x[..., :1] ** 2, coords).sum()), 2 * coords[..., 0].sum()
    )
