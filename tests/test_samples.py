"""Samples: decoding, roles, shape classes, and draws that cover a set evenly."""

import numpy as np
import pytest
import torch

from pipeline.draw import Draw
from pipeline.samples import ALL, Size, capacity, form_of, join, load_samples, pixel_coords, require
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


RESOLUTION, VIEWS, PIXELS = 16, 5, 8


def observed_table(count):
    """Boxes with grids of random cells, and views whose every number tells sample and view."""
    import pyarrow as pa

    table = box_table(count, points=50, held=8)
    random = np.random.default_rng(0)
    cells = random.random((count, *[RESOLUTION] * 3)) < 0.02
    color = np.zeros((count, VIEWS, PIXELS, PIXELS, 3), np.uint8)
    color += (10 * np.arange(count)[:, None] + np.arange(VIEWS)).astype(np.uint8)[
        ..., None, None, None
    ]
    mask = random.random((count, VIEWS, PIXELS, PIXELS)) < 0.5
    pose = np.tile(np.eye(4, dtype="<f4"), (count, VIEWS, 1, 1))
    pose[..., 0, 3] = color[..., 0, 0, 0]
    intrinsics = np.tile(np.eye(3, dtype="<f4"), (count, VIEWS, 1, 1))
    columns = {
        "voxels": [np.packbits(c).tobytes() for c in cells],
        "views_color": [c.tobytes() for c in color],
        "views_mask": [np.packbits(m).tobytes() for m in mask],
        "views_camera_to_world": [p.tobytes() for p in pose],
        "views_intrinsics": [k.tobytes() for k in intrinsics],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.large_binary()))
    return table, cells, mask


def test_voxels_come_as_stored_or_pooled_to_a_divisor():
    table, cells, _ = observed_table(3)
    samples = load_samples(table, "shapes")
    assert samples.form.voxels == RESOLUTION
    index = torch.tensor([2, 0])
    whole = samples.draw(index, "context", Size(voxels=16), at(samples, index)).voxels.occupancy
    assert whole.numpy().astype(bool).tolist() == cells[[2, 0]].tolist()
    pooled = samples.draw(index, "context", Size(voxels=4), at(samples, index)).voxels.occupancy
    for x, y, z in ((0, 0, 0), (3, 1, 2), (2, 3, 0)):
        block = cells[2, 4 * x : 4 * x + 4, 4 * y : 4 * y + 4, 4 * z : 4 * z + 4]
        assert pooled[0, x, y, z] == block.any()
    assert 0 < pooled.mean() < 1


def test_views_are_different_ones_of_the_sample_and_keep_their_camera_and_mask():
    table, _, mask = observed_table(3)
    samples = load_samples(table, "shapes")
    assert (samples.form.views, samples.form.view_size) == (VIEWS, PIXELS)
    index = torch.tensor([1, 2])
    seen = set()
    for step in range(12):
        views = samples.draw(index, "context", Size(views=2), at(samples, index, step)).views
        number = (views.color * 255).round().long()[:, :, 0, 0, 0]
        assert number.equal(views.camera_to_world[..., 0, 3].long())
        which = number - 10 * index[:, None]
        assert (which[:, 0] != which[:, 1]).all()
        for i in range(2):
            for j in range(2):
                stored = mask[int(index[i]), int(which[i, j])]
                assert views.mask[i, j].numpy().astype(bool).tolist() == stored.tolist()
        seen |= set(map(tuple, which.tolist()))
    assert len(seen) > 8
    every = samples.draw(index, "context", Size(views=ALL), at(samples, index)).views
    assert (every.color * 255).round().long()[:, :, 0, 0, 0].tolist() == [
        [10 + i for i in range(5)], [20 + i for i in range(5)],
    ]  # fmt: skip


def test_a_sample_draws_the_same_views_alone_and_in_a_batch():
    samples = load_samples(observed_table(3)[0], "shapes")
    both, one = torch.tensor([0, 2]), torch.tensor([2])
    size = Size(voxels=8, views=3, surface=4)
    a = samples.draw(both, "context", size, at(samples, both, 7))
    b = samples.draw(one, "context", size, at(samples, one, 7))
    assert a.views.color[1:].equal(b.views.color)
    assert a.voxels.occupancy[1:].equal(b.voxels.occupancy)
    swapped = join([(torch.tensor([1]), b), (torch.tensor([0]), b)])
    assert swapped.views.color[0].equal(b.views.color[0])
    assert samples.shape_classes("context", Size(views=3)).tolist() == [[-3]] * 3
    assert samples.shape_classes("context", Size(views=5)).tolist() == [[5]] * 3


@pytest.mark.parametrize(
    ("size", "match"),
    [
        (Size(near=9), r"set 'near'.*set ingest\.near"),
        (Size(voxels=16), r"voxels of 16\^3.*set ingest\.voxels"),
        (Size(views=1), r"1 views.*set ingest\.views"),
        (Size(views=ALL), r"views are needed.*set ingest\.views"),
    ],
)
def test_what_a_dataset_lacks_is_told_with_the_key_that_makes_it(size, match):
    lacking = box_table(2, points=0, held=0)
    samples = load_samples(lacking, "shapes")
    with pytest.raises(ValueError, match=match):
        require(form_of(lacking, "shapes"), size)
    with pytest.raises(ValueError, match=match):
        samples.draw(torch.tensor([0]), "context", size, at(samples, torch.tensor([0])))


def test_voxels_that_cannot_be_pooled_and_too_many_views_are_refused():
    form = load_samples(observed_table(1)[0], "shapes").form
    with pytest.raises(ValueError, match=r"12\^3 cannot be pooled from 16\^3"):
        require(form, Size(voxels=12))
    with pytest.raises(ValueError, match=r"32\^3 cannot be pooled from 16\^3"):
        require(form, Size(voxels=32))
    with pytest.raises(ValueError, match=r"6 views a sample .* has 5"):
        require(form, Size(views=6))


def test_an_empty_held_out_set_names_its_key():
    samples = load_samples(box_table(2, points=20, held=0), "shapes")
    index = torch.tensor([0])
    with pytest.raises(ValueError, match=r"'held_near'.*set ingest\.held_out"):
        samples.draw(index, "query", Size(near=4), at(samples, index))


def test_unsigned_distances_are_drawn_as_such():
    table = box_table(2, points=60, held=8)
    names = [n.replace("_distance", "_unsigned_distance") for n in table.column_names]
    table = table.rename_columns(names)
    samples = load_samples(table, "shapes")
    assert samples.form.distances
    assert not samples.form.signed
    points = samples.draw(
        torch.tensor([0]), "context", Size(near=16), at(samples, torch.tensor([0]))
    ).points
    assert points.distance.shape == (1, 16)


def test_whole_pictures_hold_every_pixel_and_mark_what_is_held_out():
    table = picture_table([(12, 9), (12, 9), (9, 12)])
    samples = load_samples(table, "images")
    draw = Draw.of(samples.keys[:2], seed=0, stage="x")
    size = Size(pixels=0, picture=True)
    batch = samples.draw(torch.tensor([0, 1]), "context", size, draw)
    assert batch.grid is None
    for i in range(2):
        stored = np.frombuffer(table["pixels"][i].as_py(), np.uint8).reshape(12, 9, -1) / 255
        np.testing.assert_allclose(batch.picture.color[i].numpy(), stored, atol=1e-7)
        held = np.unpackbits(np.frombuffer(table["held_out"][i].as_py(), np.uint8), count=108)
        np.testing.assert_array_equal(batch.picture.seen[i].flatten().numpy(), 1 - held)
        assert 0 < held.sum() < 108
    with pytest.raises(ValueError, match="differ in size"):
        samples.draw(torch.tensor([0, 2]), "context", size, draw)
    with pytest.raises(ValueError, match="whole pictures"):
        require(form_of(box_table(1), "shapes"), Size(pixels=0, picture=True))
