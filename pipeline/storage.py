"""One description of an object store, opened as obstore or fsspec clients with the same credentials."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, MemoryStore, ObjectStore, S3Store

from schemas.base import Location

_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One listed object."""

    key: str
    """Relative to the location."""
    size: int
    """In bytes."""
    etag: str | None


class Objects:
    """Objects below one location. Keys are relative, with forward slashes.

    Deliberately small: what the store, the ingest and the driver need, on every backend alike.
    Not picklable (it holds credentials): send the `Location` and open it where it is used.
    """

    def __init__(self, location: Location):
        self.location = location
        self.client = obstore_client(location)

    def __reduce__(self):
        raise TypeError("an open object store holds credentials; send its Location instead")

    def get(self, key: str) -> bytes:
        """The whole object; raises FileNotFoundError."""
        return bytes(obstore.get(self.client, key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(obstore.get_range(self.client, key, start=start, length=length))

    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces; readers see the old or the new object, never a part."""
        obstore.put(self.client, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Put-if-absent: True if this call made the object, False if it was already there."""
        try:
            obstore.put(self.client, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def copy(self, source: str, target: str) -> None:
        """Server-side copy, replacing the target."""
        obstore.copy(self.client, source, target, overwrite=True)

    def delete(self, key: str) -> None:
        obstore.delete(self.client, key)

    def size(self, key: str) -> int | None:
        """Bytes of the object, None if there is none."""
        try:
            return obstore.head(self.client, key)["size"]
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "", *, after: str | None = None, page: int = 1000) -> Iterator[Entry]:
        """Entries below `prefix`, fetched page by page, never from a cache."""
        for batch in obstore.list(self.client, prefix or None, offset=after, chunk_size=page):
            for item in batch:
                yield Entry(item["path"], item["size"], item.get("e_tag"))

    def zarr(self, *, read_only: bool = False) -> Any:
        """A zarr store over the same client."""
        from zarr.storage import ObjectStore as ZarrStore

        return ZarrStore(self.client, read_only=read_only)


def open_objects(location: Location) -> Objects:
    """Opens a location for whole objects; nothing is contacted yet."""
    return Objects(location)


def local_folder(location: Location) -> Path:
    """The folder of a `file` location, absolute."""
    url = location.url
    path = unquote(urlsplit(url).path) if url.startswith("file://") else url
    return Path(path).expanduser().absolute()


def obstore_client(location: Location) -> ObjectStore:
    """The obstore client of a location."""
    if location.scheme == "file":
        folder = local_folder(location)
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    if location.scheme == "memory":
        with _memory_lock:
            return _memory.setdefault(location.url.rstrip("/"), MemoryStore())
    if location.scheme == "s3":
        parts = urlsplit(location.url)
        return S3Store(parts.netloc, prefix=parts.path.strip("/") or None, **_s3_options(location))
    raise ValueError(f"{location.url}: objects cannot be listed or written over {location.scheme}")


def _s3_options(location: Location) -> dict[str, Any]:
    region = location.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, Any] = {"region": region or "us-east-1"}
    endpoint = location.endpoint or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint"] = endpoint
        options["client_options"] = {"allow_http": endpoint.startswith("http://")}
        options["virtual_hosted_style_request"] = False
    if location.anonymous:
        options["skip_signature"] = True
    return options


def fsspec_client(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system (s3fs for s3) of a location, and the path in it; listings uncached."""
    if location.scheme == "s3":
        parts = urlsplit(location.url)
        options = _s3_options(location)
        filesystem = fsspec.filesystem(
            "s3",
            anon=location.anonymous,
            profile=location.profile,
            endpoint_url=options.get("endpoint"),
            client_kwargs={"region_name": options["region"]},
            use_listings_cache=False,
        )
        return filesystem, parts.netloc + "/" + parts.path.strip("/")
    if location.scheme == "file":
        return fsspec.filesystem("file"), str(local_folder(location))
    return fsspec.filesystem(location.scheme), location.url
