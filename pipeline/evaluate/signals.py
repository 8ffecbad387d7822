"""Fitted sounds and videos as values on a grid, as pictures, and as files that others play."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pipeline.evaluate.grid_metrics import coords_of
from pipeline.evaluate.prepared_lines import Line
from pipeline.evaluate.rendering import Rendering

SOUNDS = (".wav", ".flac")
VIDEOS = (".gif", ".png", ".webp", ".mp4")
ANIMATED = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
PART = 2**16
"""Places that are asked for at once."""
WAVE = (96, 256)
"""Height and width of the picture of a sound."""
INK = 0.25
FPS = 25.0
"""Frames a second where the source did not say."""

Values = Callable[[Float[Tensor, "p d"]], Float[Tensor, "p c"]]


@dataclass(frozen=True)
class Sound:
    """Amplitudes of a fitted sound."""

    amplitude: Float[np.ndarray, "t c"]
    """In [-1, 1], as fitted; times `peak` it is the file's."""
    rate: int
    """Time steps a second."""
    peak: float


@dataclass(frozen=True)
class Video:
    """Frames of a fitted video; each is computed when it is asked for."""

    frames: int
    height: int
    width: int
    fps: float
    at: Callable[[int], Float[np.ndarray, "h w c"]]

    def pictures(self) -> Iterator[Image.Image]:
        """All frames, one after another."""
        for number in range(self.frames):
            yield Rendering(self.at(number)).to_image()


def sound(values: Values, length: int, rate: int, peak: float) -> Sound:
    """The sound on a grid of `length` time steps, in parts."""
    parts = [
        values(coords_of((length,), start, min(start + PART, length))).float().cpu().numpy()
        for start in range(0, length, PART)
    ]
    return Sound(np.clip(np.concatenate(parts), -1, 1), rate, peak)


def video(values: Values, sides: tuple[int, int, int], fps: float) -> Video:
    """The video on a grid of frames x height x width."""
    frames, height, width = sides
    size = height * width

    def at(number: int) -> Float[np.ndarray, "h w c"]:
        first, last = number * size, (number + 1) * size
        parts = [
            values(coords_of(sides, start, min(start + PART, last))).float().cpu().numpy()
            for start in range(first, last, PART)
        ]
        return np.clip(np.concatenate(parts).reshape(height, width, -1), 0, 1)

    return Video(frames, height, width, FPS if math.isnan(fps) else fps, at)


def render_sound(amplitude: Float[np.ndarray, "t c"], size: tuple[int, int] = WAVE) -> Rendering:
    """A sound's first channel as a picture: least to greatest amplitude of each column."""
    height, width = size
    width = min(width, len(amplitude))
    edges = np.arange(width + 1) * len(amplitude) // width
    low, high = (ufunc.reduceat(amplitude[:, 0], edges[:-1]) for ufunc in (np.minimum, np.maximum))
    top = np.floor((1 - high) / 2 * (height - 1) + 0.5)
    bottom = np.floor((1 - low) / 2 * (height - 1) + 0.5)
    rows = np.arange(height)[:, None]
    color = np.ones((height, width, 1), np.float32)
    color[(rows >= top) & (rows <= bottom)] = INK
    return Rendering(color)


def prepared_rendering(line: Line) -> Rendering | None:
    """What a fit saw of a sound or a video: its wave, or its middle frame; None of others."""
    if "length" in line:
        stored = np.frombuffer(line["pixels"].as_buffer(), np.uint16)
        amplitude = stored.reshape(-1, line["channels"].as_py()) / np.float32(65535) * 2 - 1
        return render_sound(amplitude)
    if "frames" in line:
        sides = [line[name].as_py() for name in ("frames", "height", "width", "channels")]
        size = math.prod(sides[1:])
        stored = np.frombuffer(line["pixels"].as_buffer(), np.uint8)
        middle = stored[sides[0] // 2 * size : (sides[0] // 2 + 1) * size]
        return Rendering(middle.reshape(sides[1:]) / np.float32(255))
    return None


def sound_bytes(made: Sound, suffix: str, *, original_units: bool) -> bytes:
    """A WAV or FLAC file of 16 bits; what exceeds full scale is clipped."""
    import soundfile

    scaled = made.amplitude * (made.peak if original_units else 1.0)
    stored = np.round(np.clip(scaled, -1, 1) * 32767).astype(np.int16)
    sink = io.BytesIO()
    soundfile.write(sink, stored, made.rate, format=suffix[1:].upper(), subtype="PCM_16")
    return sink.getvalue()


def animation_bytes(made: Video, suffix: str) -> bytes:
    """An animated GIF (256 colors), PNG or WebP (both exact)."""
    first, *rest = made.pictures()
    exact = {"lossless": True} if suffix == ".webp" else {}
    sink = io.BytesIO()
    first.save(
        sink,
        ANIMATED[suffix],
        save_all=True,
        append_images=rest,
        duration=round(1000 / made.fps),
        loop=0,
        **exact,
    )
    return sink.getvalue()


def write_mp4(made: Video, path: str) -> None:
    """An MP4 file (MPEG-4 part 2) by OpenCV, of the extra `video`."""
    from pipeline.ingest.video_files import opencv

    cv2 = opencv()
    size = made.width, made.height
    writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), made.fps, size)
    if not writer.isOpened():
        raise RuntimeError(f"{path}: OpenCV cannot write MP4 here; export to .png or .gif instead")
    for number in range(made.frames):
        frame: UInt8[np.ndarray, "h w c"] = Rendering(made.at(number)).to_uint8()
        frame = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[..., ::-1]
        writer.write(np.ascontiguousarray(frame))
    writer.release()
