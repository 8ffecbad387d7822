"""Relative names inside a sample, and the texture pictures found under them."""

from __future__ import annotations

import io
import posixpath
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_TEXTURE_PIXELS = 64_000_000
"""A larger texture is left out (the shape keeps its plain colors)."""


def resolve(main: str, reference: str) -> str | None:
    """The key that `reference`, written in `main`, names; None if it leaves the dataset."""
    if urlsplit(reference).scheme or reference.startswith(("/", "\\")) or ":" in reference:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(main), unquote(reference)))
    return None if path.startswith("../") or path in ("..", ".") or path.startswith("/") else path


def read_picture(data: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """A PNG, JPEG or WebP texture as RGB; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_TEXTURE_PIXELS:
                return None
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
