"""Driver memory of a listing against the number of listed objects, over HTTP.

    python benchmarks/listing_memory.py [--server seaweedfs|moto] [--counts 1000,10000,100000]

Puts image names into a bucket of a real S3 server, lists and freezes each size in a
fresh process and reads that process's peak resident memory. Two slopes per object are printed: of
the peak (VmHWM), and of what the interpreter had allocated at most (tracemalloc, in a run of its
own because it slows and swells the process). The target is below 100 bytes an object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHILD = """
import json, sys, time, tracemalloc
sys.path.insert(0, {root!r})
from pipeline.ingest.listing import write_listing
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import Dataset, ImageIngest
url, endpoint, prepared, traced = sys.argv[1:]
prepared = open_objects(Location(url=prepared, endpoint=endpoint, region="us-east-1"))
if traced == "1":
    tracemalloc.start()
start = time.perf_counter()
dataset = Dataset(url=url, endpoint=endpoint, region="us-east-1", kind="images")
units = write_listing(dataset, ImageIngest(), prepared)
seconds = time.perf_counter() - start
status = open("/proc/self/status").read()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
heap = tracemalloc.get_traced_memory()[1] if traced == "1" else 0
print(json.dumps(dict(units=units, seconds=seconds, peak=peak, heap=heap)))
"""


def fill(server, prefix: str, first: int, count: int) -> None:
    """Puts objects with plausible names: 10 folders, ids of 12 digits."""
    from pipeline.storage import open_objects

    objects = open_objects(server.location("listing", prefix))

    def put(i: int) -> None:
        objects.put(f"class-{i % 10}/image-{i:012d}.png", b"x" * 10)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(put, range(first, first + count)):
            pass


def measure(server, prefix: str, run: str, traced: bool) -> dict:
    """Lists one prefix in a fresh process."""
    command = [
        *(sys.executable, "-c", CHILD.format(root=str(ROOT)), f"s3://listing/{prefix}/"),
        *(server.endpoint, f"s3://listing-out/{run}", str(int(traced))),
    ]
    environment = {**os.environ, **server.environment(), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(found.stderr[-2000:])
    return json.loads(found.stdout.strip().splitlines()[-1])


def slope(a: dict, b: dict) -> dict:
    """Growth from one size to another: medians of the peaks, and the traced heap."""
    more = b["objects"] - a["objects"]
    peak = statistics.median(b["peak_MB"]) - statistics.median(a["peak_MB"])
    return {
        "from": a["objects"],
        "to": b["objects"],
        "peak": round(peak * 1e6 / more, 1),
        "heap": round((b["heap_MB"] - a["heap_MB"]) * 1e6 / more, 1),
    }


def main() -> None:
    from tests.servers import moto, seaweedfs

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", choices=("seaweedfs", "moto"), default="seaweedfs")
    parser.add_argument("--counts", default="1000,10000,100000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/listing_memory.json"))
    options = parser.parse_args()
    counts = [int(c) for c in options.counts.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = {"seaweedfs": seaweedfs, "moto": moto}[options.server]
        with start(Path(folder)) as server:
            os.environ.update(server.environment())
            server.make_bucket("listing")
            server.make_bucket("listing-out")
            for count in counts:
                began = time.perf_counter()
                fill(server, f"n{count}", 0, count)
                filled = time.perf_counter() - began
                plain = [
                    measure(server, f"n{count}", f"{count}-{i}", False)
                    for i in range(options.repeats)
                ]
                traced = measure(server, f"n{count}", f"{count}-traced", True)
                row = {
                    "objects": count,
                    "units": plain[0]["units"],
                    "fill_s": round(filled, 1),
                    "list_s": round(min(p["seconds"] for p in plain), 2),
                    "peak_MB": [round(p["peak"] / 1e6, 2) for p in plain],
                    "heap_MB": round(traced["heap"] / 1e6, 2),
                }
                rows.append(row)
                print(row, flush=True)
    report = {
        "command": "python benchmarks/listing_memory.py --server " + options.server,
        "server": options.server,
        "rows": rows,
        "slopes_bytes_per_object": [slope(a, b) for a, b in itertools.combinations(rows, 2)],
    }
    print(json.dumps(report["slopes_bytes_per_object"], indent=1))
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
