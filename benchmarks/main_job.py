"""The main job from a bucket into a bucket, through Ray: samples a second, quality, size, memory.

    python -m benchmarks.main_job --shapes FOLDER --images FOLDER

Uploads the folders to a SeaweedFS server of this machine, runs `fieldmill run` on both (DeepSDF on
the shapes, a SIREN each for the images) in processes of their own, runs it again, verifies all
bytes, and writes benchmarks/results/main_job.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import open_store
from pipeline.storage import open_objects
from schemas.base import Location
from tests.servers import seaweedfs

RESULTS = Path(__file__).parent / "results" / "main_job.md"
METRICS = {"images": ("psnr_fit", "psnr", "ssim"), "shapes": ("iou_uniform", "iou_near")}


def upload(folder: Path, target: Location, most: int) -> tuple[int, int]:
    """Uploads at most `most` files, evenly chosen; returns their number and bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)]
    objects = open_objects(target)
    size = 0
    for path in files:
        data = path.read_bytes()
        objects.put(path.relative_to(folder).as_posix(), data)
        size += len(data)
    return len(files), size


def fieldmill(*words: str) -> tuple[str, float]:
    """Runs a command line to its end; returns what it printed, and seconds."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"fieldmill {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done.stdout, time.monotonic() - started


def measure(
    kind: str, folder: Path, server: Any, keys: dict[str, Any], most: int, work: Path
) -> str:
    """One run and what it gave, as Markdown."""
    source = server.location("bench", f"data/{kind}/")
    target = server.location("bench", f"out/{kind}.zarr")
    count, size = upload(folder, source, most)
    run = {
        "name": f"bench-{kind}",
        "dataset": {**source.model_dump(exclude_none=True), "kind": kind},
        "store": target.model_dump(exclude_none=True),
        **keys,
    }
    path = work / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(run))
    printed, seconds = fieldmill("run", str(path))
    _, again = fieldmill("run", str(path))
    words = [target.url, "--endpoint", server.endpoint, "--region", target.region or ""]
    checked, verified = fieldmill("verify", *words, "--full")
    store = open_store(target)
    stored = sum(entry.size for entry in store.reader.objects.list())
    prepared = sum(
        e.size for e in open_objects(server.location("bench", f"out/{kind}.prepared")).list()
    )
    lines = [f"## {kind}: {count} files ({size / 1e6:.1f} MB), method {keys['method']['name']}", ""]
    lines += ["| figure | value |", "| --- | --- |"]
    lines.append(f"| `fieldmill run`, Ray's start included | {seconds:.1f} s |")
    lines.append(f"| the same command again | {again:.1f} s |")
    lines.append(f"| `verify --full` | {verified:.1f} s: {checked.strip()} |")
    lines.append(f"| rows | {len(store)} |")
    lines.append(f"| store, prepared dataset | {stored / 1e6:.1f} MB, {prepared / 1e6:.1f} MB |")
    for name in METRICS[kind]:
        values = store.index[name].to_numpy()
        values = values[~np.isnan(values)]
        shown = ", ".join(f"{v:.3f}" for v in np.quantile(values, [0, 0.1, 0.5, 0.9, 1]))
        lines.append(f"| {name}: min, 10 %, median, 90 %, max | {shown} |")
    figures = [x.strip() for x in printed.splitlines() if "samples/s" in x]
    tables = [x.strip() for x in printed.splitlines() if x.strip().startswith(("chamfer", "f_sc"))]
    return "\n".join([*lines, "", "```", *figures, *tables, "```", ""])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--shapes", type=Path, help="folder of meshes in class folders")
    options.add_argument("--images", type=Path, help="folder of pictures")
    options.add_argument("--most-shapes", type=int, default=120)
    options.add_argument("--most-images", type=int, default=1200)
    chosen = options.parse_args()
    parts = [
        "# The main job, S3 to S3 through Ray",
        "",
        f"`python -m benchmarks.main_job`; {platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}; SeaweedFS on the same cores.",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder)) as server:
        os.environ.update(server.environment())
        server.make_bucket("bench")
        work = Path(folder)
        if chosen.images:
            keys = {"method": {"name": "siren"}}
            most = chosen.most_images
            parts.append(measure("images", chosen.images, server, keys, most, work))
        if chosen.shapes:
            keys = {"method": {"name": "deepsdf"}, "evaluate": {"rows": 40}}
            most = chosen.most_shapes
            parts.append(measure("shapes", chosen.shapes, server, keys, most, work))
    RESULTS.write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
