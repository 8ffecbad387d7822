"""How fast small pictures are fitted on one GPU: from files to a store, and by which engine.

    python -m benchmarks.engine_gpu [--count 60000] [--device cpu --quick] [--write]

Workload: crops of 32x32 RGB from scikit-image's pictures, 2 sine layers x 64, Adam, all pixels at
every step, every picture to 30 dB. Needs neither Ray nor S3: a loop over the units of a run. First
the whole job (ingest, fit, write), then the engines side by side on the same pictures in memory,
beside what the machine gives in large products. `--device cpu` runs the same code without a GPU,
the kernel by Triton's interpreter. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from benchmarks.engine_crops import PICTURES, RATE, SIDE
from benchmarks.engine_gpu_peers import eager_step, graphed_step, inductor_step, jax_rate, run_steps
from pipeline import methods
from pipeline.fitting import fit_rows
from pipeline.fitting.cuda.stream import fit_by_kernel
from pipeline.fitting.units import Unit, fitted_unit
from pipeline.samples import Samples, load_samples
from schemas.run import Run
from schemas.samples import GRID, IDENTITY
from schemas.store import RowStatus

PSNR = 30.0
DEPTH = 2
PRODUCTS = 2.0 * SIDE * SIDE * (3 * (DEPTH - 1) * 64 * 64 + 3 * 64 * 3 + 2 * 64 * 2)
"""Floating point operations of an image-step's products."""
SINES = 2 * DEPTH * 64 * SIDE * SIDE
"""Sines and cosines of an image-step."""
FLOOR = PRODUCTS / 100e12 + SINES / 3.6e12
"""Seconds of an H200 an image-step: products at an eighth of what large ones reach, and sines at
16 a clock and multiprocessor; a prediction made before anything was measured."""


def some_crops(count: int, seed: int = 0) -> np.ndarray:
    """`count` different crops as uint8 [count, 32, 32, 3]; pictures by turns."""
    from skimage import data

    pictures = [getattr(data, name)() for name in PICTURES]
    random, cut = np.random.default_rng(seed), []
    places = [
        random.permutation((p.shape[0] - SIDE) * (p.shape[1] - SIDE))[: -(-count // len(pictures))]
        for p in pictures
    ]
    for i in range(count):
        which = i % len(pictures)
        y, x = divmod(int(places[which][i // len(pictures)]), pictures[which].shape[1] - SIDE)
        cut.append(pictures[which][y : y + SIDE, x : x + SIDE])
    return np.stack(cut)


def write_files(crops: np.ndarray, folder: Path) -> None:
    """One PNG a crop, a thousand in a folder."""

    def write(i: int) -> None:
        place = folder / f"{i // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crops[i]).save(place / f"{i:06d}.png", compress_level=1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(len(crops))))


def in_memory(crops: np.ndarray, device: str) -> Samples:
    """The crops as ingest would leave them, nothing held out, on a device."""
    same = {"label": "", "split": "train", "height": SIDE, "width": SIDE, "channels": 3}
    same |= {"dtype": "uint8", "held_out": bytes(SIDE * SIDE // 8)}
    lines = [
        {"row": i, "sample_id": f"{i:06d}", "pixels": crop.tobytes(), **same}
        for i, crop in enumerate(crops)
    ]
    table = pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))
    return load_samples(table, "images", device)


def run_of(folder: Path, device: str, cores: int) -> Run:
    """A run file of the workload."""
    return Run.model_validate(
        {
            "name": "engine-gpu",
            "dataset": {"url": str(folder / "files"), "kind": "images"},
            "ingest": {"held_out": 0, "unit_objects": 1024},
            "method": settings({"name": "siren"}),
            "store": {"url": str(folder / "store.zarr")},
            "resources": {"workers": 0, "gpus": int(device == "cuda"), "cores": cores},
        }
    )


def settings(more: dict) -> dict:
    size = {"width": 64, "depth": DEPTH, "rate": RATE, "schedule": "constant"}
    return {**size, "target_psnr": PSNR, **more}


def whole_job(crops: np.ndarray, folder: Path, device: str, cores: int) -> dict:
    """Seconds of each stage of a run, and what became of the pictures."""
    from pipeline import stages
    from pipeline import store as stores

    write_files(crops, folder / "files")
    run, took, last = run_of(folder, device, cores), {}, time.perf_counter()

    def mark(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        took[name] = round(now - last, 2)
        last = now

    units = stages.prepare(run)
    if cores > 1:
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            list(pool.map(stages.ingest_shard, [run] * len(units), units, ["a"] * len(units)))
    else:
        for unit in units:
            stages.ingest_shard(run, unit, "a")
    stages.fold_prepared(run)
    mark("ingest")
    todo = stages.plan_fit(run, workers=1)
    mark("plan")
    fitter = stages.Fitter(run, device)
    with ThreadPoolExecutor(2) as pool:  # one unit is written while the next one is fitted
        records = list(pool.map(lambda item: fitter.fit(*item), todo.to_fit))
    mark("fit and write")
    stages.finish(run)
    mark("finish")
    index = stores.open_arrays(run.store).index
    status = index["status"].to_numpy()
    return {
        "seconds": took,
        "total": round(sum(took.values()), 2),
        "inside the fits": round(sum(record["fit_s"] for record in records), 2),
        "path": todo.plan.field.versions["path"],
        "units": todo.plan.units,
        "rows": len(status),
        "met": int((status == int(RowStatus.OK)).sum()),
        "lowest PSNR": float(np.min(index["psnr_fit"].to_numpy())),
        "mean steps": float(index["steps"].to_numpy().mean()),
    }


def engines(crops: np.ndarray, device: str, quick: bool) -> Iterator[tuple[str, dict]]:
    """Image-steps a second of each way to fit, and pictures a second to the target of ours."""
    steps = 1 if quick else 40
    few = min(len(crops), 2 if quick else 4096)
    samples, some = in_memory(crops, device), in_memory(crops[:few], device)

    def method(**more):
        config = methods.configure("siren", "default", settings(more))
        return methods.build("siren", config, samples.form)

    def ours(build, which, **way) -> Callable:
        if "mode" in way:
            run = fit_by_kernel(build, {}, way["mode"], torch.device(device))

            def fit():
                units = iter([Unit.of(0, which, 0)])
                (unit,) = run(lambda: next(units, None))
                return fitted_unit(build, unit)

            return fit
        return lambda: fit_rows(build, {}, which, seed=0, device=device, **way)

    fixed, to_target = method(steps=steps, target_psnr=None), method(steps=600)
    modes = ("bf16",) if quick else ("bf16", "tf32", "fp32")
    for mode in modes:
        count = few if quick or mode == "fp32" else len(crops)
        took = seconds(ours(fixed, some if count == few else samples, mode=mode), device, quick)
        row = {"image-steps/s": count * steps / took, "pictures": count}
        if not quick:
            fit = ours(to_target, some if count == few else samples, mode=mode)
            took, found = seconds(fit, device, quick), fit()
            row["pictures/s to 30 dB"] = count / took
            row["mean steps"] = float(found.steps.double().mean())
            row["met"] = sum(s == RowStatus.OK for s in found.status)
        yield f"kernel, {mode}", row
    took = seconds(ours(fixed, some), device, quick)
    name = "lanes, CUDA graphs" if device == "cuda" else "lanes"
    yield name, {"image-steps/s": few * steps / took, "pictures": few}
    wanted = torch.from_numpy(crops[:few].reshape(few, -1, 3) / np.float32(127.5) - 1).to(device)
    peers = {"eager batched PyTorch": eager_step}
    if device == "cuda":
        peers |= {"the same, compiled": inductor_step, "the same, CUDA graph": graphed_step}
    for name, make in peers.items():
        went = seconds(run_steps(make(), wanted, DEPTH, steps), device, quick)
        yield name, {"image-steps/s": few * steps / went, "pictures": few}
    if device == "cuda":
        rate = jax_rate(wanted.cpu().numpy(), DEPTH, steps)
        yield "JAX vmap", {"image-steps/s": rate, "pictures": few}


def seconds(work: Callable, device: str, quick: bool) -> float:
    """Median seconds of a call, after one that compiles."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    if quick:
        return once()
    once()
    return statistics.median(once() for _ in range(3))


def ceiling(device: str) -> float:
    """Operations a second of a large product in bf16 (float32 on a CPU)."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 * 10 / seconds(lambda: [a @ b for _ in range(10)], device, False)


def report(job: dict | None, table: dict[str, dict], most: float, machine: dict) -> str:
    """The tables as Markdown."""
    lines = ["# The engine on one GPU", "", "`python -m benchmarks.engine_gpu --write`", ""]
    if job is not None:
        lines += [
            f"## {job['rows']:,} pictures of 32x32, each to {PSNR:.0f} dB, from files to a store",
            "",
            "| stage | seconds |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in job["seconds"].items()),
            f"| all | {job['total']} |",
            "",
            f"{job['met']:,} rows met the target, the lowest PSNR is {job['lowest PSNR']:.2f} dB, "
            f"mean steps {job['mean steps']:.1f}; path: {job['path']}.",
            "",
        ]
    lines += [
        "## Engines on pictures in memory",
        "",
        "| what | image-steps/s | of the large product | of the floor | to 30 dB, pictures/s |",
        "|---|---|---|---|---|",
    ]
    for name, row in table.items():
        rate = row["image-steps/s"]
        if rate is None:
            lines.append(f"| {name} | not here | | | |")
            continue
        met = row.get("pictures/s to 30 dB")
        lines.append(
            f"| {name} | {rate:,.0f} | {rate * PRODUCTS / most:.1%} | {rate * FLOOR:.1%} | "
            + (f"{met:,.0f} ({row['met']} of {row['pictures']}) |" if met else "|")
        )
    lines += [
        "",
        f"The large product: {most / 1e12:.1f} TFLOP/s. The floor: {1 / FLOOR:,.0f} image-steps/s "
        "of an H200, predicted from products at 100 TFLOP/s and its units for sines.",
        "",
        f"Machine: `{json.dumps(machine)}`",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60_000, help="pictures")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="processes of ingest")
    parser.add_argument("--no-job", action="store_true", help="only the engines, in memory")
    parser.add_argument("--quick", action="store_true", help="a few pictures: does it run?")
    parser.add_argument("--write", action="store_true", help="also write results/engine_gpu.md")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --quick tries the code without one")
    crops = some_crops(min(args.count, 8) if args.quick else args.count)
    table, job = {}, None
    if not args.no_job:
        with tempfile.TemporaryDirectory() as folder:
            job = whole_job(crops, Path(folder), args.device, 1 if args.quick else args.cores)
        print(json.dumps(job), flush=True)
    for name, row in engines(crops, args.device, args.quick):
        table[name] = row
        print(json.dumps({name: row}), flush=True)
    machine = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "numpy")},
    }
    text = report(job, table, ceiling(args.device), machine)
    print(text)
    if args.write:
        Path(__file__).with_name("results").joinpath("engine_gpu.md").write_text(text + "\n")
    found = {"job": job, "engines": table}
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
