"""Every format gives back the pixels it was made of; what cannot be read says why."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.ingest.images import (
    area_average,
    central_crop,
    decode_array,
    decode_image,
    held_out_mask,
)
from schemas.run import ImageIngest
from schemas.samples import FORMS, Code, RejectedSample
from tests.ingest.tools import deep_png, encoded, grid, picture

KEEP = ImageIngest(color="keep", held_out=0)
RNG = np.random.default_rng(5)


def decoded(data: bytes, ingest: ImageIngest = KEEP) -> np.ndarray:
    columns = decode_image(data, ingest, "id")
    assert set(columns) == set(FORMS["images"].names)
    return grid(columns)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_every_pixel(kind, channels):
    pixels = picture(1, 7, 5, channels)
    assert np.array_equal(decoded(encoded(pixels, kind)), pixels)


def test_webp_and_jpeg_are_read():
    pixels = picture(2)
    assert np.array_equal(decoded(encoded(pixels, "WEBP", lossless=True)), pixels)
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
    for channels in (1, 3):
        found = decoded(encoded(smooth[..., :channels], "JPEG", quality=95))
        assert found.shape == (32, 32, channels)
        assert np.abs(found.astype(int) - smooth[..., :channels]).max() <= 4


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_stay_sixteen_bits_in_png(channels):
    pixels = RNG.integers(0, 65536, (6, 4, channels), np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    found = decoded(deep_png(pixels))
    assert found.dtype == np.uint16
    assert np.array_equal(found, pixels[..., : 1 if channels < 3 else 3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bits_stay_sixteen_bits_in_tiff(channels, compression, planar):
    pixels = RNG.integers(0, 65536, (6, 4, channels), np.uint16)
    data = np.moveaxis(pixels, 2, 0) if planar == "separate" and channels == 3 else pixels
    sink = io.BytesIO()
    tifffile.imwrite(
        sink,
        data if channels == 3 else data[..., 0],
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig=planar if channels == 3 else None,
        compression=compression,
        byteorder=">",
    )
    found = decoded(sink.getvalue())
    assert found.dtype == np.uint16
    assert np.array_equal(found, pixels)


def test_tiff_layouts_that_pillow_does_not_know():
    pixels = picture(1, 6, 4)
    for options in ({"bigtiff": True}, {"planarconfig": "separate"}):
        sink = io.BytesIO()
        data = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
        tifffile.imwrite(sink, data, photometric="rgb", **options)
        assert np.array_equal(decoded(sink.getvalue()), pixels)
        with pytest.raises(RejectedSample, match="4 x 6 pixels"):
            decoded(sink.getvalue(), ImageIngest(max_pixels=20))


def test_float_tiff_in_the_unit_interval_becomes_sixteen_bits():
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.array([[0, 0.5], [0.25, 1]], np.float32))
    assert decoded(sink.getvalue()).ravel().tolist() == [0, 32768, 16384, 65535]
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.array([[0, 2.0]], np.float32))
    with pytest.raises(RejectedSample, match=r"not in \[0, 1\]"):
        decoded(sink.getvalue())


def test_transparent_pixels_lie_over_the_background():
    pixels = picture(3, 6, 5, 4)
    pixels[:2, :, 3], pixels[2:4, :, 3] = 0, 255
    for background in (0.0, 0.5, 1.0):
        ingest = ImageIngest(held_out=0, background=background)
        alpha = pixels[..., 3:] / 255
        want = np.floor(pixels[..., :3] * alpha + 255 * background * (1 - alpha) + 0.5)
        assert np.array_equal(decoded(encoded(pixels), ingest), want.astype(np.uint8))
        assert np.array_equal(
            decoded(encoded(pixels, "WEBP", lossless=True, exact=True), ingest), want
        )
    deep = RNG.integers(0, 65536, (3, 3, 4), np.uint16)
    deep[..., 3] = 0
    assert (decoded(deep_png(deep)) == 65535).all()


def test_palette_one_bit_cmyk_and_gray_alpha_are_read():
    flat = np.zeros((4, 6, 3), np.uint8)
    flat[:, 3:] = (10, 200, 30)
    paletted = Image.fromarray(flat).quantize(2)
    sink = io.BytesIO()
    paletted.save(sink, "PNG")
    assert np.array_equal(decoded(sink.getvalue()), flat)
    sink = io.BytesIO()
    paletted.save(sink, "PNG", transparency=paletted.getpixel((5, 0)))
    assert (decoded(sink.getvalue())[:, 3:] == 255).all()
    bits = io.BytesIO()
    Image.fromarray(np.eye(8) > 0).save(bits, "PNG")
    assert np.array_equal(decoded(bits.getvalue())[..., 0], np.eye(8) * 255)
    inks = io.BytesIO()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(inks, "TIFF")
    assert (decoded(inks.getvalue()) == (255, 0, 0)).all()
    gray = np.array([[[100, 255], [100, 0]]], np.uint8)
    assert decoded(encoded(gray)).tolist() == [[[100], [255]]]


def test_color_is_made_gray_and_gray_is_made_color():
    gray = picture(4, channels=1)
    assert np.array_equal(decoded(encoded(gray), ImageIngest(held_out=0)), gray.repeat(3, 2))
    found = decoded(encoded(picture(5)), ImageIngest(color="gray", held_out=0))
    want = np.asarray(Image.fromarray(picture(5)).convert("L"))
    assert found.shape == (6, 5, 1)
    assert np.abs(found[..., 0].astype(int) - want).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "deep png", "deep tiff"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    stored = np.ascontiguousarray(stored)
    if kind == "deep tiff":
        sink = io.BytesIO()
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(sink, stored.astype(np.uint16), photometric="rgb", extratags=tags)
        found = decoded(sink.getvalue())
    elif kind == "deep png":
        exif = Image.Exif()
        exif[274] = orientation
        found = decoded(with_exif(deep_png(stored.astype(np.uint16)), exif.tobytes()))
    else:
        exif = Image.Exif()
        exif[274] = orientation
        lossless = {"lossless": True} if kind == "WEBP" else {}
        found = decoded(encoded(stored, kind, exif=exif, **lossless))
    assert np.array_equal(found, upright)


def with_exif(png: bytes, exif: bytes) -> bytes:
    """Puts an eXIf chunk before the pixels of a PNG."""
    import struct
    import zlib

    exif = exif.removeprefix(b"Exif\0\0")
    check = struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    at = png.index(b"IDAT") - 4
    return png[:at] + struct.pack(">I", len(exif)) + b"eXIf" + exif + check + png[at:]


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.fromarray(picture(i)) for i in (7, 8)]
    for kind in ("PNG", "WEBP", "TIFF"):
        sink = io.BytesIO()
        lossless = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(sink, kind, save_all=True, append_images=frames[1:], **lossless)
        assert np.array_equal(decoded(sink.getvalue()), picture(7)), kind


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", Code.EMPTY),
        (b"\0" * 100, Code.DECODE),
        (b"GIF89a", Code.DECODE),
        (encoded(picture(1, 64, 64))[:600], Code.DECODE),
        (encoded(picture(1, 64, 64), "JPEG")[:500], Code.DECODE),
        (encoded(picture(1, 64, 64), "TIFF")[:600], Code.DECODE),
        (encoded(picture(1, 64, 64), "WEBP")[:100], Code.DECODE),
        (deep_png(np.zeros((64, 64, 3), np.uint16) + np.arange(64, dtype=np.uint16)[:, None])[:90],
         Code.DECODE),
    ],
)  # fmt: skip
def test_broken_files_are_rejected(data, code):
    with pytest.raises(RejectedSample) as caught:
        decoded(data)
    assert caught.value.code == code


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(bomb, "PNG")
    with pytest.raises(RejectedSample, match="9000 x 9000 pixels") as caught:
        decoded(bomb.getvalue())
    assert caught.value.code == Code.TOO_LARGE


def test_reduction_is_the_mean_over_each_area():
    pixels = RNG.integers(0, 65536, (12, 18, 3), np.uint16)
    want = pixels.reshape(4, 3, 6, 3, 3).mean(axis=(1, 3))
    assert np.abs(area_average(pixels, 4, 6) - want).max() <= 0.5
    # 5 -> 2: the middle row counts half on either side
    column = np.array([0, 10, 100, 50, 200], np.uint8).reshape(5, 1, 1)
    assert area_average(column, 2, 1).ravel().tolist() == [24, 120]
    assert area_average(pixels, 7, 5).shape == (7, 5, 3)
    flat = np.full((13, 9, 3), 77, np.uint8)
    assert (area_average(flat, 5, 4) == 77).all()
    assert (area_average(flat, 20, 30) == 77).all()


def test_resolution_crops_centrally_and_keeps_the_source():
    pixels = picture(9, 8, 12)
    columns = decode_image(encoded(pixels), ImageIngest(resolution=4, held_out=0), "id")
    middle = pixels[:, 2:10]
    assert (columns["source_height"], columns["source_width"]) == (8, 8)
    assert columns["source"] == middle.tobytes()
    want = middle.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(grid(columns) - want).max() <= 0.5
    assert central_crop(pixels, 2, 1).shape == (8, 4, 3)
    same = decode_image(encoded(pixels), ImageIngest(resolution=(8, 12), held_out=0), "id")
    assert same["source"] is None
    assert np.array_equal(grid(same), pixels)


def test_held_out_pixels_depend_on_id_and_seed_alone():
    def mask(key="a/b.png", seed=0, **more):
        return held_out_mask(10, 20, 0.1, seed, key, **more)

    assert mask().sum() == 20
    assert np.array_equal(mask(), mask())
    assert not np.array_equal(mask(), mask(key="a/c.png"))
    assert not np.array_equal(mask(), mask(seed=1))
    assert held_out_mask(1, 1, 0.9, 0, "x").sum() == 0  # one pixel is left to fit
    hits = sum(held_out_mask(8, 8, 0.25, 0, str(i)).astype(int) for i in range(400))
    assert hits.min() > 60
    assert hits.max() < 140  # mean 100, deviation 8.7
    columns = decode_image(encoded(picture(1, 10, 20)), ImageIngest(held_out=0.1), "a/b.png")
    stored = np.unpackbits(np.frombuffer(columns["held_out"], np.uint8), count=200)
    assert np.array_equal(stored.astype(bool), mask())


def test_raw_arrays_are_taken_as_pixels():
    def of(array, **keys):
        array = np.asarray(array)
        ingest = ImageIngest(color="keep", held_out=0, **keys)
        return grid(decode_array(array.tobytes(), array.shape, array.dtype.str, ingest, "x"))

    assert of(picture(1)).tolist() == picture(1).tolist()
    assert of(np.array([[True, False]])).ravel().tolist() == [255, 0]
    assert of(np.array([[0.0, 1.0]])).dtype == np.uint16
    assert of(np.array([[3, 255]], np.int64)).dtype == np.uint8
    with pytest.raises(RejectedSample, match="complex64 pixels: no real numbers"):
        of(np.ones((2, 2), np.complex64))
    assert of(np.array([[1, 256]], ">u2")).ravel().tolist() == [1, 256]
    for bad, code in (
        (np.array([[np.nan]]), Code.NAN_INPUT),
        (np.array([[300]], np.int32), Code.DECODE),
        (np.zeros((0, 3)), Code.EMPTY),
        (np.zeros((2, 2, 7), np.uint8), Code.DECODE),
    ):
        with pytest.raises(RejectedSample) as caught:
            of(bad)
        assert caught.value.code == code
