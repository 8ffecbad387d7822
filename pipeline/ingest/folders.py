"""Samples in local folders."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.ingest.sources import Found, Source
from pipeline.storage import local_folder
from schemas.base import Location


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


def file_etag(info: os.stat_result) -> str:
    """Changes with the bytes of a local file, as far as its time and size show."""
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _special(item: os.DirEntry) -> str:
    return "the link leads nowhere" if item.is_symlink() else "not a regular file"


def _is_dir(info: os.stat_result) -> bool:
    return (info.st_mode & 0o170000) == 0o040000
