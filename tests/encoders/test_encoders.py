"""Encoders: order of points, independence of batch mates, weights from a file."""

import re

import pytest
import torch
from safetensors.torch import save_file

from pipeline.draw import Draw
from pipeline.encoders.images import ImageEncoder
from pipeline.encoders.points import PointNet, Posterior
from pipeline.encoders.voxels import VoxelEncoder
from pipeline.encoders.weights import start_from
from pipeline.fields.bind import bind, tensor_names
from pipeline.fields.initializers import start_once

G = torch.Generator().manual_seed(0)


def started(model, seed=0):
    return start_once(model, tensor_names(model), Draw.once(seed=seed, stage="shared"))


def random(*shape):
    return torch.rand(*shape, generator=G)


CASES = {
    "points": (PointNet(3, 16, 8, 3), lambda n: random(n, 40, 3) * 2 - 1),
    "voxels": (VoxelEncoder(16, 4, 8), lambda n: (random(n, 16, 16, 16) > 0.7).float()),
    "image": (ImageEncoder(8, 8), lambda n: random(n, 32, 32, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_in_fits_a_code_has_the_same_bits_in_any_batch(name):
    encoder, make = CASES[name]
    encoder.eval()
    tensors, x = started(encoder), make(9)
    with torch.no_grad():
        bound = bind(encoder, tensors)
        whole = bound(x)
        for part in (slice(0, 2), slice(3, 8), slice(7, 9)):
            assert torch.equal(bound(x[part]), whole[part])
    assert whole.std(0).min() > 0


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_an_encoder_moves_its_code(name):
    encoder, make = CASES[name]
    encoder.train()
    tensors = {k: v + 0.02 * torch.randn(v.shape, generator=G) for k, v in started(encoder).items()}
    names = [n for n, _ in encoder.named_parameters()]
    leaves = {n: tensors[n].requires_grad_() for n in names}
    code = bind(encoder, {**tensors, **leaves})(make(4))
    gradients = torch.autograd.grad(code.square().sum(), list(leaves.values()))
    still = [n for n, g in zip(names, gradients) if not g.abs().max() > 0]
    assert not still


def test_order_of_points_and_points_of_no_weight_do_not_matter():
    encoder, make = CASES["points"]
    bound, x = bind(encoder, started(encoder, 1)), make(3)
    with torch.no_grad():
        order = torch.randperm(x.shape[1], generator=G)
        assert torch.allclose(bound(x), bound(x[:, order]), atol=1e-6)
        weight = torch.ones(x.shape[:2])
        weight[:, 30:] = 0
        assert torch.allclose(bound(x, weight), bound(x[:, :30]), atol=1e-6)


def test_deviations_start_small():
    posterior = Posterior(4, 16, 5, 2)
    _, log_std = bind(posterior, started(posterior))(random(3, 20, 4))
    assert torch.allclose(log_std.exp(), torch.tensor(0.05))


def test_weights_come_from_a_file_under_torchvisions_names(tmp_path):
    """What the file has is taken to the bit; the head, which it lacks, starts as without it."""
    encoder = ImageEncoder(8, 8)
    names = {f"layer4.1.{n}" for n in ("conv1.weight", "bn1.weight", "bn2.running_var")}
    names |= {"conv1.weight", "bn1.bias", "layer2.0.downsample.0.weight"}
    names |= {"layer2.0.downsample.1.running_mean"}
    assert names <= set(tensor_names(encoder))
    given = {n: torch.randn(t.shape, generator=G) for n, t in started(encoder).items()}
    given = {n: t for n, t in given.items() if not n.startswith("head.")}
    extra = {"fc.weight": torch.zeros(1000, 64), "bn1.num_batches_tracked": torch.tensor(7)}
    save_file({**given, **extra}, tmp_path / "resnet.safetensors")
    plain = started(encoder, 3)
    start_from(encoder, str(tmp_path / "resnet.safetensors"))
    loaded = started(encoder, 3)
    assert all(torch.equal(loaded[n], given[n]) for n in given)
    assert torch.equal(loaded["head.weight"], plain["head.weight"])


def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path):
    path = str(tmp_path / "w.safetensors")
    encoder = PointNet(3, 8, 4, 1)
    start_from(encoder, path)
    with pytest.raises(ValueError, match=f"no file {re.escape(repr(path))}"):
        started(encoder)
    tensors = started(PointNet(3, 8, 4, 1))
    tensors["lift.wight"] = tensors.pop("lift.weight")
    tensors["lift.bias"] = tensors["lift.bias"][:3].clone()
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    with pytest.raises(ValueError, match=r"missing lift.weight, unknown lift.wight, .*bias \[3\] "):
        started(encoder)


def test_voxels_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="24 cells an axis"):
        VoxelEncoder(24, 4, 8)
