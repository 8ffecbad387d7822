"""Lists a dataset once, streamed and in bounded memory, and freezes the listing in hash order."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pipeline.ingest.freeze import Freeze
from pipeline.ingest.kinds import (
    container_type,
    is_chosen,
    is_hidden,
    require_decoder,
    sample_suffixes,
    suffix,
)
from pipeline.ingest.labels import read_labels
from pipeline.ingest.records import committed_units
from pipeline.ingest.segments import (
    CLAIM,
    Segment,
    claim_location,
    read_ignored,
    read_segments,
    read_units,
    unit_batches,
)
from pipeline.ingest.sources import Found
from pipeline.ingest.spill import BUCKETS, Buckets
from pipeline.ingest.tables import read_table
from pipeline.ingest.target import Target, find_target
from pipeline.storage import Objects
from schemas.base import Location
from schemas.run import CommonIngest, Dataset, ingest_keys
from schemas.samples import Code, NothingUsable

__all__ = ["read_units", "units_to_do", "write_listing"]


def write_listing(
    dataset: Dataset,
    ingest: CommonIngest,
    prepared: Objects,
    page: int = 1000,
    *,
    update: bool = False,
    limit: int | None = None,
) -> int:
    """Lists the dataset once and freezes it; with `update` again, appending what is new.

    Pages are spilled to hash buckets on disk: memory holds one page and one bucket of 256. With
    `limit` the frozen listing ends soon after that many samples of the same order (a pilot).

    Returns:
        The number of ingest units of all listings.

    Raises:
        ValueError: the prepared location belongs to another dataset or ingest configuration.
        NothingUsable: no listed file can be a sample.
        FileNotFoundError, RuntimeError: the dataset cannot be listed.
    """
    made = claim_location(prepared, ingest_keys(dataset, ingest))
    try:
        return _write_listing(dataset, ingest, prepared, page, update, limit)
    except Exception:
        if made and not read_segments(prepared):  # a mistyped URL does not keep the location
            prepared.delete(CLAIM)
        raise


def _write_listing(
    dataset: Dataset,
    ingest: CommonIngest,
    prepared: Objects,
    page: int,
    update: bool,
    limit: int | None,
) -> int:
    segments = read_segments(prepared)
    cut = segments[0].limit if segments else None
    if cut is not None and (update or limit is None or limit > cut):
        raise ValueError(
            f"{prepared.location.url} was listed for a pilot of {cut} samples only; "
            "give this run another 'prepared' location"
        )
    if segments and not update:
        return sum(s.units for s in segments)
    if dataset.label.table is not None:
        read_labels(dataset.label.table)  # what is wrong with it is told before anything is decoded
    target = find_target(dataset)
    with tempfile.TemporaryDirectory(prefix="fieldmill-listing-") as folder:
        found, known = Buckets(folder, "found"), Buckets(folder, "known")
        try:
            for sample_id, record in _records(dataset, target, prepared.location, page):
                if not record[7]:
                    require_decoder(record[1], dataset.kind)
                found.add(sample_id, record)
            for segment in segments:
                for sample_id, seen in _known_entries(prepared, segment):
                    known.add(sample_id, seen)
            freeze = Freeze(dataset, ingest, prepared, target, segments, limit)
            for bucket in range(BUCKETS):
                if not freeze.full:
                    freeze.take(found.read(bucket), dict(known.read(bucket)))
            made = freeze.close(date=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        finally:
            found.close()
            known.close()
    if not segments and not made.counts["usable"]:
        raise NothingUsable(_nothing(dataset, made, freeze.reasons))
    if segments:
        prepared.put("listing/latest.json", made.model_dump_json().encode())
    if not segments or made.units or made.ignored:
        prepared.create(f"listing/{len(segments)}.json", made.model_dump_json().encode())
    return sum(s.units for s in read_segments(prepared))


def units_to_do(prepared: Objects) -> list[int]:
    """Units without a commit record, from a fresh listing."""
    done = committed_units(prepared)
    segments = read_segments(prepared)
    return [u for u in range(sum(s.units for s in segments)) if u not in done]


def last_listing(prepared: Objects) -> Segment | None:
    """What the last `write_listing` saw, updates that found nothing new included."""
    try:
        return Segment.model_validate_json(prepared.get("listing/latest.json"))
    except FileNotFoundError:
        return next(iter(read_segments(prepared)), None)


def _records(
    dataset: Dataset, target: Target, prepared: Location, page: int
) -> Iterator[tuple[str, list[Any]]]:
    """(sample id, [type, key, size, etag, uri, label, split, status, code, message])."""
    if target.what == "table":
        for line in read_table(target.source, target.key, dataset.columns):
            kind = container_type(line.uri, dataset.kind) or "file"
            chosen = is_chosen(line.sample_id, dataset.include, dataset.exclude)
            yield (
                line.sample_id,
                [kind, line.uri, -1, None, True, line.label, line.split]
                + (
                    ["", "", ""] if chosen else ["ignored", "", "not chosen by include and exclude"]
                ),
            )
        return
    group = re.compile(dataset.group) if dataset.group else None
    own = _inside(dataset, prepared)
    suffixes = sample_suffixes(dataset.kind)
    for found in target.list(page):
        for item in found:
            if not (own and (item.key + "/").startswith(own)):
                yield _record(item, dataset, suffixes, group, single=target.what == "file")


def _record(
    item: Found, dataset: Dataset, suffixes: frozenset[str], group: re.Pattern | None, single: bool
) -> tuple[str, list[Any]]:
    kind, sample_id, why = "file", item.key, ""
    if not single and is_hidden(item.key):
        why = "hidden"
    elif group:
        match = group.search(item.key)
        if match:
            sample_id = match.group(1 if group.groups else 0) or item.key
        else:
            why = f"does not match group '{group.pattern}'"
    else:
        kind = container_type(item.key, dataset.kind) or "file"
        if kind == "file" and not single and suffix(item.key) not in suffixes:
            why = f"of another kind ({suffix(item.key) or 'no suffix'})"
    include = dataset.include if kind == "file" else ()
    if not why and not is_chosen(sample_id, include, dataset.exclude):
        why = "not chosen by include and exclude"
    status, code = ("ignored" if why else ""), ""
    if item.problem and not why:
        status, code, why = "rejected", Code.INPUT_MISSING.value, item.problem
    return sample_id, [kind, item.key, item.size, item.etag, False, None, None, status, code, why]


def _inside(dataset: Dataset, prepared: Location) -> str | None:
    """Prefix of the prepared dataset in the source, where it lies inside."""
    base, own = dataset.url.rstrip("/") + "/", prepared.url.rstrip("/") + "/"
    return own[len(base) :] if own.startswith(base) and own != base else None


def _known_entries(prepared: Objects, segment: Segment) -> Iterator[tuple[str, list[Any]]]:
    for batches in (unit_batches(prepared, segment), read_ignored(prepared, segment)):
        for batch in batches:
            columns = (batch[name].to_pylist() for name in ("sample_id", "keys", "sizes", "etags"))
            for sample_id, keys, sizes, etags in zip(*columns):
                yield sample_id, sorted(zip(keys, sizes, [e or "" for e in etags]))


def _nothing(dataset: Dataset, made: Segment, reasons: list[str]) -> str:
    if not made.counts["ignored"] and not reasons:
        return f"dataset {dataset.url} is empty: nothing is listed there"
    return (
        f"dataset {dataset.url} has no sample of kind '{dataset.kind}' among "
        f"{made.counts['ignored']} files; the first: " + "; ".join(reasons)
    )
