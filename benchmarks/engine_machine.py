"""The machine and the versions of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version


def machine(path: str) -> dict:
    """What a figure depends on; `path` is the way of fitting in words."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "path": path,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
    }


def cpu_name() -> str:
    """The processor in words, with its vector units."""
    from llvmlite import binding

    return f"{platform.machine()} {binding.get_host_cpu_name()}"
