"""Reader of glTF 2 meshes, .glb and .gltf, with buffers from the sample's own files only."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.ingest.mesh import Mesh, Texture, joined
from pipeline.ingest.mesh_files import check_faces, short
from pipeline.ingest.pictures import read_picture, resolve
from schemas.samples import Code, RejectedSample

MAX_DEPTH = 100
MAX_NODES = 1_000_000
READABLE = {
    "KHR_mesh_quantization", "KHR_texture_transform", "KHR_materials_unlit", "EXT_texture_webp",
    "KHR_materials_pbrSpecularGlossiness",
}  # fmt: skip
"""Required extensions with which positions and faces are still where this reader looks."""
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
POINTS, LINES_END, TRIANGLES, STRIP, FAN = 0, 3, 4, 5, 6


def read_gltf(data: bytes, files: Mapping[str, bytes], main: str, max_faces: int) -> Mesh:
    """All triangles of the scene in world coordinates; materials are parts, base colors colors."""
    document, binary = parse_gltf(data)
    try:
        return _File(document, binary, files, main, max_faces).mesh()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {short(error)}"
        raise RejectedSample(Code.DECODE, f"the glTF file is malformed ({what})") from error


def parse_gltf(data: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The JSON document and, of a .glb, its binary chunk."""
    binary = None
    if data[:4] == b"glTF":
        version, total = np.frombuffer(data[:12].ljust(12, b"\0"), "<u4")[1:]
        if version != 2:
            raise RejectedSample(Code.DECODE, f"glTF version {version}; only version 2 is read")
        if len(data) < total or len(data) < 20:
            raise RejectedSample(
                Code.DECODE, f"truncated GLB: {total:,} bytes announced, {len(data):,} there"
            )
        chunks, at = {}, 12
        while at + 8 <= total:
            size = int.from_bytes(data[at : at + 4], "little")
            chunks.setdefault(data[at + 4 : at + 8], data[at + 8 : at + 8 + size])
            at += 8 + size
        text, binary = chunks.get(b"JSON", b""), chunks.get(b"BIN\0")
    else:
        text = data
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RejectedSample(Code.DECODE, f"the glTF document: {error}") from error
    if not isinstance(document, dict):
        raise RejectedSample(Code.DECODE, "the glTF document is not a JSON object")
    return document, binary


def gltf_references(data: bytes) -> list[str]:
    """URIs of buffers and images that are files beside the document."""
    document, _ = parse_gltf(data)
    found = []
    for key in ("buffers", "images"):
        entries = document.get(key)
        for entry in entries if isinstance(entries, list) else []:
            uri = entry.get("uri") if isinstance(entry, dict) else None
            if isinstance(uri, str) and not uri.startswith("data:"):
                found.append(uri)
    return found


class _File:
    def __init__(self, document, binary, files, main, max_faces):
        self.document = document
        self.binary = binary
        self.files = files
        self.main = main
        self.max_faces = max_faces
        self.buffers: dict[int, bytes] = {}
        self.pictures: dict[int, np.ndarray | None] = {}
        self.primitives: dict[tuple[int, int], Mesh | None] = {}
        refused = sorted(set(document.get("extensionsRequired", ())) - READABLE)
        if refused:
            raise RejectedSample(
                Code.DECODE,
                f"needs glTF extension {', '.join(refused)}; export without compression",
            )

    def mesh(self) -> Mesh:
        meshes, faces = [], 0
        for index, matrix, node_name in self.instances():
            entry = self.document["meshes"][index]
            for number in range(len(entry["primitives"])):
                key = (index, number)
                if key not in self.primitives:
                    self.primitives[key] = self.primitive(entry, number, node_name)
                mesh = self.primitives[key]
                if mesh is None:
                    continue
                faces += len(mesh.faces)
                check_faces(faces, self.max_faces)
                meshes.append(_moved(mesh, matrix))
        if not meshes:
            raise RejectedSample(Code.EMPTY, "the glTF scene has no triangles")
        return joined(meshes)

    def instances(self):
        """(mesh, world matrix, name) of every node of the default scene that has a mesh."""
        nodes = self.document.get("nodes", [])
        scenes = self.document.get("scenes", [])
        if scenes:
            roots = scenes[self.document.get("scene", 0)].get("nodes", [])
        elif nodes:
            roots = sorted(
                set(range(len(nodes))) - {c for n in nodes for c in n.get("children", ())}
            )
        else:
            roots = []
            for index, entry in enumerate(self.document.get("meshes", [])):
                yield index, np.eye(4), entry.get("name", "")
        stack = [(root, np.eye(4), 0) for root in reversed(roots)]
        visited = 0
        while stack:
            index, matrix, depth = stack.pop()
            visited += 1
            if depth > MAX_DEPTH or visited > MAX_NODES:
                raise RejectedSample(Code.DECODE, "the glTF scene has too many or circular nodes")
            node = nodes[index]
            matrix = matrix @ _local(node)
            if "mesh" in node:
                yield node["mesh"], matrix, node.get("name", "")
            stack += [(child, matrix, depth + 1) for child in reversed(node.get("children", ()))]

    def primitive(self, entry: dict, number: int, node_name: str) -> Mesh | None:
        primitive = entry["primitives"][number]
        mode = primitive.get("mode", TRIANGLES)
        attributes = primitive.get("attributes", {})
        if mode not in (TRIANGLES, STRIP, FAN) or "POSITION" not in attributes:
            return None
        vertices = self.accessor(attributes["POSITION"]).astype(np.float64)
        if "indices" in primitive:
            index = self.accessor(primitive["indices"])[:, 0].astype(np.int64)
        else:
            index = np.arange(len(vertices))
        check_faces(len(index) // 3 if mode == TRIANGLES else len(index) - 2, self.max_faces)
        faces = _triangles(index, mode)
        if len(faces) and faces.max() >= len(vertices):
            raise RejectedSample(
                Code.DECODE, f"a face names vertex {faces.max()}, there are {len(vertices)}"
            )
        material, name, factor = {}, "", np.ones(3)
        if "material" in primitive:
            material = self.document["materials"][primitive["material"]]
            name = material.get("name") or f"material {primitive['material']}"
            factor = np.array(_base(material).get("baseColorFactor", [1, 1, 1, 1])[:3], float)
        color = np.broadcast_to(_srgb(factor), (len(faces), 3, 3))
        if "COLOR_0" in attributes:
            vertex_color = self.accessor(attributes["COLOR_0"])[:, :3].astype(np.float64)
            color = _srgb(np.clip(vertex_color * factor, 0, 1))[faces]
        elif "material" not in primitive:
            color = None
        texture = self.texture(_base(material).get("baseColorTexture"), attributes, faces)
        name = name or entry.get("name") or node_name or "mesh"
        return Mesh(vertices, faces, np.zeros(len(faces), np.int32), (str(name),), color, texture)

    def texture(
        self, reference: dict | None, attributes: dict, faces: np.ndarray
    ) -> Texture | None:
        """The base color picture on these faces, or None where it is not at hand."""
        if not reference:
            return None
        transform = reference.get("extensions", {}).get("KHR_texture_transform", {})
        channel = transform.get("texCoord", reference.get("texCoord", 0))
        name = f"TEXCOORD_{channel}"
        picture = self.picture(reference["index"])
        if name not in attributes or picture is None:
            return None
        uv = self.accessor(attributes[name]).astype(np.float64)
        angle = transform.get("rotation", 0.0)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        uv = (uv * transform.get("scale", [1, 1])) @ turn.T + transform.get("offset", [0, 0])
        return Texture(uv[faces].astype(np.float32), np.zeros(len(faces), np.int16), (picture,))

    def picture(self, index: int) -> np.ndarray | None:
        if index not in self.pictures:
            texture = self.document["textures"][index]
            webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
            source = texture.get("source", webp.get("source"))
            data = None
            if source is not None:
                image = self.document["images"][source]
                if "bufferView" in image:
                    data = bytes(self.view(image["bufferView"])[0])
                elif "uri" in image:
                    data = self.uri(image["uri"])
            self.pictures[index] = None if data is None else read_picture(data)
        return self.pictures[index]

    def accessor(self, index: int) -> np.ndarray:
        """Values [count, width]; normalized integers become floats."""
        accessor = self.document["accessors"][index]
        kind = np.dtype("<" + COMPONENTS[accessor["componentType"]])
        width, count = WIDTHS[accessor["type"]], int(accessor["count"])
        if "bufferView" in accessor:
            data, stride = self.view(accessor["bufferView"])
            values = _strided(data, accessor.get("byteOffset", 0), kind, width, count, stride)
        else:
            check_faces(count // 3, self.max_faces)
            values = np.zeros((count, width), kind)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            tables = []
            for part, dtype, columns in (
                (sparse["indices"], "<" + COMPONENTS[sparse["indices"]["componentType"]], 1),
                (sparse["values"], kind, width),
            ):
                data, _ = self.view(part["bufferView"])
                offset = part.get("byteOffset", 0)
                tables.append(_strided(data, offset, dtype, columns, sparse["count"], None))
            values = values.copy()
            values[tables[0][:, 0]] = tables[1]
        if accessor.get("normalized") and kind.kind in "iu":
            return np.maximum(values / np.iinfo(kind).max, -1.0)
        return values

    def view(self, index: int) -> tuple[memoryview, int | None]:
        """Bytes of a buffer view, and its stride."""
        view = self.document["bufferViews"][index]
        number = view["buffer"]
        if number not in self.buffers:
            buffer = self.document["buffers"][number]
            data = self.uri(buffer["uri"]) if "uri" in buffer else self.binary
            if data is None:
                name = str(buffer.get("uri", "the binary chunk"))[:80]
                raise RejectedSample(
                    Code.DECODE, f"buffer {name!r} is not among the files of this dataset"
                )
            self.buffers[number] = data
        start, size = view.get("byteOffset", 0), view["byteLength"]
        if start < 0 or size < 0 or start + size > len(self.buffers[number]):
            have = len(self.buffers[number])
            raise RejectedSample(
                Code.DECODE, f"truncated glTF buffer: {start + size:,} bytes needed, {have:,} there"
            )
        return memoryview(self.buffers[number])[start : start + size], view.get("byteStride")

    def uri(self, uri: str) -> bytes | None:
        """Bytes of a data: URI or of a file of the sample; nothing else is opened."""
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            if not head.endswith(";base64"):
                return None
            try:
                return base64.b64decode(body)
            except binascii.Error:
                return None
        return self.files.get(resolve(self.main, uri) or "")


def _base(material: dict) -> dict:
    """The base color of a material, of the old specular-glossiness extension too."""
    old = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if "pbrMetallicRoughness" in material or not old:
        return material.get("pbrMetallicRoughness", {})
    names = {"diffuseFactor": "baseColorFactor", "diffuseTexture": "baseColorTexture"}
    return {names[key]: value for key, value in old.items() if key in names}


def _strided(data, offset, kind, width, count, stride):
    kind = np.dtype(kind)
    stride = stride or kind.itemsize * width
    if count < 0 or offset < 0 or stride < 0:
        raise ValueError("a negative count, offset or stride")
    if count and offset + stride * (count - 1) + kind.itemsize * width > len(data):
        raise RejectedSample(
            Code.DECODE,
            f"truncated glTF buffer: {count:,} values do not fit in {len(data):,} bytes",
        )
    if not count:
        return np.zeros((0, width), kind)
    return np.ndarray((count, width), kind, data, offset, (stride, kind.itemsize))


def _triangles(index, mode):
    if mode == TRIANGLES:
        return index[: len(index) // 3 * 3].reshape(-1, 3)
    if len(index) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == FAN:
        first = np.full(len(index) - 2, index[0])
        return np.stack([index[1:-1], index[2:], first], axis=1)
    faces = np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
    faces[1::2] = faces[1::2, [0, 2, 1]]
    return faces


def _local(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = np.array(node.get("rotation", [0, 0, 0, 1]), np.float64)
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix[:3, :3] = turn * np.array(node.get("scale", [1, 1, 1]), np.float64)
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix


def _moved(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    vertices = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    faces, color, texture = mesh.faces, mesh.color, mesh.texture
    if np.linalg.det(matrix[:3, :3]) < 0:  # glTF: a mirrored node turns its faces around
        faces = faces[:, ::-1]
        color = None if color is None else color[:, ::-1]
        if texture is not None:
            texture = Texture(texture.uv[:, ::-1], texture.face_image, texture.images)
    return Mesh(vertices, faces, mesh.part, mesh.part_names, color, texture)


def _srgb(linear: np.ndarray) -> np.ndarray:
    """uint8 sRGB of linear colors: glTF factors and vertex colors are linear."""
    linear = np.clip(np.nan_to_num(linear), 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curve * 255).astype(np.uint8)
