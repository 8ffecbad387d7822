"""Scenes and point clouds made of the procedural shapes."""

from __future__ import annotations

from pathlib import Path

import igl
import numpy as np
import trimesh
from jaxtyping import Float64

from pipeline.ingest.mesh import double_areas
from pipeline.ingest.procedural import CLASSES, Parts, block, exported, generator
from pipeline.ingest.sampling import draw_surface

SCENES = 24
FLOOR = (2.2, 2.2, 0.06)
FLOOR_COLOR = (200, 196, 188)
COUNTS = {"three": 3, "four": 4, "five": 5, "six": 6}
"""Shapes of a scene, by class folder."""
CLOUD_POINTS = 4096
TRIES = 500
GAP = 0.03
"""Least distance between the discs in which shapes stand."""


def scene(rng: np.random.Generator, count: int) -> Parts:
    """`count` shapes of any class, turned and scaled, that stand on a floor without touching."""
    parts: Parts = {"floor": (block(FLOOR, (0, 0, -FLOOR[2] / 2)), FLOOR_COLOR)}
    names = list(CLASSES)
    placed: list[tuple[np.ndarray, float]] = []
    for number in range(count):
        name = names[int(rng.integers(len(names)))]
        made = CLASSES[name][0](rng)
        whole = trimesh.util.concatenate([part for part, _ in made.values()])
        low, high = whole.bounds
        size = rng.uniform(0.6, 0.95) / (high - low).max()
        radius = float(np.linalg.norm((high - low)[:2])) / 2
        while (center := _free_place(rng, placed, radius * size)) is None:
            size *= 0.9
        placed.append((center, radius * size))
        turn = trimesh.transformations.rotation_matrix(rng.uniform(0, 2 * np.pi), (0, 0, 1))
        middle = np.append((low + high)[:2] / 2, low[2])
        for part, (mesh, color) in made.items():
            mesh.apply_translation(-middle)
            mesh.apply_scale(size)
            mesh.apply_transform(turn)
            mesh.apply_translation((*center, 0))
            parts[f"{name} {number} {part}"] = (mesh, color)
    return parts


def _free_place(rng, placed, radius) -> np.ndarray | None:
    """A place on the floor for a disc, clear of the others, None if many tries find none."""
    reach = FLOOR[0] / 2 - radius
    tries = rng.uniform(-reach, reach, (TRIES, 2))
    free = np.ones(TRIES, bool)
    for center, other in placed:
        free &= np.linalg.norm(tries - center, axis=1) > other + radius + GAP
    return tries[int(free.argmax())] if free.any() else None


def make_scenes(folder: Path, seed: int = 0) -> None:
    """Writes folder/COUNT/scene_NUMBER.glb with named, colored parts."""
    for number in range(SCENES):
        label = list(COUNTS)[number % len(COUNTS)]
        parts = scene(np.random.default_rng([seed, number]), COUNTS[label])
        path = folder / label / f"scene_{number:02d}.glb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exported(parts, "glb"))


def scan(
    parts: Parts, count: int, rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "p 3"], Float64[np.ndarray, "p 3"]]:
    """Points and outward normals of the outer surface of a union of closed solids."""
    whole = trimesh.util.concatenate([mesh for mesh, _ in parts.values()])
    vertices = np.ascontiguousarray(whole.vertices, np.float64)
    faces = np.ascontiguousarray(whole.faces, np.int64)
    normals, areas = double_areas(vertices, faces)
    on = draw_surface(rng, vertices, faces, np.cumsum(areas), count + count // 3)
    outward = normals[on.face] / areas[on.face, None]
    if len(parts) == 1:
        return on.coords[:count], outward[:count]
    step = 1e-3 * float(np.ptp(vertices, axis=0).max())
    before = np.ascontiguousarray(on.coords + step * outward)
    outer = np.flatnonzero(np.abs(igl.fast_winding_number(vertices, faces, before)) < 0.5)[:count]
    return on.coords[outer], outward[outer]


def make_clouds(folder: Path, per_class: int, seed: int = 0) -> None:
    """Scans of the shapes that `make_shapes` writes, with normals: binary PLY and XYZ in turn."""
    for number, (name, (make, _)) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            rng = generator(seed, number, index)
            points, normals = scan(make(rng), CLOUD_POINTS, rng)
            rows = np.concatenate([points, normals], axis=1)
            stem = folder / name / f"{name}_{index:03d}"
            if index % 2:
                stem.with_suffix(".xyz").write_bytes(_xyz(rows))
            else:
                stem.with_suffix(".ply").write_bytes(_ply(rows))


def _xyz(rows: np.ndarray) -> bytes:
    return "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in rows).encode()


def _ply(rows: np.ndarray) -> bytes:
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{names}end_header\n"
    return head.encode() + rows.astype("<f4").tobytes()
