"""Reads the objects of a unit's entries ahead of decoding, and checks them against the listing."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.ingest.containers import container_members
from pipeline.ingest.kinds import is_chosen, sample_suffixes, suffix
from pipeline.ingest.members import Member
from pipeline.ingest.target import Target
from pipeline.storage import StorageError
from schemas.run import CommonIngest, Dataset
from schemas.samples import Code

THREADS = 8
AHEAD = 32
"""Entries read ahead, at most."""
AHEAD_BYTES = 64 * 2**20
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of reading a file that are not the file's fault."""
NESTING = 2
"""Files named by a file that a sample names are read too (OBJ -> MTL -> picture), no further."""


def unit_members(
    entries: list[dict[str, Any]], target: Target, dataset: Dataset, ingest: CommonIngest
) -> Iterator[Member]:
    """The samples of a unit's entries, in the frozen order, read ahead in threads."""
    todo = deque(entries)
    ahead: deque[tuple[dict, Future | None]] = deque()
    held = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="ingest-read") as pool:
        try:
            while todo or ahead:
                while todo and len(ahead) < AHEAD and (held < AHEAD_BYTES or not ahead):
                    entry = todo.popleft()
                    single = entry["type"] == "file"
                    future = (
                        pool.submit(read_entry, entry, target, dataset, ingest) if single else None
                    )
                    ahead.append((entry, future))
                    held += _size(entry) if single else 0
                entry, future = ahead.popleft()
                if future is None:
                    yield from _members(entry, target, dataset)
                else:
                    held -= _size(entry)
                    yield future.result()
        finally:
            for _, future in ahead:
                if future is not None:
                    future.cancel()


def read_entry(
    entry: dict[str, Any], target: Target, dataset: Dataset, ingest: CommonIngest
) -> Member:
    """One sample of one or several objects, with the files that they refer to."""
    member = Member(
        entry["sample_id"], label=entry["label"], split=entry["split"], keys=tuple(entry["keys"])
    )
    if entry["status"]:
        member.problem = (Code(entry["code"]), entry["message"])
        return member
    total, limit = sum(max(size, 0) for size in entry["sizes"]), ingest.max_bytes
    if total > limit:
        member.problem = (Code.TOO_LARGE, f"{total} bytes; ingest.max_bytes is {limit}")
        return member
    sources = {}
    for key, size, etag in zip(entry["keys"], entry["sizes"], entry["etags"]):
        try:
            source, name = target.resolve(key, entry["uri"])
            data, now = source.read(name)
        except (OSError, ValueError) as error:
            member.problem = unreadable(error, key)
            return member
        sources[name] = source
        if (size >= 0 and now.size != size) or (etag and now.etag != etag):
            member.problem = (
                Code.INPUT_CHANGED,
                f"'{key}' has changed since it was listed ({size} bytes then, {now.size} now)",
            )
            return member
        if len(data) > limit:
            member.problem = (Code.TOO_LARGE, f"{len(data)} bytes; ingest.max_bytes is {limit}")
            return member
        member.files[name] = data
    suffixes = sample_suffixes(dataset.kind)
    mains = [name for name in sorted(member.files) if suffix(name) in suffixes]
    if not mains and len(member.files) > 1:
        member.problem = (Code.DECODE, f"none of {len(member.files)} objects is a sample's file")
        return member
    member.main = mains[0] if mains else next(iter(member.files))
    if dataset.kind != "images":
        _add_siblings(member, sources[member.main].read, limit)
    return member


def unreadable(error: OSError | ValueError, key: str) -> tuple[Code, str]:
    """Why one object cannot be read; raises StorageError where the fault is the machine's."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Code.INPUT_MISSING, f"there is no object '{key}'"
    if isinstance(error, OSError) and error.errno in MACHINE:
        raise StorageError(f"reading '{key}': {error.strerror}") from error
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Code.INPUT_MISSING, words


def _add_siblings(member: Member, read: Callable, limit: int) -> None:
    """Reads the files that a mesh names, inside the dataset only; missing ones are left out."""
    from pipeline.ingest.meshes import siblings

    fresh = dict(member.files)
    for _ in range(NESTING):
        try:
            named = [name for key, data in fresh.items() for name in siblings(key, data)]
        except Exception:  # the decoder reads the same bytes, guarded, and says what is wrong
            return
        fresh = {}
        for name in dict.fromkeys(named):
            if name in member.files:
                continue
            try:
                fresh[name] = read(name)[0]
            except (OSError, ValueError) as error:
                unreadable(error, name)
                continue
            member.keys = (*member.keys, name)
        member.files |= fresh
        if member.size > limit:
            member.problem = (
                Code.TOO_LARGE,
                f"{member.size} bytes with the files it names; ingest.max_bytes is {limit}",
            )
            return


def _members(entry: dict[str, Any], target: Target, dataset: Dataset) -> Iterator[Member]:
    """Members of a container's range; a container that cannot be read is one rejected sample."""
    prefix, seen = entry["sample_id"], 0
    why, source, key = _container(entry, target)
    if why is None:
        start, stop = entry["start"], entry["stop"]
        members = container_members(source, key, entry["type"], start, stop, prefix, dataset)
        while True:
            try:
                member = next(members, None)
            except StorageError:
                raise
            except Exception as error:  # whatever a format's library raises for broken bytes
                why = (Code.DECODE, f"{type(error).__name__} after {seen} samples: {error}"[:500])
                break
            if member is None:
                return
            seen += 1
            member.label = member.label or entry["label"]
            member.split = member.split or entry["split"]
            member.keys = tuple(entry["keys"])
            if member.ignored is None and not is_chosen(
                member.sample_id, dataset.include, dataset.exclude
            ):
                member.ignored, member.files = "not chosen by include and exclude", {}
            yield member
    last = entry["stop"] - 1
    ranged = entry["start"] or (entry["stop"] > 1 and entry["type"] != "tar")
    name = f"{prefix}#{entry['start']:06d}-{last:06d}" if ranged else prefix
    yield Member(name, keys=tuple(entry["keys"]), problem=why)


def _container(entry: dict[str, Any], target: Target) -> tuple[Any, Any, str]:
    """Why a container is not to be read (or None), and where it is."""
    key = entry["keys"][0]
    if entry["status"]:
        return (Code(entry["code"]), entry["message"]), None, key
    size, etag = entry["sizes"][0], entry["etags"][0]
    try:
        source, name = target.resolve(key, entry["uri"])
        now = source.stat(name)
    except (OSError, ValueError) as error:
        return unreadable(error, key), None, key
    if now is None:
        return (Code.INPUT_MISSING, f"there is no object '{key}'"), source, name
    if (size >= 0 and now.size >= 0 and now.size != size) or (etag and now.etag != etag):
        return (Code.INPUT_CHANGED, f"'{key}' has changed since it was listed"), source, name
    return None, source, name


def _size(entry: dict[str, Any]) -> int:
    return sum(max(size, 0) for size in entry["sizes"])
