"""What a dataset's URL points at: a folder or prefix, a container, a table of URIs, one file."""

from __future__ import annotations

import os
import posixpath
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.folders import FolderSource
from pipeline.ingest.kinds import container_type, sample_suffixes, suffix
from pipeline.ingest.sources import Found, Source
from pipeline.storage import local_folder
from schemas.base import Location
from schemas.run import Dataset

TABLES = (".csv", ".parquet")


@dataclass
class Target:
    """A dataset's URL, opened."""

    what: str
    """`prefix`, `container`, `table` or `file`."""
    location: Location
    """The folder or prefix that keys are relative to."""
    source: Source
    key: str = ""
    """Of the one object; '' for a prefix."""
    others: dict[Location, Source] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def list(self, page: int) -> Iterator[list[Found]]:
        """All objects, or the one."""
        if self.what == "prefix":
            yield from self.source.list(page)
        else:
            found = self.source.stat(self.key)
            yield [] if found is None else [found]

    def resolve(self, key: str, uri: bool) -> tuple[Source, str]:
        """Source and key of a frozen entry's object."""
        if not uri:
            return self.source, key
        location, name = open_uri(self.location, key)
        if location == self.location:
            return self.source, name
        with self.lock:
            if location not in self.others:
                self.others[location] = open_source(location)
            return self.others[location], name


def find_target(dataset: Dataset) -> Target:
    """Opens the dataset's URL and finds out what it points at.

    Raises:
        FileNotFoundError: there is nothing at the URL (a bucket prefix may be empty, though).
    """
    if dataset.scheme == "sample":
        from pipeline.ingest.sample_sets import folder as sample_folder

        dataset = dataset.model_copy(update={"url": str(sample_folder(dataset.url))})
    base = Location(**{name: getattr(dataset, name) for name in Location.model_fields})
    url = dataset.url
    folder, _, name = url.rstrip("/").rpartition("/")
    if dataset.scheme == "file":
        path = local_folder(base)
        if not path.is_file():
            return Target("prefix", base, open_source(base))
        folder, name = str(path.parent), path.name
    if "?" in name and dataset.scheme in ("http", "https"):
        raise ValueError(f"{folder}/{name.split('?')[0]}: a URL with a query cannot be a dataset")
    known = suffix(name) in (*TABLES, *sample_suffixes(dataset.kind))
    if not (known or container_type(name, dataset.kind)) or url.endswith("/"):
        if dataset.scheme in ("http", "https"):
            open_source(base).list(1)
        return Target("prefix", base, open_source(base))
    parent = Location(**{**base.location_fields(), "url": folder})
    source = open_source(parent)
    if dataset.scheme != "file" and source.stat(name) is None:
        if dataset.scheme in ("http", "https"):
            raise FileNotFoundError(f"dataset {url}: the server has no such file")
        return Target("prefix", base, open_source(base))
    if suffix(name) == ".csv" or (suffix(name) == ".parquet" and _is_table(source, name, dataset)):
        return Target("table", parent, source, name)
    if container_type(name, dataset.kind):
        return Target("container", parent, source, name)
    return Target("file", parent, source, name)


def _is_table(source: Source, key: str, dataset: Dataset) -> bool:
    """Whether a Parquet file lists URIs instead of holding images."""
    if dataset.kind != "images":
        return True
    with source.open(key) as file:
        columns = pq.ParquetFile(file).schema_arrow
    image = dataset.columns.get("image", "image")
    if image in columns.names and not pa.types.is_string(columns.field(image).type):
        return False
    return dataset.columns.get("uri", "uri") in columns.names


def open_parent(location: Location) -> tuple[Source, str]:
    """The folder of a file and the file's name in it."""
    if location.scheme == "file":
        path = local_folder(location)
        return open_source(Location(url=str(path.parent))), path.name
    folder, _, name = location.url.rpartition("/")
    return open_source(Location(**{**location.location_fields(), "url": folder})), name


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
