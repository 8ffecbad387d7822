"""Our three packages in a folder of their own, as Ray ships them to other machines."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

PACKAGES = ("pipeline", "jobs", "schemas")


@cache
def staged_packages() -> str:
    """A temporary folder that holds our packages and nothing else; one for each process."""
    folder = tempfile.mkdtemp(prefix="fieldmill-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return stage(Path(folder))


def stage(folder: Path) -> str:
    """Copies the packages from where this process imported them."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        shutil.copytree(
            root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    return str(folder)
