"""Draws are functions of (seed, id, stage, step, tag), and look random."""

import pytest
import torch

from pipeline.draw import Draw, sample_keys

IDS = [f"folder/{i}.png" for i in range(50)]


def draws(ids=IDS, seed=3, stage="fit", step=7):
    draw = Draw.of(sample_keys(ids), seed=seed, stage=stage)
    return draw.at(torch.full((len(ids),), step))


def test_values_do_not_depend_on_place_or_batch_mates():
    whole = draws()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    some = draws([IDS[i] for i in order[:7]])
    for kind in ("uniform", "normal", "bits"):
        a = getattr(whole, kind)("jitter", 5, 3)[order[:7]]
        assert torch.equal(a, getattr(some, kind)("jitter", 5, 3))
    assert torch.equal(whole.integers("k", 9, 4)[order[:7]], some.integers("k", 9, 4))


@pytest.mark.parametrize("other", [{"seed": 4}, {"stage": "train"}, {"step": 8}])
def test_every_coordinate_changes_the_values(other):
    a, b = draws().uniform("t", 200), draws(**other).uniform("t", 200)
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.04
    assert not torch.equal(draws().uniform("t", 8), draws().uniform("u", 8))


def test_uniform_and_normal_have_their_moments():
    n = 1_000_000
    draw = draws(["one"])
    u, g = draw.uniform("u", n), draw.normal("g", n)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / n**0.5 / 12**0.5
    assert abs(u.var() - 1 / 12) < 1e-3
    assert abs(g.mean()) < 5 / n**0.5
    assert abs(g.std() - 1) < 5e-3
    assert abs((g.abs() < 1).float().mean() - 0.6827) < 3e-3
    pairs = u[0, :-1] - 0.5, u[0, 1:] - 0.5
    assert abs((pairs[0] * pairs[1]).mean() * 12) < 5e-3


def test_bits_are_balanced_and_steps_do_not_overlap():
    draw = draws(["one"])
    bits = draw.bits("b", 4096)[0]
    for place in range(64):
        assert abs(((bits >> place) & 1).double().mean() - 0.5) < 0.04
    words = torch.cat([draws(["one"], step=s).bits("b", 4096)[0] for s in range(8)])
    assert len(words.unique()) == len(words)


def test_integers_cover_their_range_evenly_with_one_bound_a_sample():
    high = torch.tensor([3, 1000])
    values = draws(["a", "b"]).integers("i", high, 30_000)
    assert torch.bincount(values[0]).tolist() == pytest.approx([10_000] * 3, rel=0.05)
    assert values[1].min() == 0
    assert values[1].max() == 999


def test_a_traced_step_may_draw():
    """Losses draw inside the compiled lane step: the tag's hash is a constant of the graph."""
    draw = Draw.of(sample_keys(["a", "b"]), seed=3, stage="fit").at(torch.tensor([5, 9]))

    def numbers(keys, step):
        draw = Draw(keys, step)
        return draw.normal("noise", 4), draw.uniform("box", 3), draw.integers("which", 7, 2)

    traced = torch.compile(numbers, backend="eager", fullgraph=True)
    for found, wanted in zip(traced(draw.keys, draw.step), numbers(draw.keys, draw.step)):
        assert torch.equal(found, wanted)
