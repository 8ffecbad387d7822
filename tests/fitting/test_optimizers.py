"""Optimizers over lanes, against torch.optim one row at a time."""

import pytest
import torch

from pipeline.fitting.optimizers import Adam, Sgd, clip_rows
from pipeline.fitting.schedules import Constant, Cosine, Exponential, Ramp, Steps, schedule


def gradient(values, row, step):
    g = torch.Generator().manual_seed(1000 * row + step)
    return torch.randn(values.shape, generator=g) * (1 + row) + values


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Adam(1e-2), lambda p: torch.optim.Adam(p, 1e-2)),
        (Adam(3e-3, betas=(0.5, 0.9)), lambda p: torch.optim.Adam(p, 3e-3, betas=(0.5, 0.9))),
        (Sgd(1e-2), lambda p: torch.optim.SGD(p, 1e-2)),
        (Sgd(1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)),
    ],
)
def test_rows_that_start_at_different_times_equal_torch_optim(ours, theirs):
    """Row r joins at step 3 r: own moments and own bias correction."""
    rows, width, steps = 3, 50, 20
    start = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    values, moments = start.clone(), [torch.zeros(rows, width) for _ in range(ours.moments)]
    count = torch.zeros(rows, dtype=torch.int64)
    for now in range(steps + 3 * rows):
        go = torch.tensor([3 * r <= now < 3 * r + steps for r in range(rows)])
        g = torch.stack([gradient(values[r], r, int(count[r])) for r in range(rows)])
        values, moments = ours.update(values, g, moments, count, go)
        count = count + go
    for r in range(rows):
        p = start[r].clone().requires_grad_()
        optimizer = theirs([p])
        for step in range(steps):
            p.grad = gradient(p.detach(), r, step)
            optimizer.step()
        assert torch.allclose(values[r], p, rtol=2e-5, atol=2e-6)


def test_rows_that_wait_keep_their_bits_even_next_to_nan():
    values, g = torch.randn(3, 9), torch.randn(3, 9)
    g[0] = torch.nan
    g[1] = torch.nan
    moments = [torch.randn(3, 9), torch.rand(3, 9)]
    go = torch.tensor([False, True, True])
    new, after = Adam(1e-2, clip=1.0).update(values, g, moments, torch.tensor([4, 4, 4]), go)
    assert torch.equal(new[0], values[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(after, moments))
    alone, _ = Adam(1e-2, clip=1.0).update(
        values[2:], g[2:], [m[2:] for m in moments], torch.tensor([4]), go[2:]
    )
    assert torch.equal(new[2:], alone)


def test_each_row_is_clipped_by_its_own_norm():
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    clipped = clip_rows(g, 1.0)
    assert torch.allclose(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4]]), atol=1e-5)


def test_schedules_give_one_value_a_lane():
    step = torch.tensor([0, 50, 100, 1000])
    assert schedule(0.5)(step).tolist() == [0.5] * 4
    assert Constant(2.0)(step).tolist() == [2.0] * 4
    assert Steps(1.0, every=50, floor=0.1)(step).tolist() == pytest.approx([1, 0.5, 0.25, 0.1])
    assert Cosine(1.0, 100)(step).tolist() == pytest.approx([1, 0.5, 0, 0], abs=1e-6)
    assert Cosine(1.0, 100, warmup=10)(step)[0].item() == pytest.approx(0.1)
    assert Exponential(1.0, 0.01, 100)(step).tolist() == pytest.approx([1, 0.1, 0.01, 0.01])
    assert Ramp(0.0, 2.0, 100)(step).tolist() == pytest.approx([0, 1, 2, 2])
