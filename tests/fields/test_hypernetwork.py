"""Hypernetworks: weights of any trunk from a code, started as the trunk should start."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.draw import Draw
from pipeline.fields.activations import Relu
from pipeline.fields.bind import bind
from pipeline.fields.encodings import EncodedField, FourierFeatures
from pipeline.fields.hypernetwork import (
    HyperField,
    HyperNetwork,
    LastLayer,
    PredictedField,
    evaluate,
    mean_square,
    without_parameters,
)
from pipeline.fields.initializers import start_once
from pipeline.fields.mlp import MLP, Layer
from pipeline.fields.sine import sine_layers


def started(model):
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    return start_once(model, names, Draw.once(seed=0, stage="shared"))


def sines(width=16, depth=3):
    return MLP(2, sine_layers(2, width, depth, 3))


@pytest.mark.parametrize("per", ["tensor", "layer"])
@pytest.mark.parametrize("norm", [False, True])
def test_every_tensor_of_the_trunk_has_a_value_for_each_code(per, norm):
    trunk = sines()
    hyper = HyperNetwork(5, trunk, width=12, depth=2, per=per, norm=norm)
    assert len(hyper.networks) == (8 if per == "tensor" else 4)
    codes = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    weights = bind(hyper, started(hyper))(codes)
    shapes = {name: tuple(p.shape) for name, p in trunk.named_parameters()}
    assert {name: tuple(w.shape[1:]) for name, w in weights.items()} == shapes
    for weight in weights.values():
        assert not torch.equal(weight[0], weight[1])
    mean = sum(w[1].square().sum() for w in weights.values()) / sum(
        w[1].numel() for w in weights.values()
    )
    assert torch.allclose(mean_square(weights)[1], mean)


def test_the_trunk_starts_as_a_siren_does_whatever_the_code():
    """Weights within 1 / inputs, and pre-activations of about the scale of SIREN's own start."""
    trunk = sines(width=64, depth=4)
    hyper = HyperNetwork(32, trunk, width=64, depth=1)
    codes = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)) / 4
    weights = bind(hyper, started(hyper))(codes)
    assert weights["layers.0.weight"].abs().max() < 0.5 * 1.3
    assert weights["layers.2.weight"].std() == pytest.approx(1 / 64 / np.sqrt(3), rel=0.6)
    far = HyperNetwork(32, trunk, width=64, depth=1, last=LastLayer(scale=1.0, bias="zero"))
    large = bind(far, started(far))(codes)
    assert large["layers.2.weight"].std() > 20 * weights["layers.2.weight"].std()


def test_codes_and_weights_as_rows_are_the_same_field():
    coords = torch.rand(3, 20, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    by_code = HyperField(6, sines(), HyperNetwork(6, sines(), width=8, depth=1))
    by_weights = PredictedField(sines(), HyperNetwork(6, sines(), width=8, depth=1))
    shared = {n: v for n, v in started(by_code).items() if n.startswith("hyper.")}
    assert by_code.state_dict().keys() == {"code.value", *shared}
    codes = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    weights = bind(by_code.hyper, {n[6:]: v for n, v in shared.items()})(codes)
    values = bind(by_code, {**shared, "code.value": codes})(coords)
    rows = {f"net.{name}": value for name, value in weights.items()}
    assert torch.equal(values, bind(by_weights, {**shared, **rows})(coords))
    assert torch.equal(values, bind(by_code, {**shared, "code.value": codes})(coords, weights))
    assert values[0].std() > 0


def test_a_code_gives_the_same_weights_alone_and_in_company():
    hyper = HyperNetwork(6, sines(), width=24, depth=2, norm=True).eval()
    shared = {name: value.detach() for name, value in started(hyper).items()}
    codes = torch.randn(7, 6, generator=torch.Generator().manual_seed(4))
    many = bind(hyper, shared)(codes)
    pair = bind(hyper, shared)(codes[[3, 3]])
    for name, value in many.items():
        assert torch.equal(value[3], pair[name][0])


def test_buffers_of_the_trunk_stay_its_own():
    trunk = EncodedField(FourierFeatures(2, 8, 1.0), MLP(16, [Layer(8, Relu()), Layer(1)]))
    hyper = HyperNetwork(4, trunk, width=8, depth=1)
    field = HyperField(4, trunk, hyper)
    names = {name for name, _ in field.named_buffers()}
    assert names == {"net.encoding.frequencies"}
    assert not [name for name, _ in field.named_parameters() if name.startswith("net.")]
    tensors = started(field)
    tensors["code.value"] = torch.ones(2, 4)
    coords = torch.rand(2, 5, 2)
    before = bind(field, tensors)(coords)
    tensors["net.encoding.frequencies"] = tensors["net.encoding.frequencies"] * 2
    assert not torch.equal(before, bind(field, tensors)(coords))


def test_a_trunk_without_parameters_is_evaluated_with_given_ones():
    whole = nn.Linear(3, 2)
    weights = {name: p.detach().clone() for name, p in whole.named_parameters()}
    x = torch.rand(4, 3)
    expected = whole(x)
    empty = without_parameters(whole)
    assert list(empty.parameters()) == []
    assert torch.equal(evaluate(empty, weights, x), expected)
