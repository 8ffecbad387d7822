"""Pictures of meshes, of point clouds and of image fields, on a CPU: thumbnails for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from pipeline.samples import pixel_coords

SURFACE_COLOR = (0.55, 0.67, 0.82)
BACKGROUND = 1.0
AMBIENT = 0.25


@dataclass(frozen=True)
class Rendering:
    """What a row looks like. Shapes also have geometry; pictures only have color."""

    color: Float[np.ndarray, "h w c"]
    """In [0, 1]; one, three or four channels."""
    depth: Float[np.ndarray, "h w"] | None = None
    """Distance behind the plane through the origin that faces the camera, NaN where nothing is."""
    normal: Float[np.ndarray, "h w 3"] | None = None
    """Unit normals that face the camera, in the object's axes; 0 where nothing is."""
    mask: Bool[np.ndarray, "h w"] | None = None

    def to_uint8(self) -> UInt8[np.ndarray, "h w c"]:
        return np.round(np.clip(self.color, 0, 1) * 255).astype(np.uint8)

    def to_image(self) -> Image.Image:
        """As a PIL image; color with more than four channels shows the first three."""
        values = self.to_uint8()
        channels = values.shape[-1]
        if channels == 1:
            return Image.fromarray(values[..., 0])
        if channels == 2:
            return Image.fromarray(values[..., 0])
        return Image.fromarray(values[..., :4] if channels == 4 else values[..., :3])


@dataclass(frozen=True)
class View:
    """An orthographic camera that looks at the origin from above and aside."""

    azimuth: float = 35.0
    """Degrees about the up axis."""
    elevation: float = 25.0
    """Degrees above the horizon."""
    up: str = "z"
    """Which axis of the object points up: x, y or z."""
    extent: float = 1.0
    """Half of the picture's height in object units."""

    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Rows: right, up and towards the camera, in the object's axes."""
        if self.up not in ("x", "y", "z"):
            raise ValueError(f"up axis '{self.up}' is not x, y or z")
        a, e = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        right = np.array([-np.sin(a), np.cos(a), 0.0])
        frame = np.stack([right, np.cross(towards, right), towards])
        return np.roll(frame, "zxy".index(self.up), axis=1)  # a cyclic change keeps handedness


def render_picture(
    color_at: Callable[[Float[Tensor, "p 2"]], Float[Tensor, "p c"]], height: int, width: int
) -> Rendering:
    """An image field at the pixel centres of any resolution."""
    color = color_at(pixel_coords(height, width)).float().cpu().numpy()
    return Rendering(np.clip(color.reshape(height, width, -1), 0, 1))


def render_mesh(
    mesh: trimesh.Trimesh, resolution: int = 128, *, view: View | None = None, samples: int = 2
) -> Rendering:
    """A mesh in matte shading; `samples`^2 rays a pixel."""
    import igl

    view = view or View()
    axes = view.axes()
    vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    faces = np.ascontiguousarray(mesh.faces, np.int64)
    fine = resolution * samples
    step = (np.arange(fine) * 2 + 1) / fine - 1
    x, y = np.meshgrid(step * view.extent, -step * view.extent)
    start = 4 * view.extent + float(np.abs(vertices).max(initial=0))
    origins = np.stack([x.ravel(), y.ravel(), np.full(x.size, start)], 1) @ axes
    directions = np.tile(-axes[2], (len(origins), 1))
    tree = igl.AABB()
    tree.init(vertices, faces)
    face, t, uv = tree.intersect_ray_first(vertices, faces, origins, directions)
    hit = face >= 0
    corners = faces[face[hit]]
    weights = np.stack([1 - uv[hit].sum(1), uv[hit, 0], uv[hit, 1]], 1)
    normals = np.zeros((len(origins), 3))
    normals[hit] = (mesh.vertex_normals[corners] * weights[..., None]).sum(1)
    depth = np.where(hit, t - start, np.nan)
    return _shade(hit, depth, normals, axes, fine, samples)


def render_points(
    points: Float[np.ndarray, "p 3"],
    normals: Float[np.ndarray, "p 3"] | None,
    resolution: int = 128,
    *,
    view: View | None = None,
    radius: float | None = None,
    samples: int = 2,
) -> Rendering:
    """A point cloud as discs that face the camera; without normals they are lit from the front.

    The radius, in object units, follows from the number of points when absent: dense enough that
    few holes show on a surface of area 4.
    """
    view = view or View()
    if radius is None:
        radius = float(np.clip(2.5 / np.sqrt(max(len(points), 1)), 0.008, 0.05))
    axes = view.axes()
    fine = resolution * samples
    place = points @ axes.T
    pixel = np.stack([view.extent - place[:, 1], place[:, 0] + view.extent], 1)
    pixel = np.floor(pixel / (2 * view.extent) * fine).astype(np.int64)
    reach = max(int(np.ceil(radius / view.extent * fine / 2)), 0)
    around = np.arange(-reach, reach + 1)
    disc = [(i, j) for i in around for j in around if i * i + j * j <= (reach + 0.5) ** 2]
    depth = np.full(fine * fine, np.inf)
    nearest = np.full(fine * fine, -1)
    order = np.argsort(place[:, 2], kind="stable")  # far to near: the last writer is nearest
    for i, j in disc:
        row, column = pixel[order, 0] + i, pixel[order, 1] + j
        seen = (row >= 0) & (row < fine) & (column >= 0) & (column < fine)
        index, source = (row * fine + column)[seen], order[seen]
        candidate = np.full(fine * fine, -1)
        candidate[index] = source
        distance = np.where(candidate >= 0, -place[candidate, 2], np.inf)
        nearest = np.where(distance < depth, candidate, nearest)
        depth = np.minimum(distance, depth)
    hit = nearest >= 0
    shown = np.zeros((fine * fine, 3))
    if normals is not None:
        shown[hit] = normals[nearest[hit]]
    else:
        shown[hit] = axes[2]
    return _shade(hit, np.where(hit, depth, np.nan), shown, axes, fine, samples)


def _shade(
    hit: np.ndarray,
    depth: np.ndarray,
    normals: np.ndarray,
    axes: np.ndarray,
    fine: int,
    samples: int,
) -> Rendering:
    """Lambert shading under a light above the camera's left shoulder; averages `samples`^2 rays."""
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.where(length > 0, length, 1)
    facing = normals @ axes[2]
    normals = np.where(facing[:, None] < 0, -normals, normals)  # soups have no reliable side
    light = np.array([-0.45, 0.65, 0.8]) @ axes
    light /= np.linalg.norm(light)
    lambert = AMBIENT + (1 - AMBIENT) * np.clip(normals @ light, 0, 1)
    color = np.where(hit[:, None], lambert[:, None] * np.array(SURFACE_COLOR), BACKGROUND)
    size = fine // samples

    def blocks(values: np.ndarray) -> np.ndarray:
        shaped = values.reshape(size, samples, size, samples, -1)
        return shaped.transpose(0, 2, 1, 3, 4).reshape(size, size, samples * samples, -1)

    covered = blocks(hit)[..., 0]
    near = np.where(covered, blocks(depth)[..., 0], np.inf).min(-1)
    mean = (blocks(normals) * covered[..., None]).sum(2)
    mean /= np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
    return Rendering(
        color=blocks(color).mean(2).astype(np.float32),
        depth=np.where(np.isfinite(near), near, np.nan).astype(np.float32),
        normal=mean.astype(np.float32),
        mask=covered.mean(-1) >= 0.5,
    )
