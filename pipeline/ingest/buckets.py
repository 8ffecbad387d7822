"""Samples in a bucket (S3, or this process's memory): paged, parallel listing and reading."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import threading
from collections.abc import Iterator
from operator import le
from typing import BinaryIO

import obstore
from obstore.exceptions import BaseError, InvalidPathError, NotFoundError, PermissionDeniedError

from pipeline.ingest.sources import Found, Source
from pipeline.storage import StorageError, explain, fsspec_client, obstore_client
from schemas.base import Location

ALONE = 16
"""Pages of a bucket that are listed one after the other, before several listings run at once."""
LISTERS = 4
"""Parallel listings of one bucket: each holds a page or two in memory."""
READ_BYTES = 4 * 2**20
"""Bytes of one request when an object is read from front to back."""
SKIPS = 32
"""Requests spent on finding prefixes that can be listed in parallel."""
LAST = "\U0010ffff"


class ObjectSource(Source):
    """A bucket prefix (or an in-memory store) through obstore.

    obstore refuses keys with empty or dot segments (`a//b`, `a/../b`), also while listing; S3
    allows them. Such a listing goes on, and such keys are read, through s3fs's plain calls.
    """

    def __init__(self, location: Location):
        self.location = location
        self.client, self.prefix = obstore_client(location)

    def list(self, page: int) -> Iterator[list[Found]]:
        last, ordered, pages = "", True, self._range(None, None, page)
        for number, found in enumerate(pages, 1):
            keys = [last, *(item.key for item in found)]
            ordered = ordered and all(map(le, keys, keys[1:]))
            last = keys[-1]
            yield found
            # most listings are short: no threads for them; nor where keys come unordered
            if number >= ALONE and ordered and self.location.scheme == "s3":
                pages.close()
                yield from self._parallel(self._bounds(last, page), page)
                return

    def _parallel(self, bounds: list[tuple], page: int) -> Iterator[list[Found]]:
        """The ranges of keys, several at a time."""
        todo: queue.SimpleQueue = queue.SimpleQueue()
        for bound in bounds:
            todo.put(bound)
        done: queue.Queue = queue.Queue(maxsize=LISTERS)
        stop = threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    for found in self._range(*todo.get_nowait(), page):
                        done.put(found)
                        if stop.is_set():
                            break
            except queue.Empty:
                done.put(None)
            except BaseException as error:
                done.put(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(LISTERS)]
        for thread in threads:
            thread.start()
        alive = len(threads)
        try:
            while alive:
                item = done.get()
                if isinstance(item, BaseException):
                    raise item
                alive -= item is None
                if item is not None:
                    yield item
        finally:
            stop.set()
            while any(thread.is_alive() for thread in threads):
                try:
                    done.get(timeout=0.05)
                except queue.Empty:
                    continue

    def _bounds(self, after: str | None, page: int) -> list[tuple[str | None, str | None]]:
        """Key ranges (after, up to) from `after` on: the folders that a few requests find."""
        bounds: list[tuple[str | None, str | None]] = []
        for _ in range(SKIPS):
            found = next(self._range(after, None, page), [])
            if len(found) < page:
                break
            head, slash, _ = found[-1].key.partition("/")
            upto = head + slash + LAST if slash else found[-1].key
            bounds.append((after, upto))
            after = upto
        return [*bounds, (after, None)]

    def _range(self, after: str | None, upto: str | None, page: int) -> Iterator[list[Found]]:
        start = None if after is None else self.prefix + after
        cut = len(self.prefix)
        try:
            for batch in obstore.list(
                self.client, self.prefix or None, offset=start, chunk_size=page
            ):
                items = [Found(m["path"][cut:], m["size"], m.get("e_tag")) for m in batch]
                found = [f for f in items if upto is None or f.key <= upto]
                if found:
                    yield found
                    after = found[-1].key
                if len(found) < len(items):
                    return
        except InvalidPathError:
            yield from self._plain_range(after, upto, page)
        except (BaseError, OSError) as error:
            raise StorageError(explain(self.location, "list", "", error)) from None

    def _plain_range(self, after: str | None, upto: str | None, page: int) -> Iterator[list[Found]]:
        filesystem, path = fsspec_client(self.location)
        bucket, _, prefix = path.partition("/")
        prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
        options = {"StartAfter": prefix + after} if after else {}
        while True:
            answer = filesystem.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=min(page, 1000), **options
            )
            items = [
                Found(item["Key"][len(prefix) :], item["Size"], item.get("ETag"))
                for item in answer.get("Contents", ())
                if not item["Key"].endswith("/")
            ]
            found = [f for f in items if upto is None or f.key <= upto]
            if found:
                yield found
            if len(found) < len(items) or not answer.get("IsTruncated"):
                return
            options = {"ContinuationToken": answer["NextContinuationToken"]}

    def read(self, key: str) -> tuple[bytes, Found]:
        if _is_odd(key):
            return self._read_odd(key)
        with self._clear_errors("read", key):
            answer = obstore.get(self.client, self.prefix + key)
            meta = answer.meta
            return bytes(answer.bytes()), Found(key, meta["size"], meta.get("e_tag"))

    @contextlib.contextmanager
    def _clear_errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise StorageError(explain(self.location, action, key, error)) from None
            raise FileNotFoundError(f"there is no object '{key}'") from None
        except PermissionDeniedError as error:
            raise PermissionError(f"access to '{key}' is denied") from error
        except (BaseError, OSError) as error:
            raise StorageError(explain(self.location, action, key, error)) from None

    def _read_odd(self, key: str) -> tuple[bytes, Found]:
        filesystem, path = fsspec_client(self.location)
        bucket, _, prefix = path.partition("/")
        full = prefix.rstrip("/") + "/" + key if prefix.strip("/") else key
        found = filesystem.call_s3("head_object", Bucket=bucket, Key=full)
        data = filesystem.cat_file(f"{bucket}/{full}")
        return data, Found(key, found["ContentLength"], found.get("ETag"))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self._clear_errors("read", key):
            data = obstore.get_range(self.client, self.prefix + key, start=start, length=length)
            return bytes(data)

    def stat(self, key: str) -> Found | None:
        try:
            with self._clear_errors("look up", key):
                meta = obstore.head(self.client, self.prefix + key)
        except FileNotFoundError:
            return None
        return Found(key, meta["size"], meta.get("e_tag"))

    def open(self, key: str) -> BinaryIO:
        found = self.stat(key)
        if found is None:
            raise FileNotFoundError(f"there is no object '{key}'")
        return io.BufferedReader(_RangeFile(self, key, found.size), READ_BYTES)


class _RangeFile(io.RawIOBase):
    """An object as a seekable file; every read is one ranged request."""

    def __init__(self, source: Source, key: str, size: int):
        self.source, self.key, self.size, self.at = source, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self.size - self.at))
        if count:
            data = self.source.read_range(self.key, self.at, count)
            buffer[: len(data)] = data
            count = len(data)
        self.at += count
        return count


def _is_odd(key: str) -> bool:
    return any(part in ("", ".", "..") for part in key.split("/"))
