"""Whole objects below one location: a small set of operations, alike on every backend."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PreconditionError,
)

from pipeline.storage.clients import obstore_client
from pipeline.storage.errors import StorageError, explain
from schemas.base import Location

Buffer = bytes | bytearray | memoryview

CREATE_ATTEMPTS = 4
"""How often a put-if-absent of unknown outcome is read back and sent again."""


@dataclass(frozen=True)
class Entry:
    """One listed object."""

    key: str
    """Relative to the location."""
    size: int
    """In bytes."""
    etag: str | None


class Objects:
    """Objects below one location (S3, memory). Keys are relative, with forward slashes.

    Deliberately small: what the store, the ingest and the driver need, on every backend alike. A
    missing object raises FileNotFoundError (or is None, False where so documented), all else that
    storage does wrong raises StorageError. Not picklable (it holds credentials): send the
    `Location` and open it where it is used.
    """

    def __init__(self, location: Location):
        self.location = location
        self.client, self.prefix = obstore_client(location)

    def __reduce__(self):
        raise TypeError("an open object store holds credentials; send its Location instead")

    def get(self, key: str) -> bytes:
        """The whole object."""
        with self._clear_errors("read", key):
            return bytes(obstore.get(self.client, self.prefix + key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of the object."""
        with self._clear_errors("read", key):
            return bytes(
                obstore.get_range(self.client, self.prefix + key, start=start, length=length)
            )

    def get_suffix(self, key: str, length: int) -> bytes:
        """The last `length` bytes of the object."""
        with self._clear_errors("read", key):
            result = obstore.get(
                self.client, self.prefix + key, options={"range": {"suffix": length}}
            )
            return bytes(result.bytes())

    def put(self, key: str, data: Buffer) -> str | None:
        """Writes or replaces; readers see the old or the new object, never a part.

        Returns:
            The entity tag, where the storage gives one.
        """
        with self._clear_errors("write", key):
            done = obstore.put(
                self.client, self.prefix + key, data, use_multipart=len(data) > 2**30
            )
        return done.get("e_tag")

    def create(self, key: str, data: bytes) -> bool:
        """Put-if-absent: whether the object is now the one given here.

        False if another was there first. A request whose answer was lost is read back and, if
        nothing is there, sent again: the outcome is never guessed. Equal bytes count as one's own,
        so whoever needs one winner puts something unique (an attempt id) into `data`.
        """
        for attempt in range(CREATE_ATTEMPTS):
            try:
                if self._put_new(key, data):
                    return True
            except FileNotFoundError:
                raise
            except StorageError:
                if attempt + 1 == CREATE_ATTEMPTS:
                    raise
                time.sleep(0.05 * 4**attempt)
            try:
                return self.get(key) == data
            except FileNotFoundError:
                continue
        raise StorageError(f"{self.address(key)}: whether it was created cannot be found out")

    def copy(self, source: str, target: str) -> None:
        """Server-side copy, replacing the target."""
        with self._clear_errors("copy", source):
            source, target = self.prefix + source, self.prefix + target
            obstore.copy(self.client, source, target, overwrite=True)

    def delete(self, keys: str | Sequence[str]) -> None:
        """Removes the objects; those that are not there are no error."""
        keys = [keys] if isinstance(keys, str) else list(keys)
        for start in range(0, len(keys), 1000):
            part = [self.prefix + key for key in keys[start : start + 1000]]
            with self._clear_errors("delete", keys[start]), contextlib.suppress(FileNotFoundError):
                obstore.delete(self.client, part[0] if len(part) == 1 else part)

    def entry(self, key: str) -> Entry | None:
        """Size and entity tag of the object, None if there is none."""
        try:
            with self._clear_errors("look up", key):
                head = obstore.head(self.client, self.prefix + key)
        except FileNotFoundError:
            return None
        return Entry(key, head["size"], head.get("e_tag"))

    def size(self, key: str) -> int | None:
        """Bytes of the object, None if there is none."""
        found = self.entry(key)
        return None if found is None else found.size

    def list(
        self, prefix: str = "", *, after: str | None = None, page: int = 1000
    ) -> Iterator[Entry]:
        """Entries below the folder `prefix` in the server's (mostly: key) order, page by page.

        Never from a cache. `after` is a key that an earlier listing gave.
        """
        with self._clear_errors("list", prefix):
            start = None if after is None else self.prefix + after
            top, cut = self.prefix + prefix, len(self.prefix)
            for batch in obstore.list(self.client, top or None, offset=start, chunk_size=page):
                for item in batch:
                    yield Entry(item["path"][cut:], item["size"], item.get("e_tag"))

    def check(self) -> None:
        """Contacts the storage once; raises StorageError if it cannot be read."""
        next(iter(self.list(page=1)), None)

    def tidy(self, older_than: float) -> None:
        """Removes what interrupted writes left behind longer than `older_than` seconds ago."""

    def zarr(self, *, read_only: bool = False) -> Any:
        """The zarr store (with its path) over the same client."""
        from zarr.storage import ObjectStore as ZarrStore
        from zarr.storage import StorePath

        return StorePath(ZarrStore(self.client, read_only=read_only), self.prefix.strip("/"))

    def address(self, key: str = "") -> str:
        """The URL of a key, for messages."""
        return f"{self.location.url.rstrip('/')}/{key}" if key else self.location.url

    def _put_new(self, key: str, data: bytes) -> bool:
        """One put-if-absent request: True, False (412: something is there) or StorageError."""
        try:
            with self._clear_errors("create", key):
                obstore.put(self.client, self.prefix + key, data, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    @contextlib.contextmanager
    def _clear_errors(self, action: str, key: str) -> Iterator[None]:
        """Turns the client's errors into FileNotFoundError or a one-line StorageError."""
        try:
            yield
        except (AlreadyExistsError, PreconditionError, StorageError):
            raise
        except (FileNotFoundError, NotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise StorageError(explain(self.location, action, key, error)) from None
            raise FileNotFoundError(f"{self.address(key)}: there is no such object") from None
        except (BaseError, OSError) as error:
            raise StorageError(explain(self.location, action, key, error)) from None
