"""Encoding pictures as functa latents: `fit_rows` against one picture at a time, images a second.

    python -m benchmarks.encode [--quick] [--write]

The size is that of the published writer of functa data sets: 15 sine layers of 512, latents of 64,
three steps. Both see the same shared network. The loop is plain PyTorch, one picture at a time, as
that writer takes them: weights frozen, gradients by the latent only, coordinates and colors ready
before the clock starts. Ours takes all pixels of a step, as the loop does, and an eighth of them
(`inner_pixels`). The eighth is not free: of new digits of 28 x 28 it cost 7 dB (20.7 to 13.6, 300
training steps each), so the figure for all pixels is the fair one. One thread, by turns, CPU
seconds, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.acceptance._pictures import cuts  # noqa: E402
from benchmarks.engine_baselines import timed  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from pipeline import methods  # noqa: E402
from pipeline.fitting import fit_rows, start_shared  # noqa: E402
from pipeline.samples import load_samples, pixel_coords  # noqa: E402

PUBLISHED = 0.8
"""Images a core-second of the published writer at this size, one at a time (functa, JAX)."""
SIZE = {"depth": 15, "width": 512, "latent": 64, "omega": 30.0, "inner_rate": 1.0}
QUICK = {**SIZE, "depth": 6, "width": 128}


def one_at_a_time(config, shared, colors, coords) -> torch.Tensor:
    """Latents of all pictures, one after the other in plain PyTorch."""
    omega, rates = config.omega, shared["rate.code.value"]
    layers = [
        (omega * shared[f"layers.{i}.weight"], omega * shared[f"layers.{i}.bias"])
        for i in range(config.depth)
    ]
    to_shift = omega * shared["shift.weight"], omega * shared["shift.bias"]
    last = shared["last.weight"], shared["last.bias"]
    codes = []
    for wanted in colors:
        code = torch.zeros(config.latent)
        for step in range(config.inner_steps):
            code.requires_grad_()
            shifts = torch.nn.functional.linear(code, *to_shift).split(config.width)
            h = coords
            for (weight, bias), shift in zip(layers, shifts):
                h = torch.sin(torch.nn.functional.linear(h, weight, bias + shift))
            loss = (torch.nn.functional.linear(h, *last) - wanted).square().mean()
            (gradient,) = torch.autograd.grad(loss, code)
            code = (code - rates[step] * gradient).detach()
        codes.append(code)
    return torch.stack(codes)


def measured(settings: dict, side: int, count: int, rounds: int) -> dict:
    """Images a CPU second of the loop and of `fit_rows`, and how far their latents are apart."""
    table = cuts(["astronaut"], side, 0, np.zeros((side, side), bool))
    table = table.take([0] * count)
    samples = load_samples(table, "images")
    picture = samples.sets["context"]
    order = picture.columns["raster"][: side * side].long()
    color = torch.empty(side * side, 3)
    color[order] = picture.columns["color"][: side * side].to(torch.float32) / 255 * 2 - 1
    coords = pixel_coords(side, side)
    whole, part = (
        methods.build(
            "functa",
            methods.configure("functa", settings={**settings, "inner_pixels": pixels}),
            samples.form,
        )
        for pixels in (side * side, side * side // 8)
    )
    shared = start_shared(whole, 0)
    found = {}

    def loop():
        found["loop"] = one_at_a_time(whole.field.config, shared, [color] * count, coords)

    def batched():
        found["batched"] = fit_rows(whole, shared, samples, seed=0).rows["code.value"]

    def eighth():
        fit_rows(part, shared, samples, seed=0)

    works = {"one at a time": loop, "fit_rows": batched, "fit_rows, 1/8 of the pixels": eighth}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(timed(work)["cpu"])
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    apart = (found["loop"] - found["batched"]).abs().max() / found["loop"].abs().max()
    return {
        "settings": settings,
        "side": side,
        "images": count,
        "images a core-second": {name: round(rate, 2) for name, rate in rates.items()},
        "of one at a time": {
            name: round(rate / rates["one at a time"], 2) for name, rate in rates.items()
        },
        "latents apart, relative": float(apart),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, a few seconds")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/encode.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        found = measured(QUICK, 16, 8, 1)
    else:
        found = measured(SIZE, arguments.side, 8, 3)
        for name, rate in found["images a core-second"].items():
            found.setdefault("of the published writer", {})[name] = round(rate / PUBLISHED, 1)
    found |= {"machine": machine("plain PyTorch")}
    print(json.dumps(found, indent=1))
    if arguments.write and not arguments.quick:
        path = Path(__file__).parent / "results" / "encode.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["latents apart, relative"] < 1e-2 else 3


if __name__ == "__main__":
    sys.exit(main())
