"""Loss terms: closed forms, one value a sample, no sample in another's gradient."""

import math

import pytest
import torch

from pipeline.objectives.distance import clamped_l1, target_clamped_l1
from pipeline.objectives.photometric import color_mse, mse_of_psnr
from pipeline.objectives.priors import code_mean_square, code_norm


def test_color_error_is_a_mean_over_weighted_pixels():
    predicted, target = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    target[0, 0], target[1] = 3.0, 1.0
    weight = torch.ones(2, 4)
    weight[0, 2:] = 0
    assert color_mse(predicted, target, weight).tolist() == [4.5, 1.0]
    assert mse_of_psnr(20.0) == pytest.approx(0.04)
    assert mse_of_psnr(30.0, peak=1.0) == pytest.approx(1e-3)


def test_clamped_error_ignores_what_lies_beyond_on_the_same_side():
    f = torch.tensor([[0.5, -0.05, 0.3]])
    s = torch.tensor([[0.2, 0.05, -0.4]])
    w = torch.ones(1, 3)
    assert clamped_l1(f, s, w, 0.1).item() == pytest.approx((0 + 0.1 + 0.2) / 3)
    assert target_clamped_l1(f, s, w, 0.1).item() == pytest.approx((0.4 + 0.1 + 0.4) / 3)


def test_only_the_clamped_target_pulls_back_a_prediction_on_the_wrong_side():
    s, w = torch.full((1, 4), -0.5), torch.ones(1, 4)
    for loss, moves in ((clamped_l1, False), (target_clamped_l1, True)):
        f = torch.full((1, 4), 0.5, requires_grad=True)
        loss(f, s, w, 0.1).sum().backward()
        assert bool(f.grad.any()) == moves


@pytest.mark.parametrize("loss", [clamped_l1, target_clamped_l1])
def test_gradients_stay_within_their_sample(loss):
    f = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    s, w = torch.randn(3, 5, dtype=torch.float64), torch.ones(3, 5, dtype=torch.float64)
    loss(f, s, w, 10.0)[1].backward()
    assert not f.grad[0].any()
    assert not f.grad[2].any()
    assert f.grad[1].abs().sum().item() == pytest.approx(1.0)


def test_code_priors_and_their_gradient_at_zero():
    code = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    assert code_norm(code).tolist() == pytest.approx([5.0, 0.0], abs=1e-9)
    assert code_mean_square(code).tolist() == [12.5, 0.0]
    code_norm(code).sum().backward()
    assert torch.isfinite(code.grad).all()
    assert math.hypot(*code.grad[0].tolist()) == pytest.approx(1.0)
