"""Does this storage keep the promises that commits rest on? Asked once, before the first unit."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.storage import Objects, StorageError
from pipeline.store import keys

RACERS = 16


def probe_storage(objects: Objects) -> None:
    """Writes a few small objects below `_fieldmill/probes/` and removes them again.

    Raises:
        StorageError: Storage cannot be used for a store; the sentence says what it did wrong.
    """
    folder = f"{keys.PROBES}/{secrets.token_hex(8)}"
    url = objects.location.url
    contents = [f"racer {i} {secrets.token_hex(8)}".encode() for i in range(RACERS)]
    made = [f"{folder}/race", f"{folder}/copy"]
    try:
        with ThreadPoolExecutor(RACERS) as pool:
            won = list(pool.map(lambda data: objects.create(made[0], data), contents))
        stored = objects.get(made[0])
        if sum(won) != 1 or stored != contents[won.index(True)]:
            raise StorageError(
                f"{url}: of {RACERS} simultaneous put-if-absent requests for one key {sum(won)} "
                "won, must be 1; this server ignores If-None-Match, use another one"
            )
        if objects.create(made[0], b"late"):
            raise StorageError(f"{url}: put-if-absent replaced an object; use another server")
        try:
            suffix = objects.get_suffix(made[0], 5)
        except StorageError:
            suffix = None  # the client noticed it, too
        if suffix != stored[-5:]:
            raise StorageError(f"{url}: answers suffix ranges wrongly, which breaks Zarr shards")
        if objects.get_range(made[0], 2, 5) != stored[2:7]:
            raise StorageError(f"{url}: answers byte ranges wrongly")
        objects.copy(made[0], made[1])
        if objects.get(made[1]) != stored:
            raise StorageError(f"{url}: a server-side copy has other bytes than its source")
        if {entry.key for entry in objects.list(folder)} != set(made):
            raise StorageError(f"{url}: a listing does not show objects that were just written")
    finally:
        objects.delete(made)


def nonce_key(nonce: str) -> str:
    return f"{keys.PROBES}/nonce-{nonce}"


@contextlib.contextmanager
def leave_nonce(objects: Objects) -> Iterator[str]:
    """A random word that lies in the storage for as long as workers may have to find it."""
    nonce = secrets.token_hex(16)
    objects.put(nonce_key(nonce), nonce.encode())
    try:
        yield nonce
    finally:
        with contextlib.suppress(StorageError):
            objects.delete(nonce_key(nonce))


def check_nonce(objects: Objects, nonce: str) -> None:
    """Raises StorageError if this process does not see what the driver wrote."""
    try:
        found = objects.get(nonce_key(nonce))
    except FileNotFoundError:
        found = None
    if found != nonce.encode():
        raise StorageError(
            f"{objects.location.url} is not the same place on every node (a note of the driver "
            f"is missing on {os.uname().nodename}); use storage that all nodes share"
        )
