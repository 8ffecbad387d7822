"""Names of a store's objects that are not Zarr; all of them lie below `_fieldmill/`."""

from __future__ import annotations

from schemas.store import PRIVATE

PLANS = f"{PRIVATE}/plans"
SHARED = f"{PRIVATE}/shared.json"
COMMITS = f"{PRIVATE}/commits"
PUBLISHED = f"{PRIVATE}/published"
REOPENED = f"{PRIVATE}/reopened"
STAGING = f"{PRIVATE}/staging"
FINAL = f"{PRIVATE}/final"
INDEXES = f"{PRIVATE}/indexes"
INDEX = f"{PRIVATE}/index.parquet"
FAILURES = f"{PRIVATE}/failures.parquet"
TRACEBACKS = f"{PRIVATE}/tracebacks"
PROBES = f"{PRIVATE}/probes"


def plan_key(number: int) -> str:
    return f"{PLANS}/{number:04d}.json"


def final_key(number: int) -> str:
    return f"{FINAL}/{number:06d}"


def index_key(number: int) -> str:
    """The index that belongs to a final record; `INDEX` is a copy of the newest."""
    return f"{INDEXES}/{number:06d}.parquet"


def record_key(folder: str, unit: int, generation: int) -> str:
    """A unit's record of one generation, in `COMMITS`, `PUBLISHED` or `REOPENED`."""
    return f"{folder}/{unit:08d}/{generation:06d}"


def parse_record_key(key: str) -> tuple[int, int]:
    """Unit and generation of a record's key."""
    _, unit, generation = key.rsplit("/", 2)
    return int(unit), int(generation)


def staging_folder(unit: int, generation: int | None = None, attempt: str | None = None) -> str:
    """Where attempts at a unit, at one of its generations, or one attempt stage their objects."""
    parts = [STAGING, f"{unit:08d}"]
    if generation is not None:
        parts.append(f"{generation:06d}")
        if attempt is not None:
            parts.append(attempt)
    return "/".join(parts)


def traceback_key(unit: int, generation: int, attempt: str) -> str:
    return f"{TRACEBACKS}/{unit:08d}/{generation:06d}-{attempt}.txt"
