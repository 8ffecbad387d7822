"""Every mesh format gives the same geometry; odd and broken files are read or refused by name."""

import base64
import json
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from pipeline.ingest.mesh import Mesh, corner_color, double_areas
from pipeline.ingest.meshes import (
    SHAPE_SUFFIXES,
    clean_mesh,
    decode_shape,
    read_mesh,
    siblings,
)
from pipeline.ingest.polygons import triangulated
from schemas.run import ShapeIngest
from schemas.samples import Code, RejectedSample

TINY = ShapeIngest(near=256, uniform=256, surface=256, held_out=64)
LIMIT = 10_000


def read(data: bytes | str, name: str, files: dict | None = None) -> Mesh:
    data = data.encode() if isinstance(data, str) else data
    return read_mesh({name: data, **(files or {})}, name, LIMIT)


def corners(mesh: Mesh) -> np.ndarray:
    """Triangles as sorted rows: independent of numbering, order and first corner of the faces."""
    triangles = mesh.vertices[mesh.faces]
    first = np.lexsort(np.round(triangles.transpose(2, 0, 1), 5)[::-1])[:, 0]
    turned = np.stack([np.roll(t, -k, axis=0) for t, k in zip(triangles, first)])
    rows = turned.reshape(len(turned), 9)
    return rows[np.lexsort(np.round(rows, 5).T)]


def decode(data: bytes | str, name: str, **changed) -> dict:
    data = data.encode() if isinstance(data, str) else data
    return decode_shape({name: data}, name, TINY.model_copy(update=changed), "key")


def rejected(data, name, code, match, **changed):
    with pytest.raises(RejectedSample, match=match) as error:
        decode(data, name, **changed)
    assert error.value.code is code


def vrml(mesh: trimesh.Trimesh) -> str:
    points = ", ".join(" ".join(f"{x:.9g}" for x in v) for v in mesh.vertices)
    index = ", ".join(f"{a}, {b}, {c}, -1" for a, b, c in mesh.faces)
    return (
        "#VRML V2.0 utf8\n# made by a test ]{\nShape { appearance Appearance { material Material "
        "{ diffuseColor 0 1 0 } } geometry IndexedFaceSet { coordIndex [" + index + "] "
        "coord Coordinate { point [" + points + "] } } }\n"
    )


def bunny_like() -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=2)
    mesh.vertices *= 1 + 0.2 * np.sin(5 * mesh.vertices[:, [1, 2, 0]])
    return mesh


@pytest.mark.parametrize(
    "form", ["obj", "ply", "ply-ascii", "stl", "stl_ascii", "off", "glb", "gltf", "wrl"]
)
def test_all_formats_give_the_same_triangles(form):
    solid = bunny_like()
    files, name = {}, f"folder/shape.{form.split('-')[0].split('_')[0]}"
    if form == "wrl":
        data = vrml(solid)
    elif form == "gltf":
        exported = trimesh.exchange.gltf.export_gltf(solid.scene())
        data = exported.pop("model.gltf")
        files = {f"folder/{key}": value for key, value in exported.items()}
    elif form == "ply-ascii":
        data = solid.export(file_type="ply", encoding="ascii")
    else:
        data = solid.export(file_type=form)
    mesh = read(data, name, files)
    expected = Mesh(np.array(solid.vertices), np.array(solid.faces))
    assert np.abs(corners(mesh) - corners(expected)).max() < 1e-6
    if form == "gltf":
        assert sorted(siblings(name, data)) == sorted(files)


# OBJ ---------------------------------------------------------------------------------------------

CUBE = """
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
"""
QUADS = ["4 3 2 1", "5 6 7 8", "1 2 6 5", "3 4 8 7", "2 3 7 6", "4 1 5 8"]


def signed_volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    return float(np.einsum("fi,fi->f", a, np.cross(b, c)).sum() / 6)


def cube_obj(face=lambda quad: quad, head="", tail="") -> str:
    return head + CUBE + "".join(f"f {face(q)}\n" for q in QUADS) + tail


@pytest.mark.parametrize(
    "text",
    [
        cube_obj(),
        cube_obj().replace("\n", "\r\n"),
        "\ufeff" + cube_obj().lstrip(),
        cube_obj().replace("f ", "  f\t").replace("v ", "v   "),
        cube_obj(lambda q: " ".join(str(int(i) - 9) for i in q.split())),
        cube_obj(lambda q: " ".join(f"{i}//1" for i in q.split()), "vn 0 0 1\n"),
        cube_obj(lambda q: " ".join(f"{i}/1/1" for i in q.split()), "vt 0 0\nvn 0 0 1\n"),
        cube_obj(lambda q: q.replace(" ", " \\\n", 1)),
        cube_obj(lambda q: q + " # a comment", "# head\no thing\ns off\n", "l 1 2\np 1\nf 1 2\n"),
        cube_obj().replace("v 1 -1 -1", "v 1.0e0 -1 -1 1.0"),
    ],
    ids=["quads", "crlf", "bom", "tabs", "negative", "normals", "uv", "continued", "comments", "w"],
)
def test_odd_obj_files_are_a_cube(text):
    mesh = read(text, "c.obj")
    assert len(mesh.faces) == 12
    assert signed_volume(mesh) == pytest.approx(8)


def test_negative_indices_count_back_from_the_line_they_stand_in():
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 5 0 0\nv 6 0 0\nv 5 1 0\nf -3 -2 -1\n"
    assert read(text, "n.obj").faces.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_groups_or_materials_are_the_parts_and_libraries_give_colors():
    lines = cube_obj().splitlines()
    faces = [line for line in lines if line[:1] == "f"]
    head = "mtllib my%20set.mtl\n" + "\n".join(lines[:9]) + "\n"
    grouped = head + "g left\n" + "\n".join(faces[:2]) + "\ng right side\n" + "\n".join(faces[2:])
    mesh = read(grouped, "g.obj")
    assert mesh.part_names == ("left", "right side")
    assert np.bincount(mesh.part).tolist() == [4, 8]
    text = head + "usemtl red\n" + "\n".join(faces[:2]) + "\nusemtl blue\n" + "\n".join(faces[2:])
    library = b"newmtl blue\nKd 0 0 1\n\nnewmtl red\n  Kd 1 0 0\n"
    assert siblings("d/g.obj", text.encode()) == ["d/my set.mtl"]
    mesh = read(text, "d/g.obj", {"d/my set.mtl": library})
    assert mesh.part_names == ("red", "blue")
    assert mesh.color[:4].reshape(-1, 3).tolist() == [[255, 0, 0]] * 12
    assert mesh.color[4:].reshape(-1, 3).tolist() == [[0, 0, 255]] * 24
    assert read(text, "d/g.obj").color is None  # the library is not at hand: no colors, no error


def test_vertex_colors_of_an_obj_reach_the_surface_points():
    text = cube_obj()
    for line in CUBE.split("\n")[1:-1]:
        color = " ".join(str((float(x) + 1) / 2) for x in line.split()[1:])
        text = text.replace(line, f"{line} {color}")
    columns = decode(text, "c.obj", precision="float32")
    coords = np.frombuffer(columns["surface_coords"], "<f4").reshape(-1, 3)
    color = np.frombuffer(columns["surface_color"], np.uint8).reshape(-1, 3)
    original = coords / columns["scale"] + columns["center"]
    assert np.abs(color - (original + 1) * 127.5).max() <= 1.0


def test_a_textured_obj_is_colored_by_its_picture():
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0], picture[1] = (255, 0, 0), (0, 0, 255)  # top row red, bottom row blue
    texture = _png(picture)
    text = "mtllib m.mtl\n" + CUBE + "vt 0 0.75\nvt 0 0.25\nusemtl t\n"
    text += "".join(
        "f " + " ".join(f"{i}/{1 + (k > 2)}" for i in q.split()) + "\n" for k, q in enumerate(QUADS)
    )
    files = {"m.mtl": b"newmtl t\nmap_Kd tex.png\nKd 1 1 1\n", "tex.png": texture}
    assert siblings("m.mtl", files["m.mtl"]) == ["tex.png"]
    columns = decode_shape(files | {"t.obj": text.encode()}, "t.obj", TINY, "k")
    color = np.frombuffer(columns["surface_color"], np.uint8).reshape(-1, 3)
    assert {tuple(c) for c in color.tolist()} == {(255, 0, 0), (0, 0, 255)}


def _png(picture: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_large_offset_costs_no_precision():
    lines = [[float(x) for x in line.split()[1:]] for line in CUBE.split("\n")[1:-1]]
    moved = [[1000000.5 + x / 4 for x in row] for row in lines]
    shifted = "\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in moved)
    far = decode(cube_obj().replace(CUBE, shifted), "c.obj", precision="float32")
    near = decode(cube_obj(), "c.obj", precision="float32")
    assert far["center"] == [1000000.5] * 3
    assert far["scale"] == pytest.approx(4 * near["scale"], rel=1e-9)
    for name in ("near_distance", "uniform_distance"):
        a, b = (np.frombuffer(c[name], "<f4") for c in (far, near))
        assert np.abs(a - b).max() < 1e-6


def test_unreferenced_vertices_do_not_move_the_shape():
    lone = decode(cube_obj(tail="v 500 500 500\nv nan nan nan\n"), "c.obj")
    assert lone == decode(cube_obj(), "c.obj")


# Polygons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("plane", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_concave_polygons_keep_their_area_and_orientation(turn, plane):
    outline = np.array([[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]], float)[::turn]  # area 10
    quad = np.array([[0, 0], [1, 0.2], [2, 0], [1, 3]], float)[::turn]  # concave, area 2.8
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)[::turn]
    flat = np.concatenate([outline, quad, square])
    points = np.stack([flat[:, 0], flat[:, 1], np.zeros(len(flat))], axis=1)[:, plane]
    picks, polygon = triangulated(points, np.arange(len(points)), np.array([5, 4, 4]))
    normals, areas = double_areas(points, picks)
    assert np.bincount(polygon, areas / 2).tolist() == pytest.approx([10, 2.8, 1])
    total = np.stack([np.bincount(polygon, normals[:, k]) for k in range(3)], axis=1)
    assert np.abs(total).sum(1).tolist() == pytest.approx([20, 5.6, 2])  # no triangle is turned


# PLY ---------------------------------------------------------------------------------------------


def test_big_endian_ply_with_mixed_polygons_parts_and_colors():
    header = (
        "ply\nformat binary_big_endian 1.0\ncomment x\nelement vertex 8\nproperty double x\n"
        "property double y\nproperty double z\nelement face 7\n"
        "property list uchar int vertex_indices\nproperty uchar red\nproperty uchar green\n"
        "property uchar blue\nproperty int label\nend_header\n"
    )
    body = b""
    for line in CUBE.split("\n")[1:-1]:
        body += struct.pack(">3d", *map(float, line.split()[1:]))
    polygons = [[int(i) - 1 for i in q.split()] for q in QUADS]
    polygons[0:1] = [polygons[0][:3], [polygons[0][0], polygons[0][2], polygons[0][3]]]
    for k, polygon in enumerate(polygons):
        body += struct.pack(f">B{len(polygon)}i", len(polygon), *polygon)
        body += struct.pack(">3Bi", 10 * k, 0, 255, 7 if k < 2 else 40)
    mesh = read(header.encode() + body, "p.ply")
    assert signed_volume(mesh) == pytest.approx(8)
    assert mesh.part_names == ("7", "40")
    assert np.bincount(mesh.part).tolist() == [2, 10]
    assert mesh.color[0].tolist() == [[0, 0, 255]] * 3
    assert mesh.color[-1].tolist() == [[60, 0, 255]] * 3
    for cut in (1, 30, 200):
        rejected(header.encode() + body[:-cut], "p.ply", Code.DECODE, "truncated PLY")


def test_trailing_bytes_and_other_elements_of_a_ply_are_passed_over():
    data = bunny_like().export(file_type="ply")
    mesh = read(data + b"\n\n", "p.ply")
    assert len(mesh.faces) == 320
    text = bunny_like().export(file_type="ply", encoding="ascii").decode()
    text = text.replace("element face", "element camera 1\nproperty float f\nelement face")
    lines = text.split("\n")
    at = lines.index("end_header") + 1 + 162
    assert len(read("\n".join([*lines[:at], "3.5", *lines[at:]]), "p.ply").faces) == 320


# STL, OFF ----------------------------------------------------------------------------------------


def test_a_binary_stl_that_begins_with_solid_is_binary():
    data = bunny_like().export(file_type="stl")
    for tail in (b"", b"\n trailing"):
        assert len(read(b"solid made".ljust(80, b" ") + data[80:] + tail, "s.stl").faces) == 320
    rejected(b"solid made".ljust(80, b" ") + data[80:-9], "s.stl", Code.DECODE, "320 faces need")
    rejected("solid nothing\nendsolid nothing\n", "s.stl", Code.EMPTY, "no faces")


def test_the_solids_of_a_text_stl_are_parts():
    one = bunny_like().export(file_type="stl_ascii")
    both = one.replace("solid", "solid lid", 1) + "\n" + one.replace("solid", "solid  base ", 1)
    mesh = read(both.upper().replace("LID", "lid"), "s.stl")
    assert mesh.part_names == ("lid", "base")
    assert np.bincount(mesh.part).tolist() == [320, 320]


@pytest.mark.parametrize(
    "head", ["OFF\n8 6 0", "OFF 8 6 12", "OFF8 6 0", "# x\nOFF\n# y\n\n8 6 0 # z"]
)
def test_off_headers_as_they_occur(head):
    faces = "".join("4 " + " ".join(str(int(i) - 1) for i in q.split()) + "\n" for q in QUADS)
    mesh = read(head + CUBE.replace("v ", "") + faces, "m.off")
    assert signed_volume(mesh) == pytest.approx(8)


def test_off_colors_of_vertices_and_faces():
    faces = "".join("4 " + " ".join(str(int(i) - 1) for i in q.split()) + " 9 8 7\n" for q in QUADS)
    mesh = read("OFF\n8 6 0" + CUBE.replace("v ", "") + faces, "m.off")
    assert (mesh.color == [9, 8, 7]).all()
    vertices = "".join(line[2:] + " 1 0 0 1\n" for line in CUBE.split("\n")[1:-1])
    mesh = read("COFF\n8 6 0\n" + vertices + faces, "m.off")
    assert (mesh.color == [255, 0, 0]).all()


# VRML --------------------------------------------------------------------------------------------

KICAD = """#VRML V2.0 utf8
#kicad StepUp wrl exported
Shape { appearance Appearance {material DEF PIN-01 Material { diffuseColor 0.8 0.4 0.2 } } }
Shape { appearance Appearance {material DEF BODY Material { diffuseColor 0 0 0.2 } } }
"""


def kicad_shape(material: str, shift: float) -> str:
    points = ",".join(
        " ".join(str(float(x) + shift * (k == 0)) for k, x in enumerate(line.split()[1:]))
        for line in CUBE.split("\n")[1:-1]
    )
    index = ",".join(",".join(str(int(i) - 1) for i in q.split()) + ",-1" for q in QUADS)
    return (
        f"Shape {{ geometry IndexedFaceSet \n{{ creaseAngle 0.50 coordIndex [{index}]\n"
        f"coord Coordinate {{ point [{points}]\n}}}}\n"
        f"appearance Appearance{{material USE {material} }}\n}}\n"
    )


def test_kicad_vrml_parts_are_its_materials():
    text = KICAD + kicad_shape("PIN-01", -5) + kicad_shape("BODY", 0) + kicad_shape("PIN-01", 5)
    mesh = read(text, "k.wrl")
    assert mesh.part_names == ("PIN-01", "BODY")
    assert np.bincount(mesh.part).tolist() == [24, 12]
    assert signed_volume(mesh) == pytest.approx(24)
    assert mesh.color[mesh.part == 0].reshape(-1, 3)[0].tolist() == [204, 102, 51]
    columns = decode(text, "k.wrl")
    assert columns["part_names"] == ["PIN-01", "BODY"]
    part = np.frombuffer(columns["surface_part"], "<u2")
    assert abs((part == 0).mean() - 2 / 3) < 0.15
    color = np.frombuffer(columns["surface_color"], np.uint8).reshape(-1, 3)
    assert (color[part == 1] == [0, 0, 51]).all()


def test_vrml_transforms_groups_switches_and_reuse():
    cube = "DEF CUBE " + kicad_shape("BODY", 0)
    text = KICAD + (
        'NavigationInfo { type [ "EXAMINE", "ANY" ] headlight TRUE }\n'
        "DEF T Transform { translation 10 0 0 rotation 0 0 1 1.5707963 scale 2 1 1 center 0 0 0\n"
        "  children [ Group { children [ " + cube + " ] } ] }\n"
        "Transform { scale -1 1 1 children USE CUBE }\n"
        "Switch { whichChoice 1 choice [ USE CUBE, Transform { translation 0 0 50 children USE CUBE"
        " } ] }\nSwitch { choice USE CUBE }\nROUTE A.x TO B.y\n"
    )
    mesh = read(text, "k.wrl")
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    assert np.abs(mesh.vertices[:8].max(0) - [11, 2, 1]).max() < 1e-6
    assert (low.round(6).tolist(), high.round(6).tolist()) == ([-1, -2, -1], [11, 2, 51])
    assert signed_volume(mesh) == pytest.approx(16 + 8 + 8)  # the mirrored one is turned back


def test_vrml_colors_by_vertex_and_by_face():
    face = "coordIndex [0 1 2 -1 0 2 3 -1] coord Coordinate { point [0 0 0 1 0 0 1 1 0 0 1 1] } "
    head = "#VRML V2.0 utf8\nShape { geometry IndexedFaceSet { " + face
    by_face = head + "colorPerVertex FALSE color Color { color [1 0 0, 0 1 0] } } }"
    assert read(by_face, "v.wrl").color[:, 0].tolist() == [[255, 0, 0], [0, 255, 0]]
    by_vertex = head + "colorIndex [0 1 0 -1 1 1 0 -1] color Color { color [1 0 0, 0 1 0] } } }"
    color = read(by_vertex, "v.wrl").color
    assert color[:, :, 0].tolist() == [[255, 0, 255], [0, 0, 255]]


@pytest.mark.parametrize(
    ("text", "code", "match"),
    [
        ("#VRML V1.0 ascii\nSeparator { }", Code.DECODE, "VRML 1.0"),
        ("hello", Code.DECODE, "not a VRML 2.0"),
        (KICAD + kicad_shape("NOPE", 0), Code.DECODE, "USE of 'NOPE'"),
        (KICAD + kicad_shape("BODY", 0)[:200], Code.DECODE, "truncated VRML"),
        (KICAD + kicad_shape("BODY", 0)[:-4], Code.DECODE, "truncated VRML"),
        (KICAD + "PROTO P [ ] { Shape { } }", Code.DECODE, "PROTO"),
        (KICAD + "Shape { geometry Sphere { radius 2 } }", Code.EMPTY, "it holds Sphere"),
        (KICAD + kicad_shape("BODY", 0).replace(",7", ",70"), Code.DECODE, "vertex 70"),
        ("#VRML V2.0 utf8\n" + "Group { children " * 200, Code.DECODE, "deep"),
    ],
)
def test_broken_vrml_is_refused_by_name(text, code, match):
    rejected(text, "x.wrl", code, match)


def test_a_vrml_bomb_of_reused_nodes_is_stopped():
    text = KICAD + "DEF N0 " + kicad_shape("BODY", 0)
    for k in range(60):
        text += f"DEF N{k + 1} Group {{ children [ USE N{k} USE N{k} ] }}\n"
    rejected(text, "x.wrl", Code.TOO_LARGE, "max_faces", max_faces=10_000)


# glTF --------------------------------------------------------------------------------------------


def gltf_box(**changes) -> dict:
    box = trimesh.creation.box([1, 1, 1])
    positions = np.array(box.vertices, "<f4").tobytes()
    index = np.array(box.faces, "<u2").tobytes()
    data = base64.b64encode(positions + index).decode()
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "translation": [3, 0, 0], "scale": [-1, 2, 1]}],
        "materials": [{"name": "paint", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 36, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 96},
            {"buffer": 0, "byteOffset": 96, "byteLength": 72},
        ],
        "buffers": [{"byteLength": 168, "uri": "data:application/octet-stream;base64," + data}],
    }
    return document | changes


def test_gltf_nodes_are_moved_and_mirrors_keep_the_outside_out():
    mesh = read(json.dumps(gltf_box()), "m.gltf")
    assert signed_volume(mesh) == pytest.approx(2)
    assert mesh.vertices.min(0).tolist() == [2.5, -1, -0.5]
    assert mesh.part_names == ("paint",)
    assert (corner_color(mesh) == [255, 0, 0]).all()


def test_gltf_agrees_with_trimesh_on_a_scene_with_materials_and_textures():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (16, 8, 3), dtype=np.uint8)
    box, ball = trimesh.creation.box([1, 2, 3]), trimesh.creation.icosphere(subdivisions=1)
    uv = rng.random((len(box.vertices), 2))
    material = trimesh.visual.material.PBRMaterial(
        name="picture", baseColorTexture=Image.fromarray(picture)
    )
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    ball.visual.vertex_colors = np.tile([0, 255, 0, 255], (len(ball.vertices), 1)).astype(np.uint8)
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3], [0, 1, 0])
    scene.add_geometry(box, node_name="a", transform=turn)
    scene.add_geometry(ball, node_name="b")
    data = scene.export(file_type="glb")
    mesh = read(data, "s.glb")
    loaded = trimesh.load_scene(trimesh.util.wrap_as_stream(data), file_type="glb").to_mesh()
    expected = Mesh(np.array(loaded.vertices), np.array(loaded.faces))
    assert np.abs(corners(mesh) - corners(expected)).max() < 1e-5
    assert "picture" in mesh.part_names
    columns = decode_shape({"s.glb": data}, "s.glb", TINY, "k")
    part = np.frombuffer(columns["surface_part"], "<u2")
    color = np.frombuffer(columns["surface_color"], np.uint8).reshape(-1, 3)
    is_box = part == mesh.part_names.index("picture")
    assert (color[~is_box] == [0, 255, 0]).all()
    texels = {tuple(t) for t in picture.reshape(-1, 3).tolist()}
    assert {tuple(c) for c in color[is_box].tolist()} <= texels


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"buffers": [{"byteLength": 168, "uri": "http://example.com/a.bin"}]},
            "not among the files",
        ),
        ({"buffers": [{"byteLength": 168, "uri": "/etc/passwd"}]}, "not among the files"),
        ({"buffers": [{"byteLength": 168, "uri": "../../../etc/passwd"}]}, "not among the files"),
        ({"buffers": [{"byteLength": 9, "uri": "data:;base64,AAAA"}]}, "truncated glTF buffer"),
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "KHR_draco_mesh_compression"),
        ({"nodes": [{"children": [0]}]}, "circular"),
        ({"accessors": []}, "malformed"),
        ({"meshes": "x"}, "malformed"),
    ],
)
def test_broken_gltf_is_refused_and_opens_nothing(changes, match):
    rejected(json.dumps(gltf_box(**changes)), "m.gltf", Code.DECODE, match)


def test_siblings_leave_out_what_is_outside_of_the_dataset():
    uris = [
        "a%20b.bin",
        "../up.bin",
        "../../out.bin",
        "/abs.bin",
        "https://x.org/y.bin",
        "C:\\x.bin",
    ]
    document = {"buffers": [{"uri": uri, "byteLength": 1} for uri in uris]}
    assert siblings("d/m.gltf", json.dumps(document).encode()) == ["d/a b.bin", "up.bin"]
    for broken in (b"", b"glTF\2\0", b"{", b"[1]", b'{"buffers": 3, "images": [4, {"uri": 5}]}'):
        assert siblings("d/m.gltf", broken) == []


def test_instances_are_counted_before_they_are_made():
    nodes = [{"children": list(range(1, 2000))}] + [{"mesh": 0}] * 1999
    rejected(
        json.dumps(gltf_box(nodes=nodes)), "m.gltf", Code.TOO_LARGE, "max_faces", max_faces=9_999
    )


# Broken input ------------------------------------------------------------------------------------

CLOUD = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n1 0 0\n0 1 0\n"  # noqa: E501
WIDE = cube_obj().replace("v 1 1 1", "v 1 1e308 1").replace("v 1 -1 1", "v 1 -1e308 1")
FLAT = "v 0 0 0\nv 1 1 1\nv 0 1 0.5\nv 1 2 1.5\nf 1 2 3\nf 2 4 3\n"  # in an oblique plane


@pytest.mark.parametrize(
    ("name", "data", "code", "match"),
    [
        ("a.obj", "", Code.EMPTY, "a.obj is empty"),
        ("a.stl", "\0" * 40, Code.EMPTY, "a.stl is empty"),
        ("a.obj", "hello world\n", Code.EMPTY, "no faces"),
        ("a.obj", CUBE, Code.EMPTY, "8 points and no faces.*kind: points"),
        ("a.ply", CLOUD, Code.EMPTY, "3 points and no faces.*kind: points"),
        ("a.obj", CUBE + "f 1 2 99\n", Code.DECODE, "vertex 98"),
        ("a.obj", CUBE + "f 0 1 2\n", Code.DECODE, "vertex 0"),
        ("a.obj", CUBE + "f 1 2 x\n", Code.DECODE, "face line"),
        ("a.obj", CUBE + "f 1 2 " + "x" * 10**6, Code.DECODE, r"^.{1,200}$"),
        ("a.obj", cube_obj().replace("v 1 1 1", "v 1 one 1"), Code.DECODE, "one"),
        ("a.obj", cube_obj().replace("v 1 1 1", "v 1 1"), Code.DECODE, "three numbers"),
        ("a.obj", cube_obj().replace("v 1 1 1", "v 1 nan 1"), Code.NAN_INPUT, "1 of 8"),
        ("a.obj", cube_obj().replace("v 1 1 1", "v 1 1e999 1"), Code.NAN_INPUT, "1 of 8"),
        ("a.obj", WIDE, Code.DEGENERATE, "extent is inf"),
        ("a.obj", "v 1 1 1\n" * 3 + "f 1 2 3\n", Code.DEGENERATE, "extent is 0"),
        ("a.obj", CUBE + "f 1 1 2\n", Code.DEGENERATE, "vertex twice"),
        ("a.obj", "v 0 0 0\nv 1 1 1\nv 3 3 3\nf 1 2 3\n", Code.DEGENERATE, "flat|zero area"),
        ("a.obj", FLAT, Code.DEGENERATE, "flat: .*kind: points"),
        ("a.off", "OFF\n8 6 0" + CUBE.replace("v ", ""), Code.DECODE, "truncated OFF"),
        ("a.off", "PFF\n1 2 3", Code.DECODE, "first word"),
        (
            "a.stl",
            "solid x\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0",
            Code.DECODE,
            "truncated",
        ),
        ("a.stl", b"\1" * 60, Code.DECODE, "truncated, or no STL"),
        ("a.ply", CLOUD.replace("vertex 3", "vertex 9"), Code.DECODE, "truncated PLY"),
        ("a.ply", CLOUD.partition("end")[0], Code.DECODE, "header is cut off"),
        ("a.ply", CLOUD.replace("float x", "quux x"), Code.DECODE, "header line"),
        ("a.glb", b"glTF" + struct.pack("<2I", 2, 4000), Code.DECODE, "truncated GLB"),
        ("a.glb", b"\x89PNG123", Code.DECODE, "glTF document"),
        ("a.gltf", "{}", Code.EMPTY, "no triangles"),
    ],
)
def test_a_broken_file_is_rejected_with_its_reason(name, data, code, match):
    rejected(data, name, code, match)


@pytest.mark.parametrize("form", ["obj", "ply", "stl", "stl_ascii", "off", "glb"])
def test_too_many_faces_are_refused_before_anything_is_sampled(form, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.meshes.sample_shape", lambda *_: pytest.fail("sampled"))
    data = bunny_like().export(file_type=form)
    name = f"m.{form.split('_')[0]}"
    rejected(
        data, name, Code.TOO_LARGE, r"320 faces, more than ingest.max_faces \(300\)", max_faces=300
    )


def test_announced_counts_do_not_reserve_memory():
    for name, text in (
        ("a.ply", CLOUD.replace("vertex 3", "vertex 999999999999")),
        ("a.off", "OFF\n999999999999 1 0\n0 0 0\n"),
    ):
        rejected(text, name, Code.DECODE, "truncated")


@pytest.mark.parametrize("form", ["obj", "ply", "stl", "stl_ascii", "off", "glb", "wrl"])
def test_a_file_cut_anywhere_is_read_or_rejected_but_never_crashes(form):
    solid = trimesh.creation.box([1, 1, 1])
    data = vrml(solid) if form == "wrl" else solid.export(file_type=form)
    data = data.encode() if isinstance(data, str) else data
    name = f"m.{form.split('_')[0]}"
    refused = 0
    for cut in range(0, len(data), max(1, len(data) // 97)):
        try:
            clean_mesh(read(data[:cut], name))
        except RejectedSample:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("form", ["ply", "stl", "glb", "obj", "off", "wrl"])
def test_flipped_bytes_are_read_or_rejected_but_never_crash(form):
    solid = trimesh.creation.box([1, 1, 1])
    data = vrml(solid) if form == "wrl" else solid.export(file_type=form)
    data = data.encode() if isinstance(data, str) else data
    rng, refused = np.random.default_rng(1), 0
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 4):
            broken[at] = int(rng.integers(0, 256))
        try:
            clean_mesh(read(bytes(broken), f"m.{form}"))
        except RejectedSample:
            refused += 1
    assert refused > 0


def test_several_files_of_a_sample_are_one_shape():
    left, right = trimesh.creation.box([1, 1, 1]), trimesh.creation.box([1, 1, 1])
    right.apply_translation([3, 0, 0])
    files = {
        "s/b.stl": right.export(file_type="stl"),
        "s/a.off": left.export(file_type="off").encode(),
    }
    mesh = read_mesh(files, "s/a.off", LIMIT)
    assert signed_volume(mesh) == pytest.approx(2)
    assert mesh.vertices[:8].max() == 0.5
    with pytest.raises(RejectedSample, match=r"^b.stl: truncated"):
        read_mesh(files | {"s/b.stl": files["s/b.stl"][:-5]}, "s/a.off", LIMIT)


def test_none_keeps_coordinates_and_refuses_those_outside_the_box():
    solid = trimesh.creation.box([1, 1, 1]).export(file_type="off")
    columns = decode(solid, "m.off", normalize="none")
    assert (columns["center"], columns["scale"]) == ([0, 0, 0], 1)
    columns = decode(solid, "m.off", normalize="box")
    assert columns["scale"] == 1
    far = trimesh.creation.box([3, 1, 1]).export(file_type="off")
    rejected(far, "m.off", Code.DEGENERATE, "normalize: sphere", normalize="none")


def test_every_suffix_has_a_reader_that_names_garbage():
    for suffix in SHAPE_SUFFIXES:
        with pytest.raises(RejectedSample):
            decode(b"garbage \xff\x00", f"a{suffix}")
