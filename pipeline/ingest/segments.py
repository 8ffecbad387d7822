"""A frozen listing as it lies under the prepared location: its segments, units and entries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pydantic import Field

from pipeline.storage import Objects, open_objects
from schemas.base import Location, Schema
from schemas.samples import IngestUnit

UNITS = pa.schema(
    [("part", pa.string()), ("batch", pa.int32()), ("entries", pa.int64()), ("bytes", pa.int64())]
)
"""One line a unit: the object and the record batch with its entries."""


class Segment(Schema):
    """`listing/<n>.json`: written last, makes a listing final. One for each `--update`."""

    segment: int
    date: str
    """UTC."""
    first_unit: int
    units: int
    units_key: str | None
    """Object with one line a unit."""
    ignored: tuple[str, ...]
    """Objects with the entries that are left out."""
    counts: dict[str, int]
    """Entries: usable (a container counts once), ignored, changed, vanished, known."""
    kinds: dict[str, int] = Field(default_factory=dict)
    """Ignored files by suffix, the most frequent."""
    changed: tuple[str, ...] = ()
    """First known samples whose object differs from their frozen entry: they are not replaced."""
    limit: int | None = None
    """A pilot's listing: cut after enough samples for this many rows."""


CLAIM = "ingest.json"
"""Whose a prepared location is."""


def claim_location(prepared: Objects, keys: dict[str, Any]) -> bool:
    """Makes the prepared location this dataset's own; one of another identity is refused.

    Returns:
        Whether this call made it so.
    """
    text, made = json.dumps(keys, sort_keys=True).encode(), False
    try:
        there = json.loads(prepared.get(CLAIM))
    except FileNotFoundError:
        made = prepared.create(CLAIM, text)
        there = json.loads(prepared.get(CLAIM))
    old, new = _flat(there), _flat(json.loads(text))
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if differing:
        named = "; ".join(
            f"{k}: {json.dumps(old.get(k))} there, {json.dumps(new.get(k))} here"
            for k in differing[:8]
        )
        raise ValueError(
            f"{prepared.location.url} was prepared with other keys ({named}); "
            "set 'prepared' to another URL, or restore these keys"
        )
    return made


def read_segments(prepared: Objects) -> list[Segment]:
    """The final listings, oldest first."""
    segments: list[Segment] = []
    while True:
        try:
            data = prepared.get(f"listing/{len(segments)}.json")
        except FileNotFoundError:
            return segments
        segments.append(Segment.model_validate_json(data))


def read_units(prepared: Objects) -> list[IngestUnit]:
    """All ingest units, in the frozen order."""
    units = []
    for segment in read_segments(prepared):
        for i, (entries, size) in enumerate(_unit_sizes(prepared, segment)):
            units.append(IngestUnit(unit=segment.first_unit + i, entries=entries, bytes=size))
    return units


def read_entries(prepared: Objects, unit: int) -> list[dict[str, Any]]:
    """The frozen entries of one unit."""
    for segment in read_segments(prepared):
        if segment.first_unit <= unit < segment.first_unit + segment.units:
            table = _units_table(prepared.location, segment.units_key)
            line = table.slice(unit - segment.first_unit, 1).to_pylist()[0]
            with pa.ipc.open_file(pa.BufferReader(prepared.get(line["part"]))) as file:
                return file.get_batch(line["batch"]).to_pylist()
    raise ValueError(f"{prepared.location.url} has no ingest unit {unit}; list the dataset first")


def read_ignored(prepared: Objects, segment: Segment) -> Iterator[pa.RecordBatch]:
    """The entries of a listing that are left out."""
    for key in segment.ignored:
        with pa.ipc.open_file(pa.BufferReader(prepared.get(key))) as file:
            for i in range(file.num_record_batches):
                yield file.get_batch(i)


@lru_cache(maxsize=4)
def _units_table(location: Location, key: str) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(open_objects(location).get(key))).read_all()


def _unit_sizes(prepared: Objects, segment: Segment) -> Iterator[tuple[int, int]]:
    if segment.units_key:
        table = _units_table(prepared.location, segment.units_key)
        yield from zip(table["entries"].to_pylist(), table["bytes"].to_pylist())


def unit_batches(prepared: Objects, segment: Segment) -> Iterator[pa.RecordBatch]:
    """The entries of a listing that are to be decoded, a batch a unit."""
    if not segment.units_key:
        return
    table = _units_table(prepared.location, segment.units_key)
    for part in dict.fromkeys(table["part"].to_pylist()):
        with pa.ipc.open_file(pa.BufferReader(prepared.get(part))) as file:
            for i in range(file.num_record_batches):
                yield file.get_batch(i)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    return {
        k: v for name, item in value.items() for k, v in _flat(item, f"{prefix}{name}.").items()
    }
