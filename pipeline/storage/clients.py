"""Clients of an object store: obstore and fsspec, with the credentials that botocore finds."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from obstore.store import MemoryStore, ObjectStore, S3Store

from pipeline.storage.errors import StorageError
from pipeline.storage.settings import endpoint_of, region_of, session_of
from schemas.base import Location

RETRIES = 4
"""Attempts that the S3 client adds to a failed request; a refused connection ends in seconds."""
RETRY_SECONDS = 60

_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def local_folder(location: Location) -> Path:
    """The folder of a `file` location, absolute."""
    url = location.url
    path = unquote(urlsplit(url).path) if url.startswith("file://") else url
    return Path(path).expanduser().absolute()


def obstore_client(location: Location) -> tuple[ObjectStore, str]:
    """The obstore client of an S3 or memory location, and what to put before its keys."""
    if location.scheme == "memory":
        name, _, folder = location.url.removeprefix("memory://").partition("/")
        prefix = folder.strip("/") + "/" if folder.strip("/") else ""
        with _memory_lock:
            return _memory.setdefault(name, MemoryStore()), prefix
    if location.scheme != "s3":
        raise ValueError(
            f"{location.url}: objects cannot be listed or written over {location.scheme}"
        )
    parts = urlsplit(location.url)
    options: dict[str, Any] = {}
    if location.anonymous:
        options["skip_signature"] = True
    else:
        options["credential_provider"] = Credentials(location)
    endpoint = endpoint_of(location)
    if endpoint:
        options["endpoint"] = endpoint
        options["virtual_hosted_style_request"] = False
    client = S3Store(
        parts.netloc,
        prefix=unquote(parts.path).strip("/") or None,
        region=region_of(location),
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(seconds=300),
        },
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
        **options,
    )
    return client, ""


class Credentials:
    """Gives obstore the keys that botocore finds (environment, profile, role), as s3fs does."""

    def __init__(self, location: Location):
        from botocore.exceptions import BotoCoreError

        self.location = location
        try:
            self.found = session_of(location).get_credentials()
        except BotoCoreError as error:
            raise StorageError(f"{location.url}: {error}") from None
        if self.found is None:
            raise StorageError(
                f"{location.url}: no credentials found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, name a profile, or say 'anonymous: true' (public buckets)"
            )

    def __call__(self) -> dict[str, Any]:
        keys = self.found.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),  # then asked for again
        }


def fsspec_client(location: Location) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system (s3fs for s3) of a location, and the path in it; listings uncached."""
    if location.scheme == "s3":
        parts = urlsplit(location.url)
        if not location.anonymous:
            Credentials(location)  # the clear error, before s3fs looks the same keys up
        filesystem = fsspec.filesystem(
            "s3",
            anon=location.anonymous,
            profile=location.profile,
            endpoint_url=endpoint_of(location),
            client_kwargs={"region_name": region_of(location)},
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        return filesystem, (parts.netloc + "/" + unquote(parts.path).strip("/")).rstrip("/")
    if location.scheme == "file":
        return fsspec.filesystem("file"), str(local_folder(location))
    return fsspec.filesystem(location.scheme), location.url
