"""One linear layer for shared and per-sample weights."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.fields.bind import bind
from pipeline.fields.linear import Linear, linear, linear_parts


def tensors(*shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*s, dtype=torch.float64, generator=g) for s in shapes]


@pytest.mark.parametrize("middle", [(5,), (4, 5)])
def test_sample_i_uses_weight_i(middle):
    x, w, b = tensors((3, *middle, 7), (3, 6, 7), (3, 6))
    y = linear(x, w, b)
    for i in range(3):
        assert torch.allclose(y[i], F.linear(x[i], w[i], b[i]), rtol=1e-12)
    assert torch.allclose(linear(x, w), y - b.reshape(3, *(1 for _ in middle), 6))


def test_one_weight_serves_all_samples_and_one_input_all_weights():
    x, w, b = tensors((3, 5, 7), (6, 7), (6,))
    assert torch.allclose(linear(x, w, b), F.linear(x, w, b), rtol=1e-12)
    assert torch.equal(linear(x, w.requires_grad_(), b), F.linear(x, w, b))
    x, w, b = tensors((1, 5, 7), (3, 6, 7), (3, 6))
    assert torch.allclose(linear(x, w, b), linear(x.expand(3, 5, 7).contiguous(), w, b))


@pytest.mark.parametrize("weights", [(6, 10), (3, 6, 10)])
def test_parts_equal_their_concatenation(weights):
    code, x, w, b = tensors((3, 1, 7), (3, 5, 3), weights, (*weights[:-2], 6))
    whole = linear(torch.cat([code.expand(3, 5, 7), x], -1), w, b)
    assert torch.allclose(linear_parts((code, x), w, b), whole, rtol=1e-12)
    assert torch.allclose(linear_parts((x, code), w[..., [7, 8, 9, *range(7)]], b), whole)


@pytest.mark.parametrize("lead", [(), (3,)])
def test_weight_norm_equals_torch(lead):
    w, g, b, x = tensors((*lead, 6, 7), (*lead, 6), (*lead, 6), (3, 5, 7))
    layer = Linear(7, 6, weight_norm=True).double()
    y = bind(layer, {"weight": w, "magnitude": g, "bias": b})(x)
    normal = torch._weight_norm(w.reshape(-1, 7), g.reshape(-1, 1), 0).reshape(w.shape)
    assert torch.allclose(y, linear(x, normal, b), rtol=1e-12)


def test_scale_multiplies_the_result_and_its_gradients():
    x, w, b = tensors((3, 5, 7), (3, 6, 7), (3, 6))
    layer = Linear(7, 6, scale=30.0).double()
    w.requires_grad_(), b.requires_grad_()
    y = bind(layer, {"weight": w, "bias": b})(x)
    plain = linear(x, w, b) * 30
    assert torch.allclose(y, plain, rtol=1e-12)
    for a, c in zip(
        torch.autograd.grad(y.sin().sum(), [w, b]), torch.autograd.grad(plain.sin().sum(), [w, b])
    ):
        assert torch.allclose(a, c, rtol=1e-9)
