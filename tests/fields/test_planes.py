"""Planes and volumes: reads against closed forms and PyTorch, sums and maxima against loops."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.fields.planes import (
    AXES,
    add_up,
    cells,
    in_cell,
    max_of_cells,
    mean_of_cells,
    ranks,
    read_grid,
    read_planes,
    take,
)

G = torch.Generator().manual_seed(0)


def uniform(*shape):
    return torch.rand(*shape, generator=G) * 2 - 1


def centers(resolution, dims):
    axis = (torch.arange(resolution) * 2 + 1) / resolution - 1
    return torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(1, -1, dims)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_cell_is_read_back_at_its_centre_and_holds_the_points_in_it(dims):
    grid, at = torch.randn(1, 4, *[6] * dims, generator=G), centers(6, dims)
    assert torch.allclose(read_grid(grid, at), grid.flatten(2).transpose(1, 2), atol=1e-5)
    assert torch.equal(cells(at, 6), torch.arange(6**dims)[None])
    near = at + uniform(*at.shape) * 0.99 / 6
    assert torch.equal(cells(near, 6), torch.arange(6**dims)[None])


@pytest.mark.parametrize("dims", [2, 3])
def test_reads_are_those_of_grid_sample(dims):
    """Its last axis is the first coordinate, hence the flip."""
    grid, coords = torch.randn(3, 4, *[5] * dims, generator=G), 1.3 * uniform(3, 50, dims)
    at = coords.flip(-1).reshape(3, *[1] * (dims - 1), 50, dims)
    wanted = F.grid_sample(grid, at, padding_mode="border", align_corners=False)
    assert torch.allclose(read_grid(grid, coords), wanted.reshape(3, 4, 50).mT, atol=1e-5)


def test_linear_fields_are_reproduced_between_the_outermost_centres():
    at = centers(8, 3)
    slope = torch.tensor([0.5, -2.0, 1.0])
    grid = (at @ slope).reshape(1, 1, 8, 8, 8)
    coords = uniform(1, 40, 3) * 7 / 8
    assert torch.allclose(read_grid(grid, coords)[..., 0], coords @ slope, atol=1e-5)


def test_planes_are_read_under_their_axes_and_added():
    at = centers(8, 2)
    slopes = torch.randn(3, 2, generator=G)
    planes = torch.stack([(at @ slope).reshape(1, 1, 8, 8) for slope in slopes], 1)
    coords = uniform(1, 40, 3) * 7 / 8
    wanted = sum(coords[..., list(axes)] @ slope for axes, slope in zip(AXES, slopes))
    assert torch.allclose(read_planes(planes, coords)[..., 0], wanted, atol=1e-5)


def test_gradients_are_exact_twice():
    table, coords = torch.randn(1, 2, 3, 3, 3, generator=G).double(), uniform(1, 2, 3).double()
    table.requires_grad_()
    coords.requires_grad_()
    assert torch.autograd.gradcheck(read_grid, (table, coords))
    assert torch.autograd.gradgradcheck(read_grid, (table, coords))


def test_sums_means_and_maxima_are_those_of_a_loop():
    values, index = torch.randn(2, 30, 3, generator=G), torch.randint(0, 7, (2, 30), generator=G)
    sums, means = add_up(values, index, 7), mean_of_cells(values, index, 8)
    tops = max_of_cells(values, ranks(index))
    for i in range(2):
        for cell in range(7):
            mine = index[i] == cell
            assert torch.allclose(sums[i, cell], values[i, mine].sum(0), atol=1e-5)
            assert torch.allclose(means[i, cell], values[i, mine].mean(0), atol=1e-5)
            assert (tops[i, mine] == values[i, mine].amax(0)).all()
    assert not means[:, 7].any()
    assert torch.equal(take(values, index)[1, 4], values[1, index[1, 4]])
    assert ranks(index).max() == 6


def test_maxima_pass_their_gradient_to_the_point_that_has_them():
    values = torch.tensor([[[1.0], [3.0], [2.0]]], requires_grad=True)
    top = max_of_cells(values, ranks(torch.tensor([[5, 5, 9]])))
    (gradient,) = torch.autograd.grad(
        (top * torch.tensor([[[1.0], [10.0], [100.0]]])).sum(), values
    )
    assert gradient.flatten().tolist() == [0.0, 11.0, 100.0]


def test_coordinates_in_cells_repeat_with_the_cells():
    coords = uniform(2, 20, 3) * 0.4
    local = in_cell(coords, 8)
    assert local.abs().max() <= 1
    assert torch.allclose(in_cell(coords + 2 / 8 * torch.tensor([1, -2, 1]), 8), local, atol=1e-5)
    assert in_cell(coords, 0) is coords
