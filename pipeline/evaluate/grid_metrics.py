"""Metrics of sounds and videos: sums over the grid part by part, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.evaluate.prepared_lines import Line
from pipeline.samples import grid_coords
from schemas.samples import GRIDS
from schemas.store import ColumnSpec

PointReader = Callable[[Float[Tensor, "p d"]], dict[str, Tensor]]
PART = 2**16
"""Places of the grid that are compared at once."""


def _column(name: str, description: str) -> ColumnSpec:
    return ColumnSpec(name=name, dtype="float32", description=description)


SOUND_METRICS = (
    _column(
        "snr",
        "SNR of held-out time steps in dB: 10 log10 of the sum of squared amplitudes over the sum "
        "of squared errors, amplitudes in [-1, 1], clipped; NaN if none is held out",
    ),
    _column("snr_fit", "SNR of the time steps that were fitted in dB, likewise"),
)
VIDEO_METRICS = (
    _column("psnr", "PSNR of held-out voxels in dB, values in [0, 1], clipped; NaN if none is"),
    _column("psnr_fit", "PSNR of the voxels that were fitted in dB, values in [0, 1], clipped"),
    _column(
        "psnr_frames",
        "mean over frames of the PSNR of each whole frame in dB, held-out voxels included, values "
        "in [0, 1], clipped",
    ),
    _column("psnr_worst", "smallest of these PSNR of a frame"),
)


@dataclass(frozen=True)
class Part:
    """Some successive places of a sample's grid."""

    start: int
    predicted: Float[np.ndarray, "p c"]
    target: Float[np.ndarray, "p c"]
    held_out: np.ndarray


def sides_of(line: Line, kind: str) -> tuple[int, ...]:
    """The sides of a prepared grid."""
    return tuple(line[name].as_py() for name in GRIDS[kind])


def coords_of(sides: tuple[int, ...], start: int, stop: int) -> Float[Tensor, "p k"]:
    """Coordinates of successive places of a grid in row-major order."""
    return grid_coords(torch.arange(start, stop)[None], torch.tensor([sides]))[0]


def parts(ask: PointReader, line: Line, kind: str, quantity: str) -> Iterator[Part]:
    """Predicted and prepared values in [0, 1] of all places, some at a time."""
    sides = sides_of(line, kind)
    dtype = np.dtype(line["dtype"].as_py())
    stored = np.frombuffer(line["pixels"].as_buffer(), dtype)
    stored = stored.reshape(-1, line["channels"].as_py())
    bits = np.frombuffer(line["held_out"].as_buffer(), np.uint8)
    held_out = np.unpackbits(bits, count=len(stored)).astype(bool)
    for start in range(0, len(stored), PART):
        stop = min(start + PART, len(stored))
        found = ask(coords_of(sides, start, stop))
        if quantity not in found:
            raise ValueError(f"the field gives {sorted(found)}; {kind} needs '{quantity}'")
        yield Part(
            start,
            found[quantity].double().cpu().numpy(),
            stored[start:stop] / float(np.iinfo(dtype).max),
            held_out[start:stop],
        )


def measure_sound(ask: PointReader, line: Line) -> dict[str, float]:
    """SNR of the held-out and of the fitted time steps."""
    power, error = np.zeros(2), np.zeros(2)
    for part in parts(ask, line, "audio", "amplitude"):
        target = part.target * 2 - 1
        off = (np.clip(part.predicted, -1, 1) - target) ** 2
        for i, where in enumerate((part.held_out, ~part.held_out)):
            power[i] += (target[where] ** 2).sum()
            error[i] += off[where].sum()
    return {"snr": decibel(power[0], error[0]), "snr_fit": decibel(power[1], error[1])}


def measure_video(ask: PointReader, line: Line) -> dict[str, float]:
    """PSNR of the held-out and of the fitted voxels, and of whole frames."""
    frames, height, width = sides_of(line, "video")
    count, error = np.zeros(2), np.zeros(2)
    of_frame = np.zeros(frames)
    channels = line["channels"].as_py()
    for part in parts(ask, line, "video", "color"):
        off = ((np.clip(part.predicted, 0, 1) - part.target) ** 2).sum(1)
        for i, where in enumerate((part.held_out, ~part.held_out)):
            count[i] += where.sum() * channels
            error[i] += off[where].sum()
        at = (part.start + np.arange(len(off))) // (height * width)
        of_frame += np.bincount(at, off, minlength=frames)
    size = height * width * channels
    each = [decibel(size, value) for value in of_frame]
    return {
        "psnr": decibel(count[0], error[0]),
        "psnr_fit": decibel(count[1], error[1]),
        "psnr_frames": float(np.mean(each)),
        "psnr_worst": min(each),
    }


def decibel(power: float, error: float) -> float:
    """10 log10 of a ratio; NaN of nothing, inf without error."""
    if power == 0:
        return float("nan") if error == 0 else float("-inf")
    return float("inf") if error == 0 else 10 * float(np.log10(power / error))
