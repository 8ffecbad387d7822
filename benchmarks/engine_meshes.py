"""Meshes as prepared tables for the engine's benchmarks: of a folder, or procedural ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.ingest import sample_sets
from pipeline.ingest.meshes import SHAPE_SUFFIXES, decode_shape
from schemas.run import ShapeIngest
from schemas.samples import IDENTITY, RejectedSample, form_schema


def mesh_table(count: int, folder: str | None = None, *, near: int, uniform: int) -> pa.Table:
    """Prepared rows of `count` meshes: a seeded choice of a folder, else of `sample:shapes`."""
    ingest = ShapeIngest(near=near, uniform=uniform, surface=64, held_out=4096)
    root = Path(folder) if folder else sample_sets.folder("shapes")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SHAPE_SUFFIXES)
    lines: list[dict] = []
    for i in np.random.default_rng(0).permutation(len(files)):
        if len(lines) == count:
            break
        key = files[i].relative_to(root).as_posix()
        try:
            found = decode_shape({key: files[i].read_bytes()}, key, ingest, key)
        except RejectedSample:
            continue
        identity = {"sample_id": key, "label": files[i].parent.name, "split": "train"}
        lines.append({"row": len(lines), **identity, **found})
    if len(lines) < count:
        raise ValueError(f"{root} holds {len(lines)} shapes that can be used, {count} are wanted")
    schema = pa.schema([*IDENTITY, *form_schema("shapes", ingest.model_dump())])
    return pa.Table.from_pylist(lines, schema=schema)
