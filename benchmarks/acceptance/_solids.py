"""Unions of random boxes and balls as prepared tables, with exact signs: one solid, or a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.samples import IDENTITY, SHAPES


@dataclass(frozen=True)
class Solids:
    """Boxes (half edges) and balls (one radius three times), `[k, 3]` each."""

    center: np.ndarray
    half: np.ndarray
    ball: np.ndarray
    """Which of them are balls, `[k]`."""

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance to the union, `[p]`: exact outside and in sign, a bound inside."""
        q = points[:, None] - self.center
        box = np.abs(q) - self.half
        box = np.linalg.norm(np.maximum(box, 0), axis=-1) + np.minimum(box.max(-1), 0)
        ball = np.linalg.norm(q, axis=-1) - self.half[:, 0]
        return np.where(self.ball, ball, box).min(1)

    def surface(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Points uniform by area on the union, and their outward normals."""
        a, b, c = self.half.T
        area = np.where(self.ball, 4 * np.pi * a * a, 8 * (a * b + b * c + c * a))
        found, normals, have = [], [], 0
        while have < count:
            which = random.choice(len(area), 2 * count, p=area / area.sum())
            half, ball = self.half[which], self.ball[which]
            away = random.normal(size=half.shape)
            away /= np.linalg.norm(away, axis=1, keepdims=True)
            faces = half.prod(1, keepdims=True) / half
            cumulative = np.cumsum(faces / faces.sum(1, keepdims=True), 1)
            axis = (random.random((len(half), 1)) > cumulative[:, :2]).sum(1)
            face = np.eye(3)[axis] * random.choice([-1.0, 1.0], (len(half), 1))
            on = np.where(face != 0, face, random.uniform(-1, 1, half.shape)) * half
            normal = np.where(ball[:, None], away, face)
            points = np.where(ball[:, None], away * half, on) + self.center[which]
            outside = self.distance(points + 1e-6 * normal) > 0
            found.append(points[outside])
            normals.append(normal[outside])
            have += int(outside.sum())
        return np.concatenate(found)[:count], np.concatenate(normals)[:count]


def one_box(random: np.random.Generator) -> Solids:
    """An axis-aligned box: six factors of variation."""
    half, center = random.uniform(0.25, 0.6, (1, 3)), random.uniform(-0.2, 0.2, (1, 3))
    return Solids(center, half, np.zeros(1, bool))


def scene(random: np.random.Generator, count: int = 8, size: float = 0.22) -> Solids:
    """`count` boxes and balls anywhere in the box, of about `size`; they may overlap."""
    ball = random.random(count) < 0.5
    half = random.uniform(0.6 * size, 1.2 * size, (count, 3))
    half[ball] = half[ball][:, :1]
    return Solids(random.uniform(-0.95, 0.95, (count, 3)) * (1 - half), half, ball)


def table(
    solids: list[Solids],
    *,
    near: int = 1024,
    uniform: int = 4096,
    surface: int = 1024,
    held_out: int = 1024,
    seed: int = 0,
) -> pa.Table:
    """Prepared rows of these shapes, in float32."""
    lines = []
    for row, shape in enumerate(solids):
        random = np.random.default_rng([seed, row])
        line = {
            "row": row,
            "sample_id": f"solid_{seed}_{row:04d}",
            "label": "solid",
            "split": "train",
            "precision": "float32",
            "center": [0.0, 0.0, 0.0],
            "scale": 1.0,
            "doubt": 0.0,
            "faces": 12,
            "watertight": True,
        }
        for prefix, counts in (
            ("", (near, uniform, surface)),
            ("held_", (held_out, held_out, held_out)),
        ):
            on, _ = shape.surface(random, max(counts[0], 1))
            std = random.choice([0.05, 0.0158], (len(on), 1))
            sets = {"near": (on + random.normal(size=on.shape) * std)[: counts[0]]}
            sets["uniform"] = random.uniform(-1, 1, (counts[1], 3))
            for name, coords in sets.items():
                coords = coords.astype("<f4")
                line[f"{prefix}{name}_coords"] = coords.tobytes()
                distance = shape.distance(coords.astype(float)).astype("<f4")
                line[f"{prefix}{name}_distance"] = distance.tobytes()
            on, normals = shape.surface(random, counts[2])
            line[f"{prefix}surface_coords"] = on.astype("<f4").tobytes()
            line[f"{prefix}surface_normals"] = normals.astype("<f2").tobytes()
        lines.append(line)
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *SHAPES]))
