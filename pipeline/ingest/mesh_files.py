"""Readers of STL and OFF meshes, and what all mesh readers share."""

from __future__ import annotations

import re
from itertools import chain

import numpy as np

from pipeline.ingest.mesh import Mesh
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
