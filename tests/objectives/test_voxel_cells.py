"""Training points out of voxels: in the right cells, with the right values, near the surface."""

import pytest
import torch

from pipeline.draw import Draw, sample_keys
from pipeline.objectives.voxel_cells import draw_cells, mixed_cells, pooled


def ball(resolution: int, count: int = 3):
    center = (2 * torch.arange(resolution) + 1) / resolution - 1
    radius = torch.stack(torch.meshgrid(center, center, center, indexing="ij")).norm(dim=0)
    return torch.stack([(radius < 0.4 + 0.1 * i).float() for i in range(count)])


def draw_of(count: int = 3):
    return Draw.of(sample_keys([f"s{i}" for i in range(count)]), seed=0, stage="cells")


def cells_of(coords, level):
    return ((coords + 1) / 2 * level).floor().long()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("level", [8, 16, 32])
def test_points_lie_in_cells_of_their_value(level, inside):
    fine = ball(32)
    coords, value = draw_cells(fine, level, 500, 1000, draw_of(), inside=inside)
    assert coords.shape == (3, 500, 3)
    grid = pooled(fine, level)
    for i in range(3):
        x, y, z = cells_of(coords[i], level).T
        assert torch.equal(grid[i][x, y, z], value[i])
        if inside:  # the voxel itself has the value, and the point is its center
            x, y, z = cells_of(coords[i], 32).T
            assert torch.equal(fine[i][x, y, z], value[i])
    places = coords[0] * (32 if inside else level)
    assert torch.allclose(places, places.round(), atol=1e-4)


def test_a_pool_holds_mixed_cells_first():
    fine = ball(32)
    mixed = mixed_cells(fine).flatten(1)
    for pool in (int(mixed[0].sum()) // 2, 4 * int(mixed[0].sum()), 32**3):
        coords, _ = draw_cells(fine, 32, 4000, pool, draw_of(), inside=False)
        for i in range(3):
            x, y, z = cells_of(coords[i], 32).T
            share = mixed[i].reshape(32, 32, 32)[x, y, z].float().mean()
            assert abs(share - min(1.0, float(mixed[i].sum()) / pool)) < 0.03


def test_as_many_points_as_cells_are_all_cells():
    fine = ball(16)
    coords, value = draw_cells(fine, 8, 512, 512, draw_of(), inside=False)
    assert len(cells_of(coords[0], 8).unique(dim=0)) == 512
    assert torch.equal(value, pooled(fine, 8).flatten(1))


def test_mixed_cells_see_their_26_neighbors_and_no_others():
    grid = torch.zeros(1, 7, 7, 7)
    grid[0, 3, 3, 0] = 1
    found = mixed_cells(grid)[0]
    assert torch.equal(found[2:5, 2:5, :2], torch.ones(3, 3, 2, dtype=torch.bool))
    assert int(found.sum()) == 18


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_grids_of_one_value_are_drawn_all_the_same(value):
    fine = torch.full((3, 16, 16, 16), value)
    coords, found = draw_cells(fine, 8, 100, 200, draw_of(), inside=True)
    assert (found == value).all()
    assert (coords.abs() <= 1).all()


def test_a_draw_depends_on_its_own_sample_only():
    fine, draw = ball(16), draw_of()
    all_coords, _ = draw_cells(fine, 8, 50, 100, draw, inside=True)
    one, _ = draw_cells(fine[1:2], 8, 50, 100, Draw(draw.keys[1:2], draw.step[1:2]), inside=True)
    assert torch.equal(all_coords[1:2], one)
