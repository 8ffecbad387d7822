"""From the bytes of a mesh file to the columns of a prepared shape."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from pipeline.ingest.gltf import gltf_references, read_gltf
from pipeline.ingest.mesh import Mesh, compacted, joined
from pipeline.ingest.mesh_files import check_faces, read_off, read_stl
from pipeline.ingest.normalize import normalization
from pipeline.ingest.obj import read_obj
from pipeline.ingest.pictures import resolve
from pipeline.ingest.ply import ply_mesh, read_ply
from pipeline.ingest.sampling import sample_shape
from pipeline.ingest.views import view_columns
from pipeline.ingest.vrml import read_vrml
from schemas.run import ShapeIngest
from schemas.samples import Code, RejectedSample

Reader = Callable[[bytes, Mapping[str, bytes], str, int], Mesh]
READERS: dict[str, Reader] = {
    ".obj": read_obj,
    ".ply": lambda data, files, main, limit: ply_mesh(read_ply(data, limit), limit),
    ".stl": lambda data, files, main, limit: read_stl(data, limit),
    ".off": lambda data, files, main, limit: read_off(data, limit),
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".wrl": lambda data, files, main, limit: read_vrml(data, limit),
    ".vrml": lambda data, files, main, limit: read_vrml(data, limit),
}
SHAPE_SUFFIXES = tuple(READERS)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FLAT = 1e-6
"""Thickness, as a part of the extent, below which a mesh is flat."""


def suffix(name: str) -> str:
    """Lower-case extension of a key, with its dot."""
    return posixpath.splitext(name)[1].lower()


def siblings(main: str, data: bytes) -> list[str]:
    """Keys, in the terms of `main`'s own key, of the files that a mesh file refers to.

    Buffers and pictures of glTF, material libraries of OBJ and (for an .mtl) their pictures.
    References that are URLs, absolute, or lead out of the dataset are left out.
    """
    kind = suffix(main)
    if kind in (".gltf", ".glb"):
        try:
            references = gltf_references(data)
        except RejectedSample:  # decoding says why
            return []
    elif kind == ".obj":
        references = re.findall(rb"(?m)^[ \t]*mtllib[ \t]+([^\r\n]+)", data)
    elif kind == ".mtl":
        references = re.findall(rb"(?m)^[ \t]*map_Kd[ \t]+([^\r\n]+)", data)
    else:
        return []
    texts = [
        r.decode("utf-8", "replace").strip() if isinstance(r, bytes) else r for r in references
    ]
    found = (resolve(main, text.replace("\\", "/")) for text in texts)
    return list(dict.fromkeys(name for name in found if name is not None and name != main))


def read_mesh(files: Mapping[str, bytes], main: str, max_faces: int) -> Mesh:
    """All mesh files of a sample as one mesh: `main`, then the others in order of their keys."""
    names = [main, *sorted(n for n in files if n != main and suffix(n) in READERS)]
    meshes, faces = [], 0
    for name in names:
        if not files[name].strip(b"\0 \t\r\n"):
            raise RejectedSample(Code.EMPTY, f"{posixpath.basename(name)} is empty")
        try:
            data = files[name].removeprefix(BYTE_ORDER_MARK)
            mesh = READERS[suffix(name)](data, files, name, max_faces)
        except RejectedSample as error:
            if len(names) == 1:
                raise
            raise RejectedSample(error.code, f"{posixpath.basename(name)}: {error}") from error
        faces += len(mesh.faces)
        check_faces(faces, max_faces)
        meshes.append(mesh)
    return joined(meshes)


def clean_mesh(mesh: Mesh) -> Mesh:
    """The mesh with used, finite vertices and no face that names a vertex twice."""
    if not len(mesh.faces):
        count = len(mesh.vertices)
        if count:
            raise RejectedSample(
                Code.EMPTY,
                f"{count:,} points and no faces: a point cloud; read it with dataset.kind: points",
            )
        raise RejectedSample(Code.EMPTY, "the mesh has no faces")
    mesh = compacted(mesh)
    finite = np.isfinite(mesh.vertices).all(1)
    if not finite.all():
        raise RejectedSample(
            Code.NAN_INPUT,
            f"{int((~finite).sum()):,} of {len(finite):,} vertices are NaN or infinite",
        )
    a, b, c = mesh.faces.T
    proper = (a != b) & (b != c) & (c != a)
    if not proper.any():
        raise RejectedSample(Code.DEGENERATE, "every face names a vertex twice")
    return mesh if proper.all() else compacted(mesh.select(proper))


def check_thickness(vertices: np.ndarray) -> None:
    """Refuses vertices (in the box) that all lie in one plane."""
    centered = vertices - vertices.mean(0)
    extent = float(np.ptp(vertices, axis=0).max())
    axes = np.linalg.eigh(centered.T @ centered)[1]
    thickness = float(np.ptp(centered @ axes[:, 0]))
    if thickness <= FLAT * extent:
        raise RejectedSample(
            Code.DEGENERATE,
            "flat: all vertices lie in one plane, so nothing is inside; "
            "set ingest.sign: none, or read it with dataset.kind: points",
        )


def decode_shape(
    files: dict[str, bytes], main: str, ingest: ShapeIngest, seed_key: str
) -> dict[str, object]:
    """Columns of `schemas.samples.form_schema` of one sample: a function of its arguments alone.

    Args:
        files: The sample's objects and those `siblings` names, by key.
        main: Key of the file that is read first.

    Raises:
        RejectedSample: the sample cannot be used; its code and message say why.
    """
    mesh = clean_mesh(read_mesh(files, main, ingest.max_faces))
    place = normalization(mesh.vertices, ingest.normalize)
    mesh = replace(mesh, vertices=place.to_box(mesh.vertices))
    if ingest.sign != "none":
        check_thickness(mesh.vertices)
    columns = sample_shape(mesh, ingest, seed_key)
    if ingest.views:
        columns |= view_columns(mesh, ingest, seed_key)
    return columns | {"center": place.center.tolist(), "scale": place.scale}
