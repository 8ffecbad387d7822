"""Data sets at `sample:NAME`: made from what the installed packages ship, kept in a cache folder.

Each is written once a node, below `$XDG_CACHE_HOME/fieldmill` (else `~/.cache/fieldmill`, else the
folder of temporary files). The same versions of the packages make the same bytes anywhere, and
files carry one fixed date, so that nodes agree on what was listed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from schemas.run import sample_set_name

VERSION = 2
"""Of what the makers write: another number, another folder."""
DATE = 1_700_000_000
"""Modification time of every file."""
FILES, INDEX = "files", "index.json"
"""In a set's folder: the files, and beside them a list of their sizes."""
SHAPES_PER_CLASS = 12
_lock = threading.Lock()


def folder(name: str) -> Path:
    """The folder of a sample set, made if it is not there; `sample:NAME` and NAME both serve.

    Several processes may make it at once: the first to finish puts it in place by a rename. A
    folder that lacks files (some cleaner was there) is made again.

    Raises:
        ValueError: there is no such set; the message names the nearest.
    """
    name = sample_set_name(name)
    with _lock:
        final = cache_folder() / f"{name}-{VERSION}"
        if not is_complete(final):
            make(name, final)
        return final / FILES


def make(name: str, final: Path) -> None:
    """Writes a sample set beside `final` and renames it into place."""
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        made = work / "set"
        (made / FILES).mkdir(parents=True)
        makers()[name](made / FILES)
        files = sorted(path for path in made.rglob("*") if path.is_file())
        sizes = {path.relative_to(made).as_posix(): path.stat().st_size for path in files}
        (made / INDEX).write_text(json.dumps(sizes))
        for path in files:
            os.utime(path, (DATE, DATE))
        while not _put(made, final):
            if is_complete(final):  # another process was first, with the same bytes
                return
            with contextlib.suppress(FileNotFoundError):
                os.rename(final, work / f"damaged-{len(list(work.iterdir()))}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(made: Path, final: Path) -> bool:
    try:
        os.rename(made, final)
    except OSError:
        if not final.is_dir():
            raise
        return False
    return True


def is_complete(final: Path) -> bool:
    """Whether a folder holds every file that was written, with its size."""
    try:
        sizes = json.loads((final / INDEX).read_text())
        return all((final / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError):
        return False


def cache_folder() -> Path:
    """Where sample sets are kept, created."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = Path(base).expanduser() / "fieldmill"
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        if os.access(chosen, os.W_OK | os.X_OK):
            return chosen
    except (OSError, RuntimeError):  # no home, or one that cannot be written to
        pass
    chosen = Path(tempfile.gettempdir()) / f"fieldmill-{os.getuid()}"
    chosen.mkdir(mode=0o700, exist_ok=True)
    if chosen.stat().st_uid != os.getuid():
        raise RuntimeError(f"{chosen} belongs to another user; set XDG_CACHE_HOME to a folder")
    return chosen


def makers() -> dict[str, Callable[[Path], None]]:
    """What writes each set into a folder: CLASS/FILE, so that the classes are the labels."""
    from pipeline.ingest import (
        camera_moves,
        glyphs,
        instruments,
        photographs,
        problems,
        procedural,
        scenes,
    )

    return {
        "photos": photographs.make_crops,
        "pictures": photographs.make_pictures,
        "sounds": instruments.make_sounds,
        "clips": camera_moves.make_clips,
        "shapes": lambda to: procedural.make_shapes(to, SHAPES_PER_CLASS),
        "clouds": lambda to: scenes.make_clouds(to, SHAPES_PER_CLASS),
        "scenes": scenes.make_scenes,
        "glyphs": glyphs.make_solids,
        "glyph-images": glyphs.make_pictures,
        "equations": problems.make_problems,
    }
