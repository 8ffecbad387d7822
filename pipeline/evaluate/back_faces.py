"""Removes walls that a surface from oriented points has behind it (Jiang et al. 2020)."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import trimesh
from jaxtyping import Float
from scipy.spatial import cKDTree

NEIGHBORS = 3
ROUNDS = 50


def without_back_faces(
    mesh: trimesh.Trimesh,
    points: Float[np.ndarray, "p 3"],
    normals: Float[np.ndarray, "p 3"],
    *,
    neighbors: int = NEIGHBORS,
    rounds: int = ROUNDS,
) -> trimesh.Trimesh:
    """The faces of a mesh that look where the points nearest to them look.

    Where everything away from the points counts as outside (lig with `empty: outside`), a solid
    gets a second wall inside, whose faces look the other way. How well a face agrees with its
    nearest points is averaged with the faces beside it, many times, before the sign decides.

    Args:
        points: Oriented points of the surface, in the units of the mesh.
        neighbors: Nearest points of a face's center (authors' code: 3).
        rounds: Times that the agreement is averaged (authors' code: 50).
    """
    if not len(mesh.faces):
        return mesh
    _, nearest = cKDTree(points).query(mesh.triangles_center, k=min(neighbors, len(points)))
    nearest = nearest.reshape(len(mesh.faces), -1)
    agreement = np.einsum("fkd,fd->fk", normals[nearest], mesh.face_normals).mean(1)
    beside = mesh.face_adjacency
    count = len(mesh.faces)
    pairs = (np.ones(2 * len(beside)), np.concatenate([beside, beside[:, ::-1]]).T)
    average = scipy.sparse.csr_matrix(pairs, (count, count)) + scipy.sparse.identity(count)
    average = scipy.sparse.diags(1 / np.asarray(average.sum(1)).ravel()) @ average
    for _ in range(rounds):
        agreement = average @ agreement
    kept = mesh.submesh([np.flatnonzero(agreement > 0)], append=True, repair=False)
    return kept if isinstance(kept, trimesh.Trimesh) else trimesh.Trimesh()
