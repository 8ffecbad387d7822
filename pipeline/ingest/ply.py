"""Reader of PLY files, text and binary, meshes and point clouds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from pipeline.ingest.mesh import Mesh
from pipeline.ingest.mesh_files import check_faces, color_bytes, polygon_mesh, short
from schemas.samples import Code, RejectedSample

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
COLOR_NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
PART_NAMES = ("part", "part_id", "segment", "label", "category_id")


@dataclass
class Element:
    """A table of a PLY file: plain columns, and lists as (all values, how many in each row)."""

    count: int
    properties: list[tuple[str, str, str | None]]
    """Name, type, and of lists the type of the length."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def table(self, *names: str) -> np.ndarray | None:
        """Columns side by side; None when one is missing."""
        if any(name not in self.columns for name in names):
            return None
        return np.stack([self.columns[name] for name in names], axis=1)

    def color(self) -> np.ndarray | None:
        """uint8 colors: integers as they are, floats from [0, 1]."""
        for names in COLOR_NAMES:
            values = self.table(*names)
            if values is not None:
                whole = values.dtype.kind in "iu" and values.dtype.itemsize == 1
                return values.astype(np.uint8) if whole else color_bytes(values)
        return None


def read_ply(data: bytes, max_faces: int, max_points: int | None = None) -> dict[str, Element]:
    """All elements of a PLY file; counts are checked against the limits before they are read."""
    header = re.match(rb"ply\s.*?\bend_header[ \t]*(\r\n|\n|\r)", data, re.S)
    if header is None:
        raise RejectedSample(Code.DECODE, "not a PLY file, or its header is cut off")
    lines = [line.split() for line in header.group().decode("latin-1").splitlines()]
    order, elements = None, {}
    try:
        for words in lines[1:-1]:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format":
                order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[
                    words[1]
                ]
            elif words[0] == "element":
                elements[words[1]] = last = Element(int(words[2]), [])
            elif words[1] == "list":
                last.properties.append((words[4], TYPES[words[3]], TYPES[words[2]]))
            else:
                last.properties.append((words[2], TYPES[words[1]], None))
    except (KeyError, IndexError, ValueError, UnboundLocalError) as error:
        raise RejectedSample(Code.DECODE, f"PLY header line {' '.join(words)[:80]!r}") from error
    if order is None or any(e.count < 0 for e in elements.values()):
        raise RejectedSample(Code.DECODE, "the PLY header lacks its format or a count")
    if "face" in elements:
        check_faces(elements["face"].count, max_faces)
    points = elements["vertex"].count if "vertex" in elements else 0
    if max_points is not None and points > max_points:
        raise RejectedSample(
            Code.TOO_LARGE, f"{points:,} points, more than ingest.max_points ({max_points:,})"
        )
    try:
        if order:
            _read_binary(data, header.end(), order, elements)
        else:
            _read_text(data[header.end() :], elements)
    except _Short as error:
        raise RejectedSample(Code.DECODE, f"truncated PLY: {error}") from error
    except (ValueError, OverflowError) as error:
        raise RejectedSample(Code.DECODE, f"the PLY body: {short(error)}") from error
    return elements


class _Short(Exception):
    """The file ends before its elements do."""


def _read_binary(data, start, order, elements):
    for name, element in elements.items():
        if not element.count or not element.properties:
            continue
        lists = [p for p in element.properties if p[2]]
        kind = _row_type(data, start, order, element)
        need = kind.itemsize * element.count if kind else 0
        if kind is not None and start + need <= len(data):
            rows = np.frombuffer(data, kind, element.count, start)
            if all((rows[f"#{p[0]}"] == rows[f"#{p[0]}"][0]).all() for p in lists):
                _take(element, rows)
                start += need
                continue
        if kind is None or not lists:
            have = max(0, len(data) - start)
            raise _Short(f"{element.count:,} rows of '{name}' do not fit in {have:,} bytes")
        start = _walk(data, start, order, name, element)


def _row_type(data, start, order, element):
    """The layout of a row if all lists are as long as those of the first; None if it is cut."""
    fields, offset = [], start
    for name, kind, length in element.properties:
        if length is None:
            fields.append((name, order + kind))
            offset += np.dtype(kind).itemsize
            continue
        if offset + np.dtype(length).itemsize > len(data):
            return None
        count = int(np.frombuffer(data, order + length, 1, offset)[0])
        fields += [(f"#{name}", order + length), (name, order + kind, (max(count, 0),))]
        offset += np.dtype(length).itemsize + count * np.dtype(kind).itemsize
        if count < 0 or offset > len(data):
            return None
    return np.dtype(fields)


def _take(element, rows):
    """Keeps the columns of a structured array whose lists are all of one length."""
    for name, kind, length in element.properties:
        column = rows[name]
        if length is None:
            element.columns[name] = column.astype(kind)
        else:
            counts = np.full(element.count, column.shape[1], np.int64)
            element.lists[name] = column.reshape(-1).astype(kind), counts


def _walk(data, start, order, name, element):
    """Reads rows one by one: lists of different lengths."""
    values = {p[0]: [] for p in element.properties}
    counts = {p[0]: [] for p in element.properties if p[2]}
    sizes = [
        (p, np.dtype(order + p[1]), np.dtype(order + p[2]) if p[2] else None)
        for p in element.properties
    ]
    for row in range(element.count):
        for (column, _, _), kind, length in sizes:
            count = 1
            if length is not None:
                if start + length.itemsize > len(data):
                    raise _Short(f"ends in row {row:,} of {element.count:,} of '{name}'")
                count = int(np.frombuffer(data, length, 1, start)[0])
                start += length.itemsize
                counts[column].append(count)
            end = start + count * kind.itemsize
            if count < 0 or end > len(data):
                raise _Short(f"ends in row {row:,} of {element.count:,} of '{name}'")
            values[column].append(data[start:end])
            start = end
    for column, kind, length in element.properties:
        flat = np.frombuffer(b"".join(values[column]), order + kind).astype(kind)
        if length is None:
            element.columns[column] = flat
        else:
            element.lists[column] = flat, np.array(counts[column], np.int64)
    return start


def _read_text(body, elements):
    words = body.split()
    at = 0
    for name, element in elements.items():
        plain = all(p[2] is None for p in element.properties)
        if plain:
            width = len(element.properties)
            end = at + width * element.count
            if end > len(words):
                raise _Short(
                    f"{(len(words) - at) // max(width, 1):,} of {element.count:,} rows of '{name}'"
                )
            flat = np.array(list(map(float, words[at:end])), np.float64)
            for column, (label, kind, _) in enumerate(element.properties):
                values = flat.reshape(element.count, width)[:, column]
                element.columns[label] = values if kind[0] == "f" else values.astype(np.int64)
            at = end
            continue
        values = {p[0]: [] for p in element.properties}
        counts = {p[0]: [] for p in element.properties if p[2]}
        for row in range(element.count):
            for label, _, length in element.properties:
                if at >= len(words):
                    raise _Short(f"{row:,} of {element.count:,} rows of '{name}'")
                count = 1
                if length:
                    count = int(words[at])
                    counts[label].append(count)
                    at += 1
                if count < 0 or at + count > len(words):
                    raise _Short(f"{row:,} of {element.count:,} rows of '{name}'")
                values[label] += words[at : at + count]
                at += count
        for label, kind, length in element.properties:
            flat = np.array(list(map(float, values[label])), np.float64)
            flat = flat if kind[0] == "f" else flat.astype(np.int64)
            if length:
                element.lists[label] = flat, np.array(counts[label], np.int64)
            else:
                element.columns[label] = flat


def positions(elements: dict[str, Element]) -> np.ndarray:
    """Vertex positions as contiguous float64."""
    table = elements["vertex"].table("x", "y", "z") if "vertex" in elements else None
    if table is None:
        raise RejectedSample(Code.DECODE, "the PLY file has no vertices with x, y and z")
    return np.ascontiguousarray(table, np.float64)


def has_faces(elements: dict[str, Element]) -> bool:
    return "face" in elements and elements["face"].count > 0


def ply_mesh(elements: dict[str, Element], max_faces: int) -> Mesh:
    """The mesh in a PLY file, without faces if it is a point cloud."""
    vertices = positions(elements)
    if not has_faces(elements):
        return Mesh(vertices, np.zeros((0, 3), np.int64))
    table = elements["face"]
    lists = table.lists.get("vertex_indices") or table.lists.get("vertex_index")
    if lists is None:
        raise RejectedSample(Code.DECODE, "the PLY file's faces have no list 'vertex_indices'")
    corners, counts = lists[0].astype(np.int64), lists[1]
    faces, polygon, _ = polygon_mesh(vertices, corners, counts, max_faces)
    vertex_color, face_color, color = elements["vertex"].color(), table.color(), None
    if face_color is not None:
        color = np.repeat(face_color[polygon][:, None], 3, axis=1)
    elif vertex_color is not None:
        color = vertex_color[faces]
    for name in PART_NAMES:
        if name in table.columns:
            values, part = np.unique(table.columns[name][polygon], return_inverse=True)
            return Mesh(
                vertices, faces, part.reshape(-1).astype(np.int32), tuple(map(str, values)), color
            )
    return Mesh(vertices, faces, color=color)
