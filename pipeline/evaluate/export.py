"""One row as a file of a common format: a mesh, picture, sound, video, or its parameters."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from pipeline.evaluate.opened import OpenedStore, longer_side, open_store
from pipeline.evaluate.signals import (
    SOUNDS,
    VIDEOS,
    animation_bytes,
    sound_bytes,
    write_mp4,
)
from schemas.base import Location

MESHES = (".ply", ".obj", ".glb")
SUFFIXES = (*MESHES, ".png", ".npz", ".npy", *SOUNDS, *(s for s in VIDEOS if s != ".png"))
MOST = {
    **dict.fromkeys(MESHES, 1024),
    **dict.fromkeys(VIDEOS, 4096),
    ".png": 16_384,
    ".npy": 4096,
    ".npz": 0,
    **dict.fromkeys(SOUNDS, 0),
}
"""Largest resolution: beyond, a row takes gigabytes. 0: it has none."""


def export(
    store: OpenedStore | Location | str,
    row: int | str,
    path: str | Path,
    *,
    resolution: int | tuple[int, int] | None = None,
    original_units: bool = True,
) -> Path:
    """Writes a row (number or sample id) to a file; the suffix decides what.

    Args:
        path: `.ply`, `.obj`, `.glb`: the mesh of a shape; `.png`: a picture (of shapes: a shaded
            view; of sounds: their wave; of videos: all frames as an animated picture, exact);
            `.webp`, `.gif` (256 colors), `.mp4` (needs the extra `video`): videos; `.wav`,
            `.flac`: sounds; `.npz`: the row's own parameters by name; `.npy`: values of a wave on
            a regular grid, in the units of its file.
        resolution: Cells an axis of a mesh (default 128), or pixels of the longer side of a picture
            (default: its own size).
        original_units: Meshes in the units, sounds at the loudness of the file.

    Raises:
        ValueError: Unknown sample (the nearest are named) or suffix, or no such form of a row.
    """
    if not isinstance(store, OpenedStore):
        store = open_store(store)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"'{path.name}': cannot write '{suffix}'; known: {', '.join(SUFFIXES)}")
    number = store.row_number(row)
    most = 256 if suffix == ".npy" and store.dims == 3 else MOST[suffix]
    if resolution is not None and longer_side(resolution, 0) > most:
        raise ValueError(
            f"resolution {resolution}: {most} is the most of a {suffix}"
            if most
            else f"resolution {resolution} has no effect on a {suffix}; remove it"
        )
    if suffix in SOUNDS:
        data = sound_bytes(store.sound(number), suffix, original_units=original_units)
    elif suffix in VIDEOS and (store.kind == "video" or suffix != ".png"):
        made = store.video(number, resolution)
        if suffix == ".mp4":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(made, str(path))
            return path
        data = animation_bytes(made, suffix)
    elif suffix in MESHES:
        cells = longer_side(resolution, 128)
        data = _mesh_bytes(store, number, suffix, cells, original_units)
    elif suffix == ".npy":
        sink = io.BytesIO()
        np.save(sink, store.wave(number, resolution))
        data = sink.getvalue()
    elif suffix == ".png":
        sink = io.BytesIO()
        store.render(number, resolution).to_image().save(sink, "png")
        data = sink.getvalue()
    else:
        sink = io.BytesIO()
        np.savez(sink, **parameters(store, number))
        data = sink.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def parameters(store: OpenedStore, row: int | str) -> dict[str, np.ndarray]:
    """What a row owns, by parameter name: network weights and latents."""
    return {name: value[0].cpu().numpy() for name, value in store.row_tensors(row).items()}


def _mesh_bytes(
    store: OpenedStore, row: int, suffix: str, resolution: int, original_units: bool
) -> bytes:
    mesh = store.mesh(row, resolution, original_units=original_units)
    line = store.line(row)
    mesh.metadata.clear()
    mesh.metadata["name"] = line["sample_id"]
    if suffix == ".obj":
        # no normals and no material: what a reader computes is what the surface has
        text = mesh.export(file_type="obj", include_normals=False, header=f"{line['sample_id']!a}")
        return text.encode() if isinstance(text, str) else text
    data = mesh.export(file_type=suffix[1:])
    return data if isinstance(data, bytes) else data.encode()
