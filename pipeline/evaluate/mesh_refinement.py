"""Moving the vertices of a mesh onto the surface of its field, normals included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from torch import Tensor

from pipeline.evaluate.refinement import ScalarField

RATE = 1e-4
"""Learning rate of RMSprop, in units of the box (authors' code)."""
NORMAL_WEIGHT = 0.01
"""Of the mismatch of normals beside the squared value (sec. 3.4)."""
FACES = 8192
"""Faces whose points go through the field at once."""


def refine_mesh(
    mesh: trimesh.Trimesh,
    field: ScalarField,
    *,
    steps: int = 30,
    rate: float = RATE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> trimesh.Trimesh:
    """Refines a mesh by the gradient of its field (Occupancy Networks, sec. 3.4).

    Each step draws one point of every face (weights of its corners ~ Dirichlet(0.5)) and moves the
    vertices by RMSprop down the mean of value^2 + 0.01 |normal - field's normal|^2. The triangles
    stay as they are.

    Args:
        field: Negative inside, 0 on the surface, differentiable twice; for occupancy p: level - p.
        progress: Called after each step with its number and loss.
    """
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32, device=device, requires_grad=True)
    faces = torch.from_numpy(np.array(mesh.faces, np.int64)).to(device)
    optimizer = torch.optim.RMSprop([vertices], lr=rate)
    for step in range(steps):
        random = np.random.default_rng([seed, step])
        share = random.dirichlet((0.5, 0.5, 0.5), len(faces)).astype(np.float32)
        share = torch.from_numpy(share).to(device)
        optimizer.zero_grad()
        loss = 0.0
        for part in torch.arange(len(faces), device=device).split(FACES):
            term = _mismatch(vertices[faces[part]], share[part], field).sum() / len(faces)
            term.backward(inputs=[vertices])
            loss += float(term.detach())
        optimizer.step()
        if progress is not None:
            progress(step, loss)
    refined = vertices.detach().cpu().double().numpy()
    return trimesh.Trimesh(refined, mesh.faces, process=False, metadata=dict(mesh.metadata))


def _mismatch(
    corners: Float[Tensor, "f 3 3"], share: Float[Tensor, "f 3"], field: ScalarField
) -> Float[Tensor, "f"]:
    """value^2 + 0.01 |normal - field's normal|^2 at one point of each face."""
    points = (corners * share[..., None]).sum(1)
    value = field(points)
    (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    mismatch = (_unit(normal) - _unit(slope)).square().sum(-1)
    return value.square() + NORMAL_WEIGHT * mismatch


def _unit(x: Float[Tensor, "f 3"]) -> Float[Tensor, "f 3"]:
    return x / x.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
