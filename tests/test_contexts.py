"""Partial observations: what is left is the seen part, and what is asked stays whole."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import trimesh

from pipeline.contexts import CAMERA, restricted, seen_from
from pipeline.draw import Draw
from pipeline.ingest.mesh import Mesh
from pipeline.ingest.sampling import sample_shape
from pipeline.samples import ALL, Size, decode_coords, load_samples
from schemas.run import Fit, Run, ShapeIngest
from schemas.samples import IDENTITY, SHAPES
from tests.fitting.tables import box_table, picture_table

NAMES = ("near", "uniform", "surface")


@pytest.fixture(scope="module")
def table():
    """A ball of radius 0.7, and a box."""
    ingest = ShapeIngest(near=4000, uniform=4000, surface=4000, held_out=500, normalize="none")
    rows = []
    for i, solid in enumerate(
        (trimesh.creation.icosphere(3, 0.7), trimesh.creation.box([1.0, 0.5, 1.3]))
    ):
        mesh = Mesh(np.array(solid.vertices, np.float64), np.array(solid.faces, np.int64))
        columns = sample_shape(mesh, ingest, str(i)) | {"center": [0.0] * 3, "scale": 1.0}
        rows.append({"row": i, "sample_id": f"s{i}", "split": "test", **columns})
    return pa.Table.from_pylist(rows, schema=pa.schema([*IDENTITY, *SHAPES]))


def points(samples, i, name):
    ragged = samples.sets[name]
    part = slice(int(ragged.starts[i]), int(ragged.starts[i] + ragged.counts[i]))
    return decode_coords(ragged.columns["coords"][part]).numpy()


def direction(samples, i, context, seed=0):
    draw = Draw.of(samples.keys, seed=seed, stage=f"context/{context}")
    way = draw.normal("direction", 3)[i].double().numpy()
    return way / np.linalg.norm(way)


def test_half_of_a_ball_is_the_side_that_its_direction_shows(table):
    samples = load_samples(table, "shapes")
    half = restricted(samples, "half", seed=0)
    way = direction(samples, 0, "half")
    for name in NAMES:
        whole, kept = points(samples, 0, name) @ way, points(half, 0, name) @ way
        assert len(kept) == pytest.approx(len(whole) / 2, rel=0.1)
        # the nearest surface point of a point lies on its radius: the same half space
        assert kept.min() > -0.08  # gaps between surface points
        assert len(kept) >= 0.97 * (whole > 0).sum()
    assert points(half, 1, "surface").shape[0] == 2000


def test_a_camera_sees_the_cap_of_a_ball_before_its_horizon(table):
    samples = load_samples(table, "shapes")
    part = restricted(samples, "view", seed=0)
    height = points(samples, 0, "surface") @ direction(samples, 0, "view")
    seen = points(part, 0, "surface") @ direction(samples, 0, "view")
    horizon = 0.7 * 0.7 / CAMERA
    assert seen.min() > horizon - 0.06
    assert len(seen) > 0.9 * (height > horizon).sum()


@pytest.mark.parametrize("count", [500, 4000, 16_000])
def test_a_wall_hides_what_is_behind_it(count):
    random = np.random.default_rng(0)
    wall = np.concatenate([random.uniform(-0.5, 0.5, (count, 2)), np.full((count, 1), 0.3)], 1)
    behind = np.concatenate([random.uniform(-0.3, 0.3, (500, 2)), np.full((500, 1), -0.3)], 1)
    beside = behind + np.array([0.9, 0, 0])
    seen = seen_from(np.concatenate([wall, behind, beside]), np.array([0, 0, CAMERA]))
    assert seen[:count].mean() > 0.95
    assert seen[count:-500].mean() < 0.02
    assert seen[-500:].mean() > 0.6


def test_values_stay_with_their_points_and_the_query_stays_whole(table):
    samples = load_samples(table, "shapes")
    part = restricted(samples, "view", seed=0)
    for name in ("held_near", "held_uniform", "held_surface"):
        assert part.sets[name] is samples.sets[name]
    near = part.sets["near"]
    ball = slice(0, int(near.counts[0]))
    exact = np.linalg.norm(decode_coords(near.columns["coords"][ball]).numpy(), axis=1) - 0.7
    assert np.abs(near.columns["distance"][ball].float().numpy() - exact).max() < 0.012
    index = torch.tensor([0, 1])
    draw = Draw.of(part.keys, seed=0, stage="t")
    taken = part.draw(index, "context", Size(near=64, uniform=64, surface=64), draw).points
    assert taken.weight.min() == 1
    assert part.draw(index, "query", Size(near=ALL), draw).points.weight.sum() == 1000


def test_a_part_depends_on_the_sample_and_the_seed_alone(table):
    both = restricted(load_samples(table, "shapes"), "half", seed=3)
    alone = restricted(load_samples(table.slice(1), "shapes"), "half", seed=3)
    assert points(both, 1, "near").tolist() == points(alone, 0, "near").tolist()
    other = restricted(load_samples(table.slice(1), "shapes"), "half", seed=4)
    assert points(other, 0, "near").tolist() != points(alone, 0, "near").tolist()
    samples = load_samples(table, "shapes")
    assert restricted(samples, "all", seed=0) is samples


def test_half_a_picture_is_one_side_of_a_line():
    samples = load_samples(picture_table([(24, 30)] * 2), "images")
    half = restricted(samples, "half", seed=0)
    index = torch.tensor([0, 1])
    draw = Draw.of(samples.keys, seed=0, stage="t")
    whole = samples.draw(index, "context", Size(), draw).grid
    size = Size(pixels=200)
    part = half.draw(index, "context", size, draw).grid
    way = Draw.of(samples.keys, seed=0, stage="context/half").normal("direction", 2)
    assert ((part.coords * way[:, None]).sum(-1) > 0).all()
    share = half.sets["context"].counts / samples.sets["context"].counts
    assert (share - 0.5).abs().max() < 0.06
    for i in range(2):
        colors = {tuple(c): v for c, v in zip(whole.coords[i].tolist(), whole.color[i].tolist())}
        assert all(
            colors[tuple(c)] == v for c, v in zip(part.coords[i].tolist(), part.color[i].tolist())
        )
    assert half.sets["query"] is samples.sets["query"]
    with pytest.raises(ValueError, match="images have context: half"):
        restricted(samples, "view", seed=0)


def test_without_surface_points_there_is_nothing_to_see():
    samples = load_samples(box_table(1, points=40, surface=0), "shapes")
    with pytest.raises(ValueError, match=r"set ingest\.surface"):
        restricted(samples, "half", seed=0)


def run_with(kind="shapes", **fit):
    return Run.model_validate(
        {
            "name": "a",
            "dataset": {"url": "/d", "kind": kind},
            "method": "deepsdf",
            "store": "/s.zarr",
            "fit": fit,
        }
    )


def test_the_choice_of_context_is_of_the_fit_alone_and_all_is_what_it_was():
    plain, half = run_with(), run_with(context="half")
    assert "context" not in plain.stage_keys("fit")["fit"]
    assert half.stage_keys("fit")["fit"]["context"] == "half"
    assert plain.stage_identity("train") == half.stage_identity("train")
    with pytest.raises(ValueError, match="images have half"):
        run_with("images", context="view")
    with pytest.raises(ValueError, match="trained_rows: infer"):
        Fit(context="view", trained_rows="keep")
