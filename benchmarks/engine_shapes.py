"""A signed distance network for each shape, to a fixed IoU: ours beside a plain PyTorch loop.

    python -m benchmarks.engine_shapes [--folder FOLDER] [--quick] [--write]

Shapes: a seeded choice of the mesh files below a folder, else procedural ones (`sample:shapes`).
Both fit the same network (3 sine layers x 64, method `sdf`) from the same kind of start with the
same number of points, rates and loss, and both are asked for the smallest budget of steps after
which half of the shapes have the wanted IoU on held-out points near the surface: what is reported
is the CPU time of that budget, and the IoU there. The loop is tuned fairly: points decoded before
the clock starts, blocks of shuffled sets, fused Adam, one shape at a time. One thread, CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.engine_baselines import timed  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from benchmarks.engine_meshes import mesh_table  # noqa: E402
from pipeline import methods  # noqa: E402
from pipeline.draw import Draw  # noqa: E402
from pipeline.evaluate.metrics import measure  # noqa: E402
from pipeline.fields.initializers import start_rows  # noqa: E402
from pipeline.fitting import choose_path, fit_rows  # noqa: E402
from pipeline.fitting.method import row_names  # noqa: E402
from pipeline.samples import load_samples  # noqa: E402

WANTED, SHARE = 0.90, 0.5
BUDGETS = (50, 100, 200, 400, 800)


def decoded(samples, i: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Coordinates and distances of the near and the uniform set of a shape."""
    sets = []
    for name in ("near", "uniform"):
        held = samples.sets[name]
        rows = slice(int(held.starts[i]), int(held.starts[i] + held.counts[i]))
        steps = held.columns["coords"][rows].to(torch.int32).bitwise_and(0xFFFF)
        distance = held.columns["distance"][rows].float()
        sets.append((steps.to(torch.float32) * (2 / 65535) - 1, distance.clamp(-0.1, 0.1)))
    return sets


def torch_loop(config, starts: dict, data: list, steps: int) -> dict[str, torch.Tensor]:
    """All shapes one after the other: plain autograd, fused Adam, cosine rate."""
    near = config.points - config.points // 3
    counts, rows = (near, config.points // 3), []
    names = [f"layers.{k}" for k in range(config.depth + 1)]
    factors = [config.omega_first, *[config.omega_hidden] * (config.depth - 1)]
    for i, sets in enumerate(data):
        own = {n: v[i].clone().requires_grad_() for n, v in starts.items()}
        optimizer = torch.optim.Adam(list(own.values()), config.rate, fused=True)
        for step in range(steps):
            falling = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / steps))
            optimizer.param_groups[0]["lr"] = config.rate * falling
            chosen = []
            for (coords, distance), count in zip(sets, counts):
                at = step * count % (len(coords) - count)
                chosen.append((coords[at : at + count], distance[at : at + count]))
            h, wanted = (torch.cat(parts) for parts in zip(*chosen))
            for name, factor in zip(names[:-1], factors):
                weight, bias = own[name + ".weight"], own[name + ".bias"]
                h = torch.sin(torch.nn.functional.linear(h, factor * weight, factor * bias))
            last = names[-1]
            h = torch.nn.functional.linear(h, own[last + ".weight"], own[last + ".bias"])
            loss = (h[:, 0] - wanted).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        rows.append({name: value.detach() for name, value in own.items()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def run(folder: str | None, count: int, budgets: tuple[int, ...]) -> dict:
    table = mesh_table(count, folder, near=32_768, uniform=16_384)
    samples = load_samples(table, "shapes")
    data = [decoded(samples, i) for i in range(count)]

    def method(steps: int):
        return methods.build(
            "sdf", methods.configure("sdf", settings={"steps": steps}), samples.form
        )

    built = method(1)
    keys = Draw.of(samples.keys, seed=0, stage="start")
    starts = start_rows(built.model, row_names(built), keys)
    fit_rows(built, {}, samples, seed=0, fused=True)  # compiles, once on a machine
    found: dict[str, torch.Tensor] = {}

    def ours(steps: int) -> None:
        found["rows"] = fit_rows(method(steps), {}, samples, seed=0, fused=True).rows

    def theirs(steps: int) -> None:
        found["rows"] = torch_loop(built.field.config, starts, data, steps)

    lines = []
    for name, do in (("ours", ours), ("PyTorch loop", theirs)):
        for steps in budgets:
            took = timed(lambda do=do, steps=steps: do(steps))["cpu"]
            iou = measure("shapes", built, {}, found["rows"], samples, table)["iou_near"]
            share = float(np.mean(iou >= WANTED))
            lines.append(
                {
                    "what": name,
                    "steps": steps,
                    "cpu_s_a_shape": took / count,
                    "met": share,
                    "median_iou": float(np.median(iou)),
                }
            )
            if share >= SHARE:
                break
    ends = {line["what"]: line for line in lines}
    reached = all(line["met"] >= SHARE for line in ends.values())
    ratio = ends["PyTorch loop"]["cpu_s_a_shape"] / ends["ours"]["cpu_s_a_shape"]
    rates = {w: line["steps"] / line["cpu_s_a_shape"] for w, line in ends.items()}
    return {
        "shapes": count,
        "from": "meshes of a folder" if folder else "sample:shapes",
        "lines": lines,
        "over_torch_loop_to_iou": ratio if reached else None,
        "over_torch_loop_steps": rates["ours"] / rates["PyTorch loop"],
        "path": choose_path(built)[1],
    }


def report(result: dict) -> str:
    lines = [
        "# Signed distance networks to a fixed IoU",
        "",
        f"`python -m benchmarks.engine_shapes --write`: {result['shapes']} shapes "
        f"({result['from']}), 3 sine layers x 64, 1,024 points a step, one core. Wanted: "
        f"{SHARE:.0%} of the shapes with an IoU of {WANTED} on held-out points near the surface.",
        "",
        "| what | steps | CPU seconds a shape | shapes that met it | median IoU |",
        "|---|---|---|---|---|",
    ]
    for line in result["lines"]:
        lines.append(
            f"| {line['what']} | {line['steps']} | {line['cpu_s_a_shape']:.3f} | "
            f"{line['met']:.0%} | {line['median_iou']:.3f} |"
        )
    told = {k: result[k] for k in ("over_torch_loop_to_iou", "over_torch_loop_steps")}
    lines += ["", f"Ratios: `{json.dumps(told)}`", ""]
    return "\n".join([*lines, f"Machine: `{json.dumps(machine(result['path']))}`"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="take meshes from here; absent: sample:shapes")
    parser.add_argument("--quick", action="store_true", help="few shapes, short budgets")
    parser.add_argument("--write", action="store_true", help="also write results/engine_shapes.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    result = run(args.folder, 6 if args.quick else 32, BUDGETS[:3] if args.quick else BUDGETS)
    text = report(result)
    print(text)
    if args.write:
        Path(__file__).with_name("results").joinpath("engine_shapes.md").write_text(text + "\n")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(json.dumps({k: v for k, v in result.items() if k.startswith("over_")}))


if __name__ == "__main__":
    main()
