"""Batch normalization and residual blocks against PyTorch's own and closed forms."""

import multiprocessing
import socket

import torch
from torch import nn

from pipeline.draw import Draw
from pipeline.fields.bind import bind, tensor_names
from pipeline.fields.blocks import BatchNorm, ConditionalNorm, ResidualBlock
from pipeline.fields.initializers import start_once

G = torch.Generator().manual_seed(0)


def started(model, seed=0):
    return start_once(model, tensor_names(model), Draw.once(seed=seed, stage="shared"))


def test_it_is_pytorchs_batch_norm_in_training_and_in_fits():
    for axis, shape, other in ((-1, (6, 5, 4), nn.BatchNorm1d), (1, (6, 4, 5, 3), nn.BatchNorm2d)):
        ours, theirs = BatchNorm(4, axis=axis), other(4)
        tensors = started(ours)
        with torch.no_grad():
            for _ in range(3):
                x = torch.randn(shape, generator=G) * 3 + 1
                wanted = theirs(x.transpose(1, 2) if axis == -1 else x)
                wanted = wanted.transpose(1, 2) if axis == -1 else wanted
                assert torch.allclose(bind(ours, tensors)(x), wanted, atol=1e-5)
        assert torch.allclose(tensors["running_mean"], theirs.running_mean, atol=1e-6)
        assert torch.allclose(tensors["running_var"], theirs.running_var, atol=1e-5)
        ours.eval()
        theirs.eval()
        wanted = theirs(x.transpose(1, 2) if axis == -1 else x)
        wanted = wanted.transpose(1, 2) if axis == -1 else wanted
        assert torch.allclose(bind(ours, tensors)(x), wanted, atol=1e-5)


def test_a_condition_scales_and_shifts_and_starts_without_effect():
    norm = ConditionalNorm(4, 3)
    tensors = started(norm)
    x, code = torch.randn(5, 7, 4, generator=G), torch.randn(5, 1, 3, generator=G)
    plain = (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-5).sqrt()
    assert torch.allclose(bind(norm, tensors)(x, code), plain, atol=1e-5)
    tensors["gamma.weight"] = torch.randn(4, 3, generator=G)
    tensors["beta.weight"] = torch.randn(4, 3, generator=G)
    gamma, beta = code @ tensors["gamma.weight"].T + 1, code @ tensors["beta.weight"].T
    wanted = plain * gamma + beta
    assert torch.allclose(bind(norm, tensors)(x, code), wanted, atol=1e-4)


def test_a_block_starts_as_what_comes_in_but_for_its_bias():
    block = ResidualBlock(6)
    tensors = started(block)
    x = torch.randn(2, 5, 6, generator=G)
    assert not tensors["second.weight"].any()
    assert torch.allclose(bind(block, tensors)(x), x + tensors["second.bias"])


def test_parts_count_as_their_concatenation():
    block = ResidualBlock(10, 4)
    tensors = {n: torch.randn(t.shape, generator=G) for n, t in started(block).items()}
    x, top = torch.randn(3, 7, 6, generator=G), torch.randn(3, 1, 4, generator=G)
    whole = torch.cat([x, top.expand(3, 7, 4)], -1)
    bound = bind(block, tensors)
    assert torch.allclose(bound(x, top), bound(whole), atol=1e-5)


def _worker(rank, port, queue):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found = normed(slice(rank, None, 2))
    queue.put((rank, [t.detach().numpy() for t in found]))
    torch.distributed.destroy_process_group()


def normed(part):
    """Output, gradient by the input and running variance of a loss in which samples meet."""
    g = torch.Generator().manual_seed(4)
    x = (torch.randn(6, 5, 4, generator=g) * torch.arange(1.0, 7)[:, None, None])[part]
    x = x.clone().requires_grad_()
    norm = BatchNorm(4)
    tensors = started(norm)
    y = bind(norm, tensors)(x)
    (gradient,) = torch.autograd.grad(y.tanh().pow(3).sum(), x)
    return y, gradient, tensors["running_var"]


def test_two_workers_normalize_by_the_statistics_of_both():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(r, port, queue)) for r in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    y, gradient, var = normed(slice(None))
    for rank in range(2):
        theirs = [torch.from_numpy(a) for a in found[rank]]
        assert torch.allclose(theirs[0], y[rank::2].detach(), atol=1e-5)
        assert torch.allclose(theirs[1], gradient[rank::2], atol=1e-5)
        assert torch.allclose(theirs[2], var, atol=1e-5)
