"""Frames of video files: animated pictures by Pillow, MP4 and the like by OpenCV's FFmpeg.

OpenCV comes with the extra `video`: its Linux and Windows wheels bundle an FFmpeg that is LGPL-2.1
and loaded dynamically. PyAV and imageio-ffmpeg would be the usual choice, but their wheels bundle
libx264 and libx265, which are GPL. Bytes are given to FFmpeg from memory, and only those that begin
as a container of video does: playlists and the like, that name other files, are not tried.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from schemas.samples import Code, RejectedSample

ANIMATED = frozenset((".gif", ".apng", ".webp"))
ENCODED = frozenset(
    f".{name}" for name in ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "3gp")
)
VIDEO_SUFFIXES = ANIMATED | ENCODED
EXTRA = "pip install 'fieldmill[video]'"
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""What an MP4 or QuickTime file begins with, after four bytes."""
RATES = (0.01, 1000.0)
"""Frames a second that are believed."""
Picture = UInt8[np.ndarray, "h w c"]


@dataclass(frozen=True)
class Frames:
    """An open video: `frames()` reads it from the start."""

    width: int
    height: int
    fps: float | None
    """Frames a second; None where the file does not say, or says nonsense."""
    claimed: int | None
    """Frames as the header has it; None if it does not say."""
    frames: Callable[[], Iterator[Picture]]
    """1, 3 or 4 channels."""
    count_frames: Callable[[int], int]
    """Frames there are, counted up to a limit."""


def open_frames(data: bytes) -> Frames:
    """Opens a video by its first bytes, whatever its name says.

    Raises:
        RejectedSample: DECODE, for what is no video, is cut short, or has a damaged header.
    """
    if data[:4] == b"RIFF" and len(data) > 12 and data[8:12] in (b"WEBP", b"AVI "):
        size = struct.unpack_from("<I", data, 4)[0] + 8
        if size > len(data):
            raise _cut(len(data), size)
        return _animated(data) if data[8:12] == b"WEBP" else _encoded(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        if b";" not in data[-16:]:
            raise RejectedSample(Code.DECODE, "the file is cut short: no end mark of GIF")
        return _animated(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _animated(data)
    if data[4:8] in BOXES:
        _check_boxes(data)
    elif not (
        data[:4] in (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3")  # Matroska, MPEG
        or (len(data) > 188 and data[0] == data[188] == 0x47)  # MPEG transport stream
    ):
        raise RejectedSample(
            Code.DECODE, f"not a video that can be read; it begins with {data[:8].hex(' ')}"
        )
    return _encoded(data)


def has_opencv() -> bool:
    """Whether files other than animated pictures can be read."""
    return importlib.util.find_spec("cv2") is not None


def opencv() -> Any:
    """OpenCV; its absence is the user's to mend, not a fault of a sample."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        import cv2
    except ImportError as error:
        raise RuntimeError(
            f"MP4, MOV, AVI, MKV and WebM need OpenCV, which is not installed: {EXTRA}"
        ) from error
    return cv2


def _encoded(data: bytes) -> Frames:
    cv2 = opencv()

    def capture() -> Any:
        opened = cv2.VideoCapture(io.BytesIO(data), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not opened.isOpened():
            raise RejectedSample(
                Code.DECODE, "no video stream that can be opened: a damaged header, or no video"
            )
        return opened

    def frames() -> Iterator[Picture]:
        opened = capture()
        while True:
            there, frame = opened.read()
            if not there:
                return
            yield np.ascontiguousarray(frame[..., ::-1])  # OpenCV has blue first

    def count_frames(most: int) -> int:
        opened, count = capture(), 0
        while count < most and opened.grab():
            count += 1
        return count

    probe = capture()
    claimed = probe.get(cv2.CAP_PROP_FRAME_COUNT)
    return Frames(
        width=int(probe.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height=int(probe.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        fps=_believed(probe.get(cv2.CAP_PROP_FPS)),
        claimed=int(claimed) if 0 < claimed < 2**53 else None,
        frames=frames,
        count_frames=count_frames,
    )


def _animated(data: bytes) -> Frames:
    def opened() -> Image.Image:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata
            return Image.open(io.BytesIO(data), formats=("GIF", "PNG", "WEBP"))

    try:
        with opened() as image:
            (width, height), count = image.size, getattr(image, "n_frames", 1)
            shown = image.info.get("duration") or _webp_duration(data)
    except Exception as error:
        raise RejectedSample(Code.DECODE, f"{type(error).__name__}: {error}"[:500]) from error

    def frames() -> Iterator[Picture]:
        with opened() as image:
            for number in range(count):
                try:
                    image.seek(number)
                    yield np.asarray(image.convert("RGBA"))
                except EOFError:
                    return
                except (OSError, SyntaxError, ValueError) as error:
                    words = f"the file is cut short or damaged at frame {number} of {count}"
                    raise RejectedSample(Code.DECODE, f"{words}: {error}"[:500]) from error

    return Frames(
        width=width,
        height=height,
        fps=_believed(1000 / shown) if shown else None,
        claimed=count,
        frames=frames,
        count_frames=lambda most: min(count, most),
    )


def _webp_duration(data: bytes) -> int:
    """Milliseconds of the first frame of an animated WebP, which Pillow tells only once it is
    decoded; 0 of others."""
    at = data.find(b"ANMF", 12, 4096) if data[8:12] == b"WEBP" else -1
    return int.from_bytes(data[at + 20 : at + 23], "little") if at >= 0 else 0


def _believed(fps: float) -> float | None:
    return fps if math.isfinite(fps) and RATES[0] <= fps <= RATES[1] else None


def _check_boxes(data: bytes) -> None:
    """Refuses an MP4 file whose boxes end before they say."""
    place, names = 0, []
    while place + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        if size == 1 and place + 16 <= len(data):
            size = struct.unpack_from(">Q", data, place + 8)[0]
        elif size == 0:  # to the end of the file
            size = len(data) - place
        if size < 8:
            break
        names.append(name)
        if place + size > len(data) and name in (b"moov", b"mdat"):
            raise _cut(len(data), place + size)
        place += size
    if b"moov" not in names:
        raise RejectedSample(
            Code.DECODE, "an MP4 file without its table of frames ('moov'): cut short or damaged"
        )


def _cut(there: int, claimed: int) -> RejectedSample:
    return RejectedSample(Code.DECODE, f"the file is cut short: {there} bytes of {claimed}")
