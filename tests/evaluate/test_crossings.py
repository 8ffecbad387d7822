"""Meshes of fields without a useful slope: multiresolution against the dense grid."""

import numpy as np
import pytest
import torch

from pipeline.evaluate.meshing import NoSurface, extract_mesh
from pipeline.evaluate.refinement import Lattice
from tests.evaluate.test_meshing import FIELDS, beads, plate, sphere, torus


def steps(field, sharp=200.0):
    """As occupancy: nearly a step at the surface, and flat elsewhere."""
    return lambda x: torch.tanh(sharp * field(x))


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"beads", "plate"}))
@pytest.mark.parametrize("resolution", [32, 64, 90])
def test_it_gives_the_mesh_of_the_dense_grid(name, resolution):
    field = steps(FIELDS[name])
    sparse = extract_mesh(field, resolution, lipschitz="crossings")
    dense = extract_mesh(field, resolution, lipschitz=None)
    np.testing.assert_array_equal(sparse.faces, dense.faces)
    np.testing.assert_allclose(sparse.vertices, dense.vertices, atol=1e-6, rtol=0)
    assert sparse.is_watertight
    if resolution > 32:
        assert sparse.metadata["evaluations"] < 0.25 * dense.metadata["evaluations"]


def test_a_surface_is_followed_through_cells_that_showed_one_side():
    """A rod thinner than a coarse cell that one coarse point meets, at its end."""

    def rod(x):
        q = (x - torch.tensor([0.003, 0.02, 0.02])).abs() - torch.tensor([0.7, 0.025, 0.025])
        return q.clamp(min=0).norm(dim=1) + q.amax(1).clamp(max=0)

    field = steps(rod)
    seen = Lattice(field, 128, ((-1.0,) * 3, (1.0,) * 3), 0.0, 2048, "cpu")
    coarse = np.stack(np.meshgrid(*[np.arange(0, 129, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = coarse[seen.at(coarse) < 0]
    assert len(inside)
    assert len(np.unique(inside[:, 1:], axis=0)) == 1
    sparse = extract_mesh(field, 128, lipschitz="crossings")
    dense = extract_mesh(field, 128, lipschitz=None)
    np.testing.assert_array_equal(sparse.faces, dense.faces)


def test_parts_that_no_coarse_point_meets_are_left_out_whole():
    """What is found of 40 beads is closed: bead by bead as in the dense mesh."""
    sparse = extract_mesh(steps(beads), 128, lipschitz="crossings")
    dense = extract_mesh(steps(beads), 128, lipschitz=None)
    assert sparse.is_watertight
    assert 0 < len(sparse.faces) < len(dense.faces)
    sizes = sorted(len(part.faces) for part in dense.split(only_watertight=False))
    for part in sparse.split(only_watertight=False):
        assert len(part.faces) in sizes


def test_where_nothing_is_found_finer_lattices_are_tried():
    sparse = extract_mesh(steps(plate), 90, lipschitz="crossings")
    dense = extract_mesh(steps(plate), 90, lipschitz=None)
    np.testing.assert_array_equal(sparse.faces, dense.faces)
    with pytest.raises(NoSurface, match="outside everywhere"):
        extract_mesh(lambda x: torch.ones(len(x)), 90, lipschitz="crossings")
    with pytest.raises(NoSurface, match="inside everywhere"):
        extract_mesh(lambda x: -torch.ones(len(x)), 256, lipschitz="crossings")


def test_level_and_a_surface_that_leaves_the_box():
    mesh = extract_mesh(lambda x: x.norm(dim=1), 100, level=0.4, lipschitz="crossings")
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.4).max() < 1e-3
    cut = extract_mesh(lambda x: sphere(x, 1.2), 70, lipschitz="crossings")
    dense = extract_mesh(lambda x: sphere(x, 1.2), 70, lipschitz=None)
    np.testing.assert_array_equal(cut.faces, dense.faces)
    assert not cut.is_watertight


def test_memory_goes_with_the_surface():
    """Less than a percent of a 512^3 grid is evaluated, and no dense array of it is made."""
    import tracemalloc

    tracemalloc.start()
    mesh = extract_mesh(steps(lambda x: sphere(x, 0.3)), 512, lipschitz="crossings")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mesh.is_watertight
    assert mesh.metadata["evaluations"] < 0.01 * 513**3
    assert peak < 0.7 * 4 * 513**3


def test_thin_rings_are_found_through_their_own_cells():
    mesh = extract_mesh(steps(torus), 128, lipschitz="crossings")
    assert mesh.volume == pytest.approx(2 * np.pi**2 * 0.6 * 0.2**2, rel=0.01)
