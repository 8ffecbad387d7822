"""Samples on a web server: single files and containers, read by name."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO
from urllib.parse import urljoin

from pipeline.ingest.sources import Found, Source
from pipeline.storage import StorageError, fsspec_client
from schemas.base import Location

HTTP_ATTEMPTS = 3
READ_BYTES = 2**16


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
        file = self._asked("read", key, lambda url: self.files.open(url, "rb"))
        return io.BufferedReader(_Remote(file, self._url(key)), READ_BYTES)

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


class _Remote(io.RawIOBase):
    """An open file of a server: a connection that breaks is no damage of the file."""

    def __init__(self, file: Any, url: str):
        self.file, self.url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self.file.read(len(buffer))
        except (OSError, *_http_errors()) as error:
            text = str(error).split("\n")[0][:300] or type(error).__name__
            raise StorageError(f"cannot read {self.url}: {text}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def _http_errors() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError

    return (ClientError,)
