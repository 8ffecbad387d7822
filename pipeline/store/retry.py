"""Opening published units again, and keeping the rows of the generation before."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from pipeline.storage import Objects
from pipeline.store import layout, shards
from pipeline.store.progress import progress
from pipeline.store.records import read_commit, reopen, standing_commit, wish_for
from pipeline.store.write import UnitResult, check_result
from schemas.store import Plan


def retry_rows(
    objects: Objects,
    plan: Plan,
    rows: Iterable[int] | None = None,
    *,
    where: Callable[[pa.RecordBatch], np.ndarray] | None = None,
    reason: str = "retry",
) -> list[tuple[int, int]]:
    """Opens the units of some rows for one more generation; all other rows keep their bytes.

    Args:
        objects: The store; its units must be published.
        plan: Its newest plan.
        rows: Row numbers.
        where: Or a function that marks lines of a unit's columns, e.g. those that failed.
        reason: Kept with the record.

    Returns:
        (unit, generation) to write; `progress` now names them, too.
    """
    if (rows is None) == (where is None):
        raise ValueError("give either rows or where")
    state = progress(objects, plan)
    if not state.complete:
        raise RuntimeError(
            f"{objects.location.url} is not complete ({len(state.to_fit)} units to fit, "
            f"{len(state.to_publish)} to publish): run the same command again first"
        )
    chosen: dict[int, list[int]] = {}
    if rows is not None:
        for row in rows:
            unit = int(row) // plan.unit_rows
            first, last = plan.unit_range(unit)
            if not first <= row < last:
                raise ValueError(f"row {row} is padding: unit {unit} holds rows {first}:{last}")
            chosen.setdefault(unit, []).append(int(row))
    else:
        for unit, generation in state.published.items():
            commit = read_commit(objects, unit, generation)
            if commit is None:
                raise RuntimeError(f"the record of unit {unit} is damaged; run 'repair' first")
            marked = np.flatnonzero(where(commit.columns)) + commit.first_row
            if len(marked):
                chosen[unit] = marked.tolist()
    return [
        (unit, reopen(objects, unit, chosen[unit], (), reason, retry=True))
        for unit in sorted(chosen)
    ]


def rows_to_fit(objects: Objects, plan: Plan, unit: int, generation: int) -> list[int] | None:
    """Rows (numbers in the store) that this generation of a unit fits; None = all of them."""
    wish = wish_for(objects, unit, generation) if generation else None
    if wish is None or wish.rows is None or standing_commit(objects, unit, generation) is None:
        return None
    first, last = plan.unit_range(unit)
    return None if len(wish.rows) == last - first else list(wish.rows)


def is_retry(objects: Objects, unit: int, generation: int) -> bool:
    """Whether this generation was asked for by `retry_rows` (and not by a repair or a loss)."""
    wish = wish_for(objects, unit, generation) if generation else None
    return wish is not None and wish.retry


def merge_unit(
    objects: Objects, plan: Plan, unit: int, generation: int, rows: list[int], part: UnitResult
) -> UnitResult:
    """A whole unit of newly fitted rows and, byte for byte, all others as they were.

    Args:
        objects: The store.
        plan: Its newest plan.
        unit: The unit.
        generation: The one to be written.
        rows: Store rows that `part` holds, in its order.
        part: Result of these rows only.

    Raises:
        RuntimeError: A row that should be kept cannot be read.
    """
    first, last = plan.unit_range(unit)
    before = standing_commit(objects, unit, generation)
    if before is None:
        raise RuntimeError(f"unit {unit} has no readable generation before {generation}")
    inside = np.array(rows, int) - first
    kept = np.setdiff1d(np.arange(last - first), inside)
    arrays = {}
    for spec in layout.row_arrays(plan):
        data = _get(objects, layout.shard_key(spec, unit))
        values, readable = shards.decode_shard(spec, plan.unit_rows, data)
        lost = kept[~readable[kept]]
        if len(lost):
            raise RuntimeError(
                f"rows {(lost[:10] + first).tolist()} of '{spec.name}' are damaged and were not "
                "fitted again; run 'repair'"
            )
        values = values[: last - first]
        values[inside] = part.arrays[spec.name]
        arrays[spec.name] = values
    order = np.arange(last - first)
    order[inside] = np.arange(len(inside)) + (last - first)
    both = pa.Table.from_batches([before.columns, part.columns]).take(pa.array(order))
    (columns,) = both.combine_chunks().to_batches()
    result = UnitResult(arrays, columns, part.traceback)
    check_result(plan, unit, result)
    return result


def _get(objects: Objects, key: str) -> bytes:
    try:
        return objects.get(key)
    except FileNotFoundError:
        return b""
