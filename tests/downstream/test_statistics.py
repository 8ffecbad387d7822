"""Normalization is exact both ways, whatever the parts; components and paths are what they say."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pipeline.downstream.latents import interpolate, nearest
from pipeline.downstream.statistics import (
    Moments,
    Normalization,
    normalization_of,
    principal_components,
)


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.randn(200, 3, 4) * torch.tensor([1.0, 5.0, 0.1, 2.0]) + 100


@pytest.mark.parametrize("how", ["entries", "channels", "whole", "whiten", "none"])
def test_normalization_goes_forth_and_back(rows, how):
    found = normalization_of(rows.split(17), (3, 4), how)
    learned = found.forth(rows)
    assert tuple(learned.shape[1:]) == found.shape
    torch.testing.assert_close(found.back(learned), rows, rtol=1e-5, atol=1e-4)
    again = Normalization.load(found.save())
    assert torch.equal(again.forth(rows), learned)


def test_statistics_are_those_of_all_rows(rows):
    entries = normalization_of(rows.split(13), (3, 4), "entries").forth(rows)
    torch.testing.assert_close(entries.std(0, correction=0), torch.ones(3, 4), rtol=1e-4, atol=0)
    channels = normalization_of(rows.split(13), (3, 4), "channels")
    assert channels.scale.numel() == 4
    spread = channels.forth(rows).std((0, 1), correction=0)
    torch.testing.assert_close(spread, torch.ones(4), rtol=1e-4, atol=0)
    whitened = normalization_of([rows], (3, 4), "whiten").forth(rows)
    torch.testing.assert_close(whitened.T @ whitened / len(rows), torch.eye(12), rtol=0, atol=1e-3)


def test_moments_of_parts_are_moments_of_the_whole(rows):
    moments = Moments((3, 4), pairs=True)
    for part in rows.split(31):
        moments.add(part)
    flat = rows.double().flatten(1)
    torch.testing.assert_close(moments.mean, flat.mean(0))
    covariance = torch.cov(flat.T, correction=0)
    torch.testing.assert_close(moments.square / len(rows), covariance, rtol=1e-9, atol=1e-9)


def test_an_entry_that_never_changes_stays_what_it_is():
    rows = torch.randn(50, 3)
    rows[:, 1] = 7.0
    found = normalization_of([rows], (3,), "entries")
    assert torch.equal(found.back(found.forth(rows))[:, 1], rows[:, 1])
    assert float(found.scale[1]) == 1


def test_log_volume_turns_densities_of_learned_rows_into_those_of_stored_ones(rows):
    found = normalization_of([rows], (3, 4), "entries")
    expected = math.log(float(found.scale.double().prod()))
    assert found.log_volume() == pytest.approx(expected, rel=1e-5)
    whole = normalization_of([rows], (3, 4), "whole")
    assert whole.log_volume() == pytest.approx(12 * math.log(float(whole.scale)), rel=1e-5)


def test_components_explain_what_was_put_in():
    torch.manual_seed(0)
    plane = torch.randn(100, 2) @ torch.linalg.qr(torch.randn(40, 2))[0].T * 3 + 1
    found = principal_components(plane)  # fewer directions than entries, and than rows
    assert len(found.axes) == 2
    assert float(found.explained[-1]) == pytest.approx(1, abs=1e-5)
    back = found.project(plane) @ found.axes + found.mean
    torch.testing.assert_close(back, plane, rtol=0, atol=1e-4)
    assert json.loads(found.note())["components"] == 2
    wide = principal_components(torch.randn(6, 40))
    assert len(wide.axes) == 5  # rows less one
    with pytest.raises(ValueError, match="have 5 principal components, 9 were asked for"):
        principal_components(torch.randn(6, 40), 9)


def test_paths_keep_their_ends_and_lengths():
    torch.manual_seed(0)
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    for spherical in (False, True):
        path = interpolate(a, b, 7, spherical=spherical)
        torch.testing.assert_close(path[:, 0], a)
        torch.testing.assert_close(path[:, -1], b)
    lengths = interpolate(a, b, 7, spherical=True).norm(dim=-1)
    t = torch.linspace(0, 1, 7)
    expected = a.norm(dim=1)[:, None] * (1 - t) + b.norm(dim=1)[:, None] * t
    torch.testing.assert_close(lengths, expected)
    opposite = interpolate(a, -a, 3, spherical=True)
    assert torch.isfinite(opposite).all()
    with pytest.raises(ValueError, match="1 steps"):
        interpolate(a, b, 1)


def test_neighbours_are_exact(rows):
    distance, place = nearest(rows[:5] + 1e-4, rows, 3)
    assert place[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (distance.diff(dim=1) >= 0).all()
    with pytest.raises(ValueError, match="3 neighbours are asked for among 2 rows"):
        nearest(rows, rows[:2], 3)
