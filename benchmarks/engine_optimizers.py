"""Optimizers beside Adam, and schedules, on the engine's workload: steps and CPU seconds to 30 dB.

    python -m benchmarks.engine_optimizers [--count 32] [--what optimizers|schedules]

Every optimizer runs in the same lanes of `fit_rows` (plain PyTorch, rows side by side), with the
best rate of a small sweep; schedules run in the compiled loop. What did not win stays here and out
of `pipeline/fitting/optimizers.py`; the tables are in `benchmarks/results/engine.md`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402
from jaxtyping import Bool, Float, Int  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.engine import prepared  # noqa: E402
from benchmarks.engine_crops import crops, mse_of  # noqa: E402
from pipeline import methods  # noqa: E402
from pipeline.draw import Draw  # noqa: E402
from pipeline.fields.bind import bind  # noqa: E402
from pipeline.fitting import Fitted, fit_rows  # noqa: E402
from pipeline.fitting.method import Descend, PerSample  # noqa: E402
from pipeline.fitting.optimizers import Adam  # noqa: E402
from pipeline.fitting.rows import Layout, start_shared  # noqa: E402
from pipeline.fitting.schedules import Constant, Cosine, Steps  # noqa: E402
from pipeline.fitting.starts import starts_of  # noqa: E402
from pipeline.samples import Samples, load_samples  # noqa: E402
from schemas.store import RowStatus  # noqa: E402

MOST = 300


@dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al. 2024) for one matrix a row: momentum, then its nearest orthogonal matrix
    by five Newton-Schulz steps. Scaled so that the numbers of an update have root mean square 1."""

    rate: float
    shape: tuple[int, int]
    momentum: float = 0.9

    moments = 1

    def update(
        self,
        values: Float[Tensor, "n p"],
        gradient: Float[Tensor, "n p"],
        moments: list[Float[Tensor, "n p"]],
        step: Int[Tensor, "n"],
        go: Bool[Tensor, "n"],
        factor: Float[Tensor, "n"] | None = None,
        at: Int[Tensor, "n"] | None = None,
    ) -> tuple[Float[Tensor, "n p"], list[Float[Tensor, "n p"]]]:
        """As `Adam.update`."""
        mean = self.momentum * moments[0] + gradient
        x = (gradient + self.momentum * mean).unflatten(1, self.shape)
        x = x / (x.square().sum((1, 2), keepdim=True).sqrt() + 1e-12)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        change = x.flatten(1) * max(self.shape) ** 0.5 * self.rate
        go = go[:, None]
        return torch.where(go, values - change, values), [torch.where(go, mean, moments[0])]


@dataclass(frozen=True)
class Soap:
    """SOAP (Vyas et al. 2024) for one square matrix a row: Adam in the eigenbasis of both factors
    of Shampoo, which is found anew every so many steps."""

    rate: float
    side: int
    betas: tuple[float, float] = (0.8, 0.999)
    every: int = 5
    keep: float = 0.9

    moments = 6

    def update(self, values, gradient, moments, step, go, factor=None, at=None):
        """As `Adam.update`."""
        first, second, left, right, to_left, to_right = (
            m.unflatten(1, (self.side, self.side)) for m in moments
        )
        g = gradient.unflatten(1, (self.side, self.side))
        left = torch.lerp(g @ g.mT, left, self.keep)
        right = torch.lerp(g.mT @ g, right, self.keep)
        due = (go & (step % self.every == 0)).nonzero()[:, 0]
        if len(due):
            # On a fresh row the factors are of one gradient: a basis all the same.
            to_left, to_right = to_left.clone(), to_right.clone()
            to_left[due] = torch.linalg.eigh(left[due])[1]
            to_right[due] = torch.linalg.eigh(right[due])[1]
        first = torch.lerp(first, g, 1 - self.betas[0])
        turned = to_left.mT @ g @ to_right
        second = second * self.betas[1] + (1 - self.betas[1]) * turned.square()
        count = (step + 1).to(values.dtype)[:, None, None]
        scale = (1 - self.betas[1] ** count).sqrt() / (1 - self.betas[0] ** count)
        move = to_left.mT @ first @ to_right * scale / (second.sqrt() + 1e-8)
        change = self.rate * (to_left @ move @ to_right.mT).flatten(1)
        new = [m.flatten(1) for m in (first, second, left, right, to_left, to_right)]
        go = go[:, None]
        kept = [torch.where(go, a, b) for a, b in zip(new, moments)]
        return torch.where(go, values - change, values), kept


def workload(count: int) -> Samples:
    """The first crops of the engine's benchmark."""
    return load_samples(prepared(crops(count)), "images")


def siren(samples: Samples, **settings) -> PerSample:
    """Two sine layers x 64, at most `MOST` steps to 30 dB, constant rate unless said."""
    size = {"width": 64, "depth": 2, "steps": MOST, "schedule": "constant"}
    config = methods.configure("siren", "default", {**size, **settings})
    return methods.build("siren", config, samples.form)


def with_groups(method: PerSample, groups: dict) -> PerSample:
    """The method with other optimizers, by name prefix."""
    (phase,) = method.fit
    (update,) = phase.updates
    return replace(method, fit=(replace(phase, updates=(Descend(update.loss, groups),)),))


def fitted(method: PerSample, samples: Samples, **path) -> tuple[Fitted, float]:
    """What a fit gave, and the CPU seconds a sample that it took."""
    began = time.process_time()
    ends = fit_rows(method, {}, samples, seed=0, **path)
    return ends, (time.process_time() - began) / samples.keys.shape[0]


def line(name: str, ends: Fitted, seconds: float) -> str:
    met = sum(status == RowStatus.OK for status in ends.status)
    mean, most = ends.steps.float().mean(), int(ends.steps.max())
    return f"| {name} | {mean:.1f} | {most} | {met} | {1e3 * seconds:.2f} |"


def damped_newton(method: PerSample, samples: Samples, inner: int, damping: float) -> tuple:
    """Levenberg and Marquardt, its equations by conjugate gradients, rows side by side.

    Returns steps of each row to the target, products with the Jacobian or its transpose, seconds.
    """
    count = samples.keys.shape[0]
    index = torch.arange(count)
    rows = starts_of(method, start_shared(method, 0), samples, index, 0)[0]
    layout = Layout.of(method.model, list(rows))
    flat, (phase,) = layout.flat(rows), method.fit
    batch = samples.draw(index, "context", phase.size, Draw.of(samples.keys, seed=0, stage="fit"))
    wanted = phase.updates[0].loss.wanted(batch)
    began, products = time.process_time(), torch.zeros(count)
    lam, steps = torch.full((count, 1), damping), torch.full((count,), -1)

    def run(values: Tensor) -> Tensor:
        return bind(method.model, layout.split(values))(batch.grid.coords)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    points = wanted[0].numel()
    error = (run(flat) - wanted).square().mean((1, 2))
    for step in range(60):
        steps = torch.where((error <= mse_of(30.0)) & (steps < 0), step, steps)
        if (steps >= 0).all():
            break
        found, pull = torch.func.vjp(run, flat)
        gradient = pull(found - wanted)[0] / points
        x, r = torch.zeros_like(flat), -gradient
        p, rr = r, dot(r, r)
        for _ in range(inner):
            _, forward = torch.func.jvp(run, (flat,), (p,))
            q = pull(forward)[0] / points + lam * p
            alpha = rr / (dot(p, q) + 1e-20)
            x, r = x + alpha * p, r - alpha * q
            rr, before = dot(r, r), rr
            p = r + rr / (before + 1e-20) * p
        products += torch.where(steps < 0, 1 + 2 * inner, 0)
        new = (run(flat + x) - wanted).square().mean((1, 2))
        better = (new < error)[:, None] & (steps < 0)[:, None]
        flat, error = torch.where(better, flat + x, flat), torch.where(better[:, 0], new, error)
        lam = torch.where(better, lam / 3, lam * 4)
    return steps, products, (time.process_time() - began) / count


def optimizers(count: int) -> None:
    """Adam with both momenta, Muon and SOAP for the hidden matrix, Levenberg-Marquardt."""
    samples = workload(count)
    print("| optimizer | mean steps | most | met | CPU ms an image |\n|---|---|---|---|---|")

    def best(name: str, groups_of: Callable[[float], dict], rates: tuple[float, ...]) -> None:
        tried = []
        for rate in rates:
            method = with_groups(siren(samples), groups_of(rate))
            tried.append((rate, *fitted(method, samples, lanes=16)))
        met = [t for t in tried if all(s == RowStatus.OK for s in t[1].status)] or tried
        rate, ends, seconds = min(met, key=lambda t: float(t[1].steps.float().mean()))
        print(line(f"{name}, rate {rate:g}", ends, seconds), flush=True)

    fitted(siren(samples), samples, lanes=16)
    adam = (0.8, 0.999)
    best("Adam, decay 0.8", lambda rate: {"": Adam(rate, adam)}, (2e-3, 3e-3, 4e-3))
    best("Adam, decay 0.7", lambda rate: {"": Adam(rate, (0.7, 0.999))}, (2e-3, 3e-3, 4e-3))
    for momentum in (0.5, 0.7, 0.8, 0.9):
        for outer in (2e-3, 3e-3):
            best(
                f"Muon, decay {momentum}, Adam {outer:g} around it",
                lambda rate, m=momentum, o=outer: {
                    "": Adam(o, adam),
                    "layers.1.weight": Muon(rate, (64, 64), m),
                },
                (5e-4, 1e-3, 2e-3, 3e-3),
            )
    for momentum, every in ((0.8, 1), (0.8, 5), (0.7, 5)):
        best(
            f"SOAP, decay {momentum}, basis every {every}",
            lambda rate, m=momentum, e=every: {
                "": Adam(3e-3, (m, 0.999)),
                "layers.1.weight": Soap(rate, 64, (m, 0.999), e),
            },
            (1e-3, 2e-3, 3e-3),
        )
    for inner, damping in ((3, 1e-2), (6, 1e-2), (6, 1e-1), (12, 1e-2)):
        steps, products, seconds = damped_newton(siren(samples), samples, inner, damping)
        met, mean = int((steps >= 0).sum()), float(steps.float().mean())
        name = f"Levenberg-Marquardt, {inner} inner, {damping:g}: {products.mean():.0f} products"
        print(f"| {name} | {mean:.1f} | {int(steps.max())} | {met} | {1e3 * seconds:.2f} |")


def schedules(count: int) -> None:
    """Steps to 30 and 36 dB in the compiled loop."""
    samples = workload(count)
    made = {
        "constant": Constant,
        "cosine over 500": lambda r: Cosine(r, 500, floor=r / 100),
        "cosine over 100": lambda r: Cosine(r, 100, floor=r / 100),
        "cosine over 40": lambda r: Cosine(r, 40, floor=r / 10),
        "warm-up of 5, cosine over 500": lambda r: Cosine(r, 500, 5, r / 100),
        "warm-up of 20, cosine over 500": lambda r: Cosine(r, 500, 20, r / 100),
        "halved every 20": lambda r: Steps(r, 20, floor=r / 20),
        "halved every 100": lambda r: Steps(r, 100, floor=r / 20),
    }
    head = "| depth | rate | schedule | 30 dB: mean | most | met | 36 dB: mean | most | met |"
    print(f"{head}\n|{'---|' * 9}")
    for depth in (2, 3):
        for rate in (2e-3, 3e-3):
            for name, make in made.items():
                cells = []
                for target in (30.0, 36.0):
                    method = siren(samples, depth=depth, target_psnr=target, steps=500)
                    method = with_groups(method, {"": Adam(make(rate), (0.8, 0.999))})
                    ends, _ = fitted(method, samples, fused=True)
                    met = sum(status == RowStatus.OK for status in ends.status)
                    mean = ends.steps.float().mean()
                    cells += [f"{mean:.1f}", f"{int(ends.steps.max())}", f"{met}"]
                print(f"| {depth} | {rate:g} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=32, help="how many of the crops")
    parser.add_argument("--what", choices=("optimizers", "schedules"), default="optimizers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"optimizers": optimizers, "schedules": schedules}[args.what](args.count)


if __name__ == "__main__":
    main()
