"""Dataset -> prepared dataset: listing, one task a unit, fold."""

from __future__ import annotations

from typing import Any

from pipeline.ingest import fold as folding
from pipeline.ingest import listing
from pipeline.ingest.unit import ingest_unit as ingest_one
from pipeline.stages.common import peak_bytes
from pipeline.storage import open_objects
from schemas.run import Run
from schemas.samples import PreparedMeta


def prepare(run: Run, *, update: bool = False) -> list[int]:
    """Lists the dataset once (or again, to append) and returns the ingest units still to do.

    A pilot (`limit`) that is the first to list ingests little more than it takes.
    """
    prepared = open_objects(run.prepared_location)
    listing.write_listing(run.dataset, run.ingest, prepared, update=update, limit=run.limit)
    return listing.units_to_do(prepared)


def ingest_shard(run: Run, unit: int, attempt: str) -> dict[str, Any]:
    """Decodes one ingest unit into a prepared shard and commits it."""
    outcome = ingest_one(run.dataset, run.ingest, run.prepared_location, unit, attempt)
    return {**outcome.model_dump(), "unit": unit, "peak_bytes": peak_bytes()}


def fold_prepared(run: Run) -> PreparedMeta:
    """Gives duplicates, splits and row numbers; raises NothingUsable when no row is left."""
    return folding.fold(run.dataset, run.ingest, run.prepared_location)
