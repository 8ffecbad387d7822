"""Derivatives carried forward agree with those of reverse mode, and so do their gradients."""

import pytest
import torch

from pipeline.draw import Draw, sample_keys
from pipeline.fields.activations import Softplus, Tanh
from pipeline.fields.bind import bind
from pipeline.fields.derivatives import second_derivatives
from pipeline.fields.initializers import start_rows
from pipeline.fields.jets import is_plain, jets
from pipeline.fields.mlp import MLP, Layer
from pipeline.fields.sine import sine_layers


def rows_of(model, n=3):
    draw = Draw.of(sample_keys([str(i) for i in range(n)]), seed=0, stage="test")
    rows = start_rows(model, [name for name, _ in model.named_parameters()], draw)
    return {name: value.double().requires_grad_() for name, value in rows.items()}


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("sine", [True, False])
def test_values_and_gradients_are_those_of_reverse_mode(d, sine):
    tanh = [Layer(16, Tanh()), Layer(12, Tanh()), Layer(2)]
    model = MLP(d, sine_layers(d, 16, 2, 2) if sine else tanh)
    rows = rows_of(model)
    coords = torch.rand(3, 20, d, dtype=torch.float64) * 2 - 1
    bound = bind(model, rows)
    assert is_plain(bound)
    found, wanted = jets(bound, coords), second_derivatives(bound, coords)
    some = [torch.randn_like(part) for part in wanted]
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    leaves = list(rows.values())
    slopes = [
        torch.autograd.grad(sum((p * s).sum() for p, s in zip(parts, some)), leaves)
        for parts in (found, wanted)
    ]
    for a, b in zip(*slopes):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_functional_gradients_are_the_same():
    model = MLP(2, sine_layers(2, 16, 2, 1))
    rows, coords = rows_of(model), torch.rand(3, 10, 2, dtype=torch.float64)

    def total(rows):
        return jets(bind(model, rows), coords)[2].square().sum()

    _, pull = torch.func.vjp(total, rows)
    (found,) = pull(torch.ones((), dtype=torch.float64))
    value = total(rows)
    wanted = torch.autograd.grad(value, list(rows.values()), allow_unused=True)
    for name, slope in zip(rows, wanted):
        if slope is not None:
            torch.testing.assert_close(found[name], slope)


def test_other_networks_go_the_general_way():
    layers = [Layer(8, Softplus(3.0)), Layer(8, Softplus(3.0), skip=True), Layer(1)]
    model = MLP(2, layers)
    bound, coords = bind(model, rows_of(model)), torch.rand(3, 5, 2, dtype=torch.float64)
    assert not is_plain(bound)
    for a, b in zip(jets(bound, coords), second_derivatives(bound, coords)):
        torch.testing.assert_close(a, b)
