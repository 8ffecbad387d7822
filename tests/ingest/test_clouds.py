"""Point clouds of every format, and meshes read as clouds."""

import io

import numpy as np
import pyarrow as pa
import pytest
import trimesh

from pipeline.ingest.clouds import CLOUD_SUFFIXES, decode_cloud
from schemas.run import PointIngest
from schemas.samples import POINTS, Code, RejectedSample

INGEST = PointIngest(surface=500, held_out=100, precision="float32")
RNG = np.random.default_rng(0)
NORMALS = RNG.standard_normal((900, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)
POSITIONS = NORMALS * [1.0, 2.0, 3.0] + [10, 0, -5]
COLORS = RNG.integers(0, 256, (900, 3), dtype=np.uint8)


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def ply(kind: str = "ascii", normals: bool = True) -> bytes:
    names = ["float x", "float y", "float z"] + ["float nx", "float ny", "float nz"] * normals
    names += ["uchar red", "uchar green", "uchar blue"]
    header = f"ply\nformat {kind} 1.0\nelement vertex 900\n"
    header += "".join(f"property {name}\n" for name in names) + "end_header\n"
    floats = np.hstack([POSITIONS, NORMALS] if normals else [POSITIONS])
    if kind == "ascii":
        rows = (" ".join(map(repr, [*map(float, f), *map(int, c)])) for f, c in zip(floats, COLORS))
        return (header + "\n".join(rows) + "\n").encode()
    order = "<" if "little" in kind else ">"
    table = np.zeros(900, [("f", order + "f4", floats.shape[1]), ("c", "u1", 3)])
    table["f"], table["c"] = floats, COLORS
    return header.encode() + table.tobytes()


def text(separator: str, *columns, head: str = "") -> bytes:
    rows = np.hstack(columns)
    return (head + "\n".join(separator.join(f"{x:.8f}" for x in row) for row in rows)).encode()


FILES = {
    "a.ply": ply(),
    "b.ply": ply("binary_little_endian"),
    "c.ply": ply("binary_big_endian"),
    "d.npz": npz(points=POSITIONS.astype(np.float32), normals=NORMALS, colors=COLORS / 255),
    "e.xyz": text(" ", POSITIONS, NORMALS, COLORS),
    "f.txt": text(",", POSITIONS, NORMALS, COLORS),  # as ModelNet40 in text
    "g.csv": text(
        ";", COLORS, POSITIONS, NORMALS, head='"red";"green";"blue";"x";"y";"z";"nx";"ny";"nz"\n'
    ),
    "h.npy": (lambda b: (np.save(b, np.hstack([POSITIONS, NORMALS, COLORS])), b.getvalue())[1])(
        io.BytesIO()
    ),
}


def decode(data: bytes, name: str, **changed) -> dict:
    return decode_cloud({name: data}, name, INGEST.model_copy(update=changed), "key")


def points_of(columns: dict, name: str) -> np.ndarray:
    """Stored coordinates in original units."""
    stored = np.frombuffer(columns[f"{name}_coords"], "<f4").reshape(-1, 3).astype(float)
    return stored / columns["scale"] + columns["center"]


@pytest.mark.parametrize("name", FILES)
def test_all_formats_give_the_same_points_normals_and_colors(name):
    columns = decode(FILES[name], name)
    assert pa.Table.from_pylist([columns], schema=POINTS).validate(full=True) is None
    assert set(columns) == set(POINTS.names)
    for part, count in (("surface", 500), ("held_surface", 100)):
        points = points_of(columns, part)
        assert len(points) == count
        gaps = np.linalg.norm(points[:, None] - POSITIONS, axis=2)
        match = gaps.argmin(1)
        assert gaps.min(1).max() < 1e-5
        assert len(set(match)) == count  # every point once
        normals = np.frombuffer(columns[f"{part}_normals"], "<f2").reshape(-1, 3)
        assert np.abs(normals - NORMALS[match]).max() < 1e-3
        color = np.frombuffer(columns[f"{part}_color"], np.uint8).reshape(-1, 3)
        assert (color == COLORS[match]).all()
    kept, held = ({r.tobytes() for r in points_of(columns, n)} for n in ("surface", "held_surface"))
    assert not kept & held


def test_clouds_without_normals_have_none():
    for name, data in (
        ("a.xyz", text(" ", POSITIONS, head="# made by a scanner\n")),
        ("a.ply", ply(normals=False)),
        ("a.npz", npz(points=POSITIONS)),
        ("a.npz", npz(anything=POSITIONS)),
        ("a.pts", text(" ", POSITIONS, np.full((900, 1), -1500.0), COLORS, head="900\n")),
        ("a.obj", b"".join(b"v %f %f %f\n" % tuple(p) for p in POSITIONS)),
    ):
        columns = decode(data, name)
        assert columns["surface_normals"] is None
        assert np.abs(points_of(columns, "surface")).max() < 12
    assert decode(ply(normals=False), "a.ply")["surface_color"] is not None


def test_small_clouds_are_kept_whole_and_a_quarter_is_held_out():
    columns = decode(text(" ", POSITIONS[:40]), "a.xyz")
    assert len(points_of(columns, "held_surface")) == 10
    assert len(points_of(columns, "surface")) == 30


def test_the_choice_is_a_function_of_bytes_config_and_seed():
    first = decode(FILES["a.ply"], "a.ply")
    assert decode(FILES["a.ply"], "a.ply", timeout_s=1.0) == first
    other = decode(FILES["a.ply"], "a.ply", seed=1)
    assert other["surface_coords"] != first["surface_coords"]


def test_compact_coordinates_are_within_half_a_step():
    columns = decode(FILES["b.ply"], "b.ply", precision="compact")
    exact = decode(FILES["b.ply"], "b.ply")
    steps = np.frombuffer(columns["surface_coords"], "<u2") / 65535 * 2 - 1
    assert np.abs(steps - np.frombuffer(exact["surface_coords"], "<f4")).max() < 0.51 * 2 / 65535


@pytest.mark.parametrize("form", ["obj", "ply", "stl", "off", "glb"])
def test_a_mesh_is_sampled_uniformly_with_the_normals_of_its_faces(form):
    box = trimesh.creation.box([2, 2, 4])
    box.apply_translation([100, 0, 0])
    data = box.export(file_type=form)
    data = data.encode() if isinstance(data, str) else data
    columns = decode(data, f"m.{form}", surface=4000)
    points = points_of(columns, "surface") - [100, 0, 0]
    normals = np.frombuffer(columns["surface_normals"], "<f2").reshape(-1, 3)
    assert len(points) == 4000
    assert np.abs(np.abs(points / [1, 1, 2]).max(1) - 1).max() < 1e-5
    assert np.abs((points / [1, 1, 2] * normals).sum(1) - 1).max() < 1e-4
    ends = (np.abs(normals[:, 2]) > 0.5).mean()
    assert abs(ends - 8 / 40) < 0.03


def test_an_open_surface_is_a_good_cloud():
    columns = decode(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "sheet.obj")
    assert np.abs(points_of(columns, "surface")[:, 2]).max() == 0


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "code", "match", "changed"),
    [
        ("a.xyz", b"", Code.EMPTY, "a.xyz is empty", {}),
        ("a.txt", b"This folder holds\nclouds.\n", Code.DECODE, "no line of numbers", {}),
        ("a.xyz", b"1 2\n3 4\n", Code.DECODE, "a point needs three", {}),
        ("a.xyz", b"1 2 3\n3 4\n", Code.DECODE, "point 2 has 2 numbers", {}),
        ("a.xyz", b"1 2 3\n4 5 six\n", Code.DECODE, "six", {}),
        ("a.xyz", b"1 2 3\n4 5 6\n", Code.EMPTY, "at least 4", {}),
        ("a.xyz", b"1 2 3\n4 5 nan\n" * 4, Code.NAN_INPUT, "4 of 8", {}),
        ("a.xyz", b"1 2 3\n" * 9, Code.DEGENERATE, "extent is 0", {}),
        ("a.pts", b"9\n1 2 3\n4 5 6\n", Code.DECODE, "truncated: 9 points announced, 2", {}),
        ("a.ply", ply()[:-500], Code.DECODE, "truncated PLY", {}),
        ("a.ply", ply("binary_little_endian")[:-500], Code.DECODE, "truncated PLY", {}),
        ("a.npz", b"PK\3\4nope", Code.DECODE, "not a readable NPZ", {}),
        ("a.npz", npz(points=POSITIONS)[:-60], Code.DECODE, "not a readable NPZ", {}),
        ("a.npz", npz(a=POSITIONS, b=POSITIONS), Code.DECODE, r"it holds a float64\[900, 3\]", {}),
        ("a.npz", npz(points=POSITIONS, normals=NORMALS[:9]), Code.DECODE, "do not match", {}),
        ("a.npy", pickled(), Code.DECODE, "allow_pickle", {}),
        ("a.xyz", text(" ", POSITIONS), Code.TOO_LARGE, "max_points", {"max_points": 899}),
        ("a.ply", ply(), Code.TOO_LARGE, "max_points", {"max_points": 899}),
        ("a.npz", npz(points=POSITIONS), Code.TOO_LARGE, "max_points", {"max_points": 899}),
        ("a.xyz", text(" ", POSITIONS), Code.DEGENERATE, "sphere", {"normalize": "none"}),
    ],
)
def test_a_broken_cloud_is_rejected_with_its_reason(name, data, code, match, changed):
    with pytest.raises(RejectedSample, match=match) as error:
        decode(data, name, **changed)
    assert error.value.code is code


def test_every_suffix_names_garbage():
    for suffix in CLOUD_SUFFIXES:
        with pytest.raises(RejectedSample):
            decode(b"garbage \xff\x00", f"a{suffix}")


def test_several_scans_of_a_sample_are_one_cloud():
    files = {"s/1.xyz": text(" ", POSITIONS[:400]), "s/2.xyz": text(" ", POSITIONS[400:])}
    columns = decode_cloud(files, "s/1.xyz", INGEST.model_copy(update={"surface": 900}), "k")
    total = len(points_of(columns, "surface")) + len(points_of(columns, "held_surface"))
    assert total == 900
