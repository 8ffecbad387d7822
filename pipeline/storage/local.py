"""Objects in a folder of a file system."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.storage.clients import local_folder
from pipeline.storage.errors import StorageError
from pipeline.storage.objects import Buffer, Entry, Objects
from schemas.base import Location


class LocalObjects(Objects):
    """Objects in a folder. Writes go to a hidden file that is then renamed or linked into place.

    Names that begin with a dot are not objects: they are not listed.
    """

    def __init__(self, location: Location):
        self.location = location
        self.folder = local_folder(location)

    def get(self, key: str) -> bytes:
        with self._clear_errors("read", key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._clear_errors("read", key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def get_suffix(self, key: str, length: int) -> bytes:
        with self._clear_errors("read", key), self._path(key).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - length))
            return file.read()

    def put(self, key: str, data: Buffer) -> str | None:
        with self._clear_errors("write", key), self._new_file(key) as partial:
            _write(partial, data)
            os.replace(partial, self._path(key))
        return None

    def copy(self, source: str, target: str) -> None:
        """A hard link where the file system has them: objects are replaced, never changed."""
        with self._clear_errors("copy", source), self._new_file(target) as partial:
            try:
                os.link(self._path(source), partial)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                _write(partial, self._path(source).read_bytes())
            os.replace(partial, self._path(target))

    def delete(self, keys: str | Sequence[str]) -> None:
        for key in [keys] if isinstance(keys, str) else keys:
            with self._clear_errors("delete", key):
                path = self._path(key)
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # folders are no objects: leave no empty ones
                    while (path := path.parent) != self.folder:
                        path.rmdir()

    def entry(self, key: str) -> Entry | None:
        with self._clear_errors("look up", key):
            path = self._path(key)
            return Entry(key, path.stat().st_size, None) if path.is_file() else None

    def list(
        self, prefix: str = "", *, after: str | None = None, page: int = 1000
    ) -> Iterator[Entry]:
        with self._clear_errors("list", prefix):
            if not prefix and not self.folder.is_dir():
                raise StorageError(f"{self.folder}: there is no such folder")
            top = self._path(prefix) if prefix else self.folder
            if top.is_dir():
                yield from _walk(top, prefix.strip("/") + "/" if prefix else "", after or "", ())

    def tidy(self, older_than: float) -> None:
        limit = time.time() - older_than
        for path in self.folder.rglob(".*.partial"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()

    def zarr(self, *, read_only: bool = False) -> Any:
        from zarr.storage import LocalStore, StorePath

        return StorePath(LocalStore(self.folder, read_only=read_only))

    def _put_new(self, key: str, data: bytes) -> bool:
        with self._clear_errors("create", key), self._new_file(key) as partial:
            _write(partial, data)
            try:
                os.link(partial, self._path(key))
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                try:  # the name is taken at once; a record cut short does not match its checksum
                    with self._path(key).open("xb") as file:
                        file.write(data)
                except FileExistsError:
                    return False
        return True

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if key.startswith("/") or ".." in parts or "\0" in key:
            raise ValueError(f"key '{key}' leaves the folder {self.folder}")
        return self.folder.joinpath(*parts)

    @contextlib.contextmanager
    def _new_file(self, key: str) -> Iterator[Path]:
        """A hidden name beside the key's file, gone afterwards."""
        path = self._path(key)
        partial = path.with_name(f".{secrets.token_hex(8)}.partial")
        for _ in range(10):  # another process may remove the folder while it is empty
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                partial.touch(exist_ok=False)
                partial.unlink()
                break
        try:
            yield partial
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()


NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


def _write(path: Path, data: Buffer) -> None:
    with path.open("xb", buffering=0) as file:
        view = memoryview(data).cast("B")
        while view:
            view = view[file.write(view) :]


def _walk(folder: Path, prefix: str, after: str, above: tuple[str, ...]) -> Iterator[Entry]:
    """Files below a folder in key order; a link to a folder above itself is not followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    names = []
    with os.scandir(folder) as found:
        for item in found:
            if not item.name.startswith("."):
                names.append(item.name + "/" if item.is_dir() else item.name)
    names.sort()
    for name in names:
        key = prefix + name
        if name.endswith("/"):
            if key > after or after.startswith(key):
                yield from _walk(folder / name[:-1], key, after, (*above, here))
        elif key > after:
            with contextlib.suppress(FileNotFoundError):  # removed since, or a dangling link
                yield Entry(key, os.stat(folder / name).st_size, None)
