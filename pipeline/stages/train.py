"""Prepared dataset -> shared parameters (a decoder), kept below the store until it is laid out."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from typing import Any

from pipeline.ingest.prepared import Prepared
from pipeline.stages.common import (
    build_method,
    may_refuse,
    peak_bytes,
    prepared_of,
    refused,
    row_count,
    take_rows,
)
from pipeline.storage import open_objects
from schemas.run import Run
from schemas.store import PRIVATE

FEW = 1024
"""A driver looks at the sizes of all samples of a dataset that has no more."""


def needs_training(run: Run, method: Any) -> bool:
    """Whether shared parameters have to be trained: there are phases, and no store gives them."""
    return bool(getattr(method, "train", ())) and run.method.shared_from is None


class TrainFiles:
    """Where training keeps its checkpoints and its result: below the store, by identity."""

    def __init__(self, run: Run):
        self.objects = open_objects(run.store)
        self.prefix = f"{PRIVATE}/train/{run.stage_identity('train')[:16]}"

    def save_checkpoint(self, data: bytes) -> None:
        self.objects.put(f"{self.prefix}/checkpoint.safetensors", data)

    def checkpoint(self) -> bytes | None:
        return self._get("checkpoint.safetensors")

    def finish(
        self, shared: dict[str, Any], rows: dict[str, Any], prepared_rows: list[int], log
    ) -> None:
        """Writes the result; the note that it is complete comes last."""
        from safetensors.torch import save

        parts = {"shared": save(shared), "rows": save(rows)}
        for name, data in parts.items():
            self.objects.put(f"{self.prefix}/{name}.safetensors", data)
        note = {
            "prepared_rows": prepared_rows,
            "log": log,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
        }
        self.objects.put(f"{self.prefix}/done.json", json.dumps(note).encode())

    def done(self) -> dict[str, Any] | None:
        data = self._get("done.json")
        return json.loads(data) if data else None

    def result(self, part: str) -> dict[str, Any]:
        """`shared` or `rows` as training left them; a damaged file raises."""
        from safetensors.torch import load as load_tensors

        note = self.done()
        if note is None:
            raise RuntimeError(
                f"{self.objects.location.url}: training has not finished; run `train` first"
            )
        data = self.objects.get(f"{self.prefix}/{part}.safetensors")
        if hashlib.sha256(data).hexdigest() != note["sha256"][part]:
            raise RuntimeError(
                f"{self.objects.location.url}: {self.prefix}/{part}.safetensors is damaged "
                "(sha256 differs); delete the folder and train again"
            )
        return load_tensors(data)

    def _get(self, name: str) -> bytes | None:
        try:
            return self.objects.get(f"{self.prefix}/{name}")
        except FileNotFoundError:
            return None


def trained(run: Run) -> bool:
    """Whether nothing is left to train: the method has no phases for it, or they are done.

    Raises:
        ValueError: there is, and no sample to train on.
    """
    prepared = prepared_of(run)
    method = build_method(run, prepared)
    if not needs_training(run, method) or TrainFiles(run).done() is not None:
        return True
    training_rows(run, prepared, method, measured=prepared.meta.rows <= FEW)
    return False


def training_rows(
    run: Run, prepared: Prepared, method: Any, *, measured: bool = True
) -> tuple[list[int], dict[str, str]]:
    """Prepared rows in the splits that train, in order; why samples of them are left out, unless
    `measured` is false: their sizes stand beside their pixels, which are read with them."""
    sizes = ["height", "width", "channels"] if measured and may_refuse(run, method) else []
    offered = [name for name in sizes if name in prepared.schema.names]
    rows = prepared.rows(0, row_count(run, prepared.meta), columns=offered)
    reasons = refused(run, method, rows) if offered else {}
    chosen, left_out = [], {}
    columns = (rows[name].to_pylist() for name in ("row", "split", "sample_id"))
    for i, (row, split, sample) in enumerate(zip(*columns)):
        if split in run.train.splits:
            if i in reasons:
                left_out[sample] = reasons[i]
            else:
                chosen.append(row)
    if left_out and not chosen:
        sample, why = next(iter(left_out.items()))
        raise ValueError(
            f"{run.method.name} can train on none of the {len(left_out)} samples in the splits "
            f"{list(run.train.splits)}: {sample} {why}"
        )
    if not chosen:
        first = "" if run.limit is None else f"first {run.limit} samples of the "
        counts = dict(Counter(rows["split"].to_pylist()))
        raise ValueError(
            f"no sample is in the splits {list(run.train.splits)} that train; the {first}prepared "
            f"dataset has {counts}: take more samples, or set train.splits or dataset.split"
        )
    return chosen, left_out


def train_shared(run: Run, rank: int = 0, world: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Trains the shared parameters; each of `world` ranks owns every `world`-th sample.

    Ranks meet through torch.distributed, which the caller has initialised when `world` > 1.
    Continues from the last checkpoint. Rank 0 writes the result. Returns a small record.
    """
    from pipeline.fitting import train
    from pipeline.samples import load_samples

    files, prepared = TrainFiles(run), prepared_of(run)
    method = build_method(run, prepared)
    if files.done() is not None:
        return {"steps": 0, "seconds": 0.0, "samples": 0}
    started = time.monotonic()
    rows, left_out = training_rows(run, prepared, method)
    samples = load_samples(take_rows(prepared, rows[rank::world]), prepared.meta.kind, device)
    result = train(
        method,
        samples,
        seed=run.seed,
        rank=rank,
        world=world,
        checkpoint=files.save_checkpoint,
        checkpoint_s=run.train.checkpoint_s,
        resume=files.checkpoint(),
    )
    if rank == 0:
        files.finish(result.shared, result.rows, result.row_numbers, result.log)
    seconds = time.monotonic() - started
    words = ""
    if left_out:
        sample, why = next(iter(left_out.items()))
        words = f"{len(left_out)} samples do not train; the first: {sample} {why}"
    return {
        "seconds": seconds,
        "samples": len(rows),
        "left_out": words,
        "log": result.log,
        "peak_bytes": peak_bytes(),
    }
