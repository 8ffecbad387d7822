"""Measures of sets against closed forms and against sets that are known to be alike or not."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.downstream.latents import distances
from pipeline.downstream.set_metrics import (
    chamfer_distances,
    compare,
    coverage_of_nearest,
    density_and_coverage,
    frechet_distance,
    kernel_distance,
    minimum_matching_distance,
    one_nearest_accuracy,
)


def normal(count: int, seed: int, shift: float = 0.0, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) + shift


def measures(made, real, neighbors=5):
    return compare(distances(made, made), distances(made, real), distances(real, real), neighbors)


def test_equal_sets_cannot_be_told_apart_and_far_ones_can():
    alike = measures(normal(300, 0), normal(300, 1))
    assert 0.42 < alike["one_nn"] < 0.58
    assert alike["coverage"] > 0.9
    assert 0.85 < alike["density"] < 1.15
    apart = measures(normal(300, 0, shift=20), normal(300, 1))
    assert apart["one_nn"] == 1
    assert apart["coverage"] == apart["density"] == 0
    assert apart["cov"] < 0.1
    copies = measures(normal(300, 1) + 1e-6, normal(300, 1))
    assert copies["one_nn"] == 0
    assert copies["cov"] == 1


def test_a_collapsed_set_is_faithful_and_covers_nothing():
    real = normal(200, 0)
    made = real[:1] + 1e-3 * normal(200, 1)
    found = measures(made, real)
    assert found["fidelity"] < 0.01
    assert found["cov"] < 0.05
    assert found["coverage"] < 0.2


def test_one_nearest_accuracy_by_hand():
    made, real = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.4], [10.0]])
    # 0 and 1 are nearest to 0.4, 0.4 to 0, 10 to 1: nobody to its own
    found = one_nearest_accuracy(
        distances(made, made), distances(made, real), distances(real, real)
    )
    assert found == 0
    with pytest.raises(ValueError, match="2 samples against 1 real rows"):
        one_nearest_accuracy(torch.zeros(2, 2), torch.zeros(2, 1), torch.zeros(1, 1))


def test_coverage_and_matching_by_hand():
    across = torch.tensor([[1.0, 2.0, 9.0], [1.5, 3.0, 4.0]])
    assert coverage_of_nearest(across) == pytest.approx(1 / 3)
    assert minimum_matching_distance(across) == pytest.approx((1 + 2 + 4) / 3)


def test_density_and_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [10.0]])
    made = torch.tensor([[0.5], [0.6]])
    density, coverage = density_and_coverage(distances(made, real), distances(real, real), 1)
    assert density == 2  # both lie in the balls (radius 1) of 0 and 1; 10's ball reaches to 1
    assert coverage == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="3 neighbours of each of 3"):
        density_and_coverage(distances(made, real), distances(real, real), 3)


def test_frechet_distance_of_normals_is_the_closed_form():
    a, b = normal(20_000, 0, size=3), 2 * normal(20_000, 1, size=3) + 1
    expected = 3 * 1 + 3 * (1 + 4 - 2 * math.sqrt(4))
    assert frechet_distance(b, a) == pytest.approx(expected, rel=0.05)
    assert abs(frechet_distance(a, normal(20_000, 2, size=3))) < 0.01


def test_kernel_distance_is_unbiased():
    found = [kernel_distance(normal(50, s), normal(50, 1000 + s)) for s in range(40)]
    mean, error = sum(found) / 40, torch.tensor(found).std() / math.sqrt(40)
    assert abs(mean) < 3 * error
    assert kernel_distance(normal(50, 0, shift=1), normal(50, 1)) > 1


def test_chamfer_distance_by_hand_and_by_shift():
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    b = torch.tensor([[[0.0, 0, 1], [1, 0, 0]], [[0, 0, 0], [1, 0, 0]]])
    found = chamfer_distances(a, b)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))
