"""Binding a model to tensors."""

import pytest
import torch
from torch import nn

from pipeline.fields.bind import bind
from pipeline.fields.latent import Latent, latent_names
from pipeline.fields.linear import Linear
from pipeline.fields.mlp import MLP, Layer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.code = Latent((4,), std=1.0, max_norm=1.0)
        self.heads = nn.ModuleList([Linear(2, 3), Linear(3, 1)])
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return self.heads[1](self.heads[0](x)) * self.scale


def values(n=3):
    g = torch.Generator().manual_seed(0)
    model = Model()
    found = {k: torch.randn(n, *p.shape, generator=g) for k, p in model.named_parameters()}
    return model, {**found, "scale": torch.tensor(2.0)}


def test_children_lists_and_tensors_are_bound_too():
    model, tensors = values()
    bound, x = bind(model, tensors), torch.randn(3, 5, 2)
    by_hand = bound.heads[1](bound.heads[0](x)) * 2
    assert torch.equal(bound(x), by_hand)
    assert bound.log_sigma is tensors["log_sigma"]
    assert torch.equal(bound.code.value, tensors["code.value"])


def test_the_model_itself_is_left_alone():
    model, tensors = values()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bind(model, tensors)(torch.randn(3, 5, 2)).sum()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_missing_and_unknown_names_are_told():
    model, tensors = values()
    tensors["extra"] = tensors.pop("heads.0.bias")
    with pytest.raises(ValueError, match=r"missing \['heads\.0\.bias'\], unknown \['extra'\]"):
        bind(model, tensors)
    model, tensors = values()
    assert bind(model, {**tensors, "start.heads.0.bias": torch.zeros(3)}) is not None


def test_latents_are_found_and_kept_within_their_norm():
    model, tensors = values()
    assert latent_names(model) == {"code.value": "code"}
    tensors["code.value"] = torch.stack(
        [torch.full((4,), 3.0), torch.full((4,), 0.1), torch.zeros(4)]
    )
    code = bind(model, tensors).code()
    assert torch.allclose(code.norm(dim=-1), torch.tensor([1.0, 0.2, 0.0]), atol=1e-6)


def test_skip_layers_see_the_input_again():
    net = MLP(3, [Layer(5), Layer(4, skip=True), Layer(1)]).double()
    g = torch.Generator().manual_seed(0)
    t = {
        k: torch.randn(p.shape, dtype=torch.float64, generator=g) for k, p in net.named_parameters()
    }
    a, b = torch.randn(2, 1, 2, dtype=torch.float64), torch.randn(2, 6, 1, dtype=torch.float64)
    x = torch.cat([a.expand(2, 6, 2), b], -1)
    h = x @ t["layers.0.weight"].T + t["layers.0.bias"]
    h = torch.cat([h, x], -1) @ t["layers.1.weight"].T + t["layers.1.bias"]
    h = h @ t["layers.2.weight"].T + t["layers.2.bias"]
    assert torch.allclose(bind(net, t)(a, b), h, rtol=1e-12)
