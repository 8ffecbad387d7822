"""One description of an object store, opened as obstore or fsspec clients with the same keys."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import MemoryStore, ObjectStore, S3Store

from schemas.base import Location

Buffer = bytes | bytearray | memoryview

RETRIES = 4
"""Attempts that the S3 client adds to a failed request; a refused connection ends in seconds."""
RETRY_SECONDS = 60
CREATE_ATTEMPTS = 4
"""How often a put-if-absent of unknown outcome is read back and sent again."""

_memory: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


class StorageError(RuntimeError):
    """The world's fault: bucket, credentials, network, disk. One sentence; run again later."""


@dataclass(frozen=True)
class Entry:
    """One listed object."""

    key: str
    """Relative to the location."""
    size: int
    """In bytes."""
    etag: str | None


class Objects:
    """Objects below one location (S3, memory). Keys are relative, with forward slashes.

    Deliberately small: what the store, the ingest and the driver need, on every backend alike. A
    missing object raises FileNotFoundError (or is None, False where so documented), all else that
    storage does wrong raises StorageError. Not picklable (it holds credentials): send the
    `Location` and open it where it is used.
    """

    def __init__(self, location: Location):
        self.location = location
        self.client, self.prefix = obstore_client(location)

    def __reduce__(self):
        raise TypeError("an open object store holds credentials; send its Location instead")

    def get(self, key: str) -> bytes:
        """The whole object."""
        with self._clear_errors("read", key):
            return bytes(obstore.get(self.client, self.prefix + key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of the object."""
        with self._clear_errors("read", key):
            return bytes(
                obstore.get_range(self.client, self.prefix + key, start=start, length=length)
            )

    def get_suffix(self, key: str, length: int) -> bytes:
        """The last `length` bytes of the object."""
        with self._clear_errors("read", key):
            result = obstore.get(
                self.client, self.prefix + key, options={"range": {"suffix": length}}
            )
            return bytes(result.bytes())

    def put(self, key: str, data: Buffer) -> str | None:
        """Writes or replaces; readers see the old or the new object, never a part.

        Returns:
            The entity tag, where the storage gives one.
        """
        with self._clear_errors("write", key):
            done = obstore.put(
                self.client, self.prefix + key, data, use_multipart=len(data) > 2**30
            )
        return done.get("e_tag")

    def create(self, key: str, data: bytes) -> bool:
        """Put-if-absent: whether the object is now the one given here.

        False if another was there first. A request whose answer was lost is read back and, if
        nothing is there, sent again: the outcome is never guessed. Equal bytes count as one's own,
        so whoever needs one winner puts something unique (an attempt id) into `data`.
        """
        for attempt in range(CREATE_ATTEMPTS):
            try:
                if self._put_new(key, data):
                    return True
            except FileNotFoundError:
                raise
            except StorageError:
                if attempt + 1 == CREATE_ATTEMPTS:
                    raise
                time.sleep(0.05 * 4**attempt)
            try:
                return self.get(key) == data
            except FileNotFoundError:
                continue
        raise StorageError(f"{self.address(key)}: whether it was created cannot be found out")

    def copy(self, source: str, target: str) -> None:
        """Server-side copy, replacing the target."""
        with self._clear_errors("copy", source):
            source, target = self.prefix + source, self.prefix + target
            obstore.copy(self.client, source, target, overwrite=True)

    def delete(self, keys: str | Sequence[str]) -> None:
        """Removes the objects; those that are not there are no error."""
        keys = [keys] if isinstance(keys, str) else list(keys)
        for start in range(0, len(keys), 1000):
            part = [self.prefix + key for key in keys[start : start + 1000]]
            with self._clear_errors("delete", keys[start]), contextlib.suppress(FileNotFoundError):
                obstore.delete(self.client, part[0] if len(part) == 1 else part)

    def entry(self, key: str) -> Entry | None:
        """Size and entity tag of the object, None if there is none."""
        try:
            with self._clear_errors("look up", key):
                head = obstore.head(self.client, self.prefix + key)
        except FileNotFoundError:
            return None
        return Entry(key, head["size"], head.get("e_tag"))

    def size(self, key: str) -> int | None:
        """Bytes of the object, None if there is none."""
        found = self.entry(key)
        return None if found is None else found.size

    def list(
        self, prefix: str = "", *, after: str | None = None, page: int = 1000
    ) -> Iterator[Entry]:
        """Entries below the folder `prefix` in the server's (mostly: key) order, page by page.

        Never from a cache. `after` is a key that an earlier listing gave.
        """
        with self._clear_errors("list", prefix):
            start = None if after is None else self.prefix + after
            top, cut = self.prefix + prefix, len(self.prefix)
            for batch in obstore.list(self.client, top or None, offset=start, chunk_size=page):
                for item in batch:
                    yield Entry(item["path"][cut:], item["size"], item.get("e_tag"))

    def check(self) -> None:
        """Contacts the storage once; raises StorageError if it cannot be read."""
        next(iter(self.list(page=1)), None)

    def tidy(self, older_than: float) -> None:
        """Removes what interrupted writes left behind longer than `older_than` seconds ago."""

    def zarr(self, *, read_only: bool = False) -> Any:
        """The zarr store (with its path) over the same client."""
        from zarr.storage import ObjectStore as ZarrStore
        from zarr.storage import StorePath

        return StorePath(ZarrStore(self.client, read_only=read_only), self.prefix.strip("/"))

    def address(self, key: str = "") -> str:
        """The URL of a key, for messages."""
        return f"{self.location.url.rstrip('/')}/{key}" if key else self.location.url

    def _put_new(self, key: str, data: bytes) -> bool:
        """One put-if-absent request: True, False (412: something is there) or StorageError."""
        try:
            with self._clear_errors("create", key):
                obstore.put(self.client, self.prefix + key, data, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    @contextlib.contextmanager
    def _clear_errors(self, action: str, key: str) -> Iterator[None]:
        """Turns the client's errors into FileNotFoundError or a one-line StorageError."""
        try:
            yield
        except (AlreadyExistsError, PreconditionError, StorageError):
            raise
        except (FileNotFoundError, NotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise StorageError(explain(self.location, action, key, error)) from None
            raise FileNotFoundError(f"{self.address(key)}: there is no such object") from None
        except (BaseError, OSError) as error:
            raise StorageError(explain(self.location, action, key, error)) from None


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


def open_objects(location: Location) -> Objects:
    """Opens a location for whole objects; nothing is contacted yet (but credentials are found)."""
    return LocalObjects(location) if location.scheme == "file" else Objects(location)


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
            self.found = _session(location).get_credentials()
        except BotoCoreError as error:
            raise StorageError(f"{location.url}: {error}") from None
        if self.found is None:
            raise StorageError(
                f"{location.url}: no credentials found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, name a profile, or say 'anonymous: true' (public buckets)"
            )

    def __call__(self) -> dict[str, Any]:
        keys = self.found.get_frozen_credentials()
        expires = None  # long-lived keys; keys of a role are asked for again within minutes
        if getattr(self.found, "_expiry_time", None) is not None:
            expires = min(self.found._expiry_time, datetime.now(UTC) + timedelta(minutes=5))
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": expires,
        }


def _session(location: Location) -> Any:
    import botocore.session

    return botocore.session.Session(profile=location.profile)


def _profile_setting(location: Location, name: str) -> str | None:
    """A setting of the profile; absent profiles are reported when credentials are looked up."""
    if location.profile is None and "AWS_PROFILE" not in os.environ:
        return None
    return _session(location).full_config.get("profiles", {}).get(
        location.profile or os.environ["AWS_PROFILE"], {}
    ).get(name)  # fmt: skip


def endpoint_of(location: Location) -> str | None:
    """Address of the S3 server: the location's, the environment's, the profile's, or AWS (None)."""
    return (
        location.endpoint
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or _profile_setting(location, "endpoint_url")
    )


def region_of(location: Location) -> str:
    """Region of the bucket: the location's, the environment's, the profile's, or us-east-1."""
    return (
        location.region
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or _profile_setting(location, "region")
        or "us-east-1"
    )


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


REFUSED = {
    "InvalidAccessKeyId": "the access key is unknown there",
    "SignatureDoesNotMatch": "the secret key does not match",
    "AccessDenied": "access is denied",
    "ExpiredToken": "the session token has expired",
    "InvalidToken": "the session token is invalid",
}


def explain(location: Location, action: str, key: str, error: Exception) -> str:
    """One line that says what storage refused and what to look at."""
    text = str(error)
    where = location.url
    server = endpoint_of(location) if location.scheme == "s3" else None
    at = f" at {server}" if server else ""
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found.group(1) if found else ""
    status = re.search(r"status code: (\d{3})", text)
    if code == "NoSuchBucket":
        return f"{where}: there is no bucket '{urlsplit(where).netloc}'{at}"
    if code in REFUSED or (status and status.group(1) in ("401", "403")):
        reason = REFUSED.get(code, code or "not authorised")
        profile = f"profile '{location.profile}'" if location.profile else "AWS_ACCESS_KEY_ID"
        return f"{where}: cannot {action} '{key}'{at}: {reason}; check {profile} and the policy"
    if "error sending request" in text or "error trying to connect" in text:
        return (
            f"{where}: the server{at or ' of AWS S3'} cannot be reached (cannot {action} '{key}')"
        )
    first = text.split("\n", 1)[0]
    return f"{where}: cannot {action} '{key}': {first[:300]}"
