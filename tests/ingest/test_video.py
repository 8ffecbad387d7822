"""Videos from real files: frames come back in order, every bad file is a row with a reason."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest import video_files
from pipeline.ingest.listing import write_listing
from pipeline.ingest.sample_sets import folder
from pipeline.ingest.video import decode_video
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import VideoIngest
from schemas.samples import CLIP, Code, RejectedSample
from tests.ingest.tools import encoded, images, lines, picture, run_ingest, write

FRAMES = 12


def moving(
    frames: int = FRAMES, height: int = 32, width: int = 48, channels: int = 3
) -> np.ndarray:
    """A bright square that moves right over a slope, its gray level tells the frame."""
    y, x = np.mgrid[:height, :width]
    base = 60 + 60 * x / width + 40 * y / height
    made = np.repeat(np.repeat(base[None, ..., None], frames, 0), channels, 3)
    for i in range(frames):
        made[i, 8:16, 2 * i : 2 * i + 10] = 255 - 8 * i
    return made.round().astype(np.uint8)


def animated(frames: np.ndarray, kind: str = "PNG", **options) -> bytes:
    first, *rest = (Image.fromarray(f) for f in frames)
    sink = io.BytesIO()
    first.save(sink, kind, save_all=True, append_images=rest, duration=50, **options)
    return sink.getvalue()


def filmed(frames: np.ndarray, path, fps: float = 20.0, code: str = "mp4v") -> bytes:
    cv2 = pytest.importorskip("cv2")
    height, width = frames.shape[1:3]
    fourcc = cv2.VideoWriter.fourcc(*code)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path.read_bytes()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return filmed(moving(), tmp_path_factory.mktemp("film") / "a.mp4")


def decoded(data: bytes, **keys) -> tuple[dict, np.ndarray]:
    columns = decode_video(data, VideoIngest(**keys), "id")
    assert set(columns) == set(CLIP.names)
    shape = [columns[name] for name in ("frames", "height", "width", "channels")]
    return columns, np.frombuffer(columns["pixels"], np.uint8).reshape(shape)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_animated_pictures_keep_every_voxel(kind, options):
    columns, found = decoded(animated(moving(), kind, **options))
    np.testing.assert_array_equal(found, moving())
    assert columns["fps"] == pytest.approx(20)


def test_a_gif_keeps_its_frames_in_order():
    found = decoded(animated(moving(), "GIF"))[1].astype(float)
    assert np.abs(found - moving()).mean() < 6


@pytest.mark.parametrize(("suffix", "code"), [("mp4", "mp4v"), ("avi", "MJPG"), ("mkv", "mp4v")])
def test_encoded_videos_keep_their_frames_in_order(tmp_path, suffix, code):
    columns, found = decoded(filmed(moving(), tmp_path / f"a.{suffix}", code=code))
    assert columns["fps"] == pytest.approx(20)
    assert found.shape == moving().shape
    off = np.abs(found[:, None].astype(float) - moving()[None]).mean((2, 3, 4))
    assert (off.argmin(1) == np.arange(FRAMES)).all()
    assert off.diagonal().max() < 6


def test_the_colors_are_in_their_order(tmp_path):
    red = np.zeros((4, 32, 32, 3), np.uint8)
    red[..., 0] = 220
    found = decoded(filmed(red, tmp_path / "red.mp4"))[1]
    assert found.mean((0, 1, 2)).tolist() == pytest.approx([220, 0, 0], abs=8)


@pytest.mark.parametrize(
    ("keys", "numbers"),
    [
        ({"frames": 4}, [0, 1, 2, 3]),
        ({"frames": 4, "at": "middle"}, [4, 5, 6, 7]),
        ({"stride": 5}, [0, 5, 10]),
        ({"frames": 2, "stride": 5}, [0, 5]),
        ({"fps": 8}, [0, 2, 5, 7, 10]),
        ({"frames": 3, "fps": 8, "at": "middle"}, [3, 5, 8]),
        ({"frames": 99}, list(range(12))),
    ],
)
def test_a_pace_chooses_the_frames(keys, numbers):
    columns, found = decoded(animated(moving()), **keys)
    np.testing.assert_array_equal(found, moving()[numbers])
    assert columns["fps"] == pytest.approx(keys.get("fps", 20 / keys.get("stride", 1)))


def test_frames_are_cropped_and_averaged_by_area():
    columns, found = decoded(animated(moving()), resolution=8, color="gray")
    middle = moving()[:, :, 8:40].astype(float).reshape(FRAMES, 8, 4, 8, 4, 3).mean((2, 4, 5))
    assert (columns["height"], columns["width"], columns["channels"]) == (8, 8, 1)
    assert np.abs(found[..., 0] - middle).max() <= 1.5


def test_a_real_clip_is_read_the_same_twice(film):
    first, again = (decode_video(film, VideoIngest(), "id") for _ in range(2))
    assert first == again
    held = np.unpackbits(np.frombuffer(first["held_out"], np.uint8))
    assert held.sum() == round(0.05 * FRAMES * 32 * 48)


def test_every_bad_file_is_a_row_with_a_code_and_a_sentence(tmp_path, film):
    png, gif, webp = (animated(moving(), k) for k in ("PNG", "GIF", "WEBP"))
    damaged = bytearray(film)
    start = film.index(b"mdat") + 200
    damaged[start : start + len(film) // 2] = bytes(len(film) // 2)
    head = film.index(b"moov")
    noise = np.stack([picture(i, 16, 16) for i in range(40)])
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    bad = {
        "zero.mp4": (b"", Code.EMPTY, "no bytes"),
        "cut.mp4": (film[: len(film) // 2], Code.DECODE, "cut short"),
        "cut.apng": (png[: len(png) // 2], Code.DECODE, "cut short or damaged at frame"),
        "cut.gif": (gif[: len(gif) // 2], Code.DECODE, "cut short"),
        "cut.webp": (webp[: len(webp) // 2], Code.DECODE, "cut short"),
        "header.mp4": (film[:head] + b"junk" + film[head + 4 :], Code.DECODE, "'moov'"),
        "noise.mp4": (bytes(range(1, 256)) * 20, Code.DECODE, "begins with 01 02"),
        "playlist.mp4": (playlist, Code.DECODE, "not a video"),
        "box.mp4": (film[:32] + b"\xff" * 64, Code.DECODE, ""),
        "still.webp": (encoded(picture(0, 16, 16), "WEBP"), Code.DEGENERATE, "kind: images"),
        "one.mp4": (filmed(moving(1), tmp_path / "one.mp4"), Code.DEGENERATE, "one frame"),
        "picture.mp4": (encoded(picture(0), "JPEG"), Code.DECODE, "not a video"),
        "wide.apng": (animated(moving(2, 80, 80)), Code.TOO_LARGE, "max_pixels is 6000"),
        "large.apng": (animated(moving(24)), Code.TOO_LARGE, "max_voxels is 30000"),
        "many.apng": (animated(noise), Code.TOO_LARGE, "max_frames is 30"),
    }
    claims = bytearray(film)  # frames of 65,535 x 65,535 pixels
    at = film.index(b"mp4v", head)
    claims[at + 28 : at + 32] = struct.pack(">HH", 65535, 65535)
    good = {"a.mp4": film, "b.gif": gif, "named.gif": png, "claims.mp4": bytes(claims)}
    files = {name: data for name, (data, _, _) in bad.items()}
    write(tmp_path / "data", files | good | {"damaged.mp4": bytes(damaged), "cover.jpg": b"x"})
    ingest = VideoIngest(max_pixels=6000, max_voxels=30_000, max_frames=30, timeout_s=20)
    prepared = run_ingest(
        images(tmp_path / "data", kind="video"), Location(url=str(tmp_path / "p")), ingest
    )
    found = lines(prepared)
    for name, (_, code, words) in bad.items():
        line = found[name]
        assert (line["status"], line["code"]) == ("rejected", code.value), line
        assert words in line["message"], line
        assert len(line["message"]) > 10
    for name in ("a.mp4", "b.gif", "named.gif"):
        assert found[name]["status"] == "accepted", found[name]
    for name in ("damaged.mp4", "claims.mp4"):  # what FFmpeg can conceal, it may
        assert found[name]["status"] in ("accepted", "rejected")
    assert found["cover.jpg"]["status"] == "ignored"


def test_frames_that_are_not_there_cannot_be_asked_for(film):
    with pytest.raises(RejectedSample, match=r"20 frames a second; ingest.fps asks for 60"):
        decoded(film, fps=60)


def test_without_opencv_nothing_is_listed_and_the_extra_is_named(tmp_path, film, monkeypatch):
    monkeypatch.setattr(video_files, "has_opencv", lambda: False)
    data, prepared = tmp_path / "data", open_objects(Location(url=str(tmp_path / "p")))
    write(data, {"a.gif": animated(moving(), "GIF"), "b.mp4": film})
    with pytest.raises(ValueError, match=r"'b.mp4' is read by OpenCV.*fieldmill\[video\]"):
        write_listing(images(data, kind="video"), VideoIngest(), prepared)
    assert write_listing(images(data, kind="video", exclude=("*.mp4",)), VideoIngest(), prepared)


def test_sample_clips_move():
    for path in folder("clips").rglob("*.apng"):
        _, found = decoded(path.read_bytes())
        assert found.shape == (24, 48, 48, 3)
        change = np.abs(np.diff(found.astype(float), axis=0)).mean((1, 2, 3))
        assert change.min() > 0.5, path
        assert change.max() < 40, path
