"""Images as pixels: decoded, upright, opaque, reduced by area averaging, with held-out pixels."""

from __future__ import annotations

import io
import warnings
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from schemas.run import ImageIngest
from schemas.samples import Code, RejectedSample

Image.MAX_IMAGE_PIXELS = None  # the cap is `ingest.max_pixels`, checked before anything is decoded
Image.init()
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LUMA = (0.299, 0.587, 0.114)
"""Weights of gray (ITU-R BT.601)."""
ORIENTATION = 0x0112


def decode_image(data: bytes, ingest: ImageIngest, seed_key: str) -> dict:
    """The GRID columns of an encoded image.

    Args:
        data: The file's bytes.
        ingest: Size, color and limits.
        seed_key: The sample id: it and `ingest.seed` decide the held-out pixels.

    Raises:
        RejectedSample: with code DECODE, EMPTY or TOO_LARGE.
    """
    if not data:
        raise RejectedSample(Code.EMPTY, "the file has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and tifffile warn of odd metadata
        try:
            pixels = _open_any(data, ingest)
        except RejectedSample:
            raise
        except MemoryError:
            raise
        except Exception as error:
            raise RejectedSample(Code.DECODE, f"{type(error).__name__}: {error}"[:500]) from error
    return grid_columns(pixels, ingest, seed_key)


def decode_array(
    data: bytes, shape: tuple[int, ...], dtype: str, ingest: ImageIngest, seed_key: str
):
    """The GRID columns of raw pixels: [h, w] or [h, w, c], c in 1..4.

    Whole numbers in 0..255 become uint8; uint16 stays; bool becomes 0 and 255; floats must lie in
    [0, 1] and become uint16.
    """
    array = np.frombuffer(data, np.dtype(dtype)).reshape(shape)
    if array.ndim == 2:
        array = array[..., None]
    if 0 in array.shape:
        raise RejectedSample(Code.EMPTY, f"an array of shape {shape}")
    if array.shape[2] > 4:
        raise RejectedSample(Code.DECODE, f"{array.shape[2]} channels; 1 to 4 can be read")
    _check_size(array.shape[1], array.shape[0], ingest)
    pixels = _integers(array)
    return grid_columns(opaque(pixels, ingest.background), ingest, seed_key)


def grid_columns(pixels: Shaped[np.ndarray, "h w c"], ingest: ImageIngest, seed_key: str) -> dict:
    """Color, size and held-out pixels of an opaque picture of 1 or 3 channels."""
    pixels = recolor(pixels, ingest.color)
    columns: dict = {"source": None, "source_height": None, "source_width": None}
    if ingest.resolution is not None:
        size = ingest.resolution
        height, width = (size, size) if isinstance(size, int) else size
        full = central_crop(pixels, height, width)
        pixels = area_average(full, height, width)
        if full.shape != pixels.shape:
            columns = {
                "source": full.tobytes(),
                "source_height": full.shape[0],
                "source_width": full.shape[1],
            }
    held = held_out_mask(pixels.shape[0], pixels.shape[1], ingest.held_out, ingest.seed, seed_key)
    return columns | {
        "pixels": pixels.tobytes(),
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "channels": pixels.shape[2],
        "dtype": str(pixels.dtype),
        "held_out": np.packbits(held).tobytes(),
    }


def held_out_mask(
    height: int, width: int, share: float, seed: int, key: str
) -> Bool[np.ndarray, "p"]:
    """The pixels set apart for evaluation: a function of (size, share, seed, key) alone."""
    count = height * width
    chosen = min(round(share * count), count - 1)
    mask = np.zeros(count, bool)
    if chosen:
        state = int.from_bytes(blake2b(f"{seed}/{key}".encode(), digest_size=16).digest(), "little")
        draws = np.random.Philox(key=state).random_raw(count)
        mask = draws <= np.partition(draws, chosen - 1)[chosen - 1]
    return mask


def central_crop(pixels: Shaped[np.ndarray, "h w c"], height: int, width: int):
    """The largest central part with the aspect of height x width."""
    have_h, have_w = pixels.shape[:2]
    keep_h = min(have_h, max(1, round(have_w * height / width)))
    keep_w = min(have_w, max(1, round(have_h * width / height)))
    top, left = (have_h - keep_h) // 2, (have_w - keep_w) // 2
    return np.ascontiguousarray(pixels[top : top + keep_h, left : left + keep_w])


def area_average(pixels: Shaped[np.ndarray, "h w c"], height: int, width: int):
    """Every target pixel is the mean of the source over its area, partly covered pixels by share.

    Sums are of whole numbers in float64, so that the result has the same bits on every machine.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    rows = _average_rows(pixels, height)
    mean = _average_rows(rows.transpose(1, 0, 2), width).transpose(1, 0, 2)
    return np.ascontiguousarray(np.floor(mean + 0.5).astype(pixels.dtype))


def _average_rows(pixels: Shaped[np.ndarray, "h w c"], count: int) -> Float[np.ndarray, "k w c"]:
    have = pixels.shape[0]
    result = np.zeros((count, *pixels.shape[1:]))
    for i in range(count):
        # edges in units of 1/count of a source row: whole numbers, so no rounding at the borders
        first, last = i * have, (i + 1) * have
        a, b = first // count, -(-last // count)
        total = pixels[a:b].sum(axis=0, dtype=np.float64) * count
        total -= pixels[a].astype(np.float64) * (first - a * count)
        total -= pixels[b - 1].astype(np.float64) * (b * count - last)
        result[i] = total / have
    return result


def _open_any(data: bytes, ingest: ImageIngest) -> Shaped[np.ndarray, "h w c"]:
    try:
        return _open(data, ingest)
    except UnidentifiedImageError:
        if data[:4] not in TIFF_MAGIC:
            raise RejectedSample(Code.DECODE, _unknown(data)) from None
        # layouts of TIFF that Pillow does not know, e.g. 8-bit channels in separate planes
        return opaque(_read_tiff(data, ingest), ingest.background)


def _open(data: bytes, ingest: ImageIngest) -> Shaped[np.ndarray, "h w c"]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size, ingest)
        if (
            image.format == "PNG"
            and data[24:25] == b"\x10"
            and data[25:26] in (b"\2", b"\4", b"\6")
        ):
            return opaque(_turn(_deep_png(data, image), _orientation(image)), ingest.background)
        if image.format == "TIFF" and _deep_tiff(image):
            return opaque(_turn(_read_tiff(data, ingest), _orientation(image)), ingest.background)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            pixels = np.asarray(image)
            if image.mode.startswith("I;16"):
                pixels = pixels.astype(np.uint16)
            pixels = _integers(pixels[..., None])
            clear = image.info.get("transparency")
            if isinstance(clear, int):
                cover = np.iinfo(pixels.dtype).max * (pixels != clear)
                pixels = np.concatenate([pixels, cover.astype(pixels.dtype)], axis=2)
            return opaque(pixels, ingest.background)
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            gray = image.mode in ("L", "LA", "La", "1")
            return opaque(np.asarray(image.convert("LA" if gray else "RGBA")), ingest.background)
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"))[..., None]
        return np.asarray(image.convert("RGB"))


def _check_size(width: int, height: int, ingest: ImageIngest) -> None:
    if width * height > ingest.max_pixels:
        raise RejectedSample(
            Code.TOO_LARGE, f"{width} x {height} pixels; ingest.max_pixels is {ingest.max_pixels}"
        )
    if width * height == 0:
        raise RejectedSample(Code.EMPTY, f"{width} x {height} pixels")


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION, 1))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation: 1 upright, 3 upside down, 6 and 8 quarter turns."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _deep_png(data: bytes, image: Image.Image) -> np.ndarray:
    """16 bits a channel: Pillow reduces them to 8 without a word."""
    import imagecodecs

    pixels = imagecodecs.png_decode(data)
    if pixels.dtype != np.uint16:
        raise RejectedSample(Code.DECODE, f"a 16-bit PNG was read as {pixels.dtype}")
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_tiff(image: Image.Image) -> bool:
    """Whether the first page has channels of other than 8 bits (or 1)."""
    bits = image.tag_v2.get(258, (1,))
    return any(b not in (1, 2, 4, 8) for b in (bits if isinstance(bits, tuple) else (bits,)))


def _read_tiff(data: bytes, ingest: ImageIngest) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        _check_size(page.imagewidth, page.imagelength, ingest)
        pixels, axes = page.asarray(), page.axes
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] > 4:
        raise RejectedSample(Code.DECODE, f"a TIFF page of shape {pixels.shape} ({axes})")
    return _integers(pixels)


def _integers(pixels: np.ndarray) -> np.ndarray:
    """Any numbers as uint8 or uint16."""
    kind = pixels.dtype.kind
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind == "u" and pixels.itemsize <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="))
    if kind == "f":
        if not np.isfinite(pixels).all():
            raise RejectedSample(Code.NAN_INPUT, "pixels are not finite")
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            raise RejectedSample(Code.DECODE, f"float pixels in [{low:g}, {high:g}], not in [0, 1]")
        return np.floor(pixels.astype(np.float64) * 65535 + 0.5).astype(np.uint16)
    if kind not in "iu":
        raise RejectedSample(
            Code.DECODE,
            f"{pixels.dtype} pixels: no real numbers; save what is to be fitted (of complex ones "
            "the magnitude, say) as uint8, uint16, or floats in [0, 1]",
        )
    low, high = int(pixels.min()), int(pixels.max())
    if low >= 0 and high <= 255:
        return pixels.astype(np.uint8)
    raise RejectedSample(
        Code.DECODE, f"{pixels.dtype} pixels in [{low}, {high}]; save them as uint8 or uint16"
    )


def opaque(pixels: np.ndarray, background: float) -> np.ndarray:
    """Lays transparent pixels over the background; 1 or 3 channels are left."""
    channels = pixels.shape[2]
    if channels in (1, 3):
        return pixels
    top = np.iinfo(pixels.dtype).max
    alpha = pixels[..., -1:].astype(np.float64) / top
    color = pixels[..., :-1] * alpha + background * top * (1 - alpha)
    return np.floor(color + 0.5).astype(pixels.dtype)


def recolor(pixels: np.ndarray, color: str) -> np.ndarray:
    """Repeats gray into three channels, or weighs three into one; `keep`: as it is."""
    if color == "rgb" and pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if color == "gray" and pixels.shape[2] == 3:
        red, green, blue = (pixels[..., i].astype(np.float64) for i in range(3))
        luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        return np.floor(luma + 0.5).astype(pixels.dtype)[..., None]
    return np.ascontiguousarray(pixels)


def _unknown(data: bytes) -> str:
    return f"not an image that can be read; it begins with {data[:8].hex(' ')}"
