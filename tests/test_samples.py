"""Samples: decoding, roles, shape classes, and draws that cover a set evenly."""

import numpy as np
import pytest
import torch

from pipeline.draw import Draw
from pipeline.samples import ALL, Size, capacity, join, load_samples, pixel_coords
from tests.fitting.tables import box_table, picture_table


def at(samples, index, step=0):
    keys = Draw.of(samples.keys, seed=0, stage="t").keys[index]
    return Draw(keys, torch.full((len(index),), step))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_context_and_query_split_the_pixels_and_carry_their_values(dtype):
    table = picture_table([(9, 14)] * 3, dtype=dtype)
    samples = load_samples(table, "images")
    index = torch.tensor([2, 0])
    grid = pixel_coords(9, 14)
    for i, row in enumerate(index.tolist()):
        picture = np.frombuffer(table["pixels"][row].as_py(), dtype).reshape(-1, 3)
        picture = torch.from_numpy(picture.astype(np.float32) / np.iinfo(dtype).max)
        seen = []
        for role in ("context", "query"):
            pixels = samples.draw(index, role, Size(), at(samples, index)).grid
            keep = pixels.weight[i] > 0
            place = torch.cdist(pixels.coords[i][keep], grid).argmin(1)
            assert torch.allclose(pixels.coords[i][keep], grid[place], atol=1e-6)
            assert torch.allclose(pixels.color[i][keep], picture[place], atol=1e-6)
            seen.append(place)
        assert len(seen[1]) == round(0.1 * 126)
        assert torch.cat(seen).sort().values.equal(torch.arange(126))


def test_an_8_bit_picture_is_the_same_beside_a_16_bit_one():
    import pyarrow as pa

    lone, deep = picture_table([(32, 32)]), picture_table([(32, 32)] * 2, dtype="uint16")
    alone = load_samples(lone, "images")
    beside = load_samples(pa.concat_tables([lone, deep.slice(1)]), "images")
    index = torch.tensor([0])
    one = alone.draw(index, "context", Size(), at(alone, index)).grid
    two = beside.draw(index, "context", Size(), at(beside, index)).grid
    assert one.coords.equal(two.coords)
    assert one.color.equal(two.color)


def test_held_out_points_are_drawn_as_query_only():
    samples = load_samples(box_table(3, points=500, held=100), "shapes")
    index = torch.arange(3)
    size = Size(near=64, uniform=64)
    held = samples.sets["held_near"].columns["coords"].tolist()
    held = {tuple(c) for c in held} - {
        tuple(c) for c in samples.sets["near"].columns["coords"].tolist()
    }
    seen = set()
    for step in range(40):
        points = samples.draw(index, "context", size, at(samples, index, step)).points
        steps = ((points.coords + 1) / 2 * 65535).round().int()
        steps = torch.where(steps > 32767, steps - 65536, steps)
        seen |= {tuple(c) for c in steps.flatten(0, 1).tolist()}
    assert not seen & held
    query = samples.draw(index, "query", Size(near=ALL, uniform=ALL), at(samples, index)).points
    assert query.weight.sum(1).tolist() == [200.0] * 3


def test_distances_belong_to_the_decoded_coordinates():
    samples = load_samples(box_table(1, points=300), "shapes")
    points = samples.draw(
        torch.tensor([0]), "context", Size(near=ALL), at(samples, torch.tensor([0]))
    ).points
    random = np.random.default_rng(0)
    half, center = random.uniform(0.25, 0.6, 3), random.uniform(-0.2, 0.2, 3)
    q = np.abs(points.coords[0].numpy() - center) - half
    exact = np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(-1), 0)
    kept = points.weight[0].numpy() > 0
    assert kept.sum() == 300
    assert np.abs(points.distance[0].numpy() - exact)[kept].max() < 5e-4  # float16 near 1


def test_successive_draws_visit_every_point_equally_often():
    samples = load_samples(box_table(1, points=300), "shapes")
    near, visits = samples.sets["near"], torch.zeros(300)
    index = torch.tensor([0])
    for step in range(300):
        place, _ = near.block(index, -64, at(samples, index, step), "near")
        visits += torch.bincount(place[0], minlength=300)
    assert visits.sum() == 300 * 64
    assert visits.min() >= 0.8 * 64
    assert visits.max() <= 1.2 * 64


def test_mixed_pictures_share_shape_classes_with_little_padding():
    random = np.random.default_rng(0)
    sizes = [tuple(random.integers(12, 64, 2)) for _ in range(200)]
    samples = load_samples(picture_table(sizes), "images")
    classes = samples.shape_classes("context", Size())[:, 0]
    counts = samples.sets["context"].counts
    assert (classes >= counts).all()
    assert classes.sum() / counts.sum() < 1.15
    assert len(classes.unique()) < 50
    capped = samples.shape_classes("context", Size(most=1000))[:, 0]
    assert (capped[counts > 1000] == -1000).all()
    assert all(c <= capacity(c) <= 1.125 * c for c in range(17, 5000))


def test_batches_of_different_sizes_are_refused_by_name():
    samples = load_samples(picture_table([(20, 20), (40, 40)]), "images")
    index = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"cut000\.png.*shape_classes"):
        samples.draw(index, "context", Size(), at(samples, index))


def test_joined_batches_keep_the_order_of_positions():
    a = load_samples(picture_table([(8, 8)] * 4, seed=1), "images")
    b = load_samples(picture_table([(8, 8)] * 4, seed=2), "images")
    one = torch.tensor([1, 3])
    parts = [
        (torch.tensor([2, 0]), a.draw(one, "context", Size(), at(a, one))),
        (torch.tensor([1, 3]), b.draw(one, "context", Size(), at(b, one))),
    ]
    color = join(parts).grid.color
    assert torch.equal(color[2], parts[0][1].grid.color[0])
    assert torch.equal(color[0], parts[0][1].grid.color[1])
    assert torch.equal(color[3], parts[1][1].grid.color[1])


def test_mixed_channels_name_the_sample_and_the_way_out():
    table = picture_table([(8, 8)] * 2).to_pylist()
    table[1]["channels"], table[1]["pixels"] = 1, table[1]["pixels"][:64]
    import pyarrow as pa

    with pytest.raises(ValueError, match=r"cut001\.png.*ingest\.color"):
        load_samples(pa.Table.from_pylist(table), "images")
