"""Commit records of ingest units: which shards a unit has, and one manifest line a sample."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.ingest.shards import Piece
from pipeline.storage import Objects
from schemas.samples import MANIFEST

KEY = "units/{unit:08d}/{generation:04d}.arrow"


@dataclass(frozen=True)
class Record:
    """What an ingest unit became."""

    unit: int
    pieces: tuple[Piece, ...]
    rows: pa.Table
    """MANIFEST lines; `index` counts through the unit's shards; no row numbers yet."""
    counts: dict[str, int]
    attempt: str


def commit_record(
    objects: Objects, unit: int, pieces: list[Piece], rows: list[dict[str, Any]], attempt: str
) -> bool:
    """Creates the unit's record; False if another attempt was first.

    A record that is there but damaged (its checksum is wrong) is superseded by the next generation.
    """
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    body = pa.BufferOutputStream()
    with pa.ipc.new_stream(body, MANIFEST) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=MANIFEST))
    about = {
        "unit": unit,
        "attempt": attempt,
        "counts": dict(sorted(counts.items())),
        "pieces": [piece.model_dump(mode="json") for piece in pieces],
    }
    payload = json.dumps(about).encode() + b"\n" + body.getvalue().to_pybytes()
    data = hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload
    generation = 0
    while not objects.create(KEY.format(unit=unit, generation=generation), data):
        if read_record(objects, unit, generation) is not None:
            return False
        generation += 1
    return True


def find_record(objects: Objects, unit: int) -> Record | None:
    """The unit's record: the first generation that parses and matches its checksum."""
    generation = 0
    while True:
        try:
            record = read_record(objects, unit, generation)
        except FileNotFoundError:
            return None
        if record is not None:
            return record
        generation += 1


def read_record(objects: Objects, unit: int, generation: int) -> Record | None:
    """One generation of a unit's record; None if it is damaged."""
    data = objects.get(KEY.format(unit=unit, generation=generation))
    checksum, _, payload = data.partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != checksum:
        return None
    head, _, body = payload.partition(b"\n")
    about = json.loads(head)
    return Record(
        unit=about["unit"],
        pieces=tuple(Piece.model_validate(piece) for piece in about["pieces"]),
        rows=pa.ipc.open_stream(body).read_all(),
        counts=about["counts"],
        attempt=about["attempt"],
    )


def committed_units(objects: Objects) -> set[int]:
    """Units whose newest record is not empty, from a fresh listing.

    A record with damaged bytes is found when it is read: then `reopen` makes its unit due again.
    """
    newest: dict[int, tuple[str, int]] = {}
    for entry in objects.list("units/"):
        folder, name = entry.key.split("/")[-2:]
        newest[int(folder)] = max(newest.get(int(folder), ("", 0)), (name, entry.size))
    return {unit for unit, (_, size) in newest.items() if size}


def reopen(objects: Objects, unit: int) -> None:
    """Makes a unit without a readable record due again: an empty generation after the last."""
    generation = 0
    while objects.size(KEY.format(unit=unit, generation=generation)) is not None:
        generation += 1
    objects.create(KEY.format(unit=unit, generation=generation), b"")
