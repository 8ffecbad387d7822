"""Steps of lanes as CUDA graphs; what needs a device is marked so."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pipeline.draw import Draw
from pipeline.fitting.cuda.exact import float32_products
from pipeline.fitting.cuda.graphs import Graphed, tensors_of, with_tensors
from pipeline.samples import Batch, Pixels


@dataclass(frozen=True)
class Tree:
    lists: list
    more: dict
    absent: object
    number: int


def a_tree():
    n = torch.arange(2)
    pixels = Pixels(torch.rand(2, 3, 2), torch.rand(2, 3, 3), torch.ones(2, 3))
    return Tree([[n, n + 1], []], {"batch": Batch(grid=pixels), "draw": Draw(n, n)}, None, 7)


def test_tensors_go_out_of_a_tree_and_back_in_order():
    tree = a_tree()
    found = list(tensors_of(tree))
    assert len(found) == 7
    again = with_tensors(tree, (t + 1 for t in found))
    assert again.number == 7
    assert again.absent is None
    assert again.more["batch"].points is None
    assert torch.equal(again.lists[0][1], tree.lists[0][1] + 1)
    assert all(torch.equal(a, b + 1) for a, b in zip(tensors_of(again), found))


def test_on_a_cpu_a_step_is_called_as_it_is():
    seen = []
    step = Graphed(lambda *arguments: seen.append(arguments) or arguments[0])
    tree = a_tree()
    assert step(tree, None) is tree
    assert seen == [(tree, None)]
    assert not step.known


def test_the_precision_of_products_is_as_before_afterwards():
    torch.set_float32_matmul_precision("high")
    try:
        with float32_products():
            assert torch.get_float32_matmul_precision() == "highest"
        with pytest.raises(ZeroDivisionError), float32_products():
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_equal_calls_to_the_bit_and_leave_their_inputs():
    def step(values, batch):
        leaf = values[0].detach().requires_grad_()
        loss = (torch.bmm(batch, leaf) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return [leaf.detach() - 0.1 * gradient, values[1] + 1]

    graphed = Graphed(step)
    torch.manual_seed(0)
    for n in (3, 5, 3):  # two shapes, one of them again
        batch = torch.randn(n, 16, 8, device="cuda")
        plain = now = [torch.randn(n, 8, 8, device="cuda"), torch.zeros(n, device="cuda")]
        for _ in range(6):
            kept = [t.clone() for t in now]
            after = graphed(now, batch)
            assert all(torch.equal(a, b) for a, b in zip(now, kept))
            now, plain = after, step(plain, batch)
        assert all(torch.equal(a, b) for a, b in zip(now, plain))
        batch.mul_(2)  # data that changes in place is seen
        assert torch.equal(graphed(now, batch)[0], step(now, batch)[0])
    assert len(graphed.known) == 2
    assert graphed.why == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_waits_for_the_device_is_called_as_it_is():
    def step(x):
        return x * 2 if float(x.sum()) > 0 else x

    graphed = Graphed(step)
    x = torch.ones(4, device="cuda")
    before = torch.cuda.current_stream()
    for _ in range(3):
        assert torch.equal(graphed(x), x * 2)
    assert graphed.why
    assert torch.cuda.current_stream() == before
    assert torch.equal(Graphed(lambda y: y + 1)(x), x + 1)
