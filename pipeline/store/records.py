"""Records of a store: what was committed, published, reopened and finished; each checks itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.storage import Buffer, Objects
from pipeline.store import keys


def sha256(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(data: bytes) -> bytes:
    """The bytes preceded by a line with their sha256."""
    return sha256(data).encode() + b"\n" + data


def unseal(sealed: bytes) -> bytes | None:
    """What was sealed; None if the record is cut short or damaged."""
    line, _, data = sealed.partition(b"\n")
    return data if line == sha256(data).encode() else None


@dataclass(frozen=True)
class ShardObject:
    """One array's shard of a unit."""

    array: str
    key: str
    """Where readers find it."""
    size: int
    """In bytes."""
    sha256: str
    staged: str | None
    """Where the attempt put it; None if the shard of the generation before was kept as it is."""
    etag: str | None = None
    """The server's entity tag of the staged object."""


@dataclass(frozen=True)
class Commit:
    """One unit of one generation: the truth about its rows if no higher one is readable."""

    unit: int
    generation: int
    attempt: str
    first_row: int
    objects: tuple[ShardObject, ...]
    columns: pa.RecordBatch
    """The small columns, one line a row of the unit."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Seconds of each step and the like; not part of any result."""
    digest: str = ""
    """sha256 of the record as it was read."""

    def encode(self) -> bytes:
        """A sealed line of JSON, then the columns as an Arrow stream."""
        head = {
            "unit": self.unit,
            "generation": self.generation,
            "attempt": self.attempt,
            "first_row": self.first_row,
            "objects": [asdict(o) for o in self.objects],
            "notes": self.notes,
        }
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.columns.schema) as writer:
            writer.write_batch(self.columns)
        return seal(json.dumps(head).encode() + b"\n" + sink.getvalue().to_pybytes())

    @classmethod
    def decode(cls, sealed: bytes) -> Commit | None:
        """The commit, or None if the record is not whole."""
        data = unseal(sealed)
        if data is None:
            return None
        line, _, stream = data.partition(b"\n")
        head = json.loads(line)
        with pa.ipc.open_stream(stream) as reader:
            (columns,) = list(reader)
        objects = tuple(ShardObject(**o) for o in head.pop("objects"))
        return cls(**head, objects=objects, columns=columns, digest=sha256(sealed))


def read_commit(objects: Objects, unit: int, generation: int) -> Commit | None:
    """The commit of a generation, None if there is none or it is damaged."""
    try:
        return Commit.decode(objects.get(keys.record_key(keys.COMMITS, unit, generation)))
    except FileNotFoundError:
        return None


def generations(objects: Objects, folder: str, unit: int) -> dict[int, int]:
    """Generations of a unit that have a record, readable or not, with its size in bytes."""
    found = objects.list(f"{folder}/{unit:08d}")
    return {keys.parse_record_key(entry.key)[1]: entry.size for entry in found}


def all_generations(objects: Objects, folder: str) -> dict[int, dict[int, int]]:
    """`generations` of every unit, by one listing."""
    found: dict[int, dict[int, int]] = {}
    for entry in objects.list(folder):
        unit, generation = keys.parse_record_key(entry.key)
        found.setdefault(unit, {})[generation] = entry.size
    return found


def is_published(objects: Objects, unit: int, generation: int) -> bool:
    """Whether the unit's published marker of this generation is there and whole."""
    try:
        return unseal(objects.get(keys.record_key(keys.PUBLISHED, unit, generation))) is not None
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Reopened:
    """Permission to fit a published unit again, as the next generation."""

    unit: int
    generation: int
    rows: tuple[int, ...] | None
    """Rows to fit; the others keep their bytes. None = all."""
    damaged: tuple[str, ...]
    """Arrays whose shard must be written even if the bytes come out as before."""
    reason: str
    retry: bool = False
    """Whether other results are wanted (retry), not the same once more (repair)."""

    def encode(self) -> bytes:
        return seal(json.dumps(asdict(self)).encode())

    @classmethod
    def decode(cls, sealed: bytes) -> Reopened | None:
        data = unseal(sealed)
        if data is None:
            return None
        value = json.loads(data)
        rows = value.pop("rows")
        return cls(
            **{**value, "damaged": tuple(value["damaged"])},
            rows=None if rows is None else tuple(rows),
        )


def read_reopened(objects: Objects, unit: int, generation: int) -> Reopened | None:
    try:
        return Reopened.decode(objects.get(keys.record_key(keys.REOPENED, unit, generation)))
    except FileNotFoundError:
        return None


def reopen(
    objects: Objects,
    unit: int,
    rows: Iterable[int] | None,
    damaged: tuple[str, ...],
    reason: str,
    *,
    retry: bool = False,
) -> int:
    """Lets a unit be fitted again; returns the generation. Reopening twice joins the two wishes."""
    top = max(generations(objects, keys.COMMITS, unit), default=-1)
    generation = max(top + 1, max(generations(objects, keys.REOPENED, unit), default=0))
    wish = Reopened(
        unit, generation, None if rows is None else tuple(sorted(set(rows))), damaged, reason, retry
    )
    key = keys.record_key(keys.REOPENED, unit, generation)
    if not objects.create(key, wish.encode()):
        standing = read_reopened(objects, unit, generation)
        if standing is not None:
            both = None
            if standing.rows is not None and wish.rows is not None:
                both = tuple(sorted({*standing.rows, *wish.rows}))
            arrays = tuple(sorted({*standing.damaged, *wish.damaged}))
            reasons = f"{standing.reason}; {reason}"
            again = standing.retry or wish.retry
            wish = Reopened(unit, generation, both, arrays, reasons, again)
        objects.put(key, wish.encode())
    return generation


def wish_for(objects: Objects, unit: int, generation: int) -> Reopened | None:
    """The wish that a generation of a unit fulfils; None if it fits all rows afresh.

    A wish lasts until a generation at or above its own is published: one that was committed and
    then lost what it had staged is followed by another with the same wish.
    """
    known = [g for g in generations(objects, keys.REOPENED, unit) if g <= generation]
    done = [g for g in generations(objects, keys.PUBLISHED, unit) if g < generation]
    if not known or max(done, default=-1) >= max(known):
        return None
    return read_reopened(objects, unit, max(known))


def standing_commit(objects: Objects, unit: int, generation: int) -> Commit | None:
    """The highest published, readable commit of a unit below a generation."""
    known = generations(objects, keys.PUBLISHED, unit)
    for earlier in sorted((g for g in known if g < generation), reverse=True):
        commit = read_commit(objects, unit, earlier)
        if commit is not None:
            return commit
    return None


@dataclass(frozen=True)
class FinalRecord:
    """A finished store: every object that a reader may rely on."""

    number: int
    plan: int
    """Number of the plan that was finished."""
    units: dict[int, int]
    """Unit -> generation."""
    commits: dict[int, str]
    """Unit -> sha256 of its commit record."""
    objects: dict[str, tuple[int, str]]
    """Key -> bytes and sha256 of arrays, `zarr.json` and the index."""
    rows: dict[str, int]
    """Rows by status."""

    @property
    def hash(self) -> str:
        return hash_of((key, digest) for key, (_, digest) in self.objects.items())

    def encode(self) -> bytes:
        return seal(json.dumps(asdict(self), sort_keys=True).encode())

    @classmethod
    def decode(cls, sealed: bytes) -> FinalRecord | None:
        data = unseal(sealed)
        if data is None:
            return None
        value = json.loads(data)
        for name in ("units", "commits"):
            value[name] = {int(unit): v for unit, v in value[name].items()}
        value["objects"] = {key: (size, digest) for key, (size, digest) in value["objects"].items()}
        return cls(**value)


def hash_of(pairs: Iterable[tuple[str, str]]) -> str:
    """The store hash: sha256 over sorted (key, sha256)."""
    return sha256("".join(f"{key} {digest}\n" for key, digest in sorted(pairs)).encode())


def latest_final(objects: Objects) -> tuple[FinalRecord | None, int]:
    """The highest final record that is whole, and the next free number."""
    numbers = sorted((int(e.key.rsplit("/", 1)[1]) for e in objects.list(keys.FINAL)), reverse=True)
    for number in numbers:
        try:
            record = FinalRecord.decode(objects.get(keys.final_key(number)))
        except FileNotFoundError:
            continue
        if record is not None:
            return record, numbers[0] + 1
    return None, numbers[0] + 1 if numbers else 0
