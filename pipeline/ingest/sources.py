"""Where samples are read from: the interface that all sources share, and local folders."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit

from pipeline.storage import local_folder
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


def open_source(location: Location) -> Source:
    """The source of a URL that is a folder or prefix; one of a missing folder is an error."""
    if location.scheme == "file":
        source = FolderSource(location)
        if not os.path.isdir(source.root):
            raise FileNotFoundError(f"dataset {location.url}: there is no folder {source.root}")
        return source
    if location.scheme in ("http", "https"):
        from pipeline.ingest.web import HttpSource

        return HttpSource(location)
    from pipeline.ingest.buckets import ObjectSource

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
