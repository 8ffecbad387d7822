"""Where samples are read from: the interface that all sources share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from schemas.base import Location


@dataclass(frozen=True, slots=True)
class Found:
    """One listed object."""

    key: str
    """Relative to the source, with forward slashes."""
    size: int
    """In bytes; -1 = unknown."""
    etag: str | None
    """Changes when the object does."""
    problem: str | None = None
    """Why the object cannot be read, where listing already shows it."""


class Source:
    """Objects below one URL. Reading never follows a key out of it.

    Sources of one location are equal, so that what was read from one may be kept for the next.
    """

    location: Location

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.location == other.location

    def __hash__(self) -> int:
        return hash(self.location)

    def list(self, page: int) -> Iterator[list[Found]]:
        """All objects, page by page, in no particular order."""
        raise NotImplementedError

    def read(self, key: str) -> tuple[bytes, Found]:
        """The whole object and what it is now; FileNotFoundError, PermissionError."""
        raise NotImplementedError

    def read_range(self, key: str, start: int, length: int) -> bytes:
        raise NotImplementedError

    def stat(self, key: str) -> Found | None:
        """What the object is now, None if there is none."""
        raise NotImplementedError

    def open(self, key: str) -> BinaryIO:
        """A seekable file that reads by range."""
        raise NotImplementedError
