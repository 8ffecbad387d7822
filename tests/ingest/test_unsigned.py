"""Distances without sign, of soups and clouds, and grids of what is inside."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import trimesh
from scipy.spatial.distance import cdist

from pipeline.ingest.clouds import decode_cloud
from pipeline.ingest.mesh import Mesh
from pipeline.ingest.meshes import decode_shape
from pipeline.ingest.sampling import sample_shape
from pipeline.ingest.voxels import cell_centers, inside_cells
from schemas.run import PointIngest, ShapeIngest
from schemas.samples import Code, RejectedSample, form_schema

SHAPE = ShapeIngest(near=2000, uniform=2000, surface=500, held_out=200, normalize="none")
SOUP = SHAPE.model_copy(update={"sign": "none"})
CLOUD = PointIngest(
    surface=300, held_out=50, near=400, uniform=300, precision="float32", normalize="none"
)


def mesh_of(solid: trimesh.Trimesh) -> Mesh:
    return Mesh(np.array(solid.vertices, np.float64), np.array(solid.faces, np.int64))


def coords_of(columns, name):
    if columns["precision"] == "float32":
        return np.frombuffer(columns[f"{name}_coords"], "<f4").reshape(-1, 3).astype(float)
    return np.frombuffer(columns[f"{name}_coords"], "<u2").reshape(-1, 3) / 65535 * 2 - 1


def distance_of(columns, name, column="unsigned_distance"):
    kind = "<f4" if columns["precision"] == "float32" else "<f2"
    return np.frombuffer(columns[f"{name}_{column}"], kind).astype(float)


# Shapes ------------------------------------------------------------------------------------------


def test_an_open_surface_is_accepted_without_sign_and_its_doubt_is_recorded():
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.7)
    half = Mesh(
        np.array(sphere.vertices), np.array(sphere.faces[sphere.triangles_center[:, 2] > 0])
    )
    with pytest.raises(RejectedSample, match=r"ingest\.sign: none") as error:
        sample_shape(half, SHAPE.model_copy(update={"max_doubt": 0.02}), "s")
    assert error.value.code is Code.DOUBTFUL_SIGN
    columns = sample_shape(half, SOUP.model_copy(update={"max_doubt": 0.02}), "s")
    assert columns["doubt"] > 0.02
    for name in ("near", "uniform", "held_near", "held_uniform"):
        coords, distance = coords_of(columns, name), distance_of(columns, name)
        above = coords[:, 2] > 0.02
        exact = np.abs(np.linalg.norm(coords[above], axis=1) - 0.7)
        assert np.abs(distance[above] - exact).max() < 0.006  # of the icosphere's facets
        assert distance.min() >= 0
    columns |= {"center": [0.0] * 3, "scale": 1.0}
    table = pa.Table.from_pylist([columns], schema=form_schema("shapes", {"sign": "none"}))
    table.validate(full=True)
    assert set(columns) == set(table.column_names)


def test_unsigned_distances_are_the_magnitude_of_the_signed_ones():
    box = mesh_of(trimesh.creation.box([1.0, 0.6, 1.4]))
    signed, soup = sample_shape(box, SHAPE, "k"), sample_shape(box, SOUP, "k")
    assert (distance_of(signed, "near", "distance") < 0).any()
    for name in ("near", "uniform"):
        assert soup[f"{name}_coords"] == signed[f"{name}_coords"]
        exact = np.abs(distance_of(signed, name, "distance"))
        assert np.abs(distance_of(soup, name) - exact).max() < 1e-6


def test_without_sign_normals_stay_as_the_file_turns_them():
    box = mesh_of(trimesh.creation.box([1.0, 0.6, 1.4]))
    turned = replace(box, faces=box.faces[:, ::-1])
    for ingest, out in ((SHAPE, 1), (SOUP, -1)):
        columns = sample_shape(turned, ingest, "k")
        normals = np.frombuffer(columns["surface_normals"], "<f2").reshape(-1, 3).astype(float)
        assert (np.sign((coords_of(columns, "surface") * normals).sum(1)) == out).all()


def test_a_flat_sheet_is_a_sample_without_sign_only():
    sheet = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n"
    with pytest.raises(RejectedSample, match="flat"):
        decode_shape({"a.obj": sheet}, "a.obj", ShapeIngest(near=64), "k")
    ingest = SOUP.model_copy(update={"normalize": "sphere"})
    columns = decode_shape({"a.obj": sheet}, "a.obj", ingest, "k")
    coords = coords_of(columns, "uniform")
    inner = np.abs(coords[:, :2]).max(1) < 0.5
    assert np.abs(distance_of(columns, "uniform")[inner] - np.abs(coords[inner, 2])).max() < 1e-3


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_a_cell_is_inside_where_its_center_is(resolution):
    half = np.array([0.55, 0.32, 0.77])
    box = trimesh.creation.box(2 * half)
    box.apply_translation([0.1, 0.2, -0.15])
    ingest = SHAPE.model_copy(update={"voxels": resolution})
    columns = sample_shape(mesh_of(box), ingest, "k")
    bits = np.unpackbits(np.frombuffer(columns["voxels"], np.uint8))
    cells = bits.reshape((resolution,) * 3).astype(bool)
    x, y, z = np.meshgrid(*[cell_centers(resolution)] * 3, indexing="ij")
    exact = (np.abs(x - 0.1) < half[0]) & (np.abs(y - 0.2) < half[1]) & (np.abs(z + 0.15) < half[2])
    assert cells.tolist() == exact.tolist()
    assert cells.any()


def test_cells_of_inside_out_and_overlapping_solids_are_inside_once():
    a, b = trimesh.creation.box([0.8] * 3), trimesh.creation.icosphere(3, 0.4)
    a.apply_translation([-0.3, 0, 0])
    b.apply_translation([0.25, 0, 0])
    for turn in (1, -1):
        faces = np.concatenate([a.faces, b.faces + len(a.vertices)])[:, ::turn]
        vertices = np.concatenate([a.vertices, b.vertices])
        cells = inside_cells(vertices, np.ascontiguousarray(faces, np.int64), 32)
        grid = np.stack(np.meshgrid(*[cell_centers(32)] * 3, indexing="ij"), -1)
        radius = np.linalg.norm(grid - [0.25, 0, 0], axis=-1)
        exact = (np.abs(grid - [-0.3, 0, 0]).max(-1) < 0.4) | (radius < 0.4)
        assert (cells != exact).sum() <= 0.01 * exact.sum()  # facets of the sphere


# Clouds ------------------------------------------------------------------------------------------


def cloud_text(points, normals=None):
    rows = points if normals is None else np.concatenate([points, normals], 1)
    return "\n".join(" ".join(f"{x:.9f}" for x in row) for row in rows).encode()


def uneven(count=600):
    """A cloud whose density differs from place to place."""
    random = np.random.default_rng(0)
    return 0.9 * random.uniform(-1, 1, (count, 3)) * random.random((count, 1)) ** 2


def decoded(points, directions=None, **changed):
    ingest = CLOUD.model_copy(update=changed)
    return decode_cloud({"a.xyz": cloud_text(points, directions)}, "a.xyz", ingest, "k")


def test_distances_of_a_cloud_are_those_to_its_nearest_point():
    points = uneven().round(9)
    columns = decoded(points)
    held = coords_of(columns, "held_surface")
    fitted = points[cdist(points, held).min(1) > 1e-6]
    assert len(fitted) == 550
    for prefix, cloud, counts in (("", fitted, (400, 300)), ("held_", points, (50, 50))):
        for name, count in zip(("near", "uniform"), counts):
            coords, distance = (
                coords_of(columns, prefix + name),
                distance_of(columns, prefix + name),
            )
            assert len(coords) == count
            assert np.abs(distance - cdist(coords, cloud).min(1)).max() < 1e-6
    names = form_schema("points", {"near": 1}).names
    assert set(columns) == set(names)


def test_near_noise_is_the_distance_to_the_50th_neighbour_in_space():
    """Not in position and normal together: here normals are far apart where points are close."""
    points = uneven(3000) * 0.3  # no noise leaves the box
    normals = np.random.default_rng(1).standard_normal((3000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    columns = decoded(points, normals, near=20_000, surface=3000, held_out=0)
    assert columns == decoded(points, normals, near=20_000, surface=3000, held_out=0)
    rank = np.sort(cdist(points, points), 1)[:, 50]
    near = coords_of(columns, "near")
    # noise adds its variance: three axes, a deviation a point, every point as often
    moved = np.sqrt((near**2).sum(1).mean() - (points**2).sum(1).mean())
    assert moved == pytest.approx(np.sqrt(3 * (rank**2).mean()), rel=0.06)


def test_held_out_points_of_a_cloud_do_not_shape_what_is_fitted():
    points = uneven(200).round(9)
    first = decoded(points)
    held = coords_of(first, "held_surface")
    index = cdist(held, points).argmin(1)
    changed = points.copy()
    changed[index] *= 0.5  # only they move
    second = decoded(changed)
    for name in ("near", "uniform"):
        assert first[f"{name}_coords"] == second[f"{name}_coords"]
        assert first[f"{name}_unsigned_distance"] == second[f"{name}_unsigned_distance"]
    assert first["held_near_coords"] != second["held_near_coords"]


def test_a_cloud_too_small_for_its_50th_neighbour_is_rejected_with_the_way_out():
    points = uneven(60)  # 15 are held out
    with pytest.raises(RejectedSample, match=r"45 points after 15.*ingest\.near: 0") as error:
        decoded(points)
    assert error.value.code is Code.EMPTY
    columns = decoded(points, near=0)
    assert len(coords_of(columns, "uniform")) == 300
    assert columns["near_coords"] == b""


def test_normals_are_required_dropped_or_taken_as_they_are():
    points = uneven(100)
    normals = np.full_like(points, 3**-0.5)
    assert decoded(points, normals)["surface_normals"] is not None
    assert decoded(points, normals, normals="none")["surface_normals"] is None
    with pytest.raises(RejectedSample, match="has no normals") as error:
        decoded(points, normals="require")
    assert error.value.code is Code.NO_NORMALS
    normals[7] = 0
    assert decoded(points, normals)["surface_normals"] is None
    with pytest.raises(RejectedSample, match="points without a normal"):
        decoded(points, normals, normals="require")
