"""Encoding pictures as functa latents: the compiled loop against one picture at a time in PyTorch.

    python -m benchmarks.encode [--quick] [--write] [--network FILE]

The size is that of the published writer of functa data sets: 15 sine layers of 512, latents of 64,
three steps. All see the same shared network, trained here until new pictures are recognizable
(`GOOD`): narrow numbers cost nothing on a network that reconstructs nothing. Quality is PSNR by
plain float32 of pictures that neither training nor the choice of numbers has seen. The loop is
plain PyTorch, one picture at a time, as that writer takes them: weights frozen, gradients
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
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from benchmarks.acceptance.functa import cuts  # noqa: E402
from benchmarks.engine_baselines import timed  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from pipeline import fitting, methods  # noqa: E402
from pipeline.fitting.encoding import log_losses  # noqa: E402
from pipeline.samples import load_samples, pixel_coords  # noqa: E402

KNOWN, NEW = 800, 16
"""Pictures trained on, and others on which quality is told."""
PUBLISHED = 0.8
"""Images a core-second of the published writer at this size, one at a time (functa, JAX)."""
SIZE = {"depth": 15, "width": 512, "latent": 64}
QUICK = {"depth": 4, "width": 64, "latent": 32}
TRAINING = {"omega": 1.5, "inner_rate": 0.3, "rate": 2.5e-4, "batch": 4, "inner_pixels": 128}
"""Far shorter than the paper's: few pixels a step. Each of 15 layers of sines doubles frequencies
or nearly so, hence the low factor."""
WAYS = ("one at a time", "lanes", "compiled loop")
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "clock", "coffee", "coins", "moon", "rocket")
GOOD = 22.0
"""dB, of new pictures: what a network must reach for a comparison of quality to mean something."""
LOST = 0.2
"""dB, in the mean of new pictures: what narrow numbers may cost at most."""


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


def photographs(count: int, side: int, *, right: bool):
    """Cuts at the photographs' own resolution, all pixels fitted."""
    return cuts(count, 0, right=right, names=PHOTOGRAPHS, side=side, reduce=1, held_out=0.0)


def built(size: dict, form, **settings):
    """functa of this size, with what is common to training and encoding."""
    settings = {**size, **TRAINING, **settings}
    return methods.build("functa", methods.configure("functa", settings=settings), form)


def trained(size: dict, known, steps: int, keep: Path | None) -> tuple[dict, float]:
    """What is shared after training, and its CPU seconds; read from `keep` if that is there."""
    if keep is not None and keep.exists():
        with safe_open(keep, "pt") as file:
            seconds = float(file.metadata()["seconds"])
        return load_file(keep), seconds
    begun = time.process_time()
    shared = fitting.train(built(size, known.form, train_steps=steps), known, seed=0).shared
    seconds = time.process_time() - begun
    if keep is not None:
        save_file(shared, keep, {"seconds": str(seconds)})
    return shared, seconds


def above_plain(found: torch.Tensor, plain: torch.Tensor) -> dict[str, float]:
    """PSNR of each picture above that of another path, in the mean and of the worst picture."""
    apart = found - plain
    return {"mean": round(float(apart.mean()), 3), "worst picture": round(float(apart.min()), 3)}


def measured(size: dict, side: int, steps: int, rounds: int, keep: Path | None) -> dict:
    """Images a CPU second and PSNR of the loop, of lanes and of the compiled loop."""
    from pipeline.fitting.fused.narrow import modes

    new_ones = photographs(NEW + 8 + 32 + 1, side, right=True)
    known = load_samples(photographs(KNOWN, side, right=False), "images")
    new, some, many, one, few = (
        load_samples(new_ones.slice(start, count), "images")
        for start, count in ((0, NEW), (NEW, 8), (NEW + 8, 32), (NEW + 40, 1), (NEW + 8, 4))
    )
    shared, seconds_trained = trained(size, known, steps, keep)
    method = built(size, known.form, inner_pixels=side * side)
    kernel, path = fitting.choose_encoding(method, shared, lambda: some, 0)
    begun = time.process_time()
    ready = fitting.Together(fitting.Stream(method, shared, kernel=kernel))
    ready.fit(one, 0)
    begun = time.process_time() - begun
    linear = kernel[kernel.index("@") :] if "@" in kernel else ""
    others = {
        mode: fitting.Together(fitting.Stream(method, shared, kernel=mode + linear))
        for mode in modes()
        if mode + linear != kernel
    }
    for other in others.values():
        other.fit(one, 0)
    lanes = fitting.Together(fitting.Stream(method, shared))
    colors, coords, found = pictures(many, side), pixel_coords(side, side), {}

    def loop():
        found["loop"] = one_at_a_time(method.field.config, shared, colors[:4], coords)

    def plain():
        found["lanes"] = lanes.fit(few, 0)[0].rows["code.value"]

    def compiled():
        found["compiled"] = ready.fit(many, 0)[0].rows["code.value"]

    works = {"one at a time": (loop, 4), "lanes": (plain, 4), "compiled loop": (compiled, 32)}
    works |= {mode: (partial(other.fit, many, 0), 32) for mode, other in others.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, _) in works.items():
            seconds[name].append(timed(work)["cpu"])
    rates = {n: count / statistics.median(seconds[n]) for n, (_, count) in works.items()}
    index = torch.arange(len(new))
    resting = {**shared, "rate.code.value": shared["rate.code.value"] * 0}

    def quality(kernel: str, shared=shared) -> torch.Tensor:
        return psnr(log_losses(method, shared, new, index, 0, kernel))

    exact = quality("")
    narrow = {mode: quality(mode + linear) for mode in modes()}
    chosen = narrow[kernel.split("@")[0]] if kernel else exact
    told = {"one at a time, float32": exact, "compiled loop": chosen}
    told["before the steps"] = quality("", resting)
    loops = found["loop"] - found["lanes"]
    return {
        "settings": {**size, **TRAINING, "train_steps": steps},
        "pictures": (
            f"gray cuts of {len(PHOTOGRAPHS)} scikit-image photographs, {side} x {side}: {KNOWN} "
            "of their left halves trained on, others, of their right halves, encoded"
        ),
        "trained, CPU s": round(seconds_trained, 1),
        "path": path,
        "images a core-second": {name: round(rates[name], 2) for name in WAYS},
        "of one at a time": {name: round(rates[name] / rates["one at a time"], 1) for name in WAYS},
        "made ready once a worker, s": round(begun, 2),
        f"PSNR of {NEW} new pictures, dB": {
            n: {"mean": round(float(v.mean()), 3), "worst picture": round(float(v.min()), 3)}
            for n, v in told.items()
        },
        "compiled loop above float32, dB": above_plain(chosen, exact),
        "the loop in each kind of numbers": {
            mode: {
                "images a core-second": round(rates.get(mode, rates["compiled loop"]), 2),
                "above float32, dB": above_plain(value, exact),
            }
            for mode, value in narrow.items()
        },
        "latents of lanes and loop apart, relative": float(
            loops.abs().max() / found["loop"].abs().max()
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, a few seconds")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=260, help="of training")
    parser.add_argument("--network", type=Path, help="keep the trained network in this file")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/encode.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side, keep = arguments.side, arguments.network
    if arguments.quick:
        found = measured(QUICK, 16, 60, 1, keep)
    else:
        found = measured(SIZE, side, arguments.steps, 5, keep)
        rates = found["images a core-second"]
        found["of the published writer"] = {n: round(r / PUBLISHED, 1) for n, r in rates.items()}
    found |= {"machine": machine("inner steps")}
    print(json.dumps(found, indent=1))
    if arguments.write and not arguments.quick:
        path = Path(__file__).parent / "results" / "encode.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    exact = found[f"PSNR of {NEW} new pictures, dB"]["one at a time, float32"]["mean"]
    passed = {
        "lanes and loop agree": found["latents of lanes and loop apart, relative"] < 1e-2,
        f"narrow numbers cost at most {LOST} dB": (
            found["compiled loop above float32, dB"]["mean"] >= -LOST
        ),
        f"new pictures at {GOOD} dB": arguments.quick or exact >= GOOD,
    }
    missed = [name for name, well in passed.items() if not well]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 3 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
