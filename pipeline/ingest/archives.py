"""Tar shards, streamed: WebDataset groups (a base name, several suffixes) and folder trees."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator

from pipeline.ingest.kinds import is_hidden, sample_suffixes, suffix
from pipeline.ingest.members import Member
from pipeline.ingest.sources import Source
from schemas.samples import Code

LABEL_KEYS = ("label", "cls", "class")
GROUP_BYTES = 2**30
"""A group of members that holds more is rejected instead of being held in memory."""


def tar_members(source: Source, key: str, prefix: str, kind: str) -> Iterator[Member]:
    """The samples of a tar file, in stored order.

    Consecutive members with one base name (up to the first dot of the file name) are a group; each
    of its files of the dataset's kind is a sample. `.cls` and `.json` members label the group.
    """
    group: dict[str, bytes] = {}
    base, last = None, "its start"
    seen: set[str] = set()
    suffixes = sample_suffixes(kind)
    with source.open(key) as handle:
        try:
            with tarfile.open(fileobj=handle, mode="r|*") as archive:
                for info in archive:
                    if not info.isfile():
                        continue
                    name = info.name.removeprefix("./")
                    if is_hidden(name):
                        yield Member(f"{prefix}::{name}", ignored="hidden")
                        continue
                    if _base(name) != base:
                        yield from _group_members(group, prefix, suffixes)
                        group, base = {}, _base(name)
                    if info.size + sum(map(len, group.values())) > GROUP_BYTES:
                        problem = (Code.TOO_LARGE, f"{info.size} bytes in one group of a tar file")
                        yield Member(f"{prefix}::{_unique(name, seen)}", problem=problem)
                        continue
                    member = archive.extractfile(info)
                    data = b"" if member is None else member.read()
                    if len(data) != info.size:
                        raise tarfile.ReadError("unexpected end of data")
                    name = _unique(name, seen)
                    group[name], last = data, name
            yield from _group_members(group, prefix, suffixes)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            yield from _group_members(group, prefix, suffixes)
            yield Member(
                prefix, problem=(Code.DECODE, f"the tar file is damaged after {last}: {error}")
            )


def _group_members(
    group: dict[str, bytes], prefix: str, suffixes: frozenset[str]
) -> Iterator[Member]:
    label = _label(group)
    samples = [name for name in group if suffix(name) in suffixes]
    for name, data in group.items():
        if name in samples:
            others = {n: d for n, d in group.items() if n not in samples} if len(group) > 1 else {}
            files = {name: data} | {n: d for n, d in others.items() if suffix(n) not in NOTES}
            yield Member(f"{prefix}::{name}", files, name, label=label)
        elif suffix(name) not in NOTES:
            kind = suffix(name) or "no suffix"
            yield Member(f"{prefix}::{name}", ignored=f"of another kind ({kind})")


NOTES = (".cls", ".json", ".txt")


def _base(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(group: dict[str, bytes]) -> str | None:
    for name, data in group.items():
        if suffix(name) == ".cls":
            return data.decode("utf-8", "replace").strip() or None
    for name, data in group.items():
        if suffix(name) == ".json":
            try:
                notes = json.loads(data)
            except ValueError:
                continue
            for key in LABEL_KEYS:
                if isinstance(notes, dict) and isinstance(notes.get(key), str | int):
                    return str(notes[key])
    return None


def _unique(name: str, seen: set[str]) -> str:
    """The name, numbered if the archive had it before."""
    stem, dot, last = name.rpartition(".")
    fresh, number = name, 2
    while fresh in seen:
        fresh = f"{stem}@{number}{dot}{last}" if stem else f"{name}@{number}"
        number += 1
    seen.add(fresh)
    return fresh
