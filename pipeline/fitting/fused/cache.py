"""Keeps compiled kernels on disk, under a name made of everything that they are compiled from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numba
from numba import njit
from numba.core import config

SOURCES = ("simd.py", "passes.py", "kernel.py", "frozen.py", "narrow.py", "shifted.py")


def folder() -> Path | None:
    """Where this user keeps compiled kernels; None where nothing can be kept.

    Numba looks at the file of the outermost function only; a change in another file would go
    unseen, hence the hash. The CPU's name and features are part of numba's own key.
    """
    text = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    name = hashlib.sha256(numba.__version__.encode() + text).hexdigest()[:16]
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = base / "fieldmill" / "kernels" / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return None
    # What is cached is code: nobody else may write there.
    safe = path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o022
    return path if safe and os.access(path, os.W_OK) else None


def cached(**options) -> Callable:
    """`numba.njit` with a cache on disk where there is a place for it."""

    def decorate(function: Callable) -> Callable:
        place = folder()
        if place is None:
            return njit(**options)(function)
        before = config.CACHE_DIR
        config.CACHE_DIR = str(place)  # read while decorating only
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # numba found no place that it can write to
            return njit(**options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate
