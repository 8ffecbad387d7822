"""How fast small fields are fitted on a CPU core, beside PyTorch, JAX and the machine's own limit.

    python -m benchmarks.engine [--quick] [--no-jax] [--write]

Workload: 256 crops of 32x32 RGB from scikit-image's pictures (`engine_crops`), 2 and 3 sine layers
x 64, Adam, all pixels at every step. The engine is `fit_rows` as a run calls it: starts, decoding
and verdicts included. All run on one thread, by turns; the ratios are of CPU seconds of the process
that does the work (medians over rounds). The last line is one JSON object with the ratios.
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
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

from benchmarks.engine_baselines import (  # noqa: E402
    JAX,
    Jax,
    bare_operations,
    timed,
    torch_alone,
    torch_vmap,
)
from benchmarks.engine_crops import (  # noqa: E402
    OMEGA,
    RATE,
    SIDE,
    crops,
    mse_of,
    pixel_coords,
    starts,
)
from pipeline import methods  # noqa: E402
from pipeline.fitting import Fitted, fit_rows  # noqa: E402
from pipeline.fitting.fused.run import path_name  # noqa: E402
from pipeline.samples import load_samples  # noqa: E402
from schemas.samples import GRID, IDENTITY  # noqa: E402
from schemas.store import RowStatus  # noqa: E402

COUNT = 256
TARGET = mse_of(30.0)
ENGINE_SIZES = (1, 4, 16, 64, 256)


class Engine:
    """The product on the workload: method `siren`, `fit_rows`."""

    def __init__(self, depth: int, table: pa.Table):
        self.samples = load_samples(table, "images")
        self.table, self.depth = table, depth
        self.some = {COUNT: self.samples}

    def fit(self, count: int, fused: bool = True, **settings) -> Fitted:
        """Fits the first `count` images."""
        if count not in self.some:
            self.some[count] = load_samples(self.table.slice(0, count), "images")
        size = {"width": 64, "depth": self.depth, "rate": RATE, "schedule": "constant"}
        config = methods.configure("siren", "default", {**size, "momentum": 0.9, **settings})
        method = methods.build("siren", config, self.samples.form)
        return fit_rows(method, {}, self.some[count], seed=0, fused=fused)


def prepared(images: np.ndarray) -> pa.Table:
    """The crops as ingest would leave them, nothing held out."""
    lines = []
    for i, image in enumerate(images):
        pixels = np.round((image + 1) * 127.5).astype(np.uint8)
        lines.append(
            {
                "row": i,
                "sample_id": f"crop{i:03d}",
                "label": "",
                "split": "train",
                "pixels": pixels.tobytes(),
                "height": SIDE,
                "width": SIDE,
                "channels": 3,
                "dtype": "uint8",
                "held_out": bytes(SIDE * SIDE // 8),
            }
        )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def products(depth: int) -> float:
    """Floating point operations of one step's matrix products."""
    hidden, edges = (depth - 1) * 64 * 64, 64 * 3
    return 2.0 * 1024 * (3 * hidden + 3 * edges + 2 * 64 * 2)


def measure(depth: int, jax: Jax | None, images: np.ndarray, rounds: int, quick: bool) -> dict:
    coords, wanted = torch.from_numpy(pixel_coords()), torch.from_numpy(images)
    tensors = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in starts(COUNT, depth)]
    engine = Engine(depth, prepared(images))
    bare = {1: bare_operations(depth), 16: bare_operations(depth, lanes=16)}
    steps = 50

    def start(i):
        return [(w[i], b[i]) for w, b in tensors]

    def ours(count):
        return lambda: engine.fit(count, steps=steps, target_psnr=None)

    work = {
        **{f"engine {n}": (n * steps, ours(n)) for n in ((1, 16) if quick else ENGINE_SIZES)},
        "lanes 16": (16 * 6, lambda: engine.fit(16, False, steps=6, target_psnr=None)),
        "torch loop": (steps, lambda: torch_alone(start(0), coords, wanted[0], steps, -1.0)),
        "torch vmap 16": (16 * 6, lambda: torch_vmap(start(slice(16)), coords, wanted[:16], 6)),
        "bare": (steps, lambda: [bare[1]() for _ in range(steps)]),
        "bare 16": (16 * 6, lambda: [bare[16]() for _ in range(6)]),
    }
    for _, run in work.values():
        run()
    lanes = (1, 16, 256) if quick else (1, 4, 16, 64, 256)
    per = {n: max(4, 64 // n) for n in lanes}
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
    met = to_target(depth, jax, engine, start, wanted)
    return {"image_steps_per_second": rates, "images_per_second_to_30_db": met}


def to_target(depth, jax, engine, start, wanted) -> dict[str, dict]:
    """Every image to 30 dB: images per CPU second, with the steps that it took."""
    most, out = 600, {}
    for name, settings in {"engine": {}, "engine, default momentum": {"momentum": 0.8}}.items():
        took, ends = [], None
        for _ in range(3):

            def all_images(settings=settings):
                nonlocal ends
                ends = engine.fit(COUNT, steps=most, target_psnr=30.0, **settings)

            took.append(timed(all_images))
        out[name] = {
            **{k: COUNT / statistics.median(t[k] for t in took) for k in took[0]},
            "mean_steps": float(ends.steps.float().mean()),
            "most_steps": int(ends.steps.max()),
            "met": sum(status == RowStatus.OK for status in ends.status),
        }
    some, coords, ended = 16, torch.from_numpy(pixel_coords()), []
    took = timed(
        lambda: ended.extend(
            torch_alone(start(i), coords, wanted[i], most, TARGET) for i in range(some)
        )
    )
    out["torch loop"] = {
        **{k: some / v for k, v in took.items()},
        "mean_steps": float(np.mean([s for s, _ in ended])),
        "met": sum(loss <= TARGET for _, loss in ended),
        "of": some,
    }
    # Lanes of one batch wait for the slowest: JAX may choose few lanes, and looks every 5 steps.
    for lanes in (1, 16) if jax else ():
        took = jax.ask(
            what="target", depth=depth, lanes=lanes, steps=5, count=64, most=most, target=TARGET
        )
        out[f"jax vmap {lanes}"] = {
            "cpu": 64 / took["cpu"],
            "wall": 64 / took["wall"],
            "mean_steps": took["steps"] / 64,
            "met": 64 if took["worst"] <= TARGET else "not all",
            "of": 64,
        }
    return out


def ratios(table: dict) -> dict[str, float | None]:
    rates, met = table["image_steps_per_second"], table["images_per_second_to_30_db"]

    def best(prefix: str, of: dict) -> float | None:
        return max((v["cpu"] for k, v in of.items() if k.startswith(prefix)), default=None)

    def over(value: float, other: float | None) -> float | None:
        return None if other is None else round(value / other, 2)

    ours = best("engine", rates)
    slowest = min(v["cpu"] for k, v in rates.items() if k.startswith("engine"))
    jax = best("jax", met)
    return {
        "over_jax_vmap": over(ours, best("jax", rates)),
        "over_torch_loop": over(ours, rates["torch loop"]["cpu"]),
        "worst_size_over_torch_loop": over(slowest, rates["torch loop"]["cpu"]),
        "over_torch_vmap": over(ours, best("torch vmap", rates)),
        "over_bare_ops": over(ours, best("bare", rates)),
        "over_lanes": over(ours, best("lanes", rates)),
        "to_30db_over_jax_vmap": over(met["engine"]["cpu"], jax),
        "to_30db_default_over_jax_vmap": over(met["engine, default momentum"]["cpu"], jax),
    }


def report(tables: dict[int, dict], machine: dict) -> str:
    """The tables as Markdown."""
    lines = []
    for depth, table in tables.items():
        flops = products(depth)
        lines += [
            f"## {depth} sine layers x 64 ({flops / 1e6:.1f} MFLOP of products an image-step)",
            "",
            "| what | image-steps a CPU second | a second on the clock | GFLOP/s of products |",
            "|---|---|---|---|",
        ]
        rates = table["image_steps_per_second"]
        for name, rate in sorted(rates.items(), key=lambda item: -item[1]["cpu"]):
            gflops = rate["cpu"] * flops / 1e9
            lines.append(f"| {name} | {rate['cpu']:,.0f} | {rate['wall']:,.0f} | {gflops:.1f} |")
        lines += [
            "",
            "| every image to 30 dB | images a CPU second | mean steps | met |",
            "|---|---|---|---|",
        ]
        for name, m in table["images_per_second_to_30_db"].items():
            met = f"{m['met']} of {m.get('of', COUNT)}"
            lines.append(f"| {name} | {m['cpu']:.1f} | {m['mean_steps']:.1f} | {met} |")
        lines += ["", f"Ratios: `{json.dumps(ratios(table))}`", ""]
    return "\n".join([*lines, f"Machine: `{json.dumps(machine)}`"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two sine layers only, few rounds")
    parser.add_argument("--no-jax", action="store_true", help="leave the JAX baseline out")
    parser.add_argument("--write", action="store_true", help="also write results/engine_tables.md")
    args = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)
    images = crops(COUNT)
    data = {"coords": pixel_coords(), "crops": images, "omega": OMEGA, "rate": RATE}
    depths = (2,) if args.quick else (2, 3)
    for depth in depths:
        for i, (weight, bias) in enumerate(starts(COUNT, depth)):
            data |= {f"{depth}w{i}": weight, f"{depth}b{i}": bias}
    rounds = 3 if args.quick else 7
    with tempfile.TemporaryDirectory() as folder:
        jax = None if args.no_jax else Jax(data, Path(folder))
        tables = {d: measure(d, jax, images, rounds, args.quick) for d in depths}
        if jax:
            jax.close()
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "path": path_name(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
        "jax": None if args.no_jax else JAX,
    }
    text = report(tables, machine)
    print(text)
    if args.write:
        Path(__file__).with_name("results").joinpath("engine_tables.md").write_text(text + "\n")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    by_depth = {str(d): ratios(t) for d, t in tables.items()}
    print(json.dumps({**by_depth[str(depths[0])], "by_depth": by_depth}))


def cpu_name() -> str:
    """The processor in words, with its vector units."""
    from llvmlite import binding

    return f"{platform.machine()} {binding.get_host_cpu_name()}"


if __name__ == "__main__":
    main()
