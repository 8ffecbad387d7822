"""One sample on its way to a decoder: its bytes, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

from schemas.samples import Code


@dataclass
class Member:
    """A sample's bytes with what its container or table knows of it."""

    sample_id: str
    files: dict[str, bytes] = field(default_factory=dict)
    """File name -> bytes; `main` is the one that is decoded, the others are those it refers to."""
    main: str = ""
    array: tuple[tuple[int, ...], str] | None = None
    """Shape and dtype when the bytes are a raw array."""
    label: str | None = None
    split: str | None = None
    keys: tuple[str, ...] = ()
    """Objects that were read."""
    problem: tuple[Code, str] | None = None
    """Why the sample cannot be decoded; it is rejected without being tried."""
    ignored: str | None = None
    """Why this member is no sample (of another kind)."""

    @property
    def size(self) -> int:
        return sum(len(data) for data in self.files.values())

    @cached_property
    def hash(self) -> str | None:
        """sha256 of the source bytes: of the file, or of several, or of an array with its shape."""
        if not self.files:
            return None
        if self.array is None and len(self.files) == 1:
            return sha256(next(iter(self.files.values()))).hexdigest()
        whole = sha256(repr(self.array).encode())
        for digest in sorted(_digests(self.files.values())):
            whole.update(digest)
        return whole.hexdigest()


def _digests(files: Iterable[bytes]) -> list[bytes]:
    return [sha256(data).digest() for data in files]
