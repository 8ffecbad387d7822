"""Meshes of closed forms: sparse refinement equals the dense grid, is closed and faces outwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.measure import marching_cubes

from pipeline.evaluate.meshing import NoSurface, extract_mesh


def sphere(x, radius=0.7):
    return x.norm(dim=1) - radius


def torus(x):
    return torch.hypot(torch.hypot(x[:, 0], x[:, 1]) - 0.6, x[:, 2]) - 0.2


def plate(x):
    """Thinner than a coarse cell; at some resolutions its faces lie exactly on lattice planes."""
    q = x.abs() - torch.tensor([0.5, 0.25, 0.02])
    return q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)


def beads(x):
    """40 spheres that no coarse lattice point need meet."""
    centers = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    away = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return away.amin(1) - 0.03


def steep(x):
    """Not a distance: five times as steep on one side as on the other."""
    return torus(x) * (3 + 2 * torch.tanh(4 * x[:, 0]))


def network():
    torch.manual_seed(1)
    first, second = torch.nn.Linear(3, 32), torch.nn.Linear(32, 32)
    last = torch.nn.Linear(32, 1)

    def field(x):
        hidden = torch.sin(4 * first(x))
        return sphere(x) + 0.1 * last(torch.sin(2 * second(hidden)))[:, 0]

    return field


FIELDS = {f.__name__: f for f in (sphere, torus, plate, beads, steep)} | {"network": network()}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("resolution", [64, 90])
def test_sparse_equals_dense(name, resolution):
    sparse = extract_mesh(FIELDS[name], resolution)
    dense = extract_mesh(FIELDS[name], resolution, lipschitz=None)
    np.testing.assert_array_equal(sparse.faces, dense.faces)
    # a network's values differ in the last bits between batches of other sizes
    np.testing.assert_allclose(sparse.vertices, dense.vertices, atol=1e-6, rtol=0)
    assert dense.metadata["evaluations"] >= (resolution + 1) ** 3
    assert sparse.metadata["evaluations"] < 0.4 * dense.metadata["evaluations"]


@pytest.mark.parametrize("name", FIELDS)
def test_dense_equals_marching_cubes_of_the_whole_volume(name):
    resolution = 66
    mesh = extract_mesh(FIELDS[name], resolution, lipschitz=None)
    index = np.stack(np.meshgrid(*[np.arange(resolution + 1)] * 3, indexing="ij"), -1)
    coords = torch.from_numpy((-1 + index.reshape(-1, 3) * (2 / resolution)).astype(np.float32))
    with torch.no_grad():
        values = FIELDS[name](coords).numpy().reshape(index.shape[:3])
    vertices, faces, _, _ = marching_cubes(values, 0.0)
    assert (len(mesh.vertices), len(mesh.faces)) == (len(vertices), len(faces))
    ours = mesh.vertices[np.lexsort(np.round(mesh.vertices, 4).T)]
    theirs = vertices * (2 / resolution) - 1
    theirs = theirs[np.lexsort(np.round(theirs, 4).T)]
    # one hundredth of a cell at the extra vertices inside ambiguous cells, else rounding
    np.testing.assert_allclose(np.sort(ours.sum(1)), np.sort(theirs.sum(1)), atol=0.03 / resolution)


@pytest.mark.parametrize("name", FIELDS)
def test_surfaces_are_closed_and_face_outwards(name):
    mesh = extract_mesh(FIELDS[name], 100)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0


def test_volume_and_area_converge_to_the_closed_form():
    errors = []
    for resolution in (32, 64, 128):
        mesh = extract_mesh(sphere, resolution)
        errors.append(abs(mesh.volume / (4 / 3 * np.pi * 0.7**3) - 1))
        assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.7).max() < 0.8 / resolution**2
    assert errors[0] > 3.5 * errors[1] > 12 * errors[2]  # second order: a factor of 4 each


def test_lattice_values_of_zero_do_not_tear_the_surface():
    mesh = extract_mesh(lambda x: x.abs().amax(1) - 0.5, 64)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1.0, abs=1e-6)


def test_box_and_level_are_respected():
    box = ((-0.5, -1.0, 0.0), (1.0, 1.0, 2.0))
    mesh = extract_mesh(
        lambda x: (x - torch.tensor([0.2, 0.0, 1.0])).norm(dim=1), 90, box=box, level=0.4
    )
    np.testing.assert_allclose(mesh.bounds, [[-0.2, -0.4, 0.6], [0.6, 0.4, 1.4]], atol=2e-3)
    assert mesh.is_watertight


def test_a_surface_that_leaves_the_box_is_open():
    mesh = extract_mesh(lambda x: x[:, 0] - 0.3, 40)
    assert not mesh.is_watertight
    assert mesh.area == pytest.approx(4.0, rel=1e-5)


def test_bounds_follow_the_slope_near_the_surface():
    """A field that is steep far away and flat at the surface costs little more than a distance."""

    def bent(x):
        d = torus(x)
        return 0.4 * d + 3 * d**3

    mesh = extract_mesh(bent, 128)
    np.testing.assert_array_equal(mesh.faces, extract_mesh(bent, 128, lipschitz=None).faces)
    exact = extract_mesh(torus, 128).metadata["evaluations"]
    assert mesh.metadata["evaluations"] < 2 * exact


def test_a_spike_that_only_a_fine_lattice_shows_widens_the_search():
    """Ripples on the surface are steeper than anything that coarse points show."""

    def rippled(x):
        return torus(x) + 0.01 * torch.sin(90 * x[:, 0]) * torch.sin(90 * x[:, 1])

    sparse, dense = extract_mesh(rippled, 128), extract_mesh(rippled, 128, lipschitz=None)
    np.testing.assert_array_equal(sparse.faces, dense.faces)


def test_a_tighter_bound_costs_less_and_a_wrong_one_is_the_callers():
    loose = extract_mesh(torus, 128, lipschitz=4.0)
    exact = extract_mesh(torus, 128, lipschitz=1.0)
    np.testing.assert_array_equal(loose.faces, exact.faces)
    assert exact.metadata["evaluations"] < loose.metadata["evaluations"]


def test_no_surface_says_what_was_seen():
    with pytest.raises(NoSurface, match=r"lies outside everywhere.*0\.5 to 2\.2"):
        extract_mesh(lambda x: x.norm(dim=1) + 0.5, 40)
    with pytest.raises(NoSurface, match="lies inside everywhere"):
        extract_mesh(lambda x: -x.norm(dim=1) - 0.5, 40)


def test_a_field_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="not finite at"):
        extract_mesh(lambda x: x.norm(dim=1) / 0, 20)


def test_memory_is_bounded_by_blocks():
    """At 256 cells the dense grid would be 68 MB of values, and far more of coordinates."""
    largest = 0

    def watched(x):
        nonlocal largest
        largest = max(largest, len(x))
        return torus(x)

    mesh = extract_mesh(watched, 256, chunk=4096)
    assert largest <= 4096
    assert mesh.metadata["evaluations"] < 257**3 / 25
