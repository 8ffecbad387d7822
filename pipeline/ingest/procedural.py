"""Procedural shapes in five classes, each class written in its own file format.

Mugs (OBJ), tables (PLY), chairs (GLB with named, colored parts), bottles (STL), bolts (OFF). Every
shape is a union of closed solids that may overlap, as in CAD exports; winding numbers need no
boolean operations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

Parts = dict[str, tuple[trimesh.Trimesh, tuple[int, int, int]]]
WOOD, DARK, CLAY, GLASS, STEEL = (
    (181, 134, 84), (70, 60, 55), (196, 92, 66), (90, 150, 120), (150, 155, 165),
)  # fmt: skip


def revolved(profile: list[tuple[float, float]], sections: int = 48) -> trimesh.Trimesh:
    """A closed solid of revolution; the profile (radius, height) begins and ends on the axis."""
    radius, height = np.array(profile, float).T
    turns = np.arange(sections) * 2 * np.pi / sections
    ring = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    inner = range(1, len(profile) - 1)
    vertices = [[0, 0, height[0]], [0, 0, height[-1]]]
    for k in inner:
        vertices += np.column_stack([ring * radius[k], np.full(sections, height[k])]).tolist()
    here, after = np.arange(sections), (np.arange(sections) + 1) % sections
    first, last = 2, 2 + (len(profile) - 3) * sections
    faces = [np.stack([np.zeros_like(here), first + after, first + here], axis=1)]
    for k in range(len(profile) - 3):
        a, b = 2 + k * sections, 2 + (k + 1) * sections
        faces.append(np.stack([a + here, a + after, b + after], axis=1))
        faces.append(np.stack([a + here, b + after, b + here], axis=1))
    faces.append(np.stack([last + here, last + after, np.ones_like(here)], axis=1))
    return trimesh.Trimesh(vertices, np.concatenate(faces), process=False)


def swept(path: np.ndarray, radius: float, sections: int = 16) -> trimesh.Trimesh:
    """A closed round tube along a path in the plane y = 0."""
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.array([0.0, 1.0, 0.0])
    across = np.cross(tangents, side)
    turns = np.arange(sections) * 2 * np.pi / sections
    rings = (
        path[:, None]
        + radius * np.cos(turns)[None, :, None] * across[:, None]
        + radius * np.sin(turns)[None, :, None] * side
    )
    count = len(path)
    vertices = np.concatenate([rings.reshape(-1, 3), path[:1], path[-1:]])
    here, after = np.arange(sections), (np.arange(sections) + 1) % sections
    faces = []
    for k in range(count - 1):
        a, b = k * sections, (k + 1) * sections
        faces.append(np.stack([a + here, a + after, b + after], axis=1))
        faces.append(np.stack([a + here, b + after, b + here], axis=1))
    start, end = count * sections, count * sections + 1
    last = (count - 1) * sections
    faces.append(np.stack([np.full_like(here, start), after, here], axis=1))
    faces.append(np.stack([last + here, last + after, np.full_like(here, end)], axis=1))
    return outward(trimesh.Trimesh(vertices, np.concatenate(faces), process=False))


def outward(solid: trimesh.Trimesh) -> trimesh.Trimesh:
    """The solid with its faces turned out."""
    if solid.volume < 0:
        solid.invert()
    return solid


def block(size: tuple[float, float, float], center: tuple[float, float, float]) -> trimesh.Trimesh:
    solid = trimesh.creation.box(size)
    solid.apply_translation(center)
    return solid


def mug(rng: np.random.Generator) -> Parts:
    height, radius = rng.uniform(0.8, 1.3), rng.uniform(0.35, 0.5)
    wall, top = rng.uniform(0.08, 0.12), rng.uniform(0.9, 1.15)
    outer = [(0, 0), (radius, 0), (radius * top, height)]
    inner = [(radius * top - wall, height), (radius - wall, wall), (0, wall)]
    turn = np.linspace(-np.pi / 2, np.pi / 2, 24)
    reach, half = rng.uniform(0.2, 0.32), height * rng.uniform(0.22, 0.32)
    path = np.stack(
        [radius - wall / 2 + reach * np.cos(turn), 0 * turn, height / 2 + half * np.sin(turn)],
        axis=1,
    )
    return {
        "cup": (revolved(outer + inner), CLAY),
        "handle": (swept(path, wall * 0.8), DARK),
    }


def table(rng: np.random.Generator) -> Parts:
    width, depth, height = rng.uniform(1.0, 2.0), rng.uniform(0.7, 1.1), rng.uniform(0.5, 1.0)
    plate, leg = rng.uniform(0.12, 0.2), rng.uniform(0.14, 0.22)
    legs = [
        block((leg, leg, height), (x * (width - leg) / 2, y * (depth - leg) / 2, height / 2))
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return {
        "top": (block((width, depth, plate), (0, 0, height)), WOOD),
        "legs": (trimesh.util.concatenate(legs), DARK),
    }


def chair(rng: np.random.Generator) -> Parts:
    width, depth = rng.uniform(0.8, 1.0), rng.uniform(0.8, 1.0)
    seat, leg, plate = rng.uniform(0.75, 0.95), rng.uniform(0.13, 0.18), rng.uniform(0.12, 0.18)
    back = rng.uniform(0.8, 1.2)
    legs = [
        block((leg, leg, seat), (x * (width - leg) / 2, y * (depth - leg) / 2, seat / 2))
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    slats = [
        block((width, plate * 0.8, back / 5), (0, (depth - plate) / 2, seat + back * level))
        for level in (0.35, 0.65, 0.9)
    ]
    posts = [
        block((leg, leg, back), (x * (width - leg) / 2, (depth - leg) / 2, seat + back / 2))
        for x in (-1, 1)
    ]
    return {
        "seat": (block((width, depth, plate), (0, 0, seat)), CLAY),
        "legs": (trimesh.util.concatenate(legs), DARK),
        "back": (trimesh.util.concatenate(slats + posts), WOOD),
    }


def bottle(rng: np.random.Generator) -> Parts:
    radius, body, neck = rng.uniform(0.25, 0.4), rng.uniform(0.7, 1.1), rng.uniform(0.25, 0.45)
    mouth = radius * rng.uniform(0.4, 0.55)
    shoulder = rng.uniform(0.15, 0.3)
    bend = np.linspace(0, np.pi / 2, 8)[1:-1]
    curve = [(mouth + (radius - mouth) * np.cos(t), body + shoulder * np.sin(t)) for t in bend]
    top = body + shoulder + neck
    profile = [(0, 0), (radius, 0), (radius, body), *curve, (mouth, body + shoulder), (mouth, top)]
    lip = [
        (mouth * 0.5, top),
        (mouth * 0.5, body + shoulder),
        (radius * 0.65, body),
        (radius * 0.65, 0.12),
    ]
    return {"glass": (revolved([*profile, *lip, (0, 0.12)]), GLASS)}


def bolt(rng: np.random.Generator) -> Parts:
    shaft, length = rng.uniform(0.16, 0.24), rng.uniform(0.7, 1.2)
    head, thick = shaft * rng.uniform(1.6, 2.2), shaft * rng.uniform(0.9, 1.4)
    pitch, depth = shaft * rng.uniform(0.3, 0.5), shaft * 0.12
    turns = int(length * 0.7 / pitch)
    ridges = [
        point
        for k in range(turns)
        for point in ((shaft - depth, k * pitch), (shaft, (k + 0.5) * pitch))
    ]
    profile = [(0, 0), *ridges, (shaft - depth, turns * pitch), (shaft, length), (0, length)]
    cap = revolved(
        [
            (0, length - thick / 4),
            (head, length - thick / 4),
            (head, length + thick),
            (0, length + thick),
        ],
        6,
    )
    return {"shaft": (revolved(profile), STEEL), "head": (cap, DARK)}


CLASSES = {
    "mug": (mug, "obj"),
    "table": (table, "ply"),
    "chair": (chair, "glb"),
    "bottle": (bottle, "stl"),
    "bolt": (bolt, "off"),
}


def exported(parts: Parts, suffix: str) -> bytes:
    """The bytes of one shape; GLB keeps the parts, PLY the colors."""
    for solid, color in parts.values():
        solid.visual = trimesh.visual.ColorVisuals(solid, face_colors=[*color, 255])
    if suffix == "glb":
        scene = trimesh.Scene()
        for name, (solid, color) in parts.items():
            material = trimesh.visual.material.PBRMaterial(name=name, baseColorFactor=[*color, 255])
            solid.visual = trimesh.visual.TextureVisuals(material=material)
            scene.add_geometry(solid, node_name=name, geom_name=name)
        return scene.export(file_type="glb")
    if suffix == "obj":
        return _obj({name: solid for name, (solid, _) in parts.items()}).encode()
    whole = trimesh.util.concatenate([solid for solid, _ in parts.values()])
    data = whole.export(file_type=suffix)
    return data.encode() if isinstance(data, str) else data


def _obj(solids: dict[str, trimesh.Trimesh]) -> str:
    lines, start = [], 1
    for name, solid in solids.items():
        lines.append(f"g {name}")
        lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in solid.vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in solid.faces + start]
        start += len(solid.vertices)
    return "\n".join(lines) + "\n"


def generator(seed: int, number: int, index: int) -> np.random.Generator:
    """Random numbers of one shape of the class of this number."""
    return np.random.default_rng([seed, number, index])


def make_shapes(folder: str | Path, per_class: int = 8, seed: int = 0) -> list[Path]:
    """Writes `per_class` shapes of each class below `folder`; the same seed, the same bytes."""
    written = []
    for number, (name, (make, suffix)) in enumerate(CLASSES.items()):
        for index in range(per_class):
            rng = generator(seed, number, index)
            path = Path(folder) / name / f"{name}_{index:03d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(exported(make(rng), suffix))
            written.append(path)
    return written
