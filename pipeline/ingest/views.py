"""Pictures of a mesh from seeded directions all around, with their masks and cameras.

One ray a pixel, through its center, to the first triangle it meets; both sides of a triangle are
seen. Light is fixed in the box, so that a point has one color however it is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import igl
import numpy as np
from jaxtyping import Bool, Float64, UInt8

from pipeline.ingest.mesh import Mesh, double_areas
from pipeline.ingest.sampling import SurfacePoints, stream, surface_color
from schemas.run import ShapeIngest

DISTANCE = 2.5
"""From the camera to the center of the box."""
LIGHT = np.array([0.35, -0.25, 0.9]) / np.linalg.norm([0.35, -0.25, 0.9])
"""Direction to the light."""
AMBIENT = 0.35
"""Share of the light that comes from everywhere."""
GRAY = 204
"""Color of a mesh without colors."""
BACKGROUND = 255


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras in axes x right, y down, z forward."""

    camera_to_world: Float64[np.ndarray, "v 4 4"]
    intrinsics: Float64[np.ndarray, "v 3 3"]
    """In pixels; the center of the pixel in column i, row j is at (i + 1/2, j + 1/2)."""
    size: int
    """Pixels a side."""


def cameras_around(rng: np.random.Generator, count: int, size: int) -> Cameras:
    """Cameras evenly spread on a sphere, turned at random, that look at its center.

    The unit ball just fills the picture.
    """
    step = np.arange(count) + 0.5
    height, turn = 1 - 2 * step / count, step * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    spiral = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    directions = rng.permutation(spiral) @ _rotation(rng).T
    poses = np.stack([look_at(DISTANCE * direction) for direction in directions])
    focal = size / 2 * np.sqrt(DISTANCE**2 - 1)
    pinhole = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return Cameras(poses, np.tile(pinhole, (count, 1, 1)), size)


def look_at(position: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "4 4"]:
    """Pose of a camera that looks at the origin, with z up in its picture."""
    forward = -position / np.linalg.norm(position)
    up = np.array([0.0, 0, 1]) if abs(forward[2]) < 0.999 else np.array([0.0, 1, 0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, position], axis=1)
    return pose


def _rotation(rng: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """A uniform rotation (QR of a Gaussian matrix, signs fixed)."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def render(
    mesh: Mesh, cameras: Cameras
) -> tuple[UInt8[np.ndarray, "v s s 3"], Bool[np.ndarray, "v s s"], Float64[np.ndarray, "v s s"]]:
    """Shaded colors (white where nothing is), masks, and depths along z (inf where nothing is)."""
    views, size = len(cameras.intrinsics), cameras.size
    vertices = np.ascontiguousarray(mesh.vertices)
    faces = np.ascontiguousarray(mesh.faces)
    tree = igl.AABB()
    tree.init(vertices, faces)
    normals, areas = double_areas(vertices, faces)
    normals = normals / np.maximum(areas, np.finfo(float).tiny)[:, None]
    column, row = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    pixels = np.stack([column, row, np.ones_like(row)], -1).reshape(-1, 3)
    color = np.full((views, size * size, 3), BACKGROUND, np.uint8)
    depth = np.full((views, size * size), np.inf)
    for view in range(views):
        pose = cameras.camera_to_world[view]
        rays = pixels @ np.linalg.inv(cameras.intrinsics[view]).T @ pose[:3, :3].T
        some = np.flatnonzero(_meet_box(pose[:3, 3], rays, vertices.min(0), vertices.max(0)))
        start = np.tile(pose[:3, 3], (len(some), 1))
        face, along, place = tree.intersect_ray_first(vertices, faces, start, rays[some])
        hit = face >= 0
        some, face, along, place = some[hit], face[hit], along[hit], place[hit]
        weights = np.concatenate([1 - place.sum(1, keepdims=True), place], axis=1)
        at = start[hit] + along[:, None] * rays[some]
        material = surface_color(mesh, SurfacePoints(at, face, weights))
        normal = normals[face]
        normal = np.where((normal * rays[some]).sum(1, keepdims=True) > 0, -normal, normal)
        light = AMBIENT + (1 - AMBIENT) * (1 + normal @ LIGHT) / 2
        shaded = light[:, None] * (GRAY if material is None else material)
        color[view, some] = np.rint(shaded)
        depth[view, some] = along  # rays have z = 1 in the camera's axes
    shape = views, size, size
    return color.reshape(*shape, 3), np.isfinite(depth).reshape(shape), depth.reshape(shape)


def _meet_box(origin, rays, low, high):
    """Whether a ray meets a box (slabs; a rim of 1e-6 for what lies on its faces)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (low - 1e-6 - origin) / rays, (high + 1e-6 - origin) / rays
    enter, leave = np.fmin(a, b).max(1), np.fmax(a, b).min(1)
    return (leave >= enter) & (leave > 0)


def view_columns(mesh: Mesh, ingest: ShapeIngest, seed_key: str) -> dict[str, bytes]:
    """Columns of the views of a mesh in the box."""
    rng = stream(seed_key, ingest.seed, "views")
    cameras = cameras_around(rng, ingest.views, ingest.view_size)
    color, mask, _ = render(mesh, cameras)
    return {
        "views_color": color.tobytes(),
        "views_mask": np.packbits(mask).tobytes(),
        "views_camera_to_world": cameras.camera_to_world.astype("<f4").tobytes(),
        "views_intrinsics": cameras.intrinsics.astype("<f4").tobytes(),
    }
