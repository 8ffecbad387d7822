"""The fold: from committed ingest units to a finished prepared dataset, streamed in their order."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.labels import Labeler, Levels, split_of
from pipeline.ingest.prepared import SIDECAR, sidecar_key
from pipeline.ingest.records import Record, find_record, reopen
from pipeline.ingest.segments import Segment, claim_location, read_ignored, read_segments
from pipeline.ingest.spill import BUCKETS, Buckets
from pipeline.storage import Objects, open_objects
from schemas.base import Location, identity
from schemas.run import CommonIngest, Dataset, ingest_keys
from schemas.samples import MANIFEST, NothingUsable, PreparedMeta

PART_ROWS = 65_536
"""Lines of one manifest part."""
MOST_LABELS = 4096
OTHERS = "..."
ORDER_BLOCK = 65_536
REQUESTS = 8
"""Small objects read or written side by side."""
REASONS = 5


def fold(dataset: Dataset, ingest: CommonIngest, prepared: Location) -> PreparedMeta:
    """Marks duplicates, gives labels, splits, row numbers; writes manifest, then `prepared.json`.

    Memory: one unit's record, one hash bucket of duplicates. Old rows keep their numbers when a
    listing was appended; folding again what is folded writes nothing.

    Raises:
        RuntimeError: units are not ingested yet, or their records are damaged (they are due again).
        NothingUsable: not one sample was accepted.
    """
    objects, keys = open_objects(prepared), ingest_keys(dataset, ingest)
    claim_location(objects, keys)
    segments = read_segments(objects)
    units = sum(s.units for s in segments)
    if not segments:
        raise RuntimeError(f"{prepared.url} has no listing yet; run the ingest stage")
    known = read_meta(objects)
    if known is not None and known.units == units and known.listed == segments[-1].date:
        return known
    levels = Levels()
    with tempfile.TemporaryDirectory(prefix="fieldmill-fold-") as folder:
        same = _duplicates(objects, segments, levels, folder)
        labeler = Labeler(dataset.label, levels.shallowest())
        with ThreadPoolExecutor(REQUESTS, thread_name_prefix="fold-write") as pool:
            work = _Fold(objects, dataset, ingest, labeler, pool, fresh=known is None)
            for segment in segments:
                work.segment(segment, same)
            work.close()
    if not work.rows:
        raise NothingUsable(
            f"dataset {dataset.url} has no usable sample: {dict(work.counts)}; the first: "
            + "; ".join(work.reasons)
        )
    meta = PreparedMeta(
        kind=dataset.kind,
        ingest_identity=identity(keys),
        dataset=keys["dataset"],
        ingest=keys["ingest"],
        listed=segments[-1].date,
        units=units,
        label_level=labeler.level,
        rows=work.rows,
        segments=tuple(work.starts),
        shards=tuple(work.shards),
        counts=dict(sorted(work.counts.items())),
        labels=dict(sorted(work.labels.items())),
        splits=dict(sorted(work.splits.items())),
        fingerprint=work.fingerprint.hexdigest(),
        missing=tuple(sorted(work.missing)),
    )
    objects.put("prepared.json", meta.model_dump_json(indent=1).encode())
    return meta


def read_meta(objects: Objects) -> PreparedMeta | None:
    """`prepared.json`, None if the dataset is not finished."""
    try:
        return PreparedMeta.model_validate_json(objects.get("prepared.json"))
    except FileNotFoundError:
        return None


def _records(objects: Objects, segment: Segment) -> Iterator[Record]:
    """The records of a listing's units in order, read ahead."""
    missing = []
    units = range(segment.first_unit, segment.first_unit + segment.units)
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="fold-read") as pool:
        todo, ahead = iter(units), deque()
        for unit in units:
            for new in islice(todo, 2 * REQUESTS - len(ahead)):
                ahead.append(pool.submit(find_record, objects, new))
            record = ahead.popleft().result()
            if record is not None:
                yield record
                continue
            missing.append(unit)
            if next(iter(objects.list(f"units/{unit:08d}")), None) is not None:
                reopen(objects, unit)
    if missing:
        raise RuntimeError(
            f"{len(missing)} ingest units are not committed (first: {missing[:10]}); "
            "run the ingest stage again"
        )


def _duplicates(objects: Objects, segments: list[Segment], levels: Levels, folder: str) -> _Same:
    """First pass: equal bytes are found hash bucket by hash bucket; folder levels on the way.

    Of equal samples the one with the smallest id of the oldest listing is kept.
    """
    hashes, same, order = Buckets(folder, "sha256"), _Same(folder), 0
    try:
        for number, segment in enumerate(segments):
            for record in _records(objects, segment):
                columns = (
                    record.rows[c].to_pylist() for c in ("sample_id", "status", "sha256", "label")
                )
                for sample_id, status, sha256, label in zip(*columns):
                    if status == "accepted":
                        hashes.add(sha256, [number, sample_id, order])
                        if number == 0 and label is None:
                            levels.see(sample_id)
                    order += 1
        for bucket in range(BUCKETS):
            groups: dict[str, list] = {}
            for sha256, entry in hashes.read(bucket):
                groups.setdefault(sha256, []).append(entry)
            for entries in groups.values():
                kept = min(entries)
                for entry in entries:
                    if entry is not kept:
                        same.add(entry[2], kept[1])
    finally:
        hashes.close()
    return same


class _Same:
    """Duplicates by their place in the order of all samples, spilled in blocks of that order."""

    def __init__(self, folder: str):
        self.folder = folder
        self.blocks: set[int] = set()
        self.files: dict[int, Any] = {}
        self.block, self.held = -1, {}

    def add(self, order: int, kept: str) -> None:
        block = order // ORDER_BLOCK
        with open(f"{self.folder}/same-{block}", "a") as file:
            file.write(json.dumps([order, kept]) + "\n")
        self.blocks.add(block)

    def get(self, order: int) -> str | None:
        block = order // ORDER_BLOCK
        if block != self.block:
            self.block, self.held = block, {}
            if block in self.blocks:
                with open(f"{self.folder}/same-{block}") as file:
                    self.held = dict(map(json.loads, file))
        return self.held.get(order)


class _Fold:
    """Second pass: numbers rows and writes sidecars, manifest parts and failures."""

    def __init__(
        self,
        objects: Objects,
        dataset: Dataset,
        ingest: CommonIngest,
        labeler: Labeler,
        pool: ThreadPoolExecutor,
        *,
        fresh: bool,
    ):
        self.objects, self.dataset, self.ingest, self.labeler = objects, dataset, ingest, labeler
        self.order, self.rows = 0, 0
        self.starts: list[int] = []
        self.shards: list[tuple[str, int, int]] = []
        self.counts: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.fingerprint = hashlib.sha256()
        self.reasons: list[str] = []
        self.missing: set[str] = set()
        self.failures = _Parquet(None, None)
        self.pool = pool
        # what a fold that did not end has left may be of other rows: a unit may have come out anew
        self.write = objects.put if fresh else objects.create
        self.writes: deque = deque()

    def segment(self, segment: Segment, same: _Same) -> None:
        """Folds the units of one listing, then its ignored files."""
        first, parts = self.rows, _Parquet(self.write, f"manifest/part-{segment.segment:03d}")
        for record in _records(self.objects, segment):
            lines = record.rows.to_pylist()
            for line in lines:
                self._line(line, same.get(self.order))
                self.order += 1
            self._sidecars(record, lines)
            parts.add(lines)
        for batch in read_ignored(self.objects, segment):
            lines = [_ignored_line(entry) for entry in batch.to_pylist()]
            self.counts["ignored"] += len(lines)
            parts.add(lines)
        parts.close()
        if self.rows > first:
            self.starts.append(first)

    def _line(self, line: dict[str, Any], same_as: str | None) -> None:
        if same_as is not None:
            line |= {"status": "duplicate", "same_as": same_as, "index": None}
        self.counts[line["status"]] += 1
        if line["status"] == "rejected":
            self.failures.add([line])
            if len(self.reasons) < REASONS:
                self.reasons.append(f"{line['sample_id']}: {line['code']} {line['message']}")
        line["label"] = self.labeler.label(line["sample_id"], line["label"])
        if line["status"] != "accepted":
            return
        line["row"] = self.rows
        line["split"] = line["split"] or split_of(
            line["sample_id"], self.dataset.split, self.ingest.seed
        )
        self.rows += 1
        self.splits[line["split"]] += 1
        if line["label"] is not None:
            known = line["label"] in self.labels or len(self.labels) < MOST_LABELS
            self.labels[line["label"] if known else OTHERS] += 1
        self.fingerprint.update(f"{line['sample_id']}\0{line['sha256']}\n".encode())

    def _sidecars(self, record: Record, lines: list[dict[str, Any]]) -> None:
        kept = [line for line in lines if line["status"] == "accepted"]
        start = 0
        for piece in record.pieces:
            mine = [k for k in kept if start <= k["index"] < start + piece.rows]
            if mine:
                self.missing.update(piece.missing)
                table = pa.Table.from_pylist(
                    [line | {"index": line["index"] - start} for line in mine], schema=SIDECAR
                )
                about = {b"piece": piece.model_dump_json().encode()}
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, SIDECAR.with_metadata(about)) as stream:
                    stream.write_table(table)
                self._write(sidecar_key(piece.name), sink.getvalue().to_pybytes())
                self.shards.append((piece.name, mine[0]["row"], len(mine)))
            start += piece.rows

    def _write(self, key: str, data: bytes) -> None:
        """Writes an object in the background, a bounded number at once."""
        while len(self.writes) >= 2 * REQUESTS:
            self.writes.popleft().result()
        self.writes.append(self.pool.submit(self.write, key, data))

    def close(self) -> None:
        """Waits for what is being written; then `prepared.json` may be."""
        while self.writes:
            self.writes.popleft().result()
        data = self.failures.finish()
        self.objects.put("failures.parquet", data)


def _ignored_line(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "sample_id": entry["sample_id"],
        "status": "ignored",
        "code": entry["code"],
        "message": entry["message"],
        "bytes": sum(max(s, 0) for s in entry["sizes"]),
        "objects": entry["keys"],
    }


class _Parquet:
    """MANIFEST lines as Parquet objects of bounded length, or (without `write`) as one."""

    def __init__(self, write: Callable[[str, bytes], Any] | None, stem: str | None):
        self.write, self.stem = write, stem
        self.lines: list[dict[str, Any]] = []
        self.number, self.written = 0, 0
        self._open()

    def _open(self) -> None:
        self.sink = io.BytesIO()
        self.writer = pq.ParquetWriter(self.sink, MANIFEST, compression="zstd")
        self.written = 0

    def add(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            self.lines.append(line)
            if len(self.lines) >= 8192:
                self._flush()
                if self.write is not None and self.written >= PART_ROWS:
                    self.close()
                    self._open()

    def _flush(self) -> None:
        if self.lines:
            self.writer.write_table(pa.Table.from_pylist(self.lines, schema=MANIFEST))
            self.written += len(self.lines)
            self.lines = []

    def finish(self) -> bytes:
        self._flush()
        self.writer.close()
        return self.sink.getvalue()

    def close(self) -> None:
        """Uploads the part, if it has lines."""
        data = self.finish()
        if self.written:
            self.write(f"{self.stem}-{self.number:05d}.parquet", data)
            self.number += 1
