"""Writing one unit: stage, commit by put-if-absent, publish by server-side copy.

Whoever creates the commit record wins; whoever comes by (winner, loser, a later run) may copy the
winner's staged objects to their final keys, any number of times. A unit is done when its published
marker exists. Nothing is read from the presence of a shard.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.storage import Objects
from pipeline.store import keys, layout, shards
from pipeline.store.records import (
    Commit,
    ShardObject,
    generations,
    is_published,
    read_commit,
    reopen,
    seal,
    sha256,
    standing_commit,
    wish_for,
)
from schemas.store import USABLE, ArraySpec, Plan, unit_columns

FRESH_SECONDS = 2.0
"""A commit this young is not looked up again before its objects are copied (it is, afterwards)."""


class StagingGone(RuntimeError):
    """A committed unit cannot be published: what its attempt staged is not there any more."""


@dataclass(frozen=True)
class UnitResult:
    """What fitting a unit gives."""

    arrays: dict[str, np.ndarray]
    """Array name -> values `[rows of the unit, *shape]`; rows that are not usable are NaN or 0."""
    columns: pa.RecordBatch
    """`unit_columns(plan.columns)`, one line a row of the unit."""
    traceback: str | None = None
    """Of rows that failed."""


@dataclass(frozen=True)
class UnitOutcome:
    """How writing a unit went."""

    won: bool
    """Whether this attempt's bytes are the unit's; if not, another attempt was first."""
    bytes: int
    """Size of what was staged."""
    seconds: dict[str, float]
    """Wall time of the steps: stage (encode, hash, put), commit, publish."""


def write_unit(
    objects: Objects, plan: Plan, unit: int, generation: int, result: UnitResult, attempt: str
) -> UnitOutcome:
    """Stages, commits and publishes a unit; safe to run again and beside other attempts.

    Args:
        objects: The store.
        plan: Its newest plan.
        unit: Which unit.
        generation: As `progress` (or `retry_rows`, `repair`) says.
        result: Values of every row of the unit that holds a sample.
        attempt: Unique to this call; names its staging folder.
    """
    check_result(plan, unit, result)
    clock = [time.perf_counter()]
    previous = _before(objects, unit, generation) if generation else {}
    with ThreadPoolExecutor(4) as pool:
        note = None
        if result.traceback:
            key = keys.traceback_key(unit, generation, attempt)
            note = pool.submit(objects.put, key, result.traceback.encode())
        folder = keys.staging_folder(unit, generation, attempt)
        staged, pending, size = [], [], 0
        for spec in layout.row_arrays(plan):
            data = shards.encode_shard(spec, plan.unit_rows, result.arrays[spec.name])
            old = previous.get(spec.name)
            if old is not None and sha256(data) == old.sha256 and holds(objects, old):
                staged.append((spec, old.size, old.sha256, None))
                pending.append(None)
                continue
            key = f"{folder}/{spec.name}"
            pending.append(pool.submit(objects.put, key, data))
            staged.append((spec, len(data), sha256(data), key))
            size += len(data)
        etags = [None if put is None else put.result() for put in pending]
        if note is not None:
            note.result()
    made = tuple(
        ShardObject(spec.name, layout.shard_key(spec, unit), length, digest, key, etag)
        for (spec, length, digest, key), etag in zip(staged, etags)
    )
    clock.append(time.perf_counter())
    first, _ = plan.unit_range(unit)
    notes = {"stage_s": round(clock[1] - clock[0], 4)}
    commit = Commit(unit, generation, attempt, first, made, result.columns, notes)
    sealed = commit.encode()
    won = objects.create(keys.record_key(keys.COMMITS, unit, generation), sealed)
    clock.append(time.perf_counter())
    if won:
        _publish(objects, commit, since=clock[-1])
    else:
        publish_unit(objects, plan, unit, generation)
        objects.delete([o.staged for o in made if o.staged])
    clock.append(time.perf_counter())
    steps = {n: b - a for n, a, b in zip(("stage", "commit", "publish"), clock, clock[1:])}
    return UnitOutcome(won, size, steps)


def check_result(plan: Plan, unit: int, result: UnitResult) -> None:
    """Raises ValueError if a result is not the unit's, or has usable rows with NaN in them."""
    first, last = plan.unit_range(unit)
    wanted = {spec.name: spec for spec in layout.row_arrays(plan)}
    if result.arrays.keys() != wanted.keys():
        raise ValueError(
            f"unit {unit}: the plan's arrays are {sorted(wanted)}, got {sorted(result.arrays)}"
        )
    schema = unit_columns(plan.columns)
    if not result.columns.schema.equals(schema):
        raise ValueError(f"unit {unit}: columns are {result.columns.schema}, must be {schema}")
    if result.columns.num_rows != last - first:
        raise ValueError(
            f"unit {unit} has rows {first}:{last}, the columns have {result.columns.num_rows} lines"
        )
    usable = usable_rows(result.columns)
    for name, spec in wanted.items():
        values = result.arrays[name]
        if values.shape != (last - first, *spec.shape) or values.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f"unit {unit}: '{name}' is {values.dtype}{list(values.shape)}, must be "
                f"{spec.dtype}{[last - first, *spec.shape]}"
            )
        bad = np.flatnonzero(usable & rows_with_nan(values))
        if len(bad):
            who = result.columns["sample_id"][int(bad[0])].as_py()
            raise ValueError(
                f"unit {unit}: row {first + bad[0]} ('{who}') is usable but '{name}' has NaN "
                "in it; give such rows the status DIVERGED"
            )


def usable_rows(columns: pa.RecordBatch | pa.Table) -> np.ndarray:
    """Which rows have a usable status."""
    return np.isin(columns["status"].to_numpy(), [int(status) for status in USABLE])


def rows_with_nan(values: np.ndarray) -> np.ndarray:
    """Which rows hold a NaN; integers have none."""
    if values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    flat = values.reshape(len(values), -1)
    sums = flat.sum(axis=1, dtype=flat.dtype if flat.dtype.itemsize > 2 else np.float32)
    found = np.zeros(len(values), bool)
    for row in np.flatnonzero(~np.isfinite(sums)):  # a sum is finite only if there is no NaN
        found[row] = bool(np.isnan(flat[row]).any())
    return found


def _before(objects: Objects, unit: int, generation: int) -> dict[str, ShardObject]:
    """Shards of the published generation before this one that may stay; clears old staging.

    Staged objects of earlier generations go first: a publisher of one of them that was held up
    finds nothing to copy over this generation's shards.
    """
    for earlier in range(generation):
        folder = keys.staging_folder(unit, earlier)
        objects.delete([entry.key for entry in objects.list(folder)])
    wish = wish_for(objects, unit, generation)
    standing = standing_commit(objects, unit, generation)
    if wish is None or standing is None:
        return {}
    return {o.array: o for o in standing.objects if o.array not in wish.damaged}


def publish_unit(objects: Objects, plan: Plan, unit: int, generation: int) -> bool:
    """Copies a committed unit's objects to their final keys and marks it published; idempotent.

    Returns:
        False if a later generation of the unit is committed, whose objects then stand.

    Raises:
        StagingGone: There is nothing to copy and the final objects are not those committed.
    """
    commit = read_commit(objects, unit, generation)
    if commit is None:
        raise RuntimeError(
            f"{objects.location.url}: unit {unit} has no readable commit of generation "
            f"{generation}; run the same command again to fit it"
        )
    if is_published(objects, unit, generation):
        _clear(objects, commit)
        return True
    return _publish(objects, commit)


def _publish(objects: Objects, commit: Commit, since: float | None = None) -> bool:
    """Copies, checks, marks. `since`: when this process created the commit, on `perf_counter`."""
    unit, generation = commit.unit, commit.generation
    marker = keys.record_key(keys.PUBLISHED, unit, generation)
    fresh = since is not None and time.perf_counter() - since < FRESH_SECONDS
    if not fresh and superseded(objects, unit, generation):
        return False
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: _place(objects, unit, generation, each), commit.objects))
    if superseded(objects, unit, generation):
        _heal(objects, unit)
        return False
    note = seal(json.dumps({"unit": unit, "generation": generation}).encode())
    if not objects.create(marker, note) and not is_published(objects, unit, generation):
        objects.put(marker, note)  # a marker that was cut short
    _clear(objects, commit)
    return True


def superseded(objects: Objects, unit: int, generation: int) -> bool:
    """Whether a later generation of the unit has a record, readable or not."""
    return any(g > generation for g in generations(objects, keys.COMMITS, unit))


def _place(objects: Objects, unit: int, generation: int, each: ShardObject) -> None:
    """Brings one committed object to its final key and checks that it is there."""
    if each.staged is None:
        if objects.size(each.key) != each.size:
            raise StagingGone(_gone(objects, unit, generation, each))
        return
    try:
        objects.copy(each.staged, each.key)
    except FileNotFoundError:  # published by another, or staging was cleared
        if not holds(objects, each):
            raise StagingGone(_gone(objects, unit, generation, each)) from None
        return
    found = objects.entry(each.key)
    same = found is not None and found.size == each.size
    if same and each.etag is not None and found.etag != each.etag:
        same = holds(objects, each)  # some servers tag copies otherwise: compare all bytes
    if not same:
        raise RuntimeError(
            f"{objects.address(each.key)} differs from {each.staged} after it was copied from there"
        )


def holds(objects: Objects, each: ShardObject) -> bool:
    """Whether the final key has the committed bytes (reads them all)."""
    if objects.size(each.key) != each.size:
        return False
    return sha256(objects.get(each.key)) == each.sha256


def _gone(objects: Objects, unit: int, generation: int, each: ShardObject) -> str:
    return (
        f"{objects.location.url}: unit {unit} was committed (generation {generation}) but "
        f"{each.staged or each.key} is gone; run the same command again: it will be fitted anew"
    )


def _heal(objects: Objects, unit: int) -> None:
    """After copying too late over a newer generation: brings the newer one's objects back."""
    newest = max(generations(objects, keys.COMMITS, unit))
    commit = read_commit(objects, unit, newest)
    try:
        if commit is not None:
            for each in commit.objects:
                if not holds(objects, each):
                    _place(objects, unit, newest, each)
    except StagingGone:
        damaged = tuple(o.array for o in commit.objects)
        reopen(objects, unit, None, damaged, "overwritten by a late copy")


def _clear(objects: Objects, commit: Commit) -> None:
    """Removes what the published attempt staged."""
    staged = [each.staged for each in commit.objects if each.staged]
    if staged:
        objects.delete(staged)


def staged_complete(objects: Objects, commit: Commit) -> bool:
    """Whether everything a commit needs to be published can be found."""
    return all(
        (each.staged is not None and objects.size(each.staged) == each.size) or holds(objects, each)
        for each in commit.objects
    )


def spec_of(plan: Plan, name: str) -> ArraySpec:
    """The array of a plan."""
    for spec in plan.arrays:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in plan.arrays)
    raise ValueError(f"the store has no array '{name}'; it has {known}")
