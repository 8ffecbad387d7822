"""Starts of parameters: functions of sample and name, and the right ones for sine networks."""

import pytest
import torch
from torch import nn

from pipeline.draw import Draw, sample_keys
from pipeline.fields.bind import bind
from pipeline.fields.encodings import FourierFeatures, PositionalEncoding
from pipeline.fields.initializers import start_once, start_rows
from pipeline.fields.linear import Linear
from pipeline.fields.mlp import MLP, Layer
from pipeline.fields.sine import sine_layers


def rows(model, ids, seed=0):
    names = [name for name, _ in model.named_parameters()]
    return start_rows(model, names, Draw.of(sample_keys(ids), seed=seed, stage="start"))


def test_a_row_starts_the_same_alone_and_in_a_batch():
    model = MLP(2, [Layer(8, weight_norm=True), Layer(1)])
    many, one = rows(model, ["a", "b", "c"]), rows(model, ["b"])
    for name in many:
        assert torch.equal(many[name][1:2], one[name])
        assert not torch.equal(many[name][0], many[name][1])


def pre_activation_std(layers, count=8):
    model = MLP(2, layers)
    tensors = rows(model, [str(i) for i in range(count)])
    x = torch.rand(count, 2000, 2) * 2 - 1
    found = []
    bound = bind(model, tensors)
    for i, row in enumerate(model.table):
        x = bound.layers[i](x)
        found.append(x.std().item())
        x = row.activation(x)
    return found


def test_sine_networks_start_with_the_spread_of_the_paper_at_any_depth():
    found = pre_activation_std(sine_layers(2, 128, 6, 3))
    assert all(0.9 < value < 2.0 for value in found[1:6]), found
    wrong = [Layer(row.width, row.activation) for row in sine_layers(2, 128, 6, 3)]
    assert min(pre_activation_std(wrong)[1:6]) > 8  # the rule of torch.nn.Linear


def test_weight_norm_starts_at_the_plain_weight():
    model = Linear(7, 5, weight_norm=True)
    tensors = rows(model, ["a", "b"])
    x = torch.randn(2, 4, 7)
    plain = torch.baddbmm(tensors["bias"][:, None], x, tensors["weight"].transpose(1, 2))
    assert torch.allclose(bind(model, tensors)(x), plain, atol=1e-6)
    once = start_once(model, list(tensors), Draw.once(seed=0, stage="s"))
    assert once["magnitude"].shape == (5,)
    assert torch.allclose(once["magnitude"], once["weight"].norm(dim=1))


def test_plain_modules_start_as_pytorch_starts_them_but_by_the_seed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names = list(model.state_dict())
    a, b, c = (start_once(model, names, Draw.once(seed=s, stage="s")) for s in (0, 0, 1))
    assert torch.equal(a["0.weight"], b["0.weight"])
    assert not torch.equal(a["0.weight"], c["0.weight"])
    assert a["0.weight"].abs().max() <= 1 / 27**0.5
    assert torch.equal(a["1.running_var"], torch.ones(4))
    with pytest.raises(ValueError, match=r"0\.weight.*initializers"):
        start_rows(model, ["0.weight"], Draw.once(seed=0, stage="s"))


def test_fourier_features_wave_at_their_frequencies():
    model = FourierFeatures(2, 16, sigma=3.0, identity=True)
    shared = start_once(model, ["frequencies"], Draw.once(seed=0, stage="s"))
    assert 2 < shared["frequencies"].std() < 4
    x = torch.rand(1, 50, 2)
    out = bind(model, shared)(x)
    assert torch.equal(out[..., :2], x)
    squares = out[..., 2:18].square() + out[..., 18:].square()
    assert torch.allclose(squares, torch.ones_like(squares), atol=1e-5)
    whole = torch.tensor([[[1.0, 0.0]]]) / shared["frequencies"][0, 0]
    assert abs(bind(model, shared)(whole)[0, 0, 2]) < 1e-4  # one full period


def test_positional_encoding_doubles_its_frequency_by_octave():
    model = PositionalEncoding(1, 3, identity=False).double()
    x = torch.tensor([[[0.25]]], dtype=torch.float64)
    out = bind(model, {"frequencies": model.frequencies})(x)[0, 0]
    expected = [0.5**0.5, 1.0, 0.0, 0.5**0.5, 0.0, -1.0]
    assert torch.allclose(out, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
