"""Steps compiled by Inductor, kept on disk from one process to the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
TEMPORARY = "torchinductor_"
"""What the name of Inductor's own default begins with."""


def compiled_step(step: Callable) -> Callable:
    """A step compiled by Inductor, once for each shape class and lane count.

    Falling back to eager code unnoticed would change bits, so it is an error (`fullgraph`).
    """
    keep_compiled()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(step, dynamic=False, fullgraph=True)


def keep_compiled() -> None:
    """Lets Inductor keep what it compiles in the user's cache, unless a place is set already.

    Its own default lies in the folder for temporary files, where it is lost with the next boot and
    other users may have made it first. What is cached is code: nobody else may write there.
    """
    place = os.environ.get(FOLDER, "")
    if place and not Path(place).name.startswith(TEMPORARY):  # PyTorch notes its default there
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        place = base / "fieldmill" / "inductor"
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):
        return
    safe = place.stat().st_uid == os.getuid() and not place.stat().st_mode & 0o022
    if safe and os.access(place, os.W_OK):
        os.environ[FOLDER] = str(place)
