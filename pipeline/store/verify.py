"""Is every byte still what was published? And opening for repair what is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.storage import Objects
from pipeline.store import keys, layout, shards
from pipeline.store.create import load_numbered_plan, shared_hashes
from pipeline.store.finalize import finalize
from pipeline.store.records import (
    all_generations,
    generations,
    latest_final,
    read_commit,
    reopen,
    sha256,
)
from schemas.store import Plan


@dataclass(frozen=True)
class Damage:
    """One object that is not what was published."""

    key: str
    unit: int | None
    """The unit whose shard it is; None for metadata, columns, index and shared arrays."""
    array: str | None
    reason: str
    """Missing, wrong size, or wrong bytes."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    damaged: tuple[Damage, ...]
    objects: int
    """Objects that were looked at."""
    bytes: int
    """Bytes that were read and hashed."""
    full: bool
    notes: tuple[str, ...] = ()
    """States that are no damage, e.g. units that are being fitted again."""

    @property
    def ok(self) -> bool:
        return not self.damaged

    @property
    def units(self) -> list[int]:
        """Units with a damaged shard or record."""
        return sorted({d.unit for d in self.damaged if d.unit is not None})


@dataclass(frozen=True)
class _Expected:
    """Everything a store should hold."""

    plan: Plan
    units: dict[int, int]
    objects: dict[str, tuple[int, str]]
    notes: tuple[str, ...]


def verify(objects: Objects, full: bool = False, *, shard_bytes: bool = True) -> VerifyReport:
    """Compares a store with its records.

    Args:
        objects: The store, finished or not (then its published units).
        full: Read all bytes. Otherwise sizes (from one listing), and the bytes of all records,
            metadata and the index.
        shard_bytes: Of shards, too; without, somebody calls `verify_unit` for each unit.
    """
    expected = _expected(objects)
    sizes = {entry.key: entry.size for entry in objects.list()}
    owner = _owners(expected.plan)
    damaged, checked = [], 0
    to_read = []
    for key, (size, digest) in expected.objects.items():
        unit, array = owner(key)
        if key not in sizes:
            damaged.append(Damage(key, unit, array, "missing"))
        elif sizes[key] != size:
            damaged.append(Damage(key, unit, array, f"has {sizes[key]} bytes, must have {size}"))
        elif (
            (full and (shard_bytes or unit is None))
            or key.endswith("zarr.json")
            or key.startswith(keys.PRIVATE)
        ):
            to_read.append((key, size, digest))
    with ThreadPoolExecutor(8) as pool:
        same = pool.map(lambda item: _hashes_to(objects, item[0], item[2]), to_read)
        for (key, size, _), good in zip(to_read, same):
            checked += size
            if not good:
                damaged.append(Damage(key, *owner(key), "has other bytes"))
        items = sorted(expected.units.items())
        for (unit, generation), commit in zip(
            items, pool.map(lambda item: read_commit(objects, *item), items)
        ):
            if commit is None:
                key = keys.record_key(keys.COMMITS, unit, generation)
                damaged.append(Damage(key, unit, None, "commit record missing or damaged"))
    looked = len(expected.objects) + len(expected.units)
    return VerifyReport(tuple(damaged), looked, checked, full, expected.notes)


def verify_unit(objects: Objects, unit: int) -> VerifyReport:
    """Reads and hashes the shards of one unit: a task of `verify --full` on many machines."""
    published = max(generations(objects, keys.PUBLISHED, unit), default=-1)
    newest = max(generations(objects, keys.COMMITS, unit), default=-1)
    if published < 0 or newest > published:
        return VerifyReport((), 0, 0, True, (f"unit {unit} is not published",))
    commit = read_commit(objects, unit, published)
    if commit is None:
        key = keys.record_key(keys.COMMITS, unit, published)
        damage = Damage(key, unit, None, "commit record missing or damaged")
        return VerifyReport((damage,), 1, 0, True)
    damaged = []
    for each in commit.objects:
        size = objects.size(each.key)
        if size is None:
            damaged.append(Damage(each.key, unit, each.array, "missing"))
        elif not _hashes_to(objects, each.key, each.sha256):
            damaged.append(Damage(each.key, unit, each.array, "has other bytes"))
    read = sum(each.size for each in commit.objects)
    return VerifyReport(tuple(damaged), len(commit.objects) + 1, read, True)


@dataclass(frozen=True)
class Repair:
    """What `repair` did and what is left to do."""

    to_fit: list[tuple[int, int]]
    """(unit, generation) that must be fitted again; then finalize."""
    rewritten: list[str]
    """Keys written anew from the records."""
    lost: list[str]
    """Shared arrays: they cannot be made from the store; create it again with the same run."""


def repair(objects: Objects, report: VerifyReport) -> Repair:
    """Opens what a full report found damaged for one more generation; readable rows stay.

    Metadata, root columns and the index are written again from the records at once, or, if units
    have to be fitted, by the finalize that follows.
    """
    plan, _ = load_numbered_plan(objects)
    if plan is None:
        raise RuntimeError(f"{objects.location.url} holds no fieldmill store")
    to_fit = []
    for unit in report.units:
        mine = [d for d in report.damaged if d.unit == unit]
        if any(d.array is None for d in mine):  # without its record nothing is known of the unit
            names = tuple(spec.name for spec in layout.row_arrays(plan))
            generation = reopen(objects, unit, None, names, "repair: record damaged")
        else:
            rows, arrays = _damaged_rows(objects, plan, unit, mine)
            generation = reopen(objects, unit, rows, arrays, "repair: shard damaged")
        to_fit.append((unit, generation))
    others = [d.key for d in report.damaged if d.unit is None]
    lost = [key for key in others if key.startswith("shared/") and "/c" in key]
    rewritten = [key for key in others if key not in lost]
    if rewritten and not to_fit:
        finalize(objects, plan, force=True)
    return Repair(to_fit, rewritten, lost)


def _damaged_rows(
    objects: Objects, plan: Plan, unit: int, damages: list[Damage]
) -> tuple[list[int], tuple[str, ...]]:
    """Rows of a unit that cannot be read from its damaged shards; at least one if any is."""
    first, last = plan.unit_range(unit)
    rows: set[int] = set()
    arrays = []
    for spec in layout.row_arrays(plan):
        if any(d.array == spec.name for d in damages):
            arrays.append(spec.name)
            try:
                data = objects.get(layout.shard_key(spec, unit))
            except FileNotFoundError:
                data = b""
            bad = shards.damaged_rows(spec, plan.unit_rows, data)
            rows |= {int(first + row) for row in bad if first + row < last}
    return sorted(rows) or [first], tuple(arrays)  # e.g. only the index of the shard is damaged


def _hashes_to(objects: Objects, key: str, digest: str) -> bool:
    try:
        return sha256(objects.get(key)) == digest
    except FileNotFoundError:
        return False


def _expected(objects: Objects) -> _Expected:
    """From the final record; units fitted again since then, and unfinished stores, by commits."""
    plan, number = load_numbered_plan(objects)
    if plan is None:
        raise RuntimeError(f"{objects.location.url} holds no fieldmill store")
    final, _ = latest_final(objects)
    commits = all_generations(objects, keys.COMMITS)
    markers = all_generations(objects, keys.PUBLISHED)
    published = {unit: max(found) for unit, found in markers.items()}
    moving = [unit for unit, found in commits.items() if max(found) > published.get(unit, -1)]
    notes = []
    if moving:
        notes.append(f"units {sorted(moving)[:10]} are being written and were left out")
    if final is None:
        notes.append("the store is not finished: only its published units were compared")
        expected, changed = dict(shared_hashes(objects)), published
    else:
        if number != final.plan:
            notes.append("the store is growing: its new units were left out")
            plan, _ = load_numbered_plan(objects, final.plan)
            published = {unit: g for unit, g in published.items() if unit in final.units}
        expected = {**final.objects, keys.index_key(final.number): final.objects[keys.INDEX]}
        changed = {u: g for u, g in published.items() if final.units[u] != g}
        for unit in set(final.units) - set(published):
            notes.append(f"unit {unit} has lost its published marker; run the same command again")
    if final is not None and changed:
        notes.append(f"units {sorted(changed)[:10]} were fitted again: run the command to its end")
    for unit, generation in changed.items():
        commit = read_commit(objects, unit, generation)
        for each in commit.objects if commit else ():
            expected[each.key] = (each.size, each.sha256)
    for unit in moving:
        for spec in layout.row_arrays(plan):
            expected.pop(layout.shard_key(spec, unit), None)
    units = {unit: g for unit, g in published.items() if unit not in moving}
    return _Expected(plan, units, expected, tuple(notes))


def _owners(plan: Plan):
    """A function from a key to its unit and array (None, None if it is no shard)."""
    names = {spec.name for spec in layout.row_arrays(plan)}

    def owner(key: str) -> tuple[int | None, str | None]:
        name, separator, rest = key.partition("/c/")
        if separator and name in names:
            return int(rest.split("/")[0]), name
        return None, None

    return owner
