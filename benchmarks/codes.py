"""Codes of many new shapes under one frozen decoder: at once against one after the other.

    python -m benchmarks.codes [--quick] [--write]

A DeepSDF decoder is trained on unions of two boxes or balls, then the codes of 32 shapes that it
has not seen are inferred: by `fit_rows` as a run calls it (the compiled loop, and the lanes without
it), and by a plain PyTorch loop over the shapes, as the authors' script does it, tuned fairly:
gradients by the code only, the code's part of the first layer multiplied once a step, points
decoded and in random order before the clock starts, fused Adam. One thread, by turns, CPU seconds,
medians. Quality is the IoU on held-out points near the surface.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.acceptance._solids import scene  # noqa: E402
from benchmarks.acceptance._solids import table as solids_table  # noqa: E402
from benchmarks.engine_baselines import timed  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from pipeline import methods  # noqa: E402
from pipeline.evaluate.metrics import measure  # noqa: E402
from pipeline.fitting import choose_path, default_lanes, fit_rows, train  # noqa: E402
from pipeline.samples import load_samples  # noqa: E402

NEW = 32


def loop_over_shapes(method, shared, samples) -> torch.Tensor:
    """Codes of all samples, one after the other in plain PyTorch."""
    config = method.field.config
    weights = [
        (shared[f"net.layers.{i}.weight"], shared[f"net.layers.{i}.bias"])
        for i in range(config.depth + 1)
    ]
    (of_first, first_bias), *others = weights
    of_code, of_points = of_first[:, : config.code], of_first[:, config.code :]
    near = config.fit_points - config.fit_points // 3
    parts = (("near", near), ("uniform", config.fit_points // 3))
    codes = []
    for i in range(len(samples)):
        sets = []
        for name, count in parts:
            held = samples.sets[name]
            rows = slice(int(held.starts[i]), int(held.starts[i] + held.counts[i]))
            coords, distance = held.columns["coords"][rows], held.columns["distance"][rows]
            sets.append((coords, distance.clamp(-config.clamp, config.clamp), count))
        code = (torch.randn(config.code) * config.fit_std).requires_grad_()
        optimizer = torch.optim.Adam([code], config.fit_rate, fused=True)
        for step in range(config.fit_steps):
            if step == config.fit_steps // 2:
                optimizer.param_groups[0]["lr"] = config.fit_rate / 10
            chosen = []
            for coords, distance, count in sets:
                at = step * count % (len(coords) - count)  # the sets lie in random order
                chosen.append((coords[at : at + count], distance[at : at + count]))
            x, wanted = (torch.cat(parts) for parts in zip(*chosen))
            used = code
            if config.max_norm is not None:
                used = code * (config.max_norm / code.norm().clamp(min=1e-12)).clamp(max=1)
            constant = torch.addmv(first_bias, of_code, used)
            h = torch.relu(torch.nn.functional.linear(x, of_points, constant))
            for weight, bias in others[:-1]:
                h = torch.relu(torch.nn.functional.linear(h, weight, bias))
            sdf = torch.tanh(torch.nn.functional.linear(h, *others[-1]))[:, 0]
            loss = (sdf.clamp(-config.clamp, config.clamp) - wanted).abs().mean()
            loss = loss + config.prior * code.square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        codes.append(code.detach())
    codes = torch.stack(codes)
    if config.max_norm is not None:
        codes = codes * (config.max_norm / codes.norm(dim=1, keepdim=True)).clamp(max=1)
    return codes


def run(quick: bool) -> dict:
    shapes = 64 if quick else 256
    random = np.random.default_rng(0)
    solids = [scene(random, 2, 0.4) for _ in range(shapes + NEW)]
    whole = solids_table(solids, near=8192, uniform=4096, surface=64, held_out=2048)
    table = whole.slice(shapes)
    known, new = load_samples(whole.slice(0, shapes), "shapes"), load_samples(table, "shapes")
    settings = {"width": 128, "code": 64, "train_steps": 200 if quick else 1500}
    settings["fit_steps"] = 100 if quick else 300
    method = methods.build("deepsdf", methods.configure("deepsdf", settings=settings), known.form)
    began = time.process_time()
    shared = train(method, known, seed=0).shared
    training = time.process_time() - began
    lanes = default_lanes(method)

    def iou(codes: torch.Tensor) -> float:
        rows = {"code.value": codes}
        return float(measure("shapes", method, shared, rows, new, table)["iou_near"].mean())

    few = load_samples(table.slice(0, 1), "shapes")
    first = [load_samples(table.slice(i, 1), "shapes") for i in range(NEW)]
    found: dict[str, torch.Tensor] = {}

    def ours(name: str, **how):
        found[name] = fit_rows(method, shared, new, seed=0, **how).rows["code.value"]

    def one_by_one():
        rows = [fit_rows(method, shared, s, seed=0, fused=True).rows["code.value"] for s in first]
        found["ours, a shape a call"] = torch.cat(rows)

    def theirs():
        found["PyTorch loop"] = loop_over_shapes(method, shared, new)

    work = {
        "ours, all at once": lambda: ours("ours, all at once", fused=True),
        "ours, a shape a call": one_by_one,
        f"ours, {lanes} lanes of PyTorch": lambda: ours(
            f"ours, {lanes} lanes of PyTorch", lanes=lanes
        ),
        "ours, 2 lanes of PyTorch": lambda: ours("ours, 2 lanes of PyTorch", lanes=2),
        "PyTorch loop": theirs,
    }
    fit_rows(method, shared, few, seed=0, fused=True)  # compiles, once on a machine
    torch.manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(2 if quick else 3):
        for name, do in work.items():
            if turn and quick and "lanes" in name:
                continue
            seconds[name].append(timed(do)["cpu"])
    lines = {
        name: {"cpu_s": statistics.median(values), "iou_near": iou(found[name])}
        for name, values in seconds.items()
    }
    mean = torch.zeros_like(found["PyTorch loop"])
    return {
        "path": choose_path(method)[1],
        "shapes": NEW,
        "steps": method.field.config.fit_steps,
        "points": method.field.config.fit_points,
        "width": 128,
        "training_s": training,
        "lines": lines,
        "iou_near_of_no_code": iou(mean),
        "over_torch_loop": lines["PyTorch loop"]["cpu_s"] / lines["ours, all at once"]["cpu_s"],
    }


def report(result: dict) -> str:
    lines = [
        "# Codes of new shapes under a frozen decoder",
        "",
        f"`python -m benchmarks.codes --write`: {result['shapes']} procedural shapes the decoder "
        f"has not seen, {result['steps']} steps of {result['points']} points, 3 layers x "
        f"{result['width']}, one core; trained for {result['training_s']:.0f} CPU seconds.",
        "",
        "| what | CPU seconds | times the PyTorch loop | IoU near the surface |",
        "|---|---|---|---|",
    ]
    slow = result["lines"]["PyTorch loop"]["cpu_s"]
    for name, line in sorted(result["lines"].items(), key=lambda item: item[1]["cpu_s"]):
        ratio = slow / line["cpu_s"]
        lines.append(f"| {name} | {line['cpu_s']:.2f} | {ratio:.1f} | {line['iou_near']:.3f} |")
    lines += ["", f"The code zero: IoU {result['iou_near_of_no_code']:.3f}."]
    return "\n".join([*lines, "", f"Machine: `{json.dumps(machine(result['path']))}`"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a decoder trained for less time")
    parser.add_argument("--write", action="store_true", help="also write results/codes.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    result = run(args.quick)
    text = report(result)
    print(text)
    if args.write:
        Path(__file__).with_name("results").joinpath("codes.md").write_text(text + "\n")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(json.dumps({"over_torch_loop": round(result["over_torch_loop"], 2)}))


if __name__ == "__main__":
    main()
