"""Signed distances against closed forms and a brute-force oracle; signs on broken soups."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import trimesh

from pipeline.ingest.mesh import Mesh, is_watertight, welded_faces
from pipeline.ingest.meshes import decode_shape
from pipeline.ingest.sampling import (
    draw_surface,
    sample_shape,
    signed_distances,
    stored_distance,
    stream,
)
from schemas.run import ShapeIngest
from schemas.samples import SHAPES, Code, RejectedSample

SMALL = ShapeIngest(near=4096, uniform=2048, surface=2048, held_out=512, normalize="none")


def mesh_of(solid: trimesh.Trimesh) -> Mesh:
    return Mesh(np.array(solid.vertices, np.float64), np.array(solid.faces, np.int64))


def numbers(columns: dict, name: str) -> np.ndarray:
    """A stored set as float64: coordinates in the box, distances, normals."""
    if name.endswith("_coords"):
        if columns["precision"] == "float32":
            return np.frombuffer(columns[name], "<f4").reshape(-1, 3).astype(float)
        return np.frombuffer(columns[name], "<u2").reshape(-1, 3) / 65535 * 2 - 1
    if name.endswith("_normals"):
        return np.frombuffer(columns[name], "<f2").reshape(-1, 3).astype(float)
    kind = "<f4" if columns["precision"] == "float32" else "<f2"
    return np.frombuffer(columns[name], kind).astype(float)


def brute_force_distance(vertices, faces, points):
    """Exact point-triangle distance in float64: three edges, and the plane where it is above."""
    best = np.full(len(points), np.inf)
    for a, b, c in vertices[faces]:
        for start, end in ((a, b), (b, c), (c, a)):
            edge = end - start
            along = np.clip((points - start) @ edge / max(edge @ edge, 1e-300), 0, 1)
            gap = points - start - along[:, None] * edge
            best = np.minimum(best, (gap**2).sum(1))
        normal = np.cross(b - a, c - a)
        if normal @ normal > 0:
            above = np.ones(len(points), bool)
            for start, end in ((a, b), (b, c), (c, a)):
                above &= np.cross(end - start, points - start) @ normal >= 0
            height = (points - a) @ normal / np.sqrt(normal @ normal)
            best = np.where(above, np.minimum(best, height**2), best)
    return np.sqrt(best)


def box_distance(points, half):
    """Signed distance of the box |x| <= half, in closed form."""
    q = np.abs(points) - half
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def octahedron_distance(points, size):
    """Signed distance of |x| + |y| + |z| <= size (I. Quilez' exact form)."""
    p = np.abs(points)
    m = p.sum(1) - size
    out = m / np.sqrt(3)
    for k in range(3):
        r = np.roll(p, -k, axis=1)
        near = (3 * r[:, 0] < m) & ~np.any(
            [3 * np.roll(p, -j, axis=1)[:, 0] < m for j in range(k)], 0
        )
        x, y, z = r[:, 0], r[:, 1], r[:, 2]
        along = np.clip(0.5 * (z - y + size), 0, size)
        edge = np.sqrt(x**2 + (y - size + along) ** 2 + (z - along) ** 2)
        out = np.where(near, edge, out)
    return out


def octahedron(size):
    corners = size * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    solid = trimesh.convex.convex_hull(corners.astype(float))
    return mesh_of(solid)


HALF = np.array([0.5, 0.3, 0.71])
CLOSED_FORMS = {
    "box": (mesh_of(trimesh.creation.box(2 * HALF)), lambda p: box_distance(p, HALF)),
    "octahedron": (octahedron(0.77), lambda p: octahedron_distance(p, 0.77)),
}


@pytest.mark.parametrize("shape", CLOSED_FORMS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("compact", 1e-3)])
def test_distances_equal_the_closed_form_at_the_stored_coordinates(shape, precision, tolerance):
    mesh, exact = CLOSED_FORMS[shape]
    columns = sample_shape(mesh, SMALL.model_copy(update={"precision": precision}), "s")
    for name in ("near", "uniform", "held_near", "held_uniform"):
        coords, distance = numbers(columns, f"{name}_coords"), numbers(columns, f"{name}_distance")
        expected = exact(coords)
        if precision == "compact":  # float16 rounds: half a step in 2^11, and no more
            tolerance = np.maximum(np.abs(expected) * 2**-11, 3e-8) * 1.01
        assert (np.abs(distance - expected) <= tolerance).all()
        sure = np.abs(expected) > 1e-7
        assert ((distance < 0) == (expected < 0))[sure].all()
        if name.endswith("uniform"):
            assert 0.001 < (distance < 0).mean() < 0.5


@pytest.mark.parametrize("thickness", [0, 1e-15, 1e-13, 1e-9, 1e-6, 1e-3])
def test_distances_equal_brute_force_on_a_soup_with_slivers(thickness):
    """libigl is wrong by up to 0.07 on faces without area: those must not reach it."""
    rng = np.random.default_rng(3)
    corners = rng.uniform(-0.6, 0.6, (60, 3, 3))
    along = corners[:20, 1] - corners[:20, 0]
    corners[:20, 2] = corners[:20, 0] + along * 0.4 + thickness * rng.standard_normal((20, 3))
    corners[20:23, 2] = corners[20:23, 1]
    mesh = Mesh(corners.reshape(-1, 3), np.arange(180).reshape(-1, 3))
    ingest = SMALL.model_copy(update={"max_doubt": 1.0, "precision": "float32"})
    columns = sample_shape(mesh, ingest, "slivers")
    areas = np.linalg.norm(np.cross(along, corners[:20, 2] - corners[:20, 0]), axis=1)
    solid = np.concatenate([areas > 1e-14, np.zeros(3, bool), np.ones(37, bool)])
    for name in ("near", "uniform"):
        coords, distance = numbers(columns, f"{name}_coords"), numbers(columns, f"{name}_distance")
        expected = brute_force_distance(mesh.vertices, mesh.faces[solid], coords)
        assert np.abs(np.abs(distance) - expected).max() < 1e-6


def test_a_tetrahedron_keeps_its_sign_and_distance():
    solid = trimesh.convex.convex_hull(
        0.8 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    )
    columns = sample_shape(mesh_of(solid), SMALL.model_copy(update={"precision": "float32"}), "t")
    coords, distance = numbers(columns, "near_coords"), numbers(columns, "near_distance")
    expected = brute_force_distance(np.array(solid.vertices), np.array(solid.faces), coords)
    planes = coords @ solid.face_normals.T - (solid.face_normals * solid.triangles[:, 0]).sum(1)
    assert np.abs(distance - np.where((planes < 0).all(1), -expected, expected)).max() < 1e-5


# Broken soups ------------------------------------------------------------------------------------


def torus_distance(points):
    ring = np.hypot(np.hypot(points[:, 0], points[:, 1]) - 0.55, points[:, 2])
    return ring - 0.25


def torus_mesh() -> Mesh:
    return mesh_of(trimesh.creation.torus(0.55, 0.25, major_sections=96, minor_sections=48))


def damaged(mesh: Mesh, damage: str) -> Mesh:
    rng, faces = np.random.default_rng(0), mesh.faces.copy()
    if damage == "removed":
        return replace(mesh, faces=faces[rng.random(len(faces)) > 0.05])
    if damage == "flipped":
        turned = rng.random(len(faces)) < 0.10
        faces[turned] = faces[turned, ::-1]
        return replace(mesh, faces=faces)
    if damage == "unwelded":
        order = rng.permutation(len(faces))
        return Mesh(
            mesh.vertices[faces[order]].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3)
        )
    if damage == "inside-out":
        return replace(mesh, faces=faces[:, ::-1])
    return mesh


@pytest.mark.parametrize(
    ("damage", "right", "doubt", "watertight"),
    [
        ("none", 0.9995, 0.001, True),
        ("removed", 0.995, 0.06, False),
        ("flipped", 0.97, 0.15, True),
        ("unwelded", 0.9995, 0.001, True),
        ("inside-out", 0.9995, 0.001, True),
    ],
)
def test_signs_are_right_on_broken_soups(damage, right, doubt, watertight):
    mesh = damaged(torus_mesh(), damage)
    columns = sample_shape(mesh, SMALL, "soup")
    for name in ("near", "uniform"):
        coords, distance = numbers(columns, f"{name}_coords"), numbers(columns, f"{name}_distance")
        expected = torus_distance(coords)
        clear = np.abs(expected) > 2e-3  # the mesh lies that far within the torus
        assert ((distance < 0) == (expected < 0))[clear].mean() >= right
        # the trap: |d| (1 - 2 |w|) is far from the distance wherever w is ambiguous
        far = np.abs(np.abs(distance) - np.abs(expected))[clear]
        assert np.quantile(far, 0.99) < (0.02 if damage == "removed" else 3e-3)
    assert columns["doubt"] <= doubt
    assert (columns["doubt"] > 0.001) == (damage in ("removed", "flipped"))
    assert columns["watertight"] is watertight


def test_the_magnitude_is_the_distance_where_the_winding_number_is_ambiguous():
    """libigl's own signed distance is |d| (1 - 2 |w|): under an open shell it is off by half."""
    shell = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    kept = shell.triangles_center[:, 2] < 0.35
    mesh = Mesh(np.array(shell.vertices), np.array(shell.faces[kept]))
    columns = sample_shape(mesh, SMALL.model_copy(update={"max_doubt": 1.0}), "open")
    coords, distance = numbers(columns, "uniform_coords"), numbers(columns, "uniform_distance")
    expected = brute_force_distance(mesh.vertices, mesh.faces, coords)
    _, winding, *_ = signed_distances(mesh.vertices, mesh.faces, coords)
    assert np.abs(np.abs(distance) - expected).max() < 5e-4
    doubtful = (np.abs(winding) > 0.25) & (np.abs(winding) < 0.75)
    trap = expected * (1 - 2 * np.abs(winding))
    assert doubtful.sum() > 50
    assert (np.abs(np.abs(distance) - np.abs(trap))[doubtful] > 0.3 * expected[doubtful]).all()


def test_nested_touching_and_inside_out_solids_are_one_inside():
    half = np.array([0.2, 0.2, 0.2])
    centers = {"left": [-0.4, 0, 0], "touching": [0, 0, 0], "turned": [0.6, 0.5, 0]}
    pieces = []
    for name, center in centers.items():
        solid = trimesh.creation.box(2 * half)
        solid.apply_translation(center)
        faces = solid.faces[:, ::-1] if name == "turned" else solid.faces
        pieces.append((np.array(solid.vertices), np.array(faces)))
    nested = trimesh.creation.box(half)
    nested.apply_translation(centers["left"])
    pieces.append((np.array(nested.vertices), np.array(nested.faces)))
    starts = np.cumsum([0] + [len(v) for v, _ in pieces])
    mesh = Mesh(
        np.concatenate([v for v, _ in pieces]),
        np.concatenate([f + s for (_, f), s in zip(pieces, starts)]),
    )
    columns = sample_shape(mesh, SMALL, "nested")
    for name in ("near", "uniform"):
        coords, distance = numbers(columns, f"{name}_coords"), numbers(columns, f"{name}_distance")
        boxes = [box_distance(coords - center, half) for center in centers.values()]
        union = np.min(boxes, axis=0)
        clear = np.abs(boxes).min(0) > 1e-4  # not on the wall that two of them share
        assert ((distance < 0) == (union < 0))[clear].all()
    assert columns["doubt"] < 0.002
    assert columns["watertight"]
    # normals point out of the solid, also of the part that is inside out
    coords, normals = numbers(columns, "surface_coords"), numbers(columns, "surface_normals")
    turned = box_distance(coords - centers["turned"], half)
    there = np.abs(turned) < 1e-3
    outward = ((coords - centers["turned"]) * normals)[there].sum(1)
    assert there.sum() > 100
    assert (outward > 0).all()


def test_a_cavity_stays_outside():
    outer, inner = trimesh.creation.box([1.2] * 3), trimesh.creation.box([0.6] * 3)
    faces = np.concatenate([outer.faces, inner.faces[:, ::-1] + 8])
    mesh = Mesh(np.concatenate([outer.vertices, inner.vertices]), faces)
    columns = sample_shape(mesh, SMALL, "hollow")
    coords, distance = numbers(columns, "uniform_coords"), numbers(columns, "uniform_distance")
    radius = np.abs(coords).max(1)
    assert ((distance < 0) == ((radius < 0.6) & (radius > 0.3))).mean() > 0.999


def test_an_open_surface_is_rejected_with_its_figure_and_the_way_out():
    plane = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    kept = plane.triangles_center[:, 2] > 0.1
    mesh = Mesh(np.array(plane.vertices), np.array(plane.faces[kept]))
    with pytest.raises(
        RejectedSample, match=r"\d+\.\d% of the winding numbers.*max_doubt: 1 "
    ) as e:
        sample_shape(mesh, SMALL.model_copy(update={"max_doubt": 0.05}), "s")
    assert e.value.code is Code.DOUBTFUL_SIGN
    assert "kind: points" in e.value.message


def test_faces_doubled_both_ways_have_no_inside():
    box = mesh_of(trimesh.creation.box([1, 1, 1]))
    doubled = replace(box, faces=np.concatenate([box.faces, box.faces[:, ::-1]]))
    with pytest.raises(RejectedSample, match=r"none of .* points is inside"):
        sample_shape(doubled, SMALL, "s")
    kept = sample_shape(doubled, SMALL.model_copy(update={"max_doubt": 1.0}), "s")
    assert (numbers(kept, "near_distance") >= 0).all()


# Distributions, layout and reproducibility -------------------------------------------------------


def test_surface_points_are_uniform_in_area_and_lie_on_their_face():
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 9.0]])
    faces = np.array([[0, 1, 2], [0, 1, 3]])  # areas 0.5 and 4.5
    rng = np.random.default_rng(0)
    on = draw_surface(rng, corners, faces, np.array([1.0, 10.0]), 40_000)
    assert abs((on.face == 0).mean() - 0.1) < 0.006  # four standard errors
    low = on.coords[on.face == 0]
    for power, moment in ((1, 1 / 3), (2, 1 / 6)):  # moments of x over the unit triangle
        assert abs((low[:, 0] ** power).mean() - moment) < 0.015
    assert np.abs(low[:, 2]).max() < 1e-12


def test_near_points_have_the_asked_spread_and_stay_in_the_box():
    box = mesh_of(trimesh.creation.box([1.9, 1.9, 1.9]))
    ingest = SMALL.model_copy(update={"near": 20_000, "near_std": (0.05, 0.01), "held_out": 0})
    coords = numbers(sample_shape(box, ingest, "n"), "near_coords")
    assert np.abs(coords).max() <= 1
    assert (np.abs(coords) > 1 - 1e-4).mean() < 2e-3  # drawn again, not clamped to the wall
    depth = 0.95 - np.abs(coords).max(1)
    inside = depth[depth > 0]  # the inner half is untouched by the walls of the box
    expected = np.mean([np.sqrt(2 / np.pi) * s for s in (0.05, 0.01)])
    assert abs(inside.mean() - expected) < 0.15 * expected


@pytest.mark.parametrize("block", [slice(0, 1000), slice(1500, 2500), slice(-1000, None)])
def test_any_block_is_an_unbiased_draw(block):
    box = mesh_of(trimesh.creation.box([1.0, 0.6, 1.4]))
    columns = sample_shape(box, SMALL, "order")
    for name in ("near", "uniform"):
        whole, part = (numbers(columns, f"{name}_distance")[s] for s in (slice(None), block))
        error = 4 * whole.std() / np.sqrt(len(part))
        assert abs(part.mean() - whole.mean()) < error
        assert abs((part < 0).mean() - (whole < 0).mean()) < 4 * 0.5 / np.sqrt(len(part))


def test_the_columns_are_those_of_the_schema_with_the_asked_sizes():
    solid = trimesh.creation.box([1, 1, 1])
    data = solid.export(file_type="ply")
    for precision, size in (("compact", 8), ("float32", 16)):
        ingest = SMALL.model_copy(update={"precision": precision, "normalize": "sphere"})
        columns = decode_shape({"a.ply": data}, "a.ply", ingest, "s")
        table = pa.Table.from_pylist([columns], schema=SHAPES)
        assert table.validate(full=True) is None
        assert set(columns) == set(SHAPES.names)
        for name, count in (("near", 4096), ("uniform", 2048), ("held_near", 512)):
            stored = len(columns[f"{name}_coords"]) + len(columns[f"{name}_distance"])
            assert stored == size * count
        assert len(columns["surface_normals"]) == 2048 * 6
        assert len(columns["held_surface_coords"]) == 512 * (6 if precision == "compact" else 12)
        assert columns["scale"] == pytest.approx(1 / (1.03 * np.sqrt(3) / 2))


def test_an_inside_point_stays_inside_however_near_the_surface():
    distance = np.array([-1e-9, -3e-8, -1e-7, 0.0, 1e-9])  # float16 holds nothing below 6e-8
    assert ((stored_distance(distance, "compact") < 0) == (distance < 0)).all()


def test_points_on_the_surface_itself_are_no_doubt():
    half = 40_000 / 65_535 * 2 - 1
    box = mesh_of(trimesh.creation.box([2 * half] * 3))
    columns = sample_shape(box, SMALL.model_copy(update={"near_std": (1e-9,)}), "s")
    assert np.abs(numbers(columns, "near_distance")).max() < 1e-6
    assert columns["doubt"] == 0


def test_held_out_points_are_drawn_in_addition_and_change_nothing_else():
    box = mesh_of(trimesh.creation.box([1, 1, 1]))
    without = sample_shape(box, SMALL.model_copy(update={"held_out": 0}), "s")
    columns = sample_shape(box, SMALL, "s")
    for name in ("near", "uniform", "surface"):
        assert columns[f"{name}_coords"] == without[f"{name}_coords"]
        drawn = {row.tobytes() for row in numbers(columns, f"{name}_coords")}
        assert not drawn & {row.tobytes() for row in numbers(columns, f"held_{name}_coords")}


def test_sampling_is_a_function_of_bytes_config_and_seed():
    data = {"m.off": trimesh.creation.icosphere(subdivisions=2).export(file_type="off").encode()}
    ingest = SMALL.model_copy(update={"normalize": "sphere"})

    def hashed(key="id", **changed):
        columns = decode_shape(data, "m.off", ingest.model_copy(update=changed), key)
        return hashlib.sha256(repr(sorted(columns.items())).encode()).hexdigest()

    first = hashed()
    np.random.random(7)  # global state must not matter
    assert hashed() == first
    assert hashed(max_faces=99_999, timeout_s=3.0) == first
    assert len({first, hashed("other"), hashed(seed=1), hashed(near=4095)}) == 4


def test_streams_do_not_depend_on_the_order_of_use():
    a = stream("id", 0, "near").random(3)
    stream("id", 0, "uniform").random(1000)
    assert (stream("id", 0, "near").random(3) == a).all()
    assert (stream("id", 1, "near").random(3) != a).all()


THREADS = """
import hashlib, sys, trimesh
from pipeline.ingest.meshes import decode_shape
from schemas.run import ShapeIngest
data = trimesh.creation.torus(1, 0.4).export(file_type="ply")
columns = decode_shape({"a.ply": data}, "a.ply", ShapeIngest(near=3000, uniform=3000), "k")
print(hashlib.sha256(repr(sorted(columns.items())).encode()).hexdigest())
"""


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    found = set()
    for threads in ("1", "3"):
        monkeypatch.setenv("IGL_NUM_THREADS", threads)
        run = subprocess.run(
            [sys.executable, "-c", THREADS], capture_output=True, text=True, check=True
        )
        found.add(run.stdout.strip())
    assert len(found) == 1


def test_watertight_counts_open_edges_over_welded_positions():
    box = mesh_of(trimesh.creation.box([1, 1, 1]))
    loose = box.vertices[box.faces].reshape(-1, 3)
    apart = np.arange(36).reshape(-1, 3)
    assert is_watertight(welded_faces(loose, apart))
    assert not is_watertight(welded_faces(loose, apart[1:]))
    assert is_watertight(welded_faces(loose + 1e6, apart))
