"""Rows of one array of a store, read shard by shard or row by row; safe to fork and to send.

Holds no client: each process opens its own on first use. A forked child of a process that has used
the S3 client cannot use that client's library at all (its threads are gone; it would wait forever),
so forked children read through botocore, which has no threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from pipeline.storage import StorageError, endpoint_of, open_objects, region_of
from pipeline.store.layout import shard_key
from pipeline.store.shards import CRC_BYTES, chunk_shape, decode_shard
from schemas.base import Location
from schemas.store import ArraySpec


class Bytes(Protocol):
    """What is needed of a client."""

    def get(self, key: str) -> bytes: ...

    def get_range(self, key: str, start: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class ShardSource:
    """Where the rows of one array lie."""

    location: Location
    spec: ArraySpec
    unit_rows: int
    """Rows of a shard."""
    home: int
    """Process that described the source; others are its forked or spawned children."""

    def unit_of(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows, np.int64) // self.unit_rows

    def read_from_unit(self, unit: int, rows: np.ndarray) -> np.ndarray:
        """Values `[k, ...]` of rows of one unit, with one request for its whole shard."""
        data = self._ask("get", shard_key(self.spec, unit))
        values, readable = decode_shard(self.spec, self.unit_rows, data)
        inside = _slice_or_index(np.asarray(rows, np.int64) - unit * self.unit_rows)
        return self._checked(values[inside], readable[inside], rows)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Values `[k, ...]` of any rows, in that order; reads the chunks they lie in, once each."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        unique, back = np.unique(rows, return_inverse=True)
        values = np.zeros((len(unique), *self.spec.shape), self.spec.dtype)
        together = chunk_shape(self.spec, self.unit_rows)[0]
        for first, last in _runs(unique // together):
            part = unique[first:last]
            values[first:last] = self._chunk(int(part[0]) // together, together, part)
        return values[back]

    def _chunk(self, group: int, together: int, rows: np.ndarray) -> np.ndarray:
        """Rows of one group of rows that are stored next to each other."""
        chunk = chunk_shape(self.spec, self.unit_rows)
        size = int(np.prod(chunk)) * np.dtype(self.spec.dtype).itemsize + CRC_BYTES
        parts = together * int(np.prod(self.spec.shape)) // int(np.prod(chunk))
        groups = self.unit_rows // together
        unit, place = divmod(group, groups)
        length = parts * size
        data = self._ask("get_range", shard_key(self.spec, unit), place * length, length)
        values, readable = decode_shard(self.spec, together, data)
        inside = rows - group * together
        return self._checked(values[inside], readable[inside], rows)

    def _checked(self, values: np.ndarray, readable: np.ndarray, rows: np.ndarray) -> np.ndarray:
        bad = ~readable
        if values.dtype.kind == "f":
            bad |= np.isnan(values.reshape(len(values), -1).max(1))  # max keeps NaN, copies nothing
        if bad.any():
            raise RuntimeError(
                f"{self.location.url}: row {rows[bad][0]} is usable but '{self.spec.name}' has no "
                "sound values for it: the store is damaged; run 'verify --full'"
            )
        return values

    def _ask(self, what: str, key: str, *args: int) -> bytes:
        try:
            return getattr(_client(self.location, self.home), what)(key, *args)
        except FileNotFoundError:
            raise RuntimeError(
                f"{self.location.url}: '{key}' is missing: the store is damaged; run 'verify'"
            ) from None


def _slice_or_index(places: np.ndarray) -> np.ndarray | slice:
    """Consecutive places as a slice, which copies nothing."""
    if len(places) and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of equal neighbours."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    yield from pairwise([0, *cuts.tolist(), len(values)]) if len(values) else ()


_imported_by = os.getpid()
_clients: dict[tuple[int, str], Bytes] = {}


def _client(location: Location, home: int) -> Bytes:
    """This process's client of a location."""
    here = os.getpid()
    key = here, location.model_dump_json()
    if key not in _clients:
        if location.scheme == "memory" and here != home:
            raise ValueError(
                f"{location.url} lives in the memory of another process; use num_workers=0"
            )
        forked = here != _imported_by  # a spawned process imported this module itself
        threadless = forked and location.scheme == "s3"
        _clients[key] = _ThreadlessS3(location) if threadless else open_objects(location)
    return _clients[key]


class _ThreadlessS3:
    """Reads objects through botocore, which works in a forked child."""

    def __init__(self, location: Location):
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        parts = urlsplit(location.url)
        self.location, self.bucket = location, parts.netloc
        self.prefix = unquote(parts.path).strip("/")
        endpoint = endpoint_of(location)
        options: dict[str, Any] = {"retries": {"max_attempts": 5, "mode": "standard"}}
        if endpoint:
            options["s3"] = {"addressing_style": "path"}
        if location.anonymous:
            options["signature_version"] = UNSIGNED
        self.client = botocore.session.Session(profile=location.profile).create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=region_of(location),
            config=Config(**options),
        )

    def get(self, key: str) -> bytes:
        return self._get(key)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._get(key, Range=f"bytes={start}-{start + length - 1}")

    def _get(self, key: str, **options: str) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        path = f"{self.prefix}/{key}" if self.prefix else key
        try:
            return self.client.get_object(Bucket=self.bucket, Key=path, **options)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            raise FileNotFoundError(key) from None
        except (BotoCoreError, ClientError) as error:
            raise StorageError(f"{self.location.url}: reading '{key}': {error}") from None
