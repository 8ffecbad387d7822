"""Where samples are read from: a folder, an object store, an HTTP server, all alike."""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import le
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import obstore
from obstore.exceptions import BaseError, InvalidPathError, NotFoundError, PermissionDeniedError

from pipeline.storage import StorageError, explain, fsspec_client, local_folder, obstore_client
from schemas.base import Location

ALONE = 16
"""Pages of a bucket that are listed one after the other, before several listings run at once."""
LISTERS = 4
"""Parallel listings of one bucket: each holds a page or two in memory."""
HTTP_ATTEMPTS = 3
READ_BYTES = 4 * 2**20
"""Bytes of one request when an object is read from front to back."""
SKIPS = 32
"""Requests spent on finding prefixes that can be listed in parallel."""
LAST = "\U0010ffff"


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


class FolderSource(Source):
    """A local folder; symbolic links are followed, loops of them are cut."""

    def __init__(self, location: Location):
        self.location = location
        self.root = str(local_folder(location))

    def list(self, page: int) -> Iterator[list[Found]]:
        found = []
        for item in self._walk(self.root, "", ()):
            found.append(item)
            if len(found) >= page:
                yield found
                found = []
        if found:
            yield found

    def _walk(self, folder: str, prefix: str, above: tuple) -> Iterator[Found]:
        info = os.stat(folder)
        above = (*above, (info.st_dev, info.st_ino))
        with os.scandir(folder) as items:
            for item in items:
                name = item.name
                try:
                    key = prefix + name
                    key.encode()
                except UnicodeEncodeError:
                    key = os.fsencode(prefix + name).decode("utf-8", "backslashreplace")
                    yield Found(key, 0, None, "the file name is not UTF-8")
                    continue
                try:
                    if item.is_dir():
                        inner = item.stat()
                        if (inner.st_dev, inner.st_ino) not in above:
                            yield from self._walk(item.path, key + "/", above)
                    elif item.is_file():
                        yield Found(key, item.stat().st_size, file_etag(item.stat()))
                    else:
                        yield Found(key, 0, None, _special(item))
                except OSError as error:
                    yield Found(key, 0, None, error.strerror or str(error))

    def _path(self, key: str) -> str:
        path = posixpath.normpath(posixpath.join(self.root, key))
        if not path.startswith(self.root.rstrip("/") + "/"):
            raise PermissionError(f"'{key}' leaves {self.root}")
        return path

    def read(self, key: str) -> tuple[bytes, Found]:
        with open(self._path(key), "rb") as file:
            info = os.fstat(file.fileno())
            return file.read(), Found(key, info.st_size, file_etag(info))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with open(self._path(key), "rb") as file:
            file.seek(start)
            return file.read(length)

    def stat(self, key: str) -> Found | None:
        try:
            info = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Found(key, info.st_size, file_etag(info)) if not _is_dir(info) else None

    def open(self, key: str) -> BinaryIO:
        return open(self._path(key), "rb")


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


class HttpSource(Source):
    """Files on a web server: cannot be listed, only read by name."""

    def __init__(self, location: Location):
        self.location = location
        self.root = location.url.rstrip("/") + "/"
        self.files, _ = fsspec_client(location)

    def _url(self, key: str) -> str:
        url = urljoin(self.root, key)
        if not url.startswith(self.root):
            raise PermissionError(f"'{key}' leaves {self.root}")
        return url

    def list(self, page: int) -> Iterator[list[Found]]:
        raise ValueError(
            f"{self.root} cannot be listed: over http give the URL of one container "
            "(.tar, .parquet, .npz, ...) or of a table of URIs (.csv, .parquet)"
        )

    def read(self, key: str) -> tuple[bytes, Found]:
        data = self._asked("read", key, lambda url: self.files.cat_file(url))
        return data, Found(key, len(data), None)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        data = self._asked(
            "read", key, lambda url: self.files.cat_file(url, start=start, end=start + length)
        )
        # a server that does not know ranges answers with the whole file
        return data if len(data) <= length else data[start : start + length]

    def stat(self, key: str) -> Found | None:
        try:
            info = self._asked("look up", key, self.files.info)
        except FileNotFoundError:
            return None
        size = info.get("size")
        return Found(key, -1 if size is None else size, info.get("ETag"))

    def open(self, key: str) -> BinaryIO:
        return self._asked("read", key, lambda url: self.files.open(url, "rb"))

    def _asked(self, action: str, key: str, request: Callable[[str], Any]) -> Any:
        """The answer of the server; what may pass is asked again, twice."""
        url = self._url(key)
        for attempt in range(HTTP_ATTEMPTS):
            try:
                return request(url)
            except FileNotFoundError:
                raise
            except (OSError, ValueError, TimeoutError, *_http_errors()) as error:
                status = getattr(error, "status", None)
                if status in (401, 403):
                    raise PermissionError(f"access to '{key}' is denied ({status})") from error
                if status is not None and 400 <= status < 500 and status not in (408, 429):
                    raise FileNotFoundError(f"the server refuses '{key}' ({status})") from error
                if attempt + 1 == HTTP_ATTEMPTS:
                    text = str(error).split("\n")[0][:300] or type(error).__name__
                    raise StorageError(f"cannot {action} {url}: {text}") from error
                time.sleep(0.2 * 5**attempt)
        raise AssertionError("unreachable")


def _http_errors() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError

    return (ClientError,)


def open_source(location: Location) -> Source:
    """The source of a URL that is a folder or prefix; one of a missing folder is an error."""
    if location.scheme == "file":
        source = FolderSource(location)
        if not os.path.isdir(source.root):
            raise FileNotFoundError(f"dataset {location.url}: there is no folder {source.root}")
        return source
    if location.scheme in ("http", "https"):
        return HttpSource(location)
    return ObjectSource(location)


def open_uri(base: Location, uri: str) -> tuple[Location, str]:
    """Location and key of a URI of a table: absolute, or relative to `base`."""
    if "://" not in uri and not uri.startswith("/"):
        name, url = posixpath.normpath(uri), base.url.rstrip("/")
        while name.startswith("../"):
            name, url = name[3:], url.rpartition("/")[0]
            if not url or url.endswith("/"):
                raise ValueError(f"'{uri}' leads out of {base.url}")
        return (base if url == base.url.rstrip("/") else base.model_copy(update={"url": url})), name
    scheme = urlsplit(uri).scheme or "file"
    folder, _, name = uri.rpartition("/")
    if scheme in ("s3", "memory"):
        bucket, _, key = uri.partition("://")[2].partition("/")
        folder, name = f"{scheme}://{bucket}", key
    fields = {**base.location_fields(), "url": folder or "/"}
    if scheme != base.scheme:
        fields |= {"endpoint": None, "region": None, "profile": None, "anonymous": False}
    return Location(**fields), name


def file_etag(info: os.stat_result) -> str:
    """Changes with the bytes of a local file, as far as its time and size show."""
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _special(item: os.DirEntry) -> str:
    return "the link leads nowhere" if item.is_symlink() else "not a regular file"


def _is_dir(info: os.stat_result) -> bool:
    return (info.st_mode & 0o170000) == 0o040000


def _is_odd(key: str) -> bool:
    return any(part in ("", ".", "..") for part in key.split("/"))
