"""IM-Net's decoder tables against the authors' two releases, and its leaky clip."""

import pytest
import torch

from pipeline.draw import Draw
from pipeline.fields.activations import LeakyClip
from pipeline.fields.initializers import start_once
from pipeline.fields.mlp import MLP
from pipeline.fields.pyramid import pyramid_layers


@pytest.mark.parametrize(
    ("release", "width", "code", "shapes"),
    [
        (
            "first",
            2048,
            128,
            [(2048, 131), (1024, 2179), (512, 1155), (256, 643), (128, 387), (1, 128)],
        ),
        (
            "later",
            1024,
            256,
            [
                (1024, 259),
                (1024, 1024),
                (1024, 1024),
                (512, 1024),
                (256, 512),
                (128, 256),
                (1, 128),
            ],
        ),
    ],
)
def test_layers_have_the_published_sizes_and_starts(release, width, code, shapes):
    net = MLP(code + 3, pyramid_layers(code, width, release, std=0.02))
    assert [tuple(layer.weight.shape) for layer in net.layers] == shapes
    started = start_once(net, [n for n, _ in net.named_parameters()], Draw.once(seed=0, stage="s"))
    for name, value in started.items():
        if name.endswith("bias"):
            assert (value == 0).all()
        elif value.numel() > 1000:
            assert abs(float(value.std()) - 0.02) < 2e-3


@pytest.mark.parametrize("width", [32, 512])
def test_the_start_keeps_its_variance_at_any_width(width):
    code = 64
    net = MLP(code + 3, pyramid_layers(code, width, "later"))
    names = [n for n, _ in net.named_parameters()]
    net.load_state_dict(start_once(net, names, Draw.once(seed=1, stage="s")))
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(1, 4000, 3, generator=generator) * 2 - 1
    hidden = (torch.rand(1, 1, code, generator=generator), coords)
    for layer in net.layers[:-1]:
        before = layer(*hidden).detach()
        assert 0.1 < float(before.std()) < 3
        hidden = (torch.nn.functional.leaky_relu(before, 0.02),)


def test_a_leaky_clip_keeps_a_gradient_outside():
    x = torch.tensor([-1.0, 0.25, 3.0], requires_grad=True)
    y = LeakyClip(0.01)(x)
    y.sum().backward()
    assert torch.allclose(y, torch.tensor([-0.01, 0.25, 1.02]))
    assert torch.allclose(x.grad, torch.tensor([0.01, 1.0, 0.01]))
