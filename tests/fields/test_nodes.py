"""Overlapping parts on grid nodes: continuous values, and codes that reach no further."""

import torch

from pipeline.draw import Draw
from pipeline.fields import nodes, sides, tables
from pipeline.fields.bind import bind
from pipeline.fields.mlp import MLP, Layer

SIDE, EMPTY, CODE = 5, 6**3, 3


def field(keys, inside=(), seed=0):
    """A field with random codes at these nodes."""
    keys = torch.tensor(sorted(keys), dtype=torch.int32)[None]
    net = MLP(CODE + 3, [Layer(8), Layer(1)])
    capacity = keys.shape[1]
    model = nodes.NodeField(net, resolution=SIDE, capacity=capacity, code=CODE, std=0.1)
    draw = Draw.once(seed=seed, stage="test")
    tensors = {n: draw.normal(n, *p.shape)[0] for n, p in model.named_parameters()}
    tensors |= tables.tables_of(
        "nodes", keys, torch.tensor([capacity]), draw.normal("codes", capacity, CODE)
    )
    bits = torch.zeros(1, SIDE**3, dtype=torch.bool)
    bits[0, list(inside)] = True
    return model, tensors | {"nodes_sides.value": sides.packed(bits)}


def everywhere():
    return range(EMPTY)


def test_values_are_continuous_across_faces():
    model, tensors = field(everywhere())
    bound = bind(model, tensors)
    x = torch.rand(1, 300, 3, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.75
    face = torch.round((x + 1) * SIDE / 2) * 2 / SIDE - 1
    for axis in range(3):
        below, above = x.clone(), x.clone()
        below[..., axis] = face[..., axis] - 1e-7
        above[..., axis] = face[..., axis] + 1e-7
        cells = [tables.cell_at(side, SIDE)[..., axis] for side in (below, above)]
        assert (cells[0] != cells[1]).float().mean() > 0.9
        assert (bound(below) - bound(above)).abs().max() <= 1e-5


def test_a_code_moves_the_field_within_one_cell_of_its_node_only():
    model, tensors = field(everywhere())
    x = torch.rand(1, 3000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = bind(model, tensors)(x)
    key = int(tables.key_of(torch.tensor([2, 3, 1]), SIDE + 1))
    codes = tensors["nodes.value"].clone()
    codes[0, key] += 1.0
    after = bind(model, {**tensors, "nodes.value": codes})(x)
    away = ((x[0] + 1) * SIDE / 2 - torch.tensor([2.0, 3.0, 1.0])).abs().amax(-1)
    moved = (before != after)[0]
    assert not moved[away > 1].any()
    assert moved[away < 0.95].all()
    assert int((away < 0.95).sum()) > 100


def test_values_not_codes_are_mixed():
    """At a node its own code alone speaks; halfway to the next one the mean of both values."""
    model, tensors = field(everywhere())
    bound = bind(model, tensors)
    node = torch.tensor([[[2.0, 3.0, 1.0]]]) * 2 / SIDE - 1
    key = int(tables.key_of(torch.tensor([2, 3, 1]), SIDE + 1))
    code = tensors["nodes.value"][:, [key]]
    own = bound.net(code, torch.zeros(1, 1, 3))[..., 0]
    assert torch.allclose(bound(node), own, atol=1e-5)
    other = tensors["nodes.value"][:, [key + 1]]
    step = torch.tensor([[[0.0, 0.0, 0.5]]])
    mean = (bound.net(code, step) + bound.net(other, -step))[..., 0] / 2
    assert torch.allclose(bound(node + step * 2 / SIDE), mean, atol=1e-5)


def test_a_cell_without_all_corners_is_on_the_side_its_bit_says():
    corners = nodes.corners(torch.tensor([2, 2, 2]))
    keys = tables.key_of(corners, SIDE + 1).tolist()
    far = torch.tensor([[[0.9, 0.9, 0.9], [0.3, 0.0, 0.0], [-0.9, -0.9, -0.9]]])
    inside = tables.key_of(tables.cell_at(far, SIDE), SIDE)[0, 1:2].tolist()
    bound = bind(*field([*keys, 0], inside))
    assert bound(torch.tensor([[[0.1, -0.05, 0.0]]])).abs() != 1.0
    assert bound(far).tolist() == [[1.0, -1.0, 1.0]]


def test_without_any_complete_cell_all_is_outside():
    x = torch.rand(1, 20, 3) * 2 - 1
    assert (bind(*field([0, 5]))(x) == 1.0).all()


def test_complete_cells_have_codes_at_all_corners():
    cell = torch.tensor([[2, 2, 2], [2, 2, 3], [0, 4, 1]])
    keys = tables.key_of(nodes.corners(cell), SIDE + 1).unique()
    found = nodes.complete_cells(keys[None].to(torch.int32), SIDE)
    assert torch.nonzero(found[0])[:, 0].tolist() == sorted(tables.key_of(cell, SIDE).tolist())
    fewer = nodes.complete_cells(keys[None, 1:].to(torch.int32), SIDE)
    assert int(fewer.sum()) == 2
