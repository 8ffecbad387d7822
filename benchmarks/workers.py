"""Two workers against one, and what units cost beside fitting: through the command and Ray.

    python -m benchmarks.workers [--quick] [--write]

512 crops of 32x32 are prepared once, then fitted (3 sine layers x 64, a fixed number of steps) by
`fieldmill fit` with one worker and with two, into stores of their own, in units of 128 rows (about
20 s of a core). The seconds are those of the stage: workers are up when it begins. Overhead is what
one worker takes beyond `fit_rows` on the same samples in one process, which reads, commits, copies
and measures nothing. Wants a machine with two idle cores; the load at the start is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.engine_crops import SIDE, crops  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from jobs.config import load_run  # noqa: E402
from pipeline.fitting import choose_path, fit_rows  # noqa: E402
from pipeline.ingest.prepared import open_prepared  # noqa: E402
from pipeline.samples import load_samples  # noqa: E402
from pipeline.stages.common import build_method  # noqa: E402

STAGE = re.compile(r"^\s*fit: \d+ samples in .*\(([\d.e+]+) samples/s\)", re.M)


def fieldmill(*words: str) -> str:
    command = [sys.executable, "-m", "jobs.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"fieldmill {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def write_run(work: Path, workers: int, steps: int, unit_rows: int) -> str:
    run = {
        "name": f"workers-{workers}",
        "dataset": {"url": str(work / "crops"), "kind": "images"},
        "ingest": {"held_out": 0.0, "unit_objects": 256},
        "method": {"name": "siren", "steps": steps, "target_psnr": None},
        "store": str(work / f"{workers}.zarr"),
        "prepared": str(work / "crops.prepared"),
        "fit": {"unit_rows": unit_rows},
        "resources": {"workers": workers},
    }
    path = work / f"{workers}.yaml"
    path.write_text(yaml.safe_dump(run))
    return str(path)


def bare_seconds(path: str) -> tuple[float, str]:
    """`fit_rows` on all samples in this process."""
    run = load_run(path, [])
    prepared = open_prepared(run.prepared_location)
    method = build_method(run, prepared)
    samples = load_samples(prepared.rows(0, prepared.meta.rows), "images")
    fused, words = choose_path(method)
    few = load_samples(prepared.rows(0, 2), "images")
    fit_rows(method, {}, few, seed=0, fused=fused)
    began = time.perf_counter()
    fit_rows(method, {}, samples, seed=0, fused=fused)
    return time.perf_counter() - began, words


def measure(work: Path, units: int, unit_rows: int, steps: int) -> dict:
    (work / "crops").mkdir()
    for i, crop in enumerate(crops(units * unit_rows)):
        pixels = np.uint8((crop.reshape(SIDE, SIDE, 3) + 1) * 127.5)
        Image.fromarray(pixels).save(work / "crops" / f"{i:04d}.png")
    paths = {workers: write_run(work, workers, steps, unit_rows) for workers in (1, 2)}
    fieldmill("ingest", paths[1])
    bare, words = bare_seconds(paths[1])
    seconds = {}
    for workers, path in paths.items():
        found = STAGE.search(fieldmill("fit", path))
        if found is None:
            raise SystemExit("fieldmill fit did not tell the seconds of its stage")
        seconds[workers] = units * unit_rows / float(found[1])
    return {
        "path": words,
        "units": units,
        "unit_rows": unit_rows,
        "unit_s": bare / units,
        "bare_s": bare,
        "one_worker_s": seconds[1],
        "two_workers_s": seconds[2],
        "two_over_one": seconds[1] / seconds[2],
        "overhead": seconds[1] / bare - 1,
    }


def report(result: dict) -> str:
    told = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
    lines = ["# Two workers, and the cost of units", "", "`python -m benchmarks.workers --write`"]
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in told.items() if name != "path"]
    return "\n".join([*lines, "", f"Machine: `{json.dumps(machine(result['path']))}`"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="units of about two seconds")
    parser.add_argument("--write", action="store_true", help="also write results/workers.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        size = (4, 16, 400) if args.quick else (4, 128, 500)
        result = measure(Path(folder), *size)
    text = report(result)
    print(text)
    if args.write:
        Path(__file__).with_name("results").joinpath("workers.md").write_text(text + "\n")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(json.dumps({k: round(result[k], 3) for k in ("two_over_one", "overhead")}))


if __name__ == "__main__":
    main()
