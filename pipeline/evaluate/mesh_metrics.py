"""Metrics of reconstructed surfaces, each with its paper's convention in its name.

Conventions differ: DeepSDF squares and sums in original units, Occupancy Networks average in units
of the longest bounding-box edge. There is no bare "chamfer" here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import trimesh
from scipy.spatial import cKDTree

from pipeline.evaluate.meshing import NoSurface
from pipeline.evaluate.prepared_lines import Line, decode_points, line_of
from schemas.store import ColumnSpec

if TYPE_CHECKING:
    from pipeline.evaluate.opened import OpenedStore


def _column(name: str, description: str) -> ColumnSpec:
    return ColumnSpec(name=name, dtype="float32", description=description)


MESH_METRICS = (
    _column(
        "chamfer_l2_deepsdf",
        "mean squared nearest-neighbour distance, sum of both directions, in squared original "
        "units (DeepSDF; papers print x1000)",
    ),
    _column(
        "chamfer_l1_occnet",
        "mean nearest-neighbour distance, average of both directions, longest bounding-box edge of "
        "the sample = 1 (Occupancy Networks; papers print x10)",
    ),
    _column(
        "f_score_1pct",
        "harmonic mean of precision and recall within 1 % of the longest bounding-box edge",
    ),
    _column(
        "normal_consistency",
        "mean |cosine| between normals of nearest neighbours, average of both directions",
    ),
)


def mesh_metric_columns() -> tuple[ColumnSpec, ...]:
    """Columns that `mesh_metrics` fills for a row."""
    return MESH_METRICS


def chamfer_l2_deepsdf(forth: np.ndarray, back: np.ndarray) -> float:
    """Mean of squared distances, sum of both directions (DeepSDF's convention)."""
    with np.errstate(over="ignore"):  # a file in units of 1e-200: inf is the float64 answer
        return float((forth**2).mean() + (back**2).mean())


def chamfer_l1_occnet(forth: np.ndarray, back: np.ndarray) -> float:
    """Mean of distances, average of both directions (Occupancy Networks' convention)."""
    return float((forth.mean() + back.mean()) / 2)


def f_score(forth: np.ndarray, back: np.ndarray, threshold: float) -> float:
    """Harmonic mean of the shares of distances up to the threshold, in both directions."""
    precision, recall = float((forth <= threshold).mean()), float((back <= threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True)
class Reference:
    """Points of a sample's surface, in normalised coordinates."""

    points: np.ndarray
    normals: np.ndarray | None
    scale: float
    """Normalised units per original unit."""


def reference_of(line: Line, points: int = 30_000) -> Reference:
    """Surface points of a prepared line: the held-out ones, then others up to the number."""
    names = ("held_surface", "surface")
    coords = np.concatenate([decode_points(line, name)[0] for name in names])[:points]
    normals = None
    if all(f"{n}_normals" in line and line[f"{n}_normals"].is_valid for n in names):
        parts = [np.frombuffer(line[f"{n}_normals"].as_buffer(), "<f2") for n in names]
        normals = np.concatenate(parts).reshape(-1, 3)[:points].astype(np.float32)
    return Reference(coords, normals, float(line["scale"].as_py()))


def mesh_metrics(
    opened: OpenedStore,
    row: int,
    table: pa.Table,
    *,
    resolution: int,
    points: int = 30_000,
    seed: int = 0,
) -> dict[str, float]:
    """`MESH_METRICS` of a row against its prepared surface points, the only line of `table`."""
    try:
        mesh = opened.mesh(row, resolution, original_units=False)
    except NoSurface:
        mesh = None
    return compare_surfaces(mesh, reference_of(line_of(table, 0), points), points=points, seed=seed)


def compare_surfaces(
    mesh: trimesh.Trimesh | None, reference: Reference, *, points: int = 30_000, seed: int = 0
) -> dict[str, float]:
    """`MESH_METRICS` of a mesh in normalised coordinates; no surface (None) scores NaN and F 0."""
    if mesh is None or not len(mesh.faces) or not len(reference.points):
        score = 0.0 if len(reference.points) else float("nan")
        return {c.name: float("nan") for c in MESH_METRICS} | {"f_score_1pct": score}
    places, normals = sample_surface(mesh, points, np.random.default_rng(seed))
    forth, nearest = cKDTree(reference.points).query(places)
    back, nearest_back = cKDTree(places).query(reference.points)
    edge = float(np.ptp(reference.points, axis=0).max())
    consistency = float("nan")
    if reference.normals is not None:
        cosines = np.abs((normals * reference.normals[nearest]).sum(1))
        cosines_back = np.abs((normals[nearest_back] * reference.normals).sum(1))
        consistency = float((cosines.mean() + cosines_back.mean()) / 2)
    return {
        "chamfer_l2_deepsdf": chamfer_l2_deepsdf(forth / reference.scale, back / reference.scale),
        "chamfer_l1_occnet": chamfer_l1_occnet(forth / edge, back / edge),
        "f_score_1pct": f_score(forth, back, 0.01 * edge),
        "normal_consistency": consistency,
    }


def sample_surface(
    mesh: trimesh.Trimesh, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points uniform by area on a mesh, and the normals of their triangles."""
    corners = np.asarray(mesh.triangles)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    cumulative = np.cumsum(area)
    face = np.searchsorted(cumulative, random.random(count) * cumulative[-1], side="right")
    face = np.minimum(face, len(area) - 1)
    u, v = random.random((2, count))
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u)[:, None], np.where(fold, 1 - v, v)[:, None]
    a, b, c = (corners[face, k] for k in range(3))
    normals = cross[face] / np.maximum(area[face], 1e-300)[:, None]
    return a + u * (b - a) + v * (c - a), normals
