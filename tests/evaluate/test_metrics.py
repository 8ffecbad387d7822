"""Metrics against closed forms and against scikit-image."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
import trimesh
from skimage.metrics import structural_similarity

from pipeline.evaluate import mesh_metrics as meshes
from pipeline.evaluate import metrics
from pipeline.evaluate.prepared_lines import held_out_pixels, line_of
from pipeline.fitting.method import Field, PerSample
from pipeline.ingest.clouds import decode_cloud
from pipeline.samples import load_samples, pixel_coords
from schemas.base import Schema
from schemas.run import PointIngest
from schemas.samples import GRID, IDENTITY, FormSpec, form_schema
from tests.evaluate.prepared import picture_table, shape_table


def test_psnr_of_a_known_error():
    target = np.full((10, 3), 0.5)
    assert metrics.psnr(target + 0.1, target) == pytest.approx(20.0)
    assert metrics.psnr(target, target) == np.inf
    assert np.isnan(metrics.psnr(target[:0], target[:0]))
    # clipping: 1.7 counts as 1
    assert metrics.psnr(np.full(4, 1.7), np.full(4, 0.9)) == pytest.approx(20.0)


def test_ssim_on_all_pixels_is_that_of_scikit_image():
    random = np.random.default_rng(0)
    a, b = random.random((2, 24, 30, 3))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    # scikit-image averages over the inner pixels; so does this mask
    inner = np.zeros((24, 30), bool)
    inner[5:-5, 5:-5] = True
    expected = structural_similarity(a, b, data_range=1, channel_axis=-1, **options)
    assert metrics.ssim_at(a, b, inner) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim_at(b, b, inner) == pytest.approx(1.0)
    assert np.isnan(metrics.ssim_at(a[:8], b[:8], inner[:8]))


def test_iou_of_sets():
    a, b = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert metrics.iou(a, b) == pytest.approx(1 / 3)
    assert np.isnan(metrics.iou(a & ~a, b & ~b))


def test_picture_metrics_tell_held_out_from_fitted_pixels():
    """A field exact on fitted pixels and wrong by 0.1 on held-out ones."""
    table = picture_table(shapes=[(16, 20), (13, 12)], channels=3, held_out=0.2)
    reconstructions = []
    for row in range(2):
        line = line_of(table, row)
        picture = metrics.decode_picture(line).copy()
        picture = np.where(picture < 0.5, picture, picture)  # a copy in float32
        held = held_out_pixels(line)
        picture[held] += np.where(picture[held] < 0.5, 0.1, -0.1)
        reconstructions.append(picture)

    def read(row, coords):
        height, width, _ = reconstructions[row].shape
        x = torch.round((coords[:, 0] + 1) * width / 2 - 0.5).long()
        y = torch.round((coords[:, 1] + 1) * height / 2 - 0.5).long()
        return {"color": torch.from_numpy(reconstructions[row])[y, x]}

    found = metrics.measure_table("images", read, table, chunk=50)
    np.testing.assert_allclose(found["psnr"], 20.0, atol=1e-3)
    assert (found["psnr_fit"] > 100).all()
    assert ((found["ssim"] > 0) & (found["ssim"] < 1)).all()
    assert np.isnan(found["psnr_source"]).all()
    assert set(found) == {c.name for c in metrics.cheap_metrics("images")}


def test_a_reduced_picture_is_also_compared_with_its_source():
    """The field is a plane in x; its source has twice the pixels."""

    def plane(height, width):
        return ((pixel_coords(height, width)[:, 0] + 1) / 2).reshape(height, width, 1).numpy()

    table = picture_table(
        pictures=[plane(12, 16)], sources=[plane(24, 32)], held_out=0.1, channels=1
    )
    found = metrics.measure_table(
        "images", lambda row, x: {"color": (x[:, :1] + 1) / 2 + 0.01}, table
    )
    assert found["psnr_source"][0] == pytest.approx(40, abs=2)  # uint8 rounding adds 1/510 at most
    assert found["psnr"][0] == pytest.approx(40, abs=2)


def test_shape_metrics_of_spheres():
    """Spheres inside spheres: IoU of the box is the ratio of volumes."""
    table = shape_table(radii=[0.6, 0.8], points=20_000)
    found = metrics.measure_table(
        "shapes", lambda row, x: {"sdf": x.norm(dim=1, keepdim=True) - 0.5}, table
    )
    expected = [(0.5 / 0.6) ** 3, (0.5 / 0.8) ** 3]
    np.testing.assert_allclose(found["iou_uniform"], expected, atol=0.03)
    np.testing.assert_allclose(found["distance_error_near"], [0.1, 0.3], atol=1e-3)
    exact = metrics.measure_table(
        "shapes",
        lambda row, x: {"occupancy": torch.sigmoid(1e4 * ([0.6, 0.8][row] - x.norm(dim=1)))},
        table,
    )
    assert (exact["iou_uniform"] == 1).all()
    assert (exact["iou_near"] > 0.99).all()  # float16 distances may round onto the surface
    assert np.isnan(exact["distance_error_near"]).all()


def test_cloud_metrics_of_a_sphere():
    """A sphere turned inside out, and twice as steep, has the same zero set: the metrics tell."""
    points = np.random.default_rng(0).normal(size=(20_000, 3))
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    data = np.hstack([normals * 0.6, normals]).astype("<f4")
    buffer = io.BytesIO()
    np.savez(buffer, points=data[:, :3], normals=data[:, 3:])
    ingest = PointIngest(normalize="none", near=500, uniform=10, held_out=2000)
    columns = decode_cloud({"a.npz": buffer.getvalue()}, "a.npz", ingest, "a")
    line = {"row": 0, "sample_id": "a.npz", "label": "", "split": "train", **columns}
    form = form_schema("points", ingest.model_dump())
    table = pa.Table.from_pylist([line], schema=pa.schema([*IDENTITY, *form]))

    def measured(factor, radius=0.6):
        return metrics.measure_table(
            "points", lambda row, x: {"sdf": factor * (x.norm(dim=1, keepdim=True) - radius)}, table
        )

    right, wrong = measured(1.0), measured(-2.0)
    assert right.keys() == {spec.name for spec in metrics.cheap_metrics("points")}
    for found, cosine, error in ((right, 1.0, 0.0), (wrong, -1.0, 1.0)):
        assert found["distance_surface"][0] == pytest.approx(0, abs=1e-4)
        assert found["normal_cosine"][0] == pytest.approx(cosine, abs=1e-3)
        assert found["gradient_error"][0] == pytest.approx(error, abs=2e-3)
    assert right["distance_error_near"][0] < 0.01  # the cloud has gaps
    assert measured(1.0, radius=0.5)["distance_surface"][0] == pytest.approx(0.1, abs=1e-3)
    bare = table.drop_columns([n for n in table.column_names if "near" in n or "normals" in n])
    some = metrics.measure_table("points", lambda row, x: {"sdf": x.norm(dim=1) - 0.6}, bare)
    assert np.isnan(some["normal_cosine"]).all()
    assert np.isnan(some["distance_error_near"]).all()
    assert some["gradient_error"][0] == pytest.approx(0, abs=2e-3)


def test_a_field_without_the_quantity_is_refused():
    with pytest.raises(ValueError, match=r"\['density'\].*'sdf' or 'occupancy'"):
        metrics.measure_table(
            "shapes", lambda row, x: {"density": x[:, 0]}, shape_table(radii=[0.5], points=10)
        )
    with pytest.raises(ValueError, match="kind 'smells'"):
        metrics.cheap_metrics("smells")


def test_measure_binds_each_row_to_its_own_tensors():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.level = torch.nn.Parameter(torch.zeros(1))
            self.register_buffer("gain", torch.ones(()))

        def forward(self, coords):
            return (self.gain * self.level)[:, None, :].expand(len(coords), coords.shape[1], 1)

    form = FormSpec(kind="images", channels=1, dims=2)
    field = Field("", Schema(), form, Constant(), lambda bound, x: {"color": bound(x)}, [], {}, {})
    table = picture_table(pictures=[np.zeros((4, 4, 1)), np.ones((4, 4, 1))], channels=1)
    rows = {"level": torch.tensor([[0.05], [0.45]])}
    shared = {"gain": torch.tensor(2.0), "start.level": torch.zeros(1)}
    samples = load_samples(table, "images")
    found = metrics.measure("images", PerSample(field, ()), shared, rows, samples, table)
    np.testing.assert_allclose(found["psnr_fit"], [20.0, 20.0], atol=1e-4)


def plane_points(height, count=4000, seed=0):
    return np.random.default_rng(seed).random((count, 3)) * [1, 0.5, 0] + np.array([0, 0, height])


def plane_mesh(height):
    vertices = [[0, 0, height], [1, 0, height], [1, 0.5, height], [0, 0.5, height]]
    return trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], process=False)


def test_mesh_metrics_of_parallel_planes():
    """Planes 0.2 apart: every nearest neighbour is about 0.2 away, normals agree."""
    reference = meshes.Reference(plane_points(0.0), np.tile([0.0, 0, -1], (4000, 1)), scale=0.5)
    found = meshes.compare_surfaces(plane_mesh(0.2), reference, points=20_000)
    # original units are twice as long: squared distances four times, in both directions
    assert found["chamfer_l2_deepsdf"] == pytest.approx(2 * 4 * 0.2**2, rel=0.01)
    assert found["chamfer_l1_occnet"] == pytest.approx(0.2, rel=0.01)  # longest edge is 1
    assert found["f_score_1pct"] == 0
    assert found["normal_consistency"] == pytest.approx(1.0)


def test_the_same_surface_scores_perfectly():
    reference = meshes.Reference(plane_points(0.0, 30_000), None, scale=1.0)
    found = meshes.compare_surfaces(plane_mesh(0.0), reference)
    assert found["f_score_1pct"] > 0.999
    assert found["chamfer_l1_occnet"] < 0.005
    assert np.isnan(found["normal_consistency"])


def test_f_score_counts_both_directions():
    forth, back = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    assert meshes.f_score(forth, back, 0.5) == pytest.approx(2 * 0.5 * 0.25 / 0.75)


def test_conventions_differ_as_documented():
    forth, back = np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert meshes.chamfer_l2_deepsdf(forth, back) == 5 + 4
    assert meshes.chamfer_l1_occnet(forth, back) == 2


def test_no_surface_scores_nothing():
    reference = meshes.Reference(plane_points(0.0), None, scale=1.0)
    found = meshes.compare_surfaces(None, reference)
    assert found["f_score_1pct"] == 0
    assert np.isnan(found["chamfer_l1_occnet"])
    assert set(found) == {c.name for c in meshes.mesh_metric_columns()}


def test_surface_samples_are_uniform_by_area():
    vertices = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [8, 0, 0], [5, 1, 0]]
    mesh = trimesh.Trimesh(vertices, [[0, 1, 2], [3, 4, 5]], process=False)
    points, normals = meshes.sample_surface(mesh, 40_000, np.random.default_rng(0))
    share = (points[:, 0] > 3).mean()
    assert share == pytest.approx(0.75, abs=0.01)
    small = points[points[:, 0] < 3]
    np.testing.assert_allclose(small.mean(0), [1 / 3, 1 / 3, 0], atol=0.01)
    np.testing.assert_allclose(normals, np.tile([0, 0, 1], (40_000, 1)))


def test_reference_takes_held_out_points_first():
    table = shape_table(radii=[0.6], points=100)
    reference = meshes.reference_of(line_of(table, 0), points=150)
    assert reference.points.shape == reference.normals.shape == (150, 3)
    np.testing.assert_allclose(np.linalg.norm(reference.points, axis=1), 0.6, atol=1e-4)
    held = np.frombuffer(table["held_surface_coords"][0].as_buffer(), "<u2").reshape(-1, 3)
    np.testing.assert_allclose(reference.points[:100], held / 65535 * 2 - 1, atol=1e-6)


def test_tables_of_the_tests_follow_the_schema():
    table = picture_table(shapes=[(4, 5)], channels=3)
    assert table.schema.names == [f.name for f in [*IDENTITY, *GRID]]
