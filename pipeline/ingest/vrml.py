"""Reader of VRML 2 (.wrl) text, as KiCad, FreeCAD and MeshLab write it."""

from __future__ import annotations

import numpy as np

from pipeline.ingest.mesh import Mesh, joined
from pipeline.ingest.mesh_files import check_faces, color_bytes, numbers, polygon_mesh
from pipeline.ingest.vrml_nodes import MAX_DEPTH, Node, parse_vrml
from schemas.samples import Code, RejectedSample

MAX_NODES = 2_000_000
"""Nodes visited: a few DEF and USE lines can stand for billions of them."""
CONTAINERS = {"Group", "Transform", "Anchor", "Collision", "Billboard"}
DEFAULT_DIFFUSE = (0.8, 0.8, 0.8)


def read_vrml(data: bytes, max_faces: int) -> Mesh:
    """The faces of all shapes; their materials are the parts, diffuse colors the colors."""
    if data[:10] == b"#VRML V1.0":
        raise RejectedSample(
            Code.DECODE, "VRML 1.0; only VRML 2.0 (utf8) is read: convert the file"
        )
    if not data.startswith(b"#VRML V2.0"):
        raise RejectedSample(Code.DECODE, "not a VRML 2.0 file (its first line must be #VRML V2.0)")
    scene = _Scene(max_faces)
    for node in parse_vrml(data):
        scene.add(node, None, 0)
    return scene.mesh()


class _Scene:
    """Collects the faces of a tree of nodes."""

    def __init__(self, max_faces: int):
        self.max_faces = max_faces
        self.meshes: list[Mesh] = []
        self.faces = self.visited = 0
        self.other: set[str] = set()

    def add(self, node: Node | None, matrix: np.ndarray | None, depth: int) -> None:
        self.visited += 1
        if not isinstance(node, Node):
            return
        if depth > MAX_DEPTH or self.visited > MAX_NODES:
            raise RejectedSample(Code.DECODE, "VRML: the scene has too many or too deep nodes")
        kind = node.kind.decode("latin-1")
        if kind == "Shape":
            self.shape(node, matrix)
        elif kind in CONTAINERS:
            if kind == "Transform":
                own = _transform(node)
                matrix = own if matrix is None else matrix @ own
            for child in _nodes(node, b"children"):
                self.add(child, matrix, depth + 1)
        elif kind == "Switch":
            choice = int(_floats(node, b"whichChoice", (-1.0,))[0])
            children = _nodes(node, b"choice")
            if 0 <= choice < len(children):
                self.add(children[choice], matrix, depth + 1)
        elif kind == "LOD":
            for child in _nodes(node, b"level")[:1]:
                self.add(child, matrix, depth + 1)

    def shape(self, node: Node, matrix: np.ndarray | None) -> None:
        geometry = node.fields.get(b"geometry")
        if not isinstance(geometry, Node):
            return
        if geometry.kind != b"IndexedFaceSet":
            self.other.add(geometry.kind.decode("latin-1"))
            return
        coord = geometry.fields.get(b"coord")
        points = _numbers(coord, b"point") if isinstance(coord, Node) else np.zeros(0)
        vertices = points[: len(points) // 3 * 3].reshape(-1, 3)
        index = _numbers(geometry, b"coordIndex").astype(np.int64)
        if not len(index) or not len(vertices):
            return
        ends = np.flatnonzero(index < 0)
        if not len(ends) or ends[-1] != len(index) - 1:
            index = np.append(index, -1)
            ends = np.append(ends, len(index) - 1)
        counts = np.diff(np.concatenate([[-1], ends])) - 1
        faces, polygon, picks = polygon_mesh(vertices, index[index >= 0], counts, self.max_faces)
        self.faces += len(faces)
        check_faces(self.faces, self.max_faces)
        name, diffuse = _material(node)
        color = _face_colors(geometry, faces, polygon, picks, counts)
        if color is None:
            color = np.broadcast_to(color_bytes(np.array(diffuse)), (len(faces), 3, 3))
        flip = geometry.fields.get(b"ccw") == b"FALSE"
        if matrix is not None:
            vertices = vertices @ matrix[:3, :3].T + matrix[:3, 3]
            flip ^= bool(np.linalg.det(matrix[:3, :3]) < 0)
        if flip:
            faces, color = faces[:, ::-1], color[:, ::-1]
        part = np.zeros(len(faces), np.int32)
        self.meshes.append(Mesh(vertices, faces, part, (name,), color))

    def mesh(self) -> Mesh:
        if self.meshes:
            return joined(self.meshes)
        found = f" (it holds {', '.join(sorted(self.other))})" if self.other else ""
        raise RejectedSample(Code.EMPTY, f"the VRML file has no IndexedFaceSet with faces{found}")


def _nodes(node: Node, field: bytes) -> list[Node]:
    value = node.fields.get(field)
    if isinstance(value, Node):
        return [value]
    return value if isinstance(value, list) else []


def _numbers(node: Node, field: bytes) -> np.ndarray:
    value = node.fields.get(field)
    if not isinstance(value, bytes):
        return np.zeros(0)
    return numbers(value.replace(b",", b" "), f"VRML field {field.decode()}")


def _floats(node: Node, field: bytes, default: tuple[float, ...]) -> tuple[float, ...]:
    """A field of fixed length; its default when it is absent or of another length."""
    values = _numbers(node, field)
    return tuple(values.tolist()) if len(values) == len(default) else default


def _material(shape: Node) -> tuple[str, tuple[float, ...]]:
    """Name (from DEF, else the color) and diffuse color of a shape's material."""
    appearance = shape.fields.get(b"appearance")
    material = appearance.fields.get(b"material") if isinstance(appearance, Node) else None
    if not isinstance(material, Node):
        return "", DEFAULT_DIFFUSE
    diffuse = _floats(material, b"diffuseColor", DEFAULT_DIFFUSE)
    code = "#" + bytes(color_bytes(np.array(diffuse))).hex()
    return material.name or code, diffuse


def _face_colors(geometry, faces, polygon, picks, counts):
    """Colors of the corners, from a Color node by vertex or by face."""
    node = geometry.fields.get(b"color")
    values = _numbers(node, b"color") if isinstance(node, Node) else np.zeros(0)
    if not len(values) or len(values) % 3:
        return None
    palette = color_bytes(np.clip(values, 0, 1)).reshape(-1, 3)
    index = _numbers(geometry, b"colorIndex").astype(np.int64)
    if geometry.fields.get(b"colorPerVertex") == b"FALSE":
        of_polygon = index[index >= 0] if len(index) else np.arange(len(counts))
        chosen = of_polygon[polygon] if len(of_polygon) >= len(counts) else None
        chosen = None if chosen is None else np.repeat(chosen[:, None], 3, axis=1)
    elif len(index):
        corners = index[index >= 0]
        chosen = corners[picks] if len(corners) == counts.sum() else None
    else:
        chosen = faces
    if chosen is None or (len(chosen) and chosen.max() >= len(palette)):
        return None
    return palette[chosen]


def _transform(node: Node) -> np.ndarray:
    """The 4x4 matrix of a Transform: T C R SR S -SR -C."""
    center = np.array(_floats(node, b"center", (0.0, 0.0, 0.0)))
    turn = _rotation(_floats(node, b"rotation", (0.0, 0.0, 1.0, 0.0)))
    tilt = _rotation(_floats(node, b"scaleOrientation", (0.0, 0.0, 1.0, 0.0)))
    scale = np.diag(_floats(node, b"scale", (1.0, 1.0, 1.0)))
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ tilt @ scale @ tilt.T
    move = np.array(_floats(node, b"translation", (0.0, 0.0, 0.0)))
    matrix[:3, 3] = move + center - matrix[:3, :3] @ center
    return matrix


def _rotation(axis_angle: tuple[float, ...]) -> np.ndarray:
    """Rodrigues' formula; an axis without length does not turn."""
    axis, angle = np.array(axis_angle[:3]), axis_angle[3]
    length = float(np.linalg.norm(axis))
    if not length:
        return np.eye(3)
    x, y, z = axis / length
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
