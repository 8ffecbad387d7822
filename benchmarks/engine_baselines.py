"""What the engine is compared with: a PyTorch loop, `torch.func.vmap`, bare operations, JAX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.engine_crops import OMEGA, RATE

JAX = "0.10.2"


def timed(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of this process and seconds on the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _network(params: list, coords: torch.Tensor) -> torch.Tensor:
    h = coords
    for weight, bias in params[:-1]:
        # The factor on the weights costs 1/16 of what it costs on the activations.
        h = torch.sin(torch.nn.functional.linear(h, OMEGA * weight, OMEGA * bias))
    return torch.nn.functional.linear(h, *params[-1])


def torch_alone(start: list, coords: torch.Tensor, wanted: torch.Tensor, steps: int, target: float):
    """One image: plain autograd, fused Adam. Returns steps taken and the last loss."""
    params = [(w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in start]
    optimizer = torch.optim.Adam([t for pair in params for t in pair], RATE, fused=True)
    value = float("nan")
    for step in range(steps):
        loss = (_network(params, coords) - wanted).square().mean()
        if target > 0:
            value = loss.item()
            if value <= target:
                return step, value
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return steps, value


def torch_vmap(start: list, coords: torch.Tensor, wanted: torch.Tensor, steps: int) -> None:
    """`torch.func.vmap` over networks, gradients by `grad`, one foreach Adam for all."""

    def loss(params, target):
        return (_network(params, coords) - target).square().mean()

    gradient = torch.func.vmap(torch.func.grad(loss))
    params = [[w.clone(), b.clone()] for w, b in start]
    flat = [t for pair in params for t in pair]
    optimizer = torch.optim.Adam(flat, RATE, foreach=True)
    for _ in range(steps):
        gradients = gradient(params, wanted)
        for tensor, value in zip(flat, [g for pair in gradients for g in pair]):
            tensor.grad = value
        optimizer.step()


def bare_operations(depth: int, width: int = 64, points: int = 1024, lanes: int = 1) -> Callable:
    """One step's matrix products, sines and cosines in PyTorch, into memory that is reused."""

    def room(*shape):
        return torch.rand(lanes, *shape) if lanes > 1 else torch.rand(*shape)

    product = torch.bmm if lanes > 1 else torch.mm
    x, y = room(points, 2), room(points, 3)
    a, z, d = room(points, width), room(points, width), room(points, width)
    first, hidden, last = room(2, width), room(width, width), room(width, 3)
    to_first, to_hidden, to_last = room(2, width), room(width, width), room(width, 3)

    def t(matrix):
        return matrix.transpose(-1, -2)

    def step() -> None:
        product(x, first, out=z)
        torch.sin(z, out=a)
        for _ in range(depth - 1):
            product(a, hidden, out=z)
            torch.sin(z, out=a)
        product(a, last, out=y)
        product(t(a), y, out=to_last)
        product(y, t(last), out=d)
        for _ in range(depth - 1):
            torch.cos(z, out=a)
            product(t(d), a, out=to_hidden)
            product(d, t(hidden), out=z)
        torch.cos(z, out=a)
        product(t(x), d, out=to_first)

    return step


def jax_python() -> str:
    """The interpreter of an environment with JAX; made once, kept among the user's caches."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = base / "fieldmill" / f"jax-{JAX}-py{sys.version_info[0]}{sys.version_info[1]}"
    python = place / "bin" / "python"
    if not (place / "done").exists():
        print(f"making an environment with jax {JAX} in {place} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*install, f"jax=={JAX}", f"jaxlib=={JAX}"], check=True, stdout=sys.stderr)
        (place / "done").touch()
    return str(python)


class Jax:
    """The JAX baseline in its own process, asked between measurements of the others."""

    def __init__(self, data: dict[str, np.ndarray], folder: Path):
        path = folder / "data.npz"
        np.savez(path, **data)
        script = Path(__file__).with_name("engine_jax.py")
        self.process = subprocess.Popen(
            [jax_python(), str(script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command) -> dict:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the JAX process ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
