"""Turns listed objects, bucket by bucket, into frozen entries, units and listing parts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.ingest.containers import probe_container
from pipeline.ingest.segments import UNITS, Segment
from pipeline.ingest.target import Target
from pipeline.storage import Objects
from schemas.run import CommonIngest, Dataset
from schemas.samples import LISTING, Code

PART_ENTRIES = 1_024
"""Entries of one listing object: bounds the driver's memory and what a worker downloads."""
IGNORED_BATCH = 1024
EXAMPLES = 20
PROBES = 8
"""Containers whose sizes are looked up side by side."""


class Freeze:
    """Takes sorted buckets of listed objects; `close` uploads the rest, describes the listing."""

    def __init__(
        self,
        dataset: Dataset,
        ingest: CommonIngest,
        prepared: Objects,
        target: Target,
        segments: list[Segment],
        limit: int | None = None,
    ):
        self.limit, self.taken = limit, 0
        self.most = None if limit is None else limit + limit // 4 + 8  # some will be rejected
        self.dataset, self.ingest, self.prepared, self.target = dataset, ingest, prepared, target
        self.number = len(segments)
        self.first_unit = sum(s.units for s in segments)
        self.counts: Counter[str] = Counter(usable=0, ignored=0, changed=0, vanished=0, known=0)
        self.kinds: Counter[str] = Counter()
        self.reasons: list[str] = []
        self.changed: list[str] = []
        self.unit: list[dict[str, Any]] = []
        self.ignored: list[dict[str, Any]] = []
        self.unit_entries, self.unit_bytes = 0, 0
        self.lines: list[tuple[int, int, int, int]] = []  # part, batch, entries, bytes
        self.parts = _Parts(prepared, f"listing/{self.number}/part")
        self.left_out = _Parts(prepared, f"listing/{self.number}/ignored")

    @property
    def full(self) -> bool:
        """Whether a pilot has samples enough."""
        return self.most is not None and self.taken >= self.most

    def take(self, bucket: list[tuple[str, list]], known: dict[str, list]) -> None:
        """One bucket of records; entries of earlier listings by sample id."""
        entries = []
        for sample_id, records in groupby(bucket, key=lambda item: item[0]):
            entry = self._entry(sample_id, [record for _, record in records])
            seen = known.pop(sample_id, None)
            if seen is None:
                entries.append(entry)
                continue
            now = sorted([k, s, e or ""] for k, s, e in zip(*_objects(entry)))
            if entry["uri"] or now == seen:
                self.counts["known"] += 1
            else:
                self.counts["changed"] += 1
                self.changed += [sample_id] if len(self.changed) < EXAMPLES else []
        self.counts["vanished"] += len(known)
        containers = [e for e in entries if e["type"] != "file" and not e["status"]]
        with ThreadPoolExecutor(PROBES) if containers else nullcontext() as pool:
            ranges = iter(pool.map(self._expand, containers) if pool else ())
            for entry in entries:
                if entry["type"] == "file" or entry["status"]:
                    self._add(entry)
                else:
                    for part in next(ranges):
                        self._add(part)

    def _entry(self, sample_id: str, records: list[list]) -> dict[str, Any]:
        records.sort(key=lambda record: record[1])
        kind, _, _, _, uri, label, split, status, code, message = records[0]
        if len(records) > 1 and not self.dataset.group:
            where = ", ".join(f"'{record[1]}'" for record in records[:3])
            raise ValueError(f"two lines of the table have the id '{sample_id}': {where}")
        status = max(record[7] for record in records)
        return {
            "sample_id": sample_id,
            "type": kind,
            "keys": [record[1] for record in records],
            "sizes": [record[2] for record in records],
            "etags": [record[3] for record in records],
            "uri": uri,
            "start": 0,
            "stop": 1,
            "label": label,
            "split": split,
            "status": status,
            "code": code,
            "message": message,
        }

    def _expand(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """A container's entry, cut into ranges of members where their number is known."""
        probe = probe_container(
            lambda: self.target.resolve(entry["keys"][0], entry["uri"]),
            entry["type"],
            self.dataset.columns,
        )
        if probe.status:
            return [entry | {"status": probe.status, "code": probe.code, "message": probe.message}]
        if probe.members is None:
            return [entry | {"stop": -1}]
        size, step = max(entry["sizes"][0], probe.size), self.ingest.unit_objects
        if probe.members and size > 0:
            step = max(1, min(step, self.ingest.unit_bytes * probe.members // size))
        ranges = [
            entry | {"start": start, "stop": min(start + step, probe.members)}
            for start in range(0, probe.members, step)
        ]
        if probe.short:
            name = f"{entry['sample_id']}#{probe.members:06d}-"
            why = {"status": "rejected", "code": Code.DECODE.value, "message": probe.short}
            ranges.append(entry | {"sample_id": name, "type": "file"} | why)
        return ranges

    def _add(self, entry: dict[str, Any]) -> None:
        if entry["status"]:
            if entry["status"] == "ignored":
                self.counts["ignored"] += 1
                self.kinds[entry["message"]] += 1
            if len(self.reasons) < 5:
                self.reasons.append(f"{entry['sample_id']}: {entry['message']}")
        if entry["status"] == "ignored":
            self.ignored.append(entry)
            if len(self.ignored) >= IGNORED_BATCH:
                self._close_ignored()
            return
        if self.full:
            return
        self.counts["usable"] += not entry["status"] and entry["start"] == 0
        entries = entry["stop"] - entry["start"] if entry["stop"] >= 0 else self.ingest.unit_objects
        self.taken += entries
        size = sum(max(s, 0) for s in entry["sizes"]) if entry["type"] in ("file", "tar") else 0
        full = self.unit_entries + entries > self.ingest.unit_objects
        if self.unit and (full or self.unit_bytes + size > self.ingest.unit_bytes):
            self._close_unit()
        self.unit.append(entry)
        self.unit_entries += entries
        self.unit_bytes += size

    def _close_unit(self) -> None:
        part, batch = self.parts.add(self.unit)
        self.lines.append((part, batch, self.unit_entries, self.unit_bytes))
        self.unit, self.unit_entries, self.unit_bytes = [], 0, 0

    def _close_ignored(self) -> None:
        if self.ignored:
            self.left_out.add(self.ignored)
            self.ignored = []

    def close(self, date: str) -> Segment:
        """Uploads what is left. The caller makes the listing final by writing the result."""
        if self.unit:
            self._close_unit()
        self._close_ignored()
        names, ignored, units_key = self.parts.close(), self.left_out.close(), None
        if self.lines:
            part, batch, entries, size = zip(*self.lines)
            units = _Part(UNITS)
            columns = [[names[p] for p in part], batch, entries, size]
            units.add(
                pa.RecordBatch.from_arrays([*map(pa.array, columns, UNITS.types)], schema=UNITS)
            )
            units_key = units.upload(self.prepared, f"listing/{self.number}/units")
        return Segment(
            segment=self.number,
            date=date,
            first_unit=self.first_unit,
            units=len(self.lines),
            units_key=units_key,
            ignored=tuple(ignored),
            counts=dict(self.counts),
            kinds=dict(self.kinds.most_common(EXAMPLES)),
            changed=tuple(self.changed),
            limit=self.limit,
        )


class _Parts:
    """Record batches gathered into objects of bounded size."""

    def __init__(self, prepared: Objects, stem: str):
        self.prepared, self.stem = prepared, stem
        self.names: list[str] = []
        self.part = _Part(LISTING)

    def add(self, entries: list[dict[str, Any]]) -> tuple[int, int]:
        """Takes a batch; returns the number of its part and its number in the part."""
        if self.part.entries and self.part.entries + len(entries) > PART_ENTRIES:
            self._flush()
        self.part.add(pa.RecordBatch.from_pylist(entries, schema=LISTING))
        return len(self.names), self.part.batches - 1

    def _flush(self) -> None:
        name = f"{self.stem}-{len(self.names):05d}"
        self.names.append(self.part.upload(self.prepared, name))
        self.part = _Part(LISTING)

    def close(self) -> list[str]:
        if self.part.entries:
            self._flush()
        return self.names


class _Part:
    """One Arrow file in the making."""

    def __init__(self, schema: pa.Schema):
        self.sink = pa.BufferOutputStream()
        self.file = pa.ipc.new_file(self.sink, schema)
        self.entries = self.batches = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.file.write_batch(batch)
        self.entries += len(batch)
        self.batches += 1

    def upload(self, prepared: Objects, stem: str) -> str:
        """Writes the file under a name that contains its hash: two drivers cannot mix."""
        self.file.close()
        data = self.sink.getvalue()
        key = f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}.arrow"
        prepared.put(key, memoryview(data).cast("B"))
        return key


def _objects(entry: dict[str, Any]) -> Iterator[list]:
    return iter((entry["keys"], entry["sizes"], entry["etags"]))
