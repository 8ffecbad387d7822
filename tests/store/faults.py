"""Storage that fails: a process that dies at its n-th operation, and a count of what was asked."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal

from pipeline.storage import Objects


class Died(Exception):
    """Stands for the end of the process: nothing after it reaches the storage."""


class FaultyObjects(Objects):
    """Passes everything on to other objects, until the process 'dies'.

    Args:
        inner: Where operations go.
        die_at: Number of the operation (from 0) at which it dies; never if absent.
        when: Whether that operation still happens.
        only: Count operations of these names only.
    """

    def __init__(
        self,
        inner: Objects,
        die_at: int | None = None,
        when: Literal["before", "after"] = "before",
        only: tuple[str, ...] = (),
    ):
        self.inner, self.location = inner, inner.location
        self.die_at, self.when, self.only = die_at, when, only
        self.calls: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.dead = False

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.calls)

    def _do(self, name, key, *args, **options):
        with self.lock:
            if self.dead:
                raise Died(f"{name} {key} after death")
            number = len(self.calls)
            if not self.only or name in self.only:
                self.calls.append((name, key))
                self.dead = number == self.die_at
            dies = self.dead
        if dies and self.when == "before":
            raise Died(f"before {name} {key}")
        result = getattr(self.inner, name)(key, *args, **options)
        if dies:
            raise Died(f"after {name} {key}")
        return result

    def get(self, key):
        return self._do("get", key)

    def get_range(self, key, start, length):
        return self._do("get_range", key, start, length)

    def put(self, key, data):
        return self._do("put", key, data)

    def create(self, key, data):
        return self._do("create", key, data)

    def copy(self, source, target):
        return self._do("copy", source, target)

    def delete(self, keys):
        return self._do("delete", keys) if keys else None

    def entry(self, key):
        return self._do("entry", key)

    def list(self, prefix="", **options):
        return iter(list(self._do("list", prefix, **options)))

    def tidy(self, older_than):
        self.inner.tidy(older_than)

    def zarr(self, **options):
        return self.inner.zarr(**options)
