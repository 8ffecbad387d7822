"""Reader of OBJ meshes and the materials they name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain

import numpy as np

from pipeline.ingest.mesh import Mesh, Texture
from pipeline.ingest.mesh_files import color_bytes, polygon_mesh, short
from pipeline.ingest.pictures import read_picture, resolve
from schemas.samples import Code, RejectedSample


def read_obj(data: bytes, files: Mapping[str, bytes], main: str, max_faces: int) -> Mesh:
    """OBJ: polygons, negative indices, vertex colors, groups or materials as parts, MTL colors."""
    if b"\\" in data:
        data = data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")
    positions, texture_positions, polygons, before = [], [], [], []
    marks: list[tuple[int, bytes, str]] = []  # polygons seen before it, keyword, name
    libraries: list[str] = []
    for line in data.splitlines():
        head = line[:2]
        if head not in _OBJ_HEADS:
            line = line.strip()
            head = line[:2].replace(b"\t", b" ")
        if head == b"v ":
            positions.append(line[2:].split())
        elif head == b"f ":
            polygons.append(line[2:])
            before.append((len(positions), len(texture_positions)))
        elif head == b"vt":
            texture_positions.append(line[3:].split()[:2])
        elif head in (b"us", b"o ", b"g ", b"mt", b"g"):
            word, _, rest = line.partition(b" ")
            name = rest.strip().decode("utf-8", "replace")
            if word == b"mtllib":
                libraries.append(name)
            elif word in (b"usemtl", b"o", b"g"):
                marks.append((len(polygons), word, name))
    vertices, vertex_color = _obj_vertices(positions)
    if not polygons:
        return Mesh(vertices, np.zeros((0, 3), np.int64))
    if b"#" in data:
        polygons = [line.partition(b"#")[0] for line in polygons]
    joined = b" 0 ".join(polygons)
    corners, counts = _obj_corners(re.sub(rb"/\S*", b"", joined), len(polygons))
    seen = np.array(before, np.int64)
    corners = _from_one(corners, np.repeat(seen[:, 0], counts))
    faces, polygon, picks = polygon_mesh(vertices, corners, counts, max_faces)
    part, names = _obj_parts(marks, polygon)
    color = None if vertex_color is None else vertex_color[faces]
    materials = _obj_materials(libraries, files, main)
    texture = None
    if materials and color is None:
        of_face, material_names = _marked(marks, (b"usemtl",), polygon)
        known = [materials.get(name, ({}, None)) for name in material_names]
        color = np.repeat(
            np.array([m[0].get("Kd", (0.8, 0.8, 0.8)) for m in known])[of_face][:, None], 3, axis=1
        )
        color = color_bytes(np.clip(color, 0, 1))
        texture = _obj_texture(joined, texture_positions, seen, counts, picks, known, of_face)
    return Mesh(vertices, faces, part, names, color, texture)


_OBJ_HEADS = frozenset((b"v ", b"vn", b"vt", b"f "))


def _obj_vertices(positions):
    """Positions and, where the lines carry them, colors."""
    widths = set(map(len, positions))
    if not positions:
        return np.zeros((0, 3)), None
    if min(widths) < 3:
        raise RejectedSample(Code.DECODE, "a vertex line has fewer than three numbers")
    if len(widths) > 1:
        positions = [p[:3] for p in positions]
    width = len(positions[0])
    try:
        flat = np.fromiter(map(float, chain.from_iterable(positions)), np.float64)
    except ValueError as error:
        raise RejectedSample(
            Code.DECODE, f"a vertex line of the OBJ file: {short(error)}"
        ) from error
    table = flat.reshape(-1, width)
    colors = color_bytes(table[:, 3:6]) if width in (6, 7) else None
    return np.ascontiguousarray(table[:, :3]), colors


def _obj_corners(text: bytes, lines: int):
    """Numbers of all polygons and how many each has; a 0 stands between two polygons."""
    try:
        values = np.fromiter(map(int, text.split()), np.int64)
    except (ValueError, OverflowError) as error:
        raise RejectedSample(Code.DECODE, f"a face line of the OBJ file: {short(error)}") from error
    ends = np.flatnonzero(values == 0)
    if len(ends) != lines - 1:
        raise RejectedSample(Code.DECODE, "a face names vertex 0; OBJ counts from 1")
    counts = np.diff(np.concatenate([[-1], ends, [len(values)]])) - 1
    return values[values != 0], counts


def _from_one(index, seen):
    """Indices from 0, of those that count from 1, or back from the last one seen (negative)."""
    return np.where(index > 0, index - 1, np.where(index + seen >= 0, index + seen, -1))


def _marked(marks, kinds, polygon):
    """For each face the index of the name in force there, and the names in order of use."""
    starts = np.array([0] + [m[0] for m in marks if m[1] in kinds])
    given = [""] + [m[2] for m in marks if m[1] in kinds]
    index = np.searchsorted(starts, polygon, side="right") - 1
    used, local = np.unique(index, return_inverse=True)
    names: dict[str, int] = {}
    numbers_ = np.array([names.setdefault(given[u], len(names)) for u in used], np.int32)
    return numbers_[local.reshape(-1)], tuple(names)


def _obj_parts(marks, polygon):
    """Groups or objects where there are several, else materials, else whatever is named."""
    best = None, ()
    for kinds in ((b"g", b"o"), (b"usemtl",)):
        part, names = _marked(marks, kinds, polygon)
        if len(names) > 1:
            return part, names
        if best[0] is None and names != ("",):
            best = part, names
    return best


def _obj_materials(libraries, files, main):
    """Name -> (its lines, folder of the library) of the MTL files at hand."""
    materials: dict[str, tuple[dict, object]] = {}
    for library in libraries:
        path = resolve(main, library)
        entry: dict = {}
        for line in files.get(path or "", b"").splitlines():
            word, _, rest = line.strip().partition(b" ")
            name = rest.strip().decode("utf-8", "replace")
            if word == b"newmtl":
                entry = {}
                materials[name] = (entry, None)
            elif word == b"Kd":
                try:
                    entry["Kd"] = tuple(float(x) for x in rest.split()[:3])
                except ValueError:
                    continue
                if len(entry["Kd"]) != 3:
                    del entry["Kd"]
            elif word == b"map_Kd" and path:
                picture = resolve(path, name.replace("\\", "/"))
                entry["image"] = files.get(picture or "")
    return materials


def _obj_texture(joined, texture_positions, seen, counts, picks, known, of_face):
    """The texture, when a material has a readable picture and every corner a texture position."""
    if not texture_positions or not any(entry.get("image") for entry, _ in known):
        return None
    index_text, found = re.subn(rb"(?<=\s)-?\d+/(-?\d+)\S*", rb"\1", b" " + joined)
    if found != counts.sum():
        return None
    try:
        corners, of_polygon = _obj_corners(index_text, len(counts))
        table = np.array([[float(x) for x in uv] for uv in texture_positions])
    except (RejectedSample, ValueError):
        return None
    if len(corners) != counts.sum() or not np.array_equal(of_polygon, counts):
        return None
    corners = _from_one(corners, np.repeat(seen[:, 1], counts))
    if table.ndim != 2 or corners.min() < 0 or corners.max() >= len(table):
        return None
    images, image_of = [], np.full(len(known), -1, np.int16)
    for number, (entry, _) in enumerate(known):
        picture = read_picture(entry["image"]) if entry.get("image") else None
        if picture is not None:
            image_of[number] = len(images)
            images.append(picture)
    uv = table[corners][picks].astype(np.float32)
    uv[..., 1] = 1 - uv[..., 1]  # OBJ counts up from the bottom
    return Texture(uv, image_of[of_face], tuple(images)) if images else None
