"""What the kernel is compared with on a GPU: batched PyTorch, compiled, as a CUDA graph; JAX."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine_crops import OMEGA, RATE, pixel_coords, starts
from pipeline.fitting.cuda.graphs import Graphed

BETAS, EPS = (0.9, 0.999), 1e-8


def loss_of(params: list[Tensor], coords: Tensor, wanted: Tensor) -> Tensor:
    """Sum over networks of the mean squared error; parameters [n, o, i] and [n, 1, o] by turns."""
    h = coords.expand(len(wanted), -1, -1)
    for weight, bias in zip(params[:-2:2], params[1:-2:2]):
        h = torch.sin(torch.baddbmm(OMEGA * bias, h, (OMEGA * weight).transpose(1, 2)))
    out = torch.baddbmm(params[-1], h, params[-2].transpose(1, 2))
    return (out - wanted).square().mean((1, 2)).sum()


def eager_step() -> Callable:
    """One step of all networks: gradients by autograd, Adam by operations on lists of tensors."""

    def step(state: list[list[Tensor]], count: Tensor, coords: Tensor, wanted: Tensor):
        params, first, second = state
        gradients = torch.func.grad(loss_of)(params, coords, wanted)
        count = count + 1
        size, root = RATE / (1 - BETAS[0] ** count), (1 - BETAS[1] ** count).sqrt()
        first = torch._foreach_lerp(first, gradients, 1 - BETAS[0])
        second = torch._foreach_mul(second, BETAS[1])
        squares = torch._foreach_mul(gradients, gradients)
        second = torch._foreach_add(second, squares, alpha=1 - BETAS[1])
        below = torch._foreach_add(torch._foreach_div(torch._foreach_sqrt(second), root), EPS)
        change = torch._foreach_div(torch._foreach_mul(first, size), below)
        return [torch._foreach_sub(params, change), first, second], count

    return step


def inductor_step() -> Callable:
    return torch.compile(eager_step(), fullgraph=True, dynamic=False)


def graphed_step() -> Callable:
    return Graphed(eager_step())


def run_steps(step: Callable, wanted: Tensor, depth: int, steps: int) -> Callable:
    """Fits all pictures side by side for some steps."""
    device, coords = wanted.device, torch.from_numpy(pixel_coords()).to(wanted.device)[None]
    params = []
    for weight, bias in starts(len(wanted), depth):
        params += [torch.from_numpy(weight).to(device), torch.from_numpy(bias).to(device)[:, None]]

    def run() -> None:
        state = [params, *([torch.zeros_like(p) for p in params] for _ in range(2))]
        count = torch.zeros((), device=device)
        for _ in range(steps):
            state, count = step(state, count, coords, wanted)

    return run


def jax_rate(wanted: np.ndarray, depth: int, steps: int) -> float | None:
    """Image-steps a second of `vmap` and `scan` in this Python's JAX; None if it has none."""
    if importlib.util.find_spec("jax") is None:
        return None
    data = {"coords": pixel_coords(), "crops": wanted, "omega": OMEGA, "rate": RATE}
    for i, (weight, bias) in enumerate(starts(len(wanted), depth)):
        data |= {f"{depth}w{i}": weight, f"{depth}b{i}": bias}
    ask = {"what": "rate", "depth": depth, "lanes": len(wanted), "steps": steps}
    asked = "".join(json.dumps({**ask, "warm": warm}) + "\n" for warm in (True, False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, **data)
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("engine_jax.py"), path],
            input=asked,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cuda",
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            },
            check=False,
        )
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return None
    return len(wanted) * steps / json.loads(done.stdout.splitlines()[-1])["wall"]
