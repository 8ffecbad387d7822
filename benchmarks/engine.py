"""How fast small fields are fitted on a CPU core, beside PyTorch, JAX and the machine's own limit.

    python -m benchmarks.engine [--quick] [--write]

Workload: 256 crops of 32x32 RGB from scikit-image's pictures (`engine_crops`), 2 and 3 sine layers
x 64, Adam, all pixels at every step. All run on one thread of the same core, by turns; seconds are
CPU seconds of the process that does the work (medians over rounds). The last line is one JSON
object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.engine_baselines import (  # noqa: E402
    JAX,
    Jax,
    bare_operations,
    timed,
    torch_alone,
    torch_vmap,
)
from benchmarks.engine_crops import OMEGA, RATE, crops, mse_of, pixel_coords, starts  # noqa: E402
from pipeline.fitting.fused import kernel, passes  # noqa: E402
from pipeline.fitting.fused.network import Network, few, points_of  # noqa: E402

COUNT = 256
TARGET = mse_of(30.0)


class Engine:
    """The engine's compiled loop on the arrays of the workload."""

    def __init__(self, depth: int, layers: list, images: np.ndarray):
        scales = (*[OMEGA] * depth, 1.0)
        self.network = Network(2, 64, depth - 1, 3, scales, passes.LANES)
        factors = self.network.factors()
        self.net = passes.Net(64, depth - 1, 3, True, factors, passes.SQUARED, 0.0, 64)
        self.layers, self.images = layers, images
        self.coords = points_of(pixel_coords(), passes.ROWS)
        self.sets, self.tags = np.zeros((0, 3), np.int64), np.zeros(0, np.uint64)

    def fit(self, i: int, steps: int, target: float) -> tuple[int, int, float, float]:
        flat = self.network.pack([w[i] for w, _ in self.layers], [b[i] for _, b in self.layers])
        return kernel.descend(
            self.net, flat, self.coords, few(self.images[i]), self.sets, self.tags, np.uint64(0),
            np.full(steps, RATE), (0.9, 0.999), 1e-8, target, 0.0,
        )  # fmt: skip


def products(depth: int) -> float:
    """Floating point operations of one step's matrix products."""
    hidden, edges = (depth - 1) * 64 * 64, 64 * 3
    return 2.0 * 1024 * (3 * hidden + 3 * edges + 2 * 64 * 2)


def measure(depth: int, jax: Jax | None, images: np.ndarray, rounds: int) -> dict:
    layers = starts(COUNT, depth)
    coords, wanted = torch.from_numpy(pixel_coords()), torch.from_numpy(images)
    tensors = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in layers]
    engine = Engine(depth, layers, images)
    bare = {1: bare_operations(depth), 16: bare_operations(depth, lanes=16)}
    steps = 50

    def start(i):
        return [(w[i], b[i]) for w, b in tensors]

    work = {
        "engine": (4 * steps, lambda: [engine.fit(i, steps, -1.0) for i in range(4)]),
        "torch loop": (steps, lambda: torch_alone(start(0), coords, wanted[0], steps, -1.0)),
        "torch vmap 16": (16 * 6, lambda: torch_vmap(start(slice(16)), coords, wanted[:16], 6)),
        "bare": (steps, lambda: [bare[1]() for _ in range(steps)]),
        "bare 16": (16 * 6, lambda: [bare[16]() for _ in range(6)]),
    }
    for _, run in work.values():
        run()
    lanes = (1, 4, 16, 64, 256)
    per = {n: max(6, 96 // n) for n in lanes}
    if jax:
        for n in lanes:
            jax.ask(what="rate", depth=depth, lanes=n, steps=per[n], warm=True)
    seen: dict[str, list[dict]] = {}
    for _ in range(rounds):
        for name, (count, run) in work.items():
            took = timed(run)
            seen.setdefault(name, []).append({k: count / v for k, v in took.items()})
        for n in lanes if jax else ():
            took = jax.ask(what="rate", depth=depth, lanes=n, steps=per[n])
            rate = {k: n * per[n] / v for k, v in took.items()}
            seen.setdefault(f"jax vmap {n}", []).append(rate)
    rates = {
        name: {k: statistics.median(r[k] for r in rows) for k in ("cpu", "wall")}
        for name, rows in seen.items()
    }
    return {"image_steps_per_second": rates, **to_target(depth, jax, engine, rates, start, wanted)}


def to_target(depth, jax, engine, rates, start, wanted) -> dict:
    """Every image to 30 dB: images per CPU second."""
    most, out = 600, {}
    ends = []
    took = timed(lambda: ends.extend(engine.fit(i, most, TARGET) for i in range(COUNT)))
    steps = [s for s, *_ in ends]
    out["engine"] = {
        **{k: COUNT / v for k, v in took.items()},
        "steps": {q: float(np.quantile(steps, f)) for q, f in [("median", 0.5), ("max", 1.0)]},
        "mean_steps": float(np.mean(steps)),
        "all_met": all(reason == kernel.MET for _, reason, *_ in ends),
    }
    some, coords = 16, torch.from_numpy(pixel_coords())
    took = timed(
        lambda: [torch_alone(start(i), coords, wanted[i], most, TARGET) for i in range(some)]
    )
    out["torch loop"] = {
        **{k: some / v for k, v in took.items()},
        "note": f"first {some} images",
    }
    if jax:
        best = max((k for k in rates if k.startswith("jax")), key=lambda k: rates[k]["cpu"])
        lanes = int(best.split()[-1])
        took = jax.ask(
            what="target", depth=depth, lanes=lanes, steps=10, count=COUNT, most=most, target=TARGET
        )
        out[best] = {
            "cpu": COUNT / took["cpu"],
            "wall": COUNT / took["wall"],
            "mean_steps": took["steps"] / COUNT,
            "all_met": took["worst"] <= TARGET,
        }
    return {"images_per_second_to_30_db": out}


def ratios(table: dict) -> dict:
    rates, met = table["image_steps_per_second"], table["images_per_second_to_30_db"]
    ours = rates["engine"]["cpu"]

    def best(prefix: str, of: dict) -> float | None:
        found = [v["cpu"] for k, v in of.items() if k.startswith(prefix)]
        return max(found) if found else None

    def over(value: float, other: float | None) -> float | None:
        return None if other is None else round(value / other, 2)

    return {
        "over_jax_vmap": over(ours, best("jax", rates)),
        "over_torch_loop": over(ours, best("torch loop", rates)),
        "over_torch_vmap": over(ours, best("torch vmap", rates)),
        "over_bare_ops": over(ours, best("bare", rates)),
        "to_30db_over_jax_vmap": over(met["engine"]["cpu"], best("jax", met)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two sine layers only, few rounds")
    parser.add_argument("--no-jax", action="store_true", help="leave the JAX baseline out")
    args = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)
    images = crops(COUNT)
    data = {"coords": pixel_coords(), "crops": images, "omega": OMEGA, "rate": RATE}
    depths = (2,) if args.quick else (2, 3)
    for depth in depths:
        for i, (weight, bias) in enumerate(starts(COUNT, depth)):
            data |= {f"{depth}w{i}": weight, f"{depth}b{i}": bias}
    with tempfile.TemporaryDirectory() as folder:
        jax = None if args.no_jax else Jax(data, Path(folder))
        tables = {d: measure(d, jax, images, 3 if args.quick else 7) for d in depths}
        if jax:
            jax.close()
    for depth, table in tables.items():
        print(f"{depth} sine layers x 64, {products(depth) / 1e6:.1f} MFLOP an image-step")
        for name, rate in sorted(
            table["image_steps_per_second"].items(), key=lambda kv: -kv[1]["cpu"]
        ):
            gflops = rate["cpu"] * products(depth) / 1e9
            print(
                f"  {name:16s} {rate['cpu']:9.1f} image-steps a CPU second"
                f"   {rate['wall']:9.1f} a second   {gflops:6.1f} GFLOP/s"
            )
        for name, rate in table["images_per_second_to_30_db"].items():
            print(f"  to 30 dB: {name:16s} {rate['cpu']:8.1f} images a CPU second  {rate}")
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "numba")},
        "jax": JAX,
    }
    print(json.dumps(machine))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(
        json.dumps(
            {**ratios(tables[depths[0]]), "by_depth": {d: ratios(t) for d, t in tables.items()}}
        )
    )


if __name__ == "__main__":
    main()
