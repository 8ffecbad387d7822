"""Readers of OBJ, STL and OFF meshes, from bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain

import numpy as np

from pipeline.ingest.mesh import Mesh, Texture
from pipeline.ingest.pictures import read_picture, resolve
from pipeline.ingest.polygons import triangulated
from schemas.samples import Code, RejectedSample


def numbers(text: bytes, what: str) -> np.ndarray:
    """White-space separated numbers as float64."""
    try:
        return np.array(list(map(float, text.split())), np.float64)
    except ValueError as error:
        raise RejectedSample(Code.DECODE, f"{what}: {short(error)}") from error


def short(error: Exception) -> str:
    """An error's text, cut: it may quote a whole file."""
    return str(error)[:120]


def check_faces(count: int, max_faces: int) -> None:
    """Refuses a mesh with too many triangles before anything costly is done with it."""
    if count > max_faces:
        raise RejectedSample(
            Code.TOO_LARGE, f"{count:,} faces, more than ingest.max_faces ({max_faces:,})"
        )


def polygon_mesh(
    vertices: np.ndarray, corners: np.ndarray, counts: np.ndarray, max_faces: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles over `vertices`, each one's polygon, and its corners' positions in `corners`."""
    check_faces(int(np.maximum(counts - 2, 0).sum()), max_faces)
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        wrong = corners[(corners < 0) | (corners >= len(vertices))][0]
        raise RejectedSample(
            Code.DECODE, f"a face names vertex {wrong} (from 0), there are {len(vertices)}"
        )
    triangles, polygon = triangulated(vertices, corners, counts)
    return corners[triangles], polygon, triangles


def color_bytes(values: np.ndarray) -> np.ndarray:
    """uint8 colors of floats in [0, 1], or of numbers up to 255 where any exceeds 1."""
    values = np.nan_to_num(np.asarray(values, np.float64))
    scale = 1.0 if values.size and values.max() > 1 else 255.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


# OBJ ---------------------------------------------------------------------------------------------


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


# STL ---------------------------------------------------------------------------------------------

_STL_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_stl(data: bytes, max_faces: int) -> Mesh:
    """STL, binary or text; the solids of a text file are its parts."""
    text = data.lstrip()
    named = text[:5].lower() == b"solid"
    if not (named and (b"facet" in text[:4096].lower() or b"endsolid" in text[-4096:].lower())):
        return _read_binary_stl(data, max_faces)
    lower = text.lower() if b"vertex" not in text else text
    found = re.findall(rb"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", lower)
    check_faces(len(found) // 3, max_faces)
    if len(found) % 3 or (found and not re.search(rb"(?i)endsolid", text[-4096:])):
        raise RejectedSample(
            Code.DECODE, f"truncated STL: ends within a solid, after {len(found):,} vertices"
        )
    mesh = _loose(numbers(b" ".join(chain.from_iterable(found)), "STL").reshape(-1, 3, 3))
    return _with_solids(mesh, lower)


def _read_binary_stl(data: bytes, max_faces: int) -> Mesh:
    count = int.from_bytes(data[80:84], "little")
    size = 84 + 50 * count
    if len(data) < 84 or len(data) < size:
        raise RejectedSample(
            Code.DECODE,
            f"truncated, or no STL: {count:,} faces need {size:,} bytes, there are {len(data):,}",
        )
    check_faces(count, max_faces)
    corners = np.frombuffer(data, _STL_FACE, count, 84)["corners"]
    return _loose(corners.astype(np.float64))


def _loose(corners):
    vertices = np.ascontiguousarray(corners.reshape(-1, 3))
    return Mesh(vertices, np.arange(len(vertices)).reshape(-1, 3))


def _with_solids(mesh, text):
    """The mesh with its `solid NAME` sections as parts."""
    names: dict[str, int] = {}
    starts, which = [], []
    for match in re.finditer(rb"(?mi)^[ \t]*solid\b[ \t]*([^\r\n]*)", text):
        name = match.group(1).decode("utf-8", "replace").strip()
        starts.append(match.start())
        which.append(names.setdefault(name or f"solid {len(starts) - 1}", len(names)))
    if len(names) < 2 or not len(mesh.faces):
        return mesh
    facets = np.array([m.start() for m in re.finditer(rb"(?i)\bouter\s+loop\b", text)])
    if len(facets) != len(mesh.faces):
        return mesh
    section = np.searchsorted(np.array(starts), facets, side="right") - 1
    return Mesh(mesh.vertices, mesh.faces, np.array(which, np.int32)[section], tuple(names))


# OFF ---------------------------------------------------------------------------------------------


def read_off(data: bytes, max_faces: int) -> Mesh:
    """OFF, COFF, NOFF and CNOFF in text, also with `OFF` and the counts on one line (ModelNet)."""
    if b"#" in data:
        data = re.sub(rb"#[^\r\n]*", b"", data)
    match = re.match(rb"\s*(ST)?(C)?(N)?(4)?OFF\b(\s+BINARY)?|\s*(ST)?(C)?(N)?OFF(?=\d)", data)
    if match is None or match.group(4) or match.group(5):
        raise RejectedSample(Code.DECODE, "not an OFF text file (its first word must be OFF)")
    flags = match.groups()
    wide = 3 + 3 * bool(flags[2] or flags[7]) + 2 * bool(flags[0] or flags[5])
    lines = [line for line in data[match.end() :].splitlines() if line.strip()]
    head = numbers(lines[0], "counts of the OFF file") if lines else np.zeros(0)
    if len(head) < 2 or (head != np.floor(head)).any() or (head < 0).any():
        raise RejectedSample(Code.DECODE, "the OFF file does not begin with its counts")
    vertex_count, face_count = int(head[0]), int(head[1])
    check_faces(face_count, max_faces)
    if len(lines) < 1 + vertex_count + face_count:
        raise RejectedSample(
            Code.DECODE,
            f"truncated OFF: {vertex_count:,} vertices and {face_count:,} faces announced, "
            f"{len(lines) - 1:,} lines",
        )
    rows = [line.split() for line in lines[1 : 1 + vertex_count]]
    widths = set(map(len, rows)) or {3}
    if min(widths) < 3:
        raise RejectedSample(Code.DECODE, "a vertex line of the OFF file has fewer than 3 numbers")
    rows = rows if len(widths) == 1 else [row[:3] for row in rows]
    text = b" ".join(chain.from_iterable(rows))
    table = numbers(text, "OFF").reshape(len(rows), -1) if rows else np.zeros((0, 3))
    vertices = np.ascontiguousarray(table[:, :3])
    vertex_color = color_bytes(table[:, wide : wide + 3]) if table.shape[1] >= wide + 3 else None
    rows = [line.split() for line in lines[1 + vertex_count : 1 + vertex_count + face_count]]
    try:
        counts = np.array([int(row[0]) for row in rows], np.int64)
        used = [row[1 : n + 1] for row, n in zip(rows, counts)]
        corners = np.fromiter(map(int, chain.from_iterable(used)), np.int64)
    except (ValueError, OverflowError) as error:
        raise RejectedSample(Code.DECODE, f"a face line of the OFF file: {short(error)}") from error
    if (counts < 0).any() or len(corners) != counts.sum():
        raise RejectedSample(Code.DECODE, "a face line of the OFF file is shorter than it says")
    faces, polygon, _ = polygon_mesh(vertices, corners, counts, max_faces)
    color = None if vertex_color is None else vertex_color[faces]
    tails = [row[n + 1 : n + 4] for row, n in zip(rows, counts)]
    if color is None and tails and all(len(tail) == 3 for tail in tails):
        of_face = numbers(b" ".join(chain.from_iterable(tails)), "OFF colors").reshape(-1, 3)
        color = np.repeat(color_bytes(of_face)[polygon][:, None], 3, axis=1)
    return Mesh(vertices, faces, color=color)
