"""Tables of codes on a grid: look-ups against plain loops, and the field that reads them."""

import itertools

import pytest
import torch

from pipeline.draw import Draw, sample_keys
from pipeline.fields import cells, sides, tables
from pipeline.fields.bind import bind
from pipeline.fields.mlp import MLP, Layer

SIDE, EMPTY = 6, 6**3


def points(n=2, p=500, seed=0):
    return torch.rand(n, p, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_keys_are_row_major_numbers_and_come_back():
    key = torch.arange(EMPTY)
    cell = tables.cell_of(key, SIDE, 3)
    assert torch.equal(tables.key_of(cell, SIDE), key)
    assert cell[7].tolist() == [0, 1, 1]
    outside = torch.tensor([[0, 0, -1], [SIDE, 0, 0]])
    assert tables.key_of(outside, SIDE).tolist() == [EMPTY, EMPTY]


def test_the_cell_of_a_point_contains_it():
    x = points()
    cell = tables.cell_at(x, SIDE)
    low = cell * (2 / SIDE) - 1
    assert ((x >= low - 1e-6) & (x <= low + 2 / SIDE + 1e-6)).all()
    assert tables.cell_at(torch.tensor([[1.0, -1.0, 1.0]]), SIDE).tolist() == [[5, 0, 5]]


def test_a_table_holds_the_distinct_keys_of_each_sample_in_order():
    wanted = torch.randint(0, EMPTY + 1, (3, 40), generator=torch.Generator().manual_seed(1))
    keys, count = tables.allocate(wanted, 64, EMPTY, what="cells", key="method.capacity")
    assert keys.shape == (3, 64)
    for row in range(3):
        distinct = sorted(set(wanted[row].tolist()) - {EMPTY})
        assert keys[row].tolist() == distinct + [EMPTY] * (64 - len(distinct))
        assert int(count[row]) == len(distinct)
    slot, found = tables.find(keys, wanted, EMPTY)
    assert torch.equal(found, wanted < EMPTY)
    assert torch.equal(keys.gather(1, slot)[found], wanted[found].to(torch.int32))
    missing = torch.tensor([sorted(set(range(EMPTY)) - set(row))[:9] for row in wanted.tolist()])
    assert not tables.find(keys, missing, EMPTY)[1].any()


def test_too_many_keys_name_each_sample_its_need_and_the_key_to_raise():
    wanted = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.int64), torch.arange(9)])
    with pytest.raises(tables.TableOverflow, match=r"needs 9 cells, .*raise method.capacity") as e:
        tables.allocate(wanted, 8, EMPTY, what="cells", key="method.capacity")
    assert e.value.reasons.keys() == {0, 2}
    keys, count = tables.allocate(wanted, 9, EMPTY, what="cells", key="method.capacity")
    assert count.tolist() == [9, 1, 9]
    assert keys[0].tolist() == list(range(9))


@pytest.mark.parametrize(("radius", "most"), [(0.5, 1), (1.0, 8), (1.2, 27), (1.5, 27)])
def test_neighbors_are_the_cells_with_a_near_center(radius, most):
    x = points(1, 60)
    found = cells.neighbors(x, SIDE, radius)
    assert found.shape[2] == most
    inside = tables.key_of(found, SIDE)
    for p in range(60):
        near = set()
        for cell in itertools.product(range(SIDE), repeat=3):
            center = (torch.tensor(cell) + 0.5) * 2 / SIDE - 1
            if (x[0, p] - center).abs().max() <= radius * 2 / SIDE:
                near.add(int(tables.key_of(torch.tensor(cell), SIDE)))
        assert set(inside[0, p].tolist()) - {EMPTY} == near
    choice = torch.randint(0, most, (1, 60, 4))
    some = cells.neighbors(x, SIDE, radius, choice)
    assert torch.equal(some, found.gather(2, choice[..., None].expand(-1, -1, -1, 3)))


def test_the_nearest_entry_is_the_one_of_a_search():
    x = points(2, 200)
    wanted = tables.key_of(tables.cell_at(points(2, 12, 3), SIDE), SIDE)
    keys, _ = tables.allocate(wanted, 20, EMPTY, what="cells", key="capacity")
    usable = tables.filled(keys, EMPTY)
    usable[0, 2] = False
    here = tables.cell_at(x, SIDE)
    slot = tables.nearest(keys, usable, here, SIDE)
    there = tables.cell_of(keys.to(torch.int64), SIDE, 3)
    distance = (here[:, :, None] - there[:, None]).square().sum(-1)
    distance = torch.where(usable[:, None], distance, 10**6)
    assert torch.equal(distance.gather(2, slot[..., None])[..., 0], distance.min(2).values)
    assert not (slot[0] == 2).any()


def test_the_start_of_a_code_depends_on_sample_and_cell_only():
    draw = Draw.of(sample_keys(["a", "b"]), seed=0, stage="enter/0")
    keys = torch.tensor([[3, 7, 9, EMPTY], [7, 9, EMPTY, EMPTY]], dtype=torch.int32)
    codes = tables.start_codes(draw, keys, 5, 0.1, EMPTY)
    alone = tables.start_codes(
        Draw(draw.keys[:1], draw.step[:1]),
        torch.tensor([[7, EMPTY]], dtype=torch.int32),
        5,
        0.1,
        EMPTY,
    )
    assert torch.equal(alone[0, 0], codes[0, 1])
    assert not torch.equal(codes[0, 1], codes[1, 0])
    assert (codes[0, 3] == 0).all()
    assert (codes[1, 2:] == 0).all()


def field(capacity=40, code=4):
    net = MLP(code + 3, [Layer(16), Layer(1)])
    model = cells.CellField(net, resolution=SIDE, capacity=capacity, code=code, std=0.1)
    draw = Draw.once(seed=0, stage="test")
    tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, value in tensors.items():
        if name.startswith("net."):
            tensors[name] = draw.normal(name, *value.shape)[0] * 0.3
    wanted = tables.key_of(tables.cell_at(points(2, 30, 5), SIDE), SIDE)
    keys, count = tables.allocate(wanted, capacity, EMPTY, what="cells", key="capacity")
    tensors["cells_sides.value"] = sides.packed(torch.zeros(2, EMPTY, dtype=torch.bool))
    codes = draw.normal("codes", 2, capacity, code)[0]
    return model, tensors, keys, count, codes


def test_a_point_reads_the_code_of_its_cell_and_no_other():
    model, tensors, keys, count, codes = field()
    x = points(2, 400)
    key = tables.key_of(tables.cell_at(x, SIDE), SIDE)
    changed = codes.clone()
    changed[:, 3] += 1.0
    before, after = (
        bind(model, {**tensors, **tables.tables_of("cells", keys, count, c)})(x)
        for c in (codes, changed)
    )
    assert before.shape == (2, 400)
    own = key == keys[:, 3:4]
    _, has_code = tables.find(keys, key, EMPTY)
    assert own.any()
    assert (before != after)[own].all()
    assert torch.equal(before[has_code & ~own], after[has_code & ~own])


def test_an_empty_cell_is_on_the_side_its_bit_says_and_grows_with_the_distance():
    model, tensors, keys, count, codes = field()
    keys = torch.tensor([[43], [EMPTY]], dtype=torch.int32)  # cell (1, 1, 1)
    count = torch.tensor([1, 0], dtype=torch.int32)
    high = 2 * 2 / SIDE - 1
    edge, far = torch.tensor([high - 1e-6, -0.5, -0.5]), torch.tensor([0.9, -0.5, -0.5])
    inside = torch.zeros(2, EMPTY, dtype=torch.bool)
    inside[:, tables.key_of(tables.cell_at(far, SIDE), SIDE)] = True
    tensors["cells_sides.value"] = sides.packed(inside)
    bound = bind(model, {**tensors, **tables.tables_of("cells", keys, count, codes[:, :1])})
    value = bound(torch.stack([edge, far, -far]).expand(2, 3, 3))
    assert float(value[0, 1]) == pytest.approx(-abs(float(value[0, 0])) - 0.9 + high, abs=1e-4)
    assert value[0, 2] > 0
    assert value[1].tolist() == [1.0, -1.0, 1.0]


def test_coordinates_and_distances_are_both_in_sides_of_a_cell():
    """A decoder that knows the local plane gives metric distances at any resolution."""
    for side in (2, 8):
        net = MLP(4, [Layer(1)])
        model = cells.CellField(net, resolution=side, capacity=side**3, code=1, std=0.0)
        tensors = {n: p.detach().clone() for n, p in model.named_parameters()}
        tensors["cells_sides.value"] = sides.packed(torch.zeros(1, side**3, dtype=torch.bool))
        tensors["net.layers.0.weight"] = torch.tensor([[1.0, 0.5, 0.0, 0.0]])
        keys = torch.arange(side**3, dtype=torch.int32)[None]
        x_cell = tables.cell_of(keys.to(torch.int64), side, 3)[..., 0]
        codes = ((x_cell + 0.5) - side / 2)[..., None]  # the plane x = 0, from the center
        count = torch.tensor([side**3], dtype=torch.int32)
        bound = bind(model, {**tensors, **tables.tables_of("cells", keys, count, codes)})
        x = points(1, 100)
        assert torch.allclose(bound(x), x[..., 0], atol=1e-5)


def test_a_grid_too_fine_for_exact_numbers_is_refused():
    with pytest.raises(ValueError, match="257\\^3 cells"):
        tables.table_latents("cells", side=257, capacity=1, width=1, std=0.0)


def test_bits_come_back_as_they_were_packed():
    inside = torch.rand(3, 6**3, generator=torch.Generator().manual_seed(0)) < 0.5
    words = sides.packed(inside)
    assert words.dtype == torch.int32
    assert int(words.max()) < 2**16
    key = torch.arange(6**3).expand(3, -1)
    assert torch.equal(sides.is_inside(words, key), inside)


def test_signs_spread_through_free_cells_and_stop_at_a_wall():
    """A hollow ball in a box: votes in one free cell of each region fill it, and no other."""
    side = 9
    cell = tables.cell_of(torch.arange(side**3), side, 3)
    radius = (cell - 4).square().sum(-1).sqrt()
    free = ~((radius > 1.8) & (radius < 3.2))[None]
    votes = torch.zeros(1, side**3)
    votes[0, 0], votes[0, int(tables.key_of(torch.tensor([4, 4, 4]), side))] = 2, -3
    sign = sides.spread(votes, free, side)
    assert (sign[0, radius <= 1.8] == -1).all()
    assert (sign[0, radius >= 3.2] == 1).all()
    assert (sign[~free] == 0).all()
    outer = sides.open_to_the_box(free, side)
    assert torch.equal(outer[0], radius >= 3.2)
    free[0, int(tables.key_of(torch.tensor([4, 4, 2]), side))] = True
    free[0, int(tables.key_of(torch.tensor([4, 4, 1]), side))] = True
    assert sides.open_to_the_box(free, side)[0, radius <= 1.8].all()
