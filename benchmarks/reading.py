"""Reading speed of the training loaders, against one .npz file a sample.

    python benchmarks/reading.py [--folder DIR] [--latents 200000] [--weights 4000]

Writes a store of latents (256 numbers a row) and one of weights (50,307 numbers a row: a SIREN of
128 units and 4 layers) to a local folder, then reads them in shuffled batches through RowStream,
without and with DataLoader workers. Prints one JSON line a case and writes all of them to
benchmarks/results/reading.json. The page cache is warm in all cases alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.downstream.dataset import RowDataset, RowStream
from pipeline.storage import open_objects
from pipeline.store import UnitResult, create_store, finalize, write_unit
from schemas.base import Location
from schemas.store import ArraySpec, FieldSpec, Plan, RowStatus, Segment, unit_columns


def make_store(url: str, spec: ArraySpec, rows: int, unit_rows: int) -> None:
    field = FieldSpec(
        method="none", config={}, layers=[], coords={}, output={}, init={"start": "common/0"},
        groups={"rows": [], "shared": []}, dataset_fingerprint="", versions={},
    )  # fmt: skip
    plan = Plan(
        name="reading", fit_identity="0", fit_keys={}, numerics=1, prepared_fingerprint="",
        rows=rows, unit_rows=unit_rows, segments=(Segment(prepared=0, store=0, rows=rows),),
        arrays=(spec,), columns=(), field=field, lanes=2, compiled=False,
    )  # fmt: skip
    objects = open_objects(Location(url=url))
    create_store(objects, plan, {})
    random = np.random.default_rng(0)
    schema = unit_columns(())
    constant = {"split": "train", "status": int(RowStatus.OK), "origin": "inferred"}
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        count = last - first
        values = random.standard_normal((count, *spec.shape), np.float32)
        columns = {f.name: [constant.get(f.name, 0)] * count for f in schema}
        for f in schema:
            if pa.types.is_string(f.type) and f.name not in constant:
                columns[f.name] = [""] * count
        columns["sample_id"] = [f"{row:08d}" for row in range(first, last)]
        columns["label"] = [str(row % 10) for row in range(first, last)]
        batch = pa.record_batch([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
        result = UnitResult({spec.name: values}, batch, None)
        write_unit(objects, plan, unit, 0, result, uuid.uuid4().hex)
    finalize(objects, plan)


class NpzFolder(Dataset):
    """The usual baseline: one file a sample."""

    def __init__(self, folder: Path, dataset: RowDataset, count: int):
        self.folder, self.count = folder, count
        folder.mkdir()
        for start in range(0, count, 1000):
            batch = dataset.take(np.arange(start, min(start + 1000, count)))
            for value, label, row in zip(*batch):
                np.savez(folder / f"{int(row)}.npz", values=value.numpy(), label=int(label))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with np.load(self.folder / f"{i}.npz") as found:
            return torch.from_numpy(found["values"]), int(found["label"])


def timed(name: str, loader: DataLoader, row_bytes: int) -> dict:
    start, rows, checksum = time.perf_counter(), 0, 0.0
    for item in loader:
        rows += len(item[0])
        checksum += float(item[0].reshape(len(item[0]), -1)[:, 0].sum())
    seconds = time.perf_counter() - start
    return {
        "case": name,
        "rows": rows,
        "rows_per_s": round(rows / seconds),
        "mb_per_s": round(rows * row_bytes / seconds / 1e6),
        "seconds": round(seconds, 2),
        "checksum": round(checksum, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None)
    parser.add_argument("--latents", type=int, default=200_000)
    parser.add_argument("--weights", type=int, default=4_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        records = []
        code = ArraySpec(name="latents/code", shape=(256,), dims=("z",))
        params = ArraySpec(name="params", shape=(50_307,), dims=("param",))
        cases = (
            ("latents", code, args.latents, 4096, 256),
            ("latents, shards of 64 rows", code, args.latents // 4, 64, 256),
            ("weights", params, args.weights, 256, 64),
        )
        for number, (name, spec, rows, unit_rows, batch) in enumerate(cases):
            url = f"{folder}/{number}.zarr"
            make_store(url, spec, rows, unit_rows)
            row_bytes = spec.shape[0] * 4
            for workers in (0, 2):
                stream = RowStream(url, batch_size=batch)
                loader = DataLoader(stream, batch_size=None, num_workers=workers)
                records.append(timed(f"{name}: stream, {workers} workers", loader, row_bytes))
                print(json.dumps(records[-1]), flush=True)
            dataset = RowDataset(url)
            few = min(rows, 20_000 if row_bytes < 10_000 else 1_000)
            npz = NpzFolder(Path(folder) / f"npz{number}", dataset, few)
            for workers in (0, 2):
                loader = DataLoader(npz, batch_size=batch, shuffle=True, num_workers=workers)
                records.append(timed(f"{name}: npz files, {workers} workers", loader, row_bytes))
                print(json.dumps(records[-1]), flush=True)
    load = [round(x, 1) for x in os.getloadavg()]
    out = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": load,
        "torch": torch.__version__,
        "cases": records,
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "reading.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
