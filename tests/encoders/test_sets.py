"""Encoders of known pixels: their order, their number and what is not known must not matter."""

import pytest
import torch

from pipeline.draw import Draw
from pipeline.encoders.sets import MaskedImageEncoder, SetEncoder, first_of_each
from pipeline.fields.bind import bind, tensor_names
from pipeline.fields.initializers import start_once
from pipeline.samples import Size, load_samples
from tests.fitting.tables import picture_table

G = torch.Generator().manual_seed(0)


def bound(encoder):
    draw = Draw.once(seed=0, stage="shared")
    return bind(encoder.eval(), start_once(encoder, tensor_names(encoder), draw))


def random(*shape):
    return torch.rand(*shape, generator=G)


def test_a_set_has_one_code_in_any_order_and_beside_points_that_are_left_out():
    encoder = bound(SetEncoder(5, 16, 2, 8))
    points, weight = random(3, 30, 5), torch.ones(3, 30)
    with torch.no_grad():
        code = encoder(points, weight)
        assert code[0].sub(code[1]).abs().max() > 1e-3
        turned = encoder(points[:, torch.randperm(30, generator=G)], weight)
        assert torch.allclose(code, turned, atol=1e-6)
        more = torch.cat([points, 100 * random(3, 9, 5)], 1)
        masked = encoder(more, torch.cat([weight, torch.zeros(3, 9)], 1))
        assert torch.allclose(code, masked, atol=1e-6)
        for part in (slice(0, 2), slice(1, 3)):
            assert torch.equal(encoder(points[part], weight[part]), code[part])


def test_nothing_known_is_no_fault():
    with torch.no_grad():
        assert bound(SetEncoder(5, 16, 2, 8))(random(2, 4, 5), torch.zeros(2, 4)).isfinite().all()
        empty = bound(MaskedImageEncoder(1, 8, 2, 4))(random(2, 8, 8, 1), torch.zeros(2, 8, 8))
    assert empty.isfinite().all()


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_pixels_that_are_not_known_have_no_influence_on_convolutions(size):
    encoder = bound(MaskedImageEncoder(3, 8, 2, 6))
    color, seen = random(4, *size, 3) * 2 - 1, (random(4, *size) < 0.3).float()
    other = torch.where(seen[..., None] > 0, color, random(4, *size, 3))
    with torch.no_grad():
        code = encoder(color, seen)
        assert torch.equal(code, encoder(other, seen))
        assert not torch.allclose(code, encoder(color, torch.ones_like(seen)), atol=1e-3)
        assert torch.equal(encoder(color[1:3], seen[1:3]), code[1:3])


@pytest.mark.parametrize(("wanted", "known"), [(40, 40), (200, 90), (16, 16), (90, 90)])
def test_a_draw_of_more_pixels_than_there_are_counts_each_once(wanted, known):
    samples = load_samples(picture_table([(10, 10)] * 3), "images")
    draw = Draw.of(samples.keys, seed=0, stage="start")
    for step in (0, 5):
        at = draw.at(torch.full_like(draw.step, step))
        pixels = samples.draw(torch.arange(3), "context", Size(pixels=wanted), at).grid
        once = first_of_each(pixels.coords)
        assert once.sum(1).tolist() == [known] * 3
        for coords, kept in zip(pixels.coords, once):
            assert len(torch.unique(coords[kept], dim=0)) == known
