"""Ingest of one unit: its samples decoded into prepared shards, and one commit record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pipeline.ingest.fetch import unit_members
from pipeline.ingest.guard import Decoded, guard
from pipeline.ingest.kinds import require_decoder
from pipeline.ingest.members import Member
from pipeline.ingest.records import commit_record, find_record
from pipeline.ingest.segments import claim_location, read_entries
from pipeline.ingest.shards import ShardWriter
from pipeline.ingest.target import find_target
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import CommonIngest, Dataset, ingest_keys
from schemas.samples import GRIDS, IngestOutcome, SampleStatus, form_schema


def ingest_unit(
    dataset: Dataset, ingest: CommonIngest, prepared: Location, unit: int, attempt: str
) -> IngestOutcome:
    """Decodes the samples of one unit and commits it; does nothing if it is committed.

    A pure function of the source's bytes, the frozen listing and the configuration: what it writes
    does not depend on order, attempts or hosts, and it may run twice at once.

    Args:
        attempt: Distinguishes attempts in the commit record.

    Raises:
        StorageError: the source or the prepared location cannot be reached; try again.
    """
    began = time.perf_counter()
    objects = open_objects(prepared)
    done = find_record(objects, unit)
    if done is not None:
        return IngestOutcome(
            unit=unit, won=False, decodes=0, counts=done.counts, read_bytes=0, written_bytes=0,
            seconds={"total": time.perf_counter() - began},
        )  # fmt: skip
    keys = ingest_keys(dataset, ingest)
    claim_location(objects, keys)
    entries = read_entries(objects, unit)
    for entry in entries:
        for key in () if entry["status"] else entry["keys"]:
            require_decoder(key, dataset.kind)
    clock = _Clock(unit_members(entries, find_target(dataset), dataset, ingest))
    form = form_schema(dataset.kind, keys["ingest"])
    writer = ShardWriter(objects, unit, form, ingest.unit_objects)
    decoder = guard(dataset.kind, ingest)
    before, rows, writing = decoder.decodes, [], 0.0
    seed_key = _by_id if dataset.kind in GRIDS else _by_bytes
    for member, decoded in decoder.run(clock, seed_key):
        row = _row(member, unit, decoded)
        if decoded.columns is not None:
            start = time.perf_counter()
            row["index"] = writer.add(decoded.columns)
            writing += time.perf_counter() - start
        rows.append(row)
    start = time.perf_counter()
    pieces = writer.close()
    won = commit_record(objects, unit, pieces, rows, attempt)
    ended = time.perf_counter()
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    writing += ended - start
    return IngestOutcome(
        unit=unit,
        won=won,
        decodes=decoder.decodes - before,
        counts=counts,
        read_bytes=clock.read_bytes,
        written_bytes=sum(piece.bytes for piece in pieces),
        seconds={
            "total": ended - began,
            "read": clock.seconds,
            "decode": ended - began - clock.seconds - writing,
            "write": writing,
        },
    )


class _Clock:
    """Passes members on; measures the time spent waiting for them and their bytes."""

    def __init__(self, members: Iterator[Member]):
        self.members = members
        self.seconds, self.read_bytes = 0.0, 0

    def __iter__(self) -> Iterator[Member]:
        return self

    def __next__(self) -> Member:
        start = time.perf_counter()
        try:
            member = next(self.members)
        finally:
            self.seconds += time.perf_counter() - start
        self.read_bytes += member.size
        return member


def _by_id(member: Member) -> str:
    return member.sample_id


def _by_bytes(member: Member) -> str:
    return member.hash or ""


def _row(member: Member, unit: int, decoded: Decoded) -> dict[str, Any]:
    """One MANIFEST line; row number, label and split of accepted samples come with the fold."""
    if member.ignored is not None:
        status, code, message = SampleStatus.IGNORED, "", member.ignored
    elif decoded.columns is None:
        status, code, message = SampleStatus.REJECTED, decoded.code, decoded.message
    else:
        status, code, message = SampleStatus.ACCEPTED, "", ""
    return {
        "sample_id": member.sample_id,
        "status": status.value,
        "code": code,
        "message": message,
        "label": member.label,
        "split": member.split,
        "sha256": member.hash if member.ignored is None else None,
        "bytes": member.size if member.files else None,
        "objects": list(member.keys),
        "unit": unit,
        "index": None,
    }
