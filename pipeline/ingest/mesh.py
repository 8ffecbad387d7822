"""One triangle mesh in memory, with the part and the color of its faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Int32, Int64, UInt8

from schemas.samples import Code, RejectedSample

DEFAULT_COLOR = 204
"""Gray of faces without a color in a mesh where others have one (VRML's default material)."""
WELD_STEPS = 2**20 - 1
"""Positions are equal, for `is_watertight`, when they agree to this part of the half extent."""


@dataclass(frozen=True)
class Texture:
    """Pictures of a mesh, and where on them the corners of its faces lie."""

    uv: Float32[np.ndarray, "f 3 2"]
    """Across to the right and down from the top; 1 is one picture, beyond it repeats."""
    face_image: Int16[np.ndarray, "f"]
    """Index into `images`; -1: the face has no picture."""
    images: tuple[UInt8[np.ndarray, "h w 3"], ...]


@dataclass(frozen=True)
class Mesh:
    """Triangles, not necessarily closed, connected or consistently oriented."""

    vertices: Float64[np.ndarray, "v 3"]
    faces: Int64[np.ndarray, "f 3"]
    part: Int32[np.ndarray, "f"] | None = None
    """Index into `part_names`."""
    part_names: tuple[str, ...] = ()
    color: UInt8[np.ndarray, "f 3 3"] | None = None
    """RGB of the three corners of each face; multiplies the texture."""
    texture: Texture | None = None

    def select(self, kept: Bool[np.ndarray, "f"]) -> Mesh:
        """The mesh of the faces `kept`; vertices stay."""
        if kept.all():
            return self
        texture = self.texture
        if texture is not None:
            texture = replace(texture, uv=texture.uv[kept], face_image=texture.face_image[kept])
        return replace(
            self,
            faces=self.faces[kept],
            part=None if self.part is None else self.part[kept],
            color=None if self.color is None else self.color[kept],
            texture=texture,
        )


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """All meshes as one; parts of equal name become one part, missing colors are gray."""
    if len(meshes) == 1:
        return meshes[0]
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    names: dict[str, int] = {}
    part = color = None
    if any(m.part is not None for m in meshes):
        columns = []
        for number, mesh in enumerate(meshes):
            own = mesh.part_names if mesh.part is not None else (f"file {number}",)
            index = np.array([names.setdefault(name, len(names)) for name in own], np.int32)
            local = np.zeros(len(mesh.faces), np.int32) if mesh.part is None else mesh.part
            columns.append(index[local])
        part = np.concatenate(columns)
    textured = any(m.texture is not None for m in meshes)
    if textured or any(m.color is not None for m in meshes):
        color = np.concatenate([corner_color(m) for m in meshes])
    return Mesh(
        vertices=np.concatenate([m.vertices for m in meshes]),
        faces=np.concatenate([m.faces + start for m, start in zip(meshes, starts)]),
        part=part,
        part_names=tuple(names),
        color=color,
        texture=_joined_textures(meshes) if textured else None,
    )


def corner_color(mesh: Mesh) -> UInt8[np.ndarray, "f 3 3"]:
    """The color of every corner: white under a texture, gray where nothing is given."""
    if mesh.color is not None:
        return mesh.color
    color = np.full((len(mesh.faces), 3, 3), DEFAULT_COLOR, np.uint8)
    if mesh.texture is not None:
        color[mesh.texture.face_image >= 0] = 255
    return color


def _joined_textures(meshes: Sequence[Mesh]) -> Texture:
    uv, face_image, images = [], [], []
    for mesh in meshes:
        if mesh.texture is None:
            uv.append(np.zeros((len(mesh.faces), 3, 2), np.float32))
            face_image.append(np.full(len(mesh.faces), -1, np.int16))
            continue
        index = mesh.texture.face_image
        uv.append(mesh.texture.uv)
        face_image.append(np.where(index >= 0, index + len(images), -1).astype(np.int16))
        images += mesh.texture.images
    return Texture(np.concatenate(uv), np.concatenate(face_image), tuple(images))


def compacted(mesh: Mesh) -> Mesh:
    """The mesh without unreferenced vertices; refuses faces that name vertices it lacks."""
    count = len(mesh.vertices)
    if not len(mesh.faces):
        raise RejectedSample(Code.EMPTY, "the mesh has no faces")
    low, high = int(mesh.faces.min()), int(mesh.faces.max())
    if low < 0 or high >= count:
        raise RejectedSample(
            Code.DECODE, f"a face names vertex {low if low < 0 else high}, there are {count}"
        )
    used = np.zeros(count, bool)
    used[mesh.faces] = True
    if used.all():
        return mesh
    index = np.cumsum(used) - 1
    return replace(mesh, vertices=mesh.vertices[used], faces=index[mesh.faces])


def double_areas(
    vertices: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]
) -> tuple[Float64[np.ndarray, "f 3"], Float64[np.ndarray, "f"]]:
    """Normals whose length is twice the area of their face, and those lengths."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return normals, np.sqrt(np.einsum("fi,fi->f", normals, normals))


def welded_faces(
    vertices: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]
) -> Int64[np.ndarray, "f 3"]:
    """Faces over vertex numbers that are equal where positions are (to 1e-6 of the extent)."""
    low = vertices.min(0)
    extent = max(float((vertices.max(0) - low).max()), np.finfo(np.float64).tiny)
    steps = np.rint((vertices - low) * (WELD_STEPS / extent)).astype(np.int64)
    keys = (steps[:, 0] << 42) | (steps[:, 1] << 21) | steps[:, 2]
    return np.unique(keys, return_inverse=True)[1].reshape(-1)[faces]


def is_watertight(welded: Int64[np.ndarray, "f 3"]) -> bool:
    """Whether no edge of `welded_faces` is open: each borders an even number of faces.

    Two solids that touch in an edge are watertight (four faces there).
    """
    edges = np.concatenate([welded[:, [0, 1]], welded[:, [1, 2]], welded[:, [2, 0]]])
    edges = np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1)
    keys = np.sort((edges[:, 0] << 32) | edges[:, 1])
    if not len(keys):
        return False
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    return not (np.diff(starts) % 2).any()
