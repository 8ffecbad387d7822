"""Videos as voxels: frames chosen by a pace, cropped, reduced by area averaging, some held out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from pipeline.ingest.images import area_average, central_crop, held_out_mask, opaque, recolor
from pipeline.ingest.video_files import Frames, open_frames
from schemas.run import VideoIngest
from schemas.samples import Code, RejectedSample

SHORT = 0.9
"""A file that ends before this share of the frames that it claims is cut short; the rest is what
containers without a count of frames are off by."""


def decode_video(data: bytes, ingest: VideoIngest, seed_key: str) -> dict:
    """The CLIP columns of an encoded video or an animated picture.

    Args:
        data: The file's bytes.
        ingest: Which frames, size, color and limits.
        seed_key: The sample id: it and `ingest.seed` decide the held-out voxels.

    Raises:
        RejectedSample: with code DECODE, EMPTY, TOO_LARGE or DEGENERATE.
    """
    if not data:
        raise RejectedSample(Code.EMPTY, "the file has no bytes")
    source = open_frames(data)
    width, height = source.width, source.height
    if width * height > ingest.max_pixels:
        raise RejectedSample(
            Code.TOO_LARGE,
            f"frames of {width} x {height} pixels; ingest.max_pixels is {ingest.max_pixels}",
        )
    if width * height == 0:
        raise RejectedSample(Code.EMPTY, f"frames of {width} x {height} pixels")
    pace = _pace(source, ingest)
    first = _middle(source, pace, ingest) if ingest.at == "middle" and ingest.frames else 0
    kept = np.stack(list(_chosen(source, first, pace, ingest)))
    if len(kept) == 1:
        raise RejectedSample(Code.DEGENERATE, "a video of one frame; set kind: images")
    held = held_out_mask(1, kept[..., 0].size, ingest.held_out, ingest.seed, seed_key)
    return {
        "pixels": kept.tobytes(),
        "frames": kept.shape[0],
        "height": kept.shape[1],
        "width": kept.shape[2],
        "channels": kept.shape[3],
        "dtype": "uint8",
        "held_out": np.packbits(held).tobytes(),
        "fps": float("nan") if source.fps is None else source.fps / pace,
    }


def _pace(source: Frames, ingest: VideoIngest) -> float:
    """Frames of the file for each that is kept."""
    if ingest.fps is None:
        return float(ingest.stride)
    if source.fps is None:
        raise RejectedSample(
            Code.DECODE, "the file does not say how many frames a second it has; set stride"
        )
    if source.fps < ingest.fps:
        raise RejectedSample(
            Code.DECODE, f"{source.fps:g} frames a second; ingest.fps asks for {ingest.fps:g}"
        )
    return source.fps / ingest.fps


def _middle(source: Frames, pace: float, ingest: VideoIngest) -> int:
    """The frame that a part in the middle begins with; frames are counted, not believed."""
    total = source.count_frames(ingest.max_frames + 1)
    if total > ingest.max_frames:
        raise _too_many(f"more than {ingest.max_frames}", ingest)
    span = int((ingest.frames - 1) * pace) + 1
    return max((total - span) // 2, 0)


def _chosen(
    source: Frames, first: int, pace: float, ingest: VideoIngest
) -> Iterator[UInt8[np.ndarray, "h w c"]]:
    """The frames that are kept, as they are stored."""
    claimed = source.claimed
    if claimed is not None and ingest.frames is None and claimed > ingest.max_frames:
        raise _too_many(str(claimed), ingest)
    wanted, kept, seen = first, 0, 0
    for number, frame in enumerate(source.frames()):
        seen = number + 1
        if seen > ingest.max_frames:
            raise _too_many(f"more than {ingest.max_frames}", ingest)
        if frame.shape[:2] != (source.height, source.width):
            raise RejectedSample(
                Code.DECODE,
                f"frame {number} has {frame.shape[1]} x {frame.shape[0]} pixels, the first "
                f"{source.width} x {source.height}",
            )
        if number < wanted:
            continue
        kept += 1
        height, width = _size(ingest) or frame.shape[:2]
        if kept * height * width > ingest.max_voxels:
            raise RejectedSample(
                Code.TOO_LARGE,
                f"more than {kept - 1} frames of {width} x {height} pixels; "
                f"ingest.max_voxels is {ingest.max_voxels}",
            )
        yield _reduced(frame, ingest)
        wanted = first + int(kept * pace + 1e-9)
        if kept == ingest.frames:
            return
    if seen == 0:
        raise RejectedSample(Code.DECODE, "no frame can be decoded")
    if claimed is not None and seen < SHORT * claimed:
        raise RejectedSample(
            Code.DECODE, f"the file is cut short or damaged: {seen} of {claimed} frames can be read"
        )


def _reduced(frame: UInt8[np.ndarray, "h w c"], ingest: VideoIngest) -> np.ndarray:
    picture = recolor(opaque(frame, ingest.background), ingest.color)
    size = _size(ingest)
    return picture if size is None else area_average(central_crop(picture, *size), *size)


def _size(ingest: VideoIngest) -> tuple[int, int] | None:
    """Height and width that frames are brought to; None: they stay as they are."""
    size = ingest.resolution
    return (size, size) if isinstance(size, int) else size


def _too_many(count: str, ingest: VideoIngest) -> RejectedSample:
    return RejectedSample(
        Code.TOO_LARGE,
        f"{count} frames to be decoded; ingest.max_frames is {ingest.max_frames} "
        "(set ingest.frames)",
    )
