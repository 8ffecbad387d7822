"""Records too many for memory: spilled to hash buckets on disk, read back in hash order."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from typing import Any, BinaryIO

BUCKETS = 256


def digest(name: str) -> bytes:
    """Where a name stands in the frozen order: its blake2b hash."""
    return blake2b(name.encode(), digest_size=16).digest()


class Buckets:
    """JSON records by name; read bucket by bucket, they come in the order of (blake2b(name), name).

    Memory: one bucket, a 256th of all records.
    """

    def __init__(self, folder: str, name: str):
        self.stem = os.path.join(folder, name)
        self.files: dict[int, BinaryIO] = {}

    def add(self, name: str, record: list[Any]) -> None:
        bucket = digest(name)[0]
        if bucket not in self.files:
            self.files[bucket] = open(f"{self.stem}-{bucket}", "w+b", buffering=4096)  # noqa: SIM115
        self.files[bucket].write(json.dumps([name, record]).encode() + b"\n")

    def read(self, bucket: int) -> list[tuple[str, list[Any]]]:
        """One bucket, sorted, and forgotten; records of one name keep the order of `add`."""
        file = self.files.pop(bucket, None)
        if file is None:
            return []
        with file:
            file.seek(0)
            items = [tuple(json.loads(line)) for line in file]
        os.unlink(f"{self.stem}-{bucket}")
        items.sort(key=lambda item: (digest(item[0]), item[0]))
        return items

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()
