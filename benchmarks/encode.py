"""Encoding pictures as functa latents: the compiled loop against one picture at a time in PyTorch.

    python -m benchmarks.encode [--quick] [--write]

The size is that of the published writer of functa data sets: 15 sine layers of 512, latents of 64,
three steps. All see the same shared network, trained here for some steps, so that the quality of
the latents can be compared too: PSNR by plain float32 of pictures that training has not seen. The
loop is plain PyTorch, one picture at a time, as that writer takes them: weights frozen, gradients
by the latent only, coordinates and colors ready before the clock starts. Ours is what a worker of
`fieldmill run` does, from stored pixels to latents, in the numbers that the plan would choose.
Neither evaluates the network at the latents found: PSNR is measured apart. One thread, by turns in
one process, CPU seconds, medians. What a worker makes ready once a store is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402

from benchmarks.acceptance._digits import digits  # noqa: E402
from benchmarks.engine_baselines import timed  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from pipeline import fitting, methods  # noqa: E402
from pipeline.fitting.encoding import log_losses  # noqa: E402
from pipeline.samples import load_samples, pixel_coords  # noqa: E402

PUBLISHED = 0.8
"""Images a core-second of the published writer at this size, one at a time (functa, JAX)."""
SIZE = {"depth": 15, "width": 512, "latent": 64}
QUICK = {"depth": 4, "width": 64, "latent": 32}
TRAINING = {"omega": 6.0, "inner_rate": 1.0, "rate": 3e-4, "batch": 4, "inner_pixels": 256}
"""Shorter than the paper's by far: enough for steps that do something."""


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


def pictures(samples, side: int) -> list[torch.Tensor]:
    """Colors in [-1, 1] of all pixels of each picture, line by line."""
    found, stored = [], samples.sets["context"]
    for start, count in zip(stored.starts.tolist(), stored.counts.tolist()):
        color = torch.empty(side * side, samples.form.channels)
        values = stored.columns["color"][start : start + count]
        color[stored.columns["raster"][start : start + count].long()] = (
            values.to(torch.float32) / 255 * 2 - 1
        )
        found.append(color)
    return found


def psnr(losses: torch.Tensor) -> torch.Tensor:
    """Of logarithms of mean squared errors of values in [-1, 1], dB."""
    return 10 * torch.log10(4 / losses.exp())


def measured(size: dict, side: int, steps: int, rounds: int) -> dict:
    """Images a CPU second and PSNR of the loop, of lanes and of the compiled loop."""
    known, new, many = (
        load_samples(digits(count, side, seed, held_out=0.0), "images")
        for count, seed in ((200, 0), (16, 1), (32, 2))
    )

    def built(**settings):
        settings = {**size, **TRAINING, **settings}
        return methods.build("functa", methods.configure("functa", settings=settings), known.form)

    small = built(train_steps=steps)
    # Gradients of the first order: second order takes twice as long a step.
    taught = fitting.train(replace(small, inner=replace(small.inner, order=1)), known, seed=0)
    shared, method = taught.shared, built(inner_pixels=side * side)
    kernel, path = fitting.choose_encoding(method, shared, lambda: new, 0)
    begun = time.process_time()
    ready = fitting.Together(fitting.Stream(method, shared, kernel=kernel))
    ready.fit(load_samples(digits(1, side, 3, held_out=0.0), "images"), 0)
    begun = time.process_time() - begun
    lanes = fitting.Together(fitting.Stream(method, shared))
    colors, coords, found = pictures(many, side), pixel_coords(side, side), {}
    few = load_samples(digits(32, side, 2, held_out=0.0).slice(0, 4), "images")

    def loop():
        found["loop"] = one_at_a_time(method.field.config, shared, colors[:4], coords)

    def plain():
        found["lanes"] = lanes.fit(few, 0)[0].rows["code.value"]

    def compiled():
        found["compiled"] = ready.fit(many, 0)[0].rows["code.value"]

    works = {"one at a time": (loop, 4), "lanes": (plain, 4), "compiled loop": (compiled, 32)}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, _) in works.items():
            seconds[name].append(timed(work)["cpu"])
    rates = {n: count / statistics.median(seconds[n]) for n, (_, count) in works.items()}
    index = torch.arange(len(new))
    resting = {**shared, "rate.code.value": shared["rate.code.value"] * 0}
    quality = {
        "one at a time, float32": psnr(log_losses(method, shared, new, index, 0, "")),
        "compiled loop": psnr(log_losses(method, shared, new, index, 0, kernel)),
        "before the steps": psnr(log_losses(method, resting, new, index, 0, "")),
    }
    apart = quality["compiled loop"] - quality["one at a time, float32"]
    loops = found["loop"] - found["lanes"]
    return {
        "settings": {**size, **TRAINING, "train_steps": steps},
        "pictures": f"digits of a font, {side} x {side}; 200 trained on, others encoded",
        "path": path,
        "images a core-second": {name: round(rate, 2) for name, rate in rates.items()},
        "of one at a time": {
            name: round(rate / rates["one at a time"], 1) for name, rate in rates.items()
        },
        "made ready once a worker, s": round(begun, 2),
        "PSNR of 16 new pictures, dB": {n: round(float(v.mean()), 3) for n, v in quality.items()},
        "compiled loop above float32, dB": {
            "mean": round(float(apart.mean()), 3),
            "worst picture": round(float(apart.min()), 3),
        },
        "latents of lanes and loop apart, relative": float(
            loops.abs().max() / found["loop"].abs().max()
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, a few seconds")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/encode.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        found = measured(QUICK, 16, 60, 1)
    else:
        found = measured(SIZE, arguments.side, arguments.steps, 5)
        rates = found["images a core-second"]
        found["of the published writer"] = {n: round(r / PUBLISHED, 1) for n, r in rates.items()}
    found |= {"machine": machine("inner steps")}
    print(json.dumps(found, indent=1))
    if arguments.write and not arguments.quick:
        path = Path(__file__).parent / "results" / "encode.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    equal = found["latents of lanes and loop apart, relative"] < 1e-2
    return 0 if equal and found["compiled loop above float32, dB"]["mean"] > -0.1 else 3


if __name__ == "__main__":
    sys.exit(main())
