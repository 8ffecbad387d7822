"""Removes walls that a surface of local codes has behind it (Jiang et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
import trimesh
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from pipeline.evaluate.meshing import NoSurface

NEIGHBORS = 3
ROUNDS = 50


def without_walls(
    mesh: trimesh.Trimesh,
    known: Callable[[Float[Tensor, "p 3"]], Bool[Tensor, "p"]],
    step: float,
    device: torch.device | str = "cpu",
    *,
    chunk: int = 2**16,
) -> trimesh.Trimesh:
    """The faces of a mesh with the field known on both of their sides.

    Where a field has no codes it is all inside or all outside; where that differs from what the
    codes beside it say, the level set has a wall that no point of the sample asked for. Needs
    nothing but the field, and comes closer to the surface than the authors' rule by normals
    (`without_back_faces`) in the scenes where both were measured.

    Args:
        known: Whether the field was learned at points.
        step: Side of a cell of the grid that was meshed: so far in front of and behind a face.

    Raises:
        NoSurface: No face is left.
    """
    kept = np.ones(len(mesh.faces), bool)
    for sign in (step, -step):
        places = mesh.triangles_center + sign * mesh.face_normals
        coords = torch.as_tensor(places, dtype=torch.float32, device=device)
        with torch.no_grad():
            parts = [known(part).cpu() for part in coords.split(chunk)]
        kept &= torch.cat(parts).numpy()
    if not kept.any():
        raise NoSurface("the field has no surface where it was learned: all faces are walls")
    left = trimesh.Trimesh(mesh.vertices, mesh.faces[kept], process=False)
    left.remove_unreferenced_vertices()
    left.metadata.update(mesh.metadata)
    return left


def without_back_faces(
    mesh: trimesh.Trimesh,
    points: Float[np.ndarray, "p 3"],
    normals: Float[np.ndarray, "p 3"],
    *,
    neighbors: int = NEIGHBORS,
    rounds: int = ROUNDS,
) -> trimesh.Trimesh:
    """The faces of a mesh that look where the points nearest to them look (authors' rule).

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
