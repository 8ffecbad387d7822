"""From the bytes of a point cloud, or of a mesh to sample, to the columns of a prepared cloud."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.ingest.cloud_distances import distance_sets
from pipeline.ingest.mesh import double_areas
from pipeline.ingest.mesh_files import color_bytes, short
from pipeline.ingest.meshes import READERS, clean_mesh, read_mesh, suffix
from pipeline.ingest.normalize import normalization, rounded
from pipeline.ingest.ply import positions, read_ply
from pipeline.ingest.sampling import draw_surface, stream, surface_color
from schemas.run import PointIngest
from schemas.samples import Code, RejectedSample

TEXT_SUFFIXES = (".xyz", ".xyzn", ".pts", ".asc", ".txt", ".csv")
CLOUD_SUFFIXES = (".ply", ".npz", ".npy", *TEXT_SUFFIXES, *(s for s in READERS if s != ".ply"))
MAX_FACES = 20_000_000
"""Of a mesh that is read as a cloud."""
POSITION_KEYS = ("points", "pos", "positions", "xyz", "coords", "vertices", "pc", "pointcloud")
NORMAL_KEYS = ("normals", "normal", "norms")
COLOR_KEYS = ("colors", "color", "rgb")
LEAST_POINTS = 4


@dataclass(frozen=True)
class Cloud:
    """Points, and what is known of each."""

    points: Float64[np.ndarray, "p 3"]
    normals: Float64[np.ndarray, "p 3"] | None = None
    color: UInt8[np.ndarray, "p 3"] | None = None


def read_cloud(
    files: Mapping[str, bytes], main: str, ingest: PointIngest, seed_key: str
) -> tuple[Cloud, bool]:
    """The cloud of a sample, several files one after the other, and whether it was a mesh.

    A mesh is sampled uniformly in area, with the normals of its faces.
    """
    names = [main, *sorted(n for n in files if n != main and suffix(n) in CLOUD_SUFFIXES)]
    for name in names:
        if not files[name].strip(b"\0 \t\r\n"):
            raise RejectedSample(Code.EMPTY, f"{posixpath.basename(name)} is empty")
    if _is_mesh(files[main], main):
        meshes = {n: d for n, d in files.items() if n not in names or _is_mesh(d, n)}
        return _sampled(meshes, main, ingest, seed_key), True
    clouds = [_read_file(files[name], name, ingest.max_points) for name in names]
    if len(clouds) == 1:
        return clouds[0], False
    joined = Cloud(
        np.concatenate([c.points for c in clouds]),
        _all_or_none([c.normals for c in clouds]),
        _all_or_none([c.color for c in clouds]),
    )
    return joined, False


def _all_or_none(columns):
    return None if any(c is None for c in columns) else np.concatenate(columns)


def _is_mesh(data: bytes, name: str) -> bool:
    kind = suffix(name)
    if kind == ".ply":
        header = data[: data.find(b"end_header") + 1]
        return bool(re.search(rb"(?m)^element face 0*[1-9]", header))
    return kind in READERS and not (kind == ".obj" and not re.search(rb"(?m)^[ \t]*f\s", data))


def _read_file(data: bytes, name: str, max_points: int) -> Cloud:
    kind = suffix(name)
    if kind == ".ply":
        elements = read_ply(data, MAX_FACES, max_points)
        points = positions(elements)
        vertex = elements["vertex"]
        return Cloud(points, _as_float(vertex.table("nx", "ny", "nz")), vertex.color())
    if kind in (".npz", ".npy"):
        return _read_numpy(data, kind, max_points)
    if kind == ".obj":
        lines = re.findall(rb"(?m)^[ \t]*v[ \t]+([^\r\n]*)", data)
        _check_count(len(lines), max_points)
        return _from_table([line.split() for line in lines], [])
    if kind in TEXT_SUFFIXES:
        return _read_text(data, max_points)
    raise RejectedSample(Code.DECODE, f"'{kind}' is not a format of point clouds")


def _as_float(values):
    return None if values is None else values.astype(np.float64)


def _check_count(count: int, max_points: int) -> None:
    if count > max_points:
        raise RejectedSample(
            Code.TOO_LARGE, f"{count:,} points, more than ingest.max_points ({max_points:,})"
        )


def _read_numpy(data: bytes, kind: str, max_points: int) -> Cloud:
    """NPZ by the names of its arrays; NPY, or an NPZ of one array, by the width."""
    try:
        if kind == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > 100 * max_points:
                raise RejectedSample(Code.TOO_LARGE, f"{unpacked:,} bytes once unpacked")
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        else:
            arrays = {"points": np.load(io.BytesIO(data), allow_pickle=False)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, SyntaxError, MemoryError) as error:
        raise RejectedSample(
            Code.DECODE, f"not a readable {kind[1:].upper()} file: {short(error)}"
        ) from error
    points = _first(arrays, POSITION_KEYS)
    if points is None and len(arrays) == 1:
        points = next(iter(arrays.values()))
    if points is None or points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        found = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in list(arrays.items())[:8])
        raise RejectedSample(Code.DECODE, f"no array 'points' of shape [n, 3]; it holds {found}")
    _check_count(len(points), max_points)
    if points.shape[1] > 3:
        return _from_columns(points.astype(np.float64), [])
    normals, color = _first(arrays, NORMAL_KEYS), _first(arrays, COLOR_KEYS)
    if normals is not None and normals.shape != points.shape:
        raise RejectedSample(
            Code.DECODE, f"normals {list(normals.shape)} do not match points {list(points.shape)}"
        )
    if color is not None and (color.ndim != 2 or len(color) != len(points) or color.shape[1] < 3):
        color = None
    if color is not None:
        color = color[:, :3]
        color = color if color.dtype == np.uint8 else color_bytes(color)
    return Cloud(np.ascontiguousarray(points, np.float64), _as_float(normals), color)


def _first(arrays, names):
    lower = {key.lower(): value for key, value in arrays.items()}
    return next((lower[name] for name in names if name in lower), None)


def _read_text(data: bytes, max_points: int) -> Cloud:
    """One point a line; separators are blanks, commas or semicolons; a line of names may lead."""
    names: list[str] = []
    rows = []
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    for line in data.splitlines():
        words = line.replace(b",", b" ").replace(b";", b" ").split()
        if not words or line.lstrip()[:1] == b"#" or line.lstrip()[:2] == b"//":
            continue
        if not rows and not _is_number(words[0]):
            names = [w.decode("utf-8", "replace").strip('"').lower() for w in words]
            continue
        rows.append(words)
        _check_count(len(rows), max_points)
    if len(rows) > 1 and len(rows[0]) == 1 and len(rows[1]) >= 3:  # PTS: the count comes first
        if rows[0][0].isdigit() and int(rows[0][0]) > len(rows) - 1:
            raise RejectedSample(
                Code.DECODE,
                f"truncated: {int(rows[0][0]):,} points announced, {len(rows) - 1:,} there",
            )
        rows = rows[1:]
    if not rows:
        raise RejectedSample(Code.DECODE, "the text holds no line of numbers")
    return _from_table(rows, names)


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _from_table(rows: list[list[bytes]], names: list[str]) -> Cloud:
    width = len(rows[0]) if rows else 0
    if width < 3:
        raise RejectedSample(Code.DECODE, f"{width} numbers a line; a point needs three")
    wrong = next((n for n, row in enumerate(rows) if len(row) != width), None)
    if wrong is not None:
        raise RejectedSample(
            Code.DECODE, f"point {wrong + 1} has {len(rows[wrong])} numbers, the first has {width}"
        )
    try:
        table = np.array([[float(word) for word in row] for row in rows])
    except ValueError as error:
        raise RejectedSample(Code.DECODE, f"the points: {short(error)}") from error
    return _from_columns(table, names)


def _from_columns(table: np.ndarray, names: list[str]) -> Cloud:
    """Named columns by name; else x y z, and then normals if they have unit length, else colors."""
    index = (
        {name: column for column, name in enumerate(names)} if len(names) == table.shape[1] else {}
    )
    if all(axis in index for axis in "xyz"):
        points = table[:, [index[axis] for axis in "xyz"]]
        normals = color = None
        if all(f"n{axis}" in index for axis in "xyz"):
            normals = table[:, [index[f"n{axis}"] for axis in "xyz"]]
        for channels in (("r", "g", "b"), ("red", "green", "blue")):
            if all(channel in index for channel in channels):
                color = color_bytes(table[:, [index[channel] for channel in channels]])
        return Cloud(points, normals, color)
    points, normals, color = np.ascontiguousarray(table[:, :3]), None, None
    rest = table[:, 3:]
    if rest.shape[1] == 4:  # PTS: intensity, then color
        rest = rest[:, 1:]
    for block in (rest[:, start : start + 3] for start in range(0, rest.shape[1] - 2, 3)):
        if normals is None and _is_unit(block):
            normals = block
        elif color is None and len(block) and block.min() >= 0 and block.max() <= 255:
            color = color_bytes(block)
    return Cloud(points, normals, color)


def _is_unit(vectors: np.ndarray) -> bool:
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt((vectors**2).sum(1))
    return len(lengths) > 0 and bool((np.abs(lengths - 1) < 0.02).mean() > 0.95)


def _sampled(files, main, ingest, seed_key) -> Cloud:
    mesh = clean_mesh(read_mesh(files, main, MAX_FACES))
    place = normalization(mesh.vertices, "sphere")  # areas of huge coordinates keep their digits
    vertices = place.to_box(mesh.vertices)
    normals, areas = double_areas(vertices, mesh.faces)
    if not areas.sum() > 0:
        raise RejectedSample(Code.DEGENERATE, "all faces have zero area")
    rng = stream(seed_key, ingest.seed, "mesh")
    count = ingest.surface + ingest.held_out
    on = draw_surface(rng, vertices, mesh.faces, np.cumsum(areas), count)
    points = on.coords / place.scale + place.center
    return Cloud(points, normals[on.face] / areas[on.face, None], surface_color(mesh, on))


def decode_cloud(
    files: dict[str, bytes], main: str, ingest: PointIngest, seed_key: str
) -> dict[str, object]:
    """Columns of `schemas.samples.form_schema` of one sample: a function of its arguments alone.

    Raises:
        RejectedSample: the sample cannot be used; its code and message say why.
    """
    cloud, drawn = read_cloud(files, main, ingest, seed_key)
    points, count = cloud.points, len(cloud.points)
    if count < LEAST_POINTS:
        raise RejectedSample(Code.EMPTY, f"{count} points; a cloud needs at least {LEAST_POINTS}")
    finite = np.isfinite(points).all(1)
    if not finite.all():
        raise RejectedSample(
            Code.NAN_INPUT, f"{int((~finite).sum()):,} of {count:,} points are NaN or infinite"
        )
    place = normalization(points, ingest.normalize)
    order = stream(seed_key, ingest.seed, "order").permutation(count)
    held = min(ingest.held_out, count if drawn else count // 4)
    chosen = {"held_surface": order[:held], "surface": order[held : held + ingest.surface]}
    unit = None if ingest.normals == "none" else _unit(cloud.normals)
    if unit is None and ingest.normals == "require":
        which = "has no normals" if cloud.normals is None else "has points without a normal"
        raise RejectedSample(
            Code.NO_NORMALS, f"the cloud {which} (ingest.normals: require); set it to auto"
        )
    columns: dict[str, object] = {"precision": ingest.precision}
    for name, pick in chosen.items():
        coords = rounded(place.to_box(points[pick]), ingest.precision)[0]
        columns[f"{name}_coords"] = coords.tobytes()
        columns[f"{name}_normals"] = None if unit is None else unit[pick].astype("<f2").tobytes()
        columns[f"{name}_color"] = None if cloud.color is None else cloud.color[pick].tobytes()
    if ingest.near or ingest.uniform:
        columns |= distance_sets(place.to_box(points[order]), held, ingest, seed_key)
    return columns | {"center": place.center.tolist(), "scale": place.scale}


def _unit(normals):
    """Normals of unit length; none at all if any has no direction."""
    if normals is None:
        return None
    lengths = np.sqrt(np.einsum("pd,pd->p", normals, normals))
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        return None
    return normals / lengths[:, None]
