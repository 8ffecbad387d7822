"""Signed distances and surface points of a triangle soup, as they are stored in a prepared shard.

Sign: inside where the winding number w has |w| > 1/2 (the absolute value serves inside-out parts).
Magnitude: exact distance to the nearest triangle. The two are computed apart: libigl's own
`signed_distance` by winding numbers returns |d| (1 - 2 |w|), no distance on open or nested meshes.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

# Read once, at libigl's first parallel loop. Ingest runs one process a core, so one thread each.
os.environ.setdefault("IGL_NUM_THREADS", "1")

import igl
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.ingest.mesh import Mesh, corner_color, double_areas, is_watertight, welded_faces
from pipeline.ingest.normalize import rounded
from pipeline.ingest.voxels import inside_cells
from schemas.run import ShapeIngest
from schemas.samples import Code, RejectedSample

AMBIGUOUS = (0.25, 0.75)
"""Absolute winding numbers between these count as doubt."""
ON_SURFACE = 1e-6
"""A point nearer than this lies on the surface: its winding number says nothing."""
REDRAWS = 1000
NO_AREA = 1e-14
"""Twice the area (in the box) below which a face is left out: libigl's distance to a triangle
whose corners lie in one line is wrong by up to a tenth of its length; from 1e-13 on it is exact."""
SMALLEST_HALF = np.float16(6e-8)
"""Least float16 above 0: an inside point nearer than that must keep its sign."""


@dataclass(frozen=True)
class SurfacePoints:
    """Points on a mesh."""

    coords: Float64[np.ndarray, "p 3"]
    face: Int64[np.ndarray, "p"]
    weights: Float64[np.ndarray, "p 3"]
    """Barycentric coordinates in the face."""


def stream(seed_key: str, seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on the sample, the seed and the purpose, and on nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{name}\0{seed_key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(digest))))


def draw_surface(
    rng: np.random.Generator,
    vertices: Float64[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    cumulative_area: Float64[np.ndarray, "f"],
    count: int,
) -> SurfacePoints:
    """Points uniform in area."""
    pick = np.searchsorted(cumulative_area, rng.random(count) * cumulative_area[-1], side="right")
    face = np.minimum(pick, len(faces) - 1)
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
    corners = vertices[faces[face]]
    return SurfacePoints(np.einsum("pk,pkd->pd", weights, corners), face, weights)


def draw_near(
    rng: np.random.Generator,
    surface: Float64[np.ndarray, "p 3"],
    stds: tuple[float, ...],
) -> Float64[np.ndarray, "p 3"]:
    """Surface points moved by Gaussian noise; a point that leaves the box is drawn again."""
    std = rng.permutation(np.resize(np.array(stds), len(surface)))
    return jittered(rng, surface, std, f"ingest.near_std {max(stds):g}")


def jittered(
    rng: np.random.Generator,
    surface: Float64[np.ndarray, "p 3"],
    std: Float64[np.ndarray, "p"],
    what: str,
) -> Float64[np.ndarray, "p 3"]:
    """Points moved by Gaussian noise, of a deviation each, within the box."""
    std = std[:, None]
    points = surface + std * rng.standard_normal(surface.shape)
    outside = np.flatnonzero((np.abs(points) > 1).any(1))
    for _ in range(REDRAWS):
        if not len(outside):
            return points
        points[outside] = surface[outside] + std[outside] * rng.standard_normal((len(outside), 3))
        outside = outside[(np.abs(points[outside]) > 1).any(1)]
    raise ValueError(f"{what} puts nearly all points outside the box; the box is [-1, 1]")


def signed_distances(
    vertices: Float64[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    points: Float64[np.ndarray, "p 3"],
) -> tuple[Float64[np.ndarray, "p"], Float64[np.ndarray, "p"], Bool[np.ndarray, "p"], np.ndarray]:
    """Distances (negative inside) and what they were made of.

    Returns:
        Signed distance, winding number, whether the point is before its nearest face (on the side
        of its normal), and that face.
    """
    order = np.argsort(morton(points))  # neighbors find the tree's nodes in the cache: 1.7 x faster
    points = points[order]
    tree = igl.AABB()
    tree.init(vertices, faces)
    squared, face, closest = tree.squared_distance(vertices, faces, points)
    winding = igl.fast_winding_number(vertices, faces, points)
    a, b, c = (vertices[faces[face, k]] for k in range(3))
    before = np.einsum("pd,pd->p", points - closest, np.cross(b - a, c - a)) > 0
    distance = np.sqrt(squared)
    distance = np.where(np.abs(winding) > 0.5, -distance, distance)
    back = np.zeros_like(order)
    back[order] = np.arange(len(order))
    return distance[back], winding[back], before[back], face[back]


def morton(points: Float64[np.ndarray, "p 3"]) -> Int64[np.ndarray, "p"]:
    """Place of points of the box along a curve that keeps neighbors together (10 bits an axis)."""
    bits = ((points + 1) * 511.999).astype(np.int64)
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        bits = (bits | (bits << shift)) & mask
    return bits[:, 0] | (bits[:, 1] << 1) | (bits[:, 2] << 2)


def sample_shape(
    mesh: Mesh, ingest: ShapeIngest, seed_key: str
) -> dict[str, bytes | float | int | bool | list[str] | None]:
    """Columns of `schemas.samples.form_schema`, without center and scale, of a mesh in the box.

    Its doubt is recorded in any case; with `ingest.sign: none` nothing is rejected for it,
    distances have no sign and normals point where the file has them point.

    Raises:
        RejectedSample: the mesh has no area, or its inside is in doubt.
    """
    normals, areas = double_areas(mesh.vertices, mesh.faces)
    kept = areas > NO_AREA
    total = float(areas.sum())
    if not kept.any() or not total > 0:
        raise RejectedSample(Code.DEGENERATE, "all faces have zero area")
    mesh, normals, areas = mesh.select(kept), normals[kept], areas[kept]
    vertices = np.ascontiguousarray(mesh.vertices)
    faces = np.ascontiguousarray(mesh.faces)
    cumulative = np.cumsum(areas)

    sizes = {"near": ingest.near, "uniform": ingest.uniform}
    sizes |= {f"held_{name}": ingest.held_out for name in ("near", "uniform")}
    stored, queries = {}, []
    for name, count in sizes.items():
        rng = stream(seed_key, ingest.seed, name)
        if name.endswith("near"):
            on = draw_surface(rng, vertices, faces, cumulative, count)
            points = draw_near(rng, on.coords, ingest.near_std)
        else:
            points = rng.uniform(-1, 1, (count, 3))
        stored[name], exact = rounded(points, ingest.precision)
        queries.append(exact)
    distance, winding, before, nearest = signed_distances(vertices, faces, np.concatenate(queries))
    inside = distance < 0
    counted = slice(0, ingest.near + ingest.uniform)
    doubt = _doubt(winding[counted], distance[counted])
    column = "distance"
    if ingest.sign == "none":
        column, distance = "unsigned_distance", np.abs(distance)
    else:
        _check_doubt(doubt, inside, ingest)

    columns: dict = {}
    starts = np.cumsum([0, *sizes.values()])
    for (name, count), start in zip(sizes.items(), starts):
        columns[f"{name}_coords"] = stored[name].tobytes()
        columns[f"{name}_{column}"] = stored_distance(
            distance[start : start + count], ingest.precision
        ).tobytes()
    welded = welded_faces(vertices, faces)
    outward = normals / areas[:, None]
    if ingest.sign != "none":
        outward = outward * _orientation(nearest, before, inside, welded)[:, None]
    for name, count in (("surface", ingest.surface), ("held_surface", ingest.held_out)):
        rng = stream(seed_key, ingest.seed, name)
        on = draw_surface(rng, vertices, faces, cumulative, count)
        columns[f"{name}_coords"] = rounded(on.coords, ingest.precision)[0].tobytes()
        columns[f"{name}_normals"] = outward[on.face].astype("<f2").tobytes()
        columns[f"{name}_color"] = _packed(surface_color(mesh, on))
        columns[f"{name}_part"] = _packed(_surface_part(mesh, on))
    if ingest.voxels:
        cells = inside_cells(vertices, faces, ingest.voxels)
        columns["voxels"] = np.packbits(cells).tobytes()
    return columns | {
        "part_names": list(mesh.part_names) if columns["surface_part"] is not None else None,
        "precision": ingest.precision,
        "doubt": doubt,
        "faces": len(faces),
        "watertight": is_watertight(welded),
    }


def surface_color(mesh: Mesh, on: SurfacePoints) -> UInt8[np.ndarray, "p 3"] | None:
    """Colors at surface points: corners blended, times the nearest texel of the texture."""
    if mesh.color is None and mesh.texture is None:
        return None
    color = np.einsum("pk,pkc->pc", on.weights, corner_color(mesh)[on.face].astype(np.float64))
    if mesh.texture is not None:
        uv = np.einsum("pk,pkc->pc", on.weights, mesh.texture.uv[on.face].astype(np.float64))
        which = mesh.texture.face_image[on.face]
        for number, image in enumerate(mesh.texture.images):
            here = np.flatnonzero((which == number) & np.isfinite(uv).all(1))
            height, width = image.shape[:2]
            place = (uv[here] % 1.0) * (width, height)
            column = np.minimum(place[:, 0].astype(np.int64), width - 1)
            row = np.minimum(place[:, 1].astype(np.int64), height - 1)
            color[here] *= image[row, column] / 255
    return np.clip(np.rint(color), 0, 255).astype(np.uint8)


def _surface_part(mesh: Mesh, on: SurfacePoints):
    """Part numbers at surface points; none where there are more than uint16 holds."""
    if mesh.part is None or len(mesh.part_names) > 65_536:
        return None
    return mesh.part[on.face].astype("<u2")


def _packed(values):
    return None if values is None else values.tobytes()


def stored_distance(distance, precision):
    """Distances as stored; those of inside points stay below 0 however small they are."""
    if precision == "float32":
        return distance.astype("<f4")
    half = distance.astype("<f2")
    half[(half == 0) & (distance < 0)] = -SMALLEST_HALF
    return half


def _doubt(winding, distance) -> float:
    """Share of points with an ambiguous winding number; on the surface itself it is always 1/2."""
    if not len(winding):
        return 0.0
    size = np.abs(winding)
    return float(
        ((size > AMBIGUOUS[0]) & (size < AMBIGUOUS[1]) & (np.abs(distance) > ON_SURFACE)).mean()
    )


def _check_doubt(doubt: float, inside: np.ndarray, ingest: ShapeIngest) -> None:
    way_out = (
        "set ingest.max_doubt: 1 to keep it all the same, ingest.sign: none for methods that need "
        "no sign, or read it with dataset.kind: points"
    )
    if doubt > ingest.max_doubt:
        raise RejectedSample(
            Code.DOUBTFUL_SIGN,
            f"{doubt:.1%} of the winding numbers are ambiguous (ingest.max_doubt: "
            f"{ingest.max_doubt:.1%}): the surface is open or its faces are turned at random; "
            + way_out,
        )
    if len(inside) and not inside.any() and ingest.max_doubt < 1:
        raise RejectedSample(
            Code.DOUBTFUL_SIGN,
            f"none of {len(inside):,} points is inside: the surface is open, too thin, or every "
            "face is there twice, turned both ways; " + way_out,
        )


def _orientation(nearest, before, inside, welded) -> np.ndarray:
    """+1 where a face's normal points out of the solid, -1 where it points in.

    The segment from a point to its nearest face crosses no other face, so an outside point before
    a face, or an inside one behind it, says that the normal points out. A face that no point is
    nearest to follows its connected part.
    """
    votes = np.bincount(nearest, np.where(before != inside, 1.0, -1.0), len(welded))
    sign = np.where(votes < 0, -1.0, 1.0)
    if (sign > 0).all():
        return sign
    _, label = connected_components(
        coo_array(
            (np.ones(2 * len(welded), np.int8),
             (np.repeat(welded[:, 0], 2), welded[:, 1:].reshape(-1))),
            shape=(int(welded.max()) + 1,) * 2,
        ),
        directed=False,
    )  # fmt: skip
    of_face = label[welded[:, 0]]
    total = np.bincount(of_face, votes)
    return np.where(votes == 0, np.where(total[of_face] < 0, -1.0, 1.0), sign)
