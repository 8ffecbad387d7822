"""Refining meshes: vertices and normals come nearer to closed forms, triangles stay."""

import numpy as np
import torch

from pipeline.evaluate.mesh_refinement import refine_mesh
from pipeline.evaluate.meshing import extract_mesh


def occupancy(x):
    """Of a ball of radius 0.6, with an edge of 0.05."""
    return torch.sigmoid((0.6 - x.norm(dim=1)) / 0.05)


def test_a_rough_mesh_moves_onto_the_surface_and_turns_its_normals():
    level = 0.2
    radius = 0.6 - 0.05 * np.log(level / (1 - level))
    mesh = extract_mesh(lambda x: level - occupancy(x), 24, lipschitz=None)
    random = np.random.default_rng(0)
    mesh.vertices = mesh.vertices + random.normal(size=mesh.vertices.shape) * 0.006
    losses = []
    refined = refine_mesh(
        mesh,
        lambda x: level - occupancy(x),
        steps=60,
        rate=5e-4,
        progress=lambda _, loss: losses.append(loss),
    )
    np.testing.assert_array_equal(refined.faces, mesh.faces)

    def off(m):
        away = np.abs(np.linalg.norm(m.vertices, axis=1) - radius).mean()
        centers = m.triangles_center / np.linalg.norm(m.triangles_center, axis=1)[:, None]
        return away, 1 - (m.face_normals * centers).sum(1).mean()

    (before, turned), (after, turned_after) = off(mesh), off(refined)
    assert after < 0.6 * before
    assert turned_after < 0.6 * turned
    assert losses[-1] < 0.5 * losses[0]


def test_the_same_seed_gives_the_same_mesh():
    mesh = extract_mesh(lambda x: 0.5 - occupancy(x), 12, lipschitz=None)
    one, two, other = (
        refine_mesh(mesh, lambda x: 0.5 - occupancy(x), steps=3, seed=s).vertices for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0
