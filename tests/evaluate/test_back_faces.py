"""The wall behind a surface goes, the surface stays."""

import numpy as np
import trimesh

from pipeline.evaluate.back_faces import without_back_faces


def test_the_inner_wall_of_a_ball_goes_and_nothing_else():
    outer = trimesh.creation.icosphere(subdivisions=3, radius=0.8)
    inner = trimesh.creation.icosphere(subdivisions=3, radius=0.65)
    inner.invert()  # outside is on both sides of the shell
    both = trimesh.util.concatenate([outer, inner])
    random = np.random.default_rng(0)
    normals = random.normal(size=(2000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    noisy = normals + 0.2 * random.normal(size=normals.shape)
    left = without_back_faces(both, 0.8 * normals, noisy)
    assert len(left.faces) == len(outer.faces)
    assert np.linalg.norm(left.vertices, axis=1).min() > 0.75
    assert left.is_watertight


def test_thin_plates_keep_both_sides():
    plate = trimesh.creation.box((1, 1, 0.05)).subdivide().subdivide().subdivide()
    points, faces = trimesh.sample.sample_surface(plate, 4000, seed=0)
    left = without_back_faces(plate, points, plate.face_normals[faces])
    assert len(left.faces) == len(plate.faces)
