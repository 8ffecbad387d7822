"""Sounds from real files: every format gives its amplitudes, every bad file a row with a reason."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from pipeline.ingest.audio import decode_sound, resample
from pipeline.ingest.sample_sets import folder
from schemas.base import Location
from schemas.run import AudioIngest
from schemas.samples import SOUND, Code, RejectedSample
from tests.ingest.tools import encoded, images, lines, picture, run_ingest, write

RATE = 8000
T = np.arange(4000) / RATE
TONE = 0.5 * np.sin(2 * np.pi * 440 * T)


def sound(
    amplitude: np.ndarray = TONE, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16"
) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, amplitude, rate, format=kind, subtype=subtype)
    return sink.getvalue()


def decoded(data: bytes, **keys) -> tuple[dict, np.ndarray]:
    columns = decode_sound(data, AudioIngest(**keys), "id")
    assert set(columns) == set(SOUND.names)
    stored = np.frombuffer(columns["pixels"], np.uint16).reshape(columns["length"], -1)
    return columns, stored / 65535 * 2 - 1


def claimed_rate(data: bytes, rate: int) -> bytes:
    return data[:24] + struct.pack("<I", rate) + data[28:]


FORMATS = {
    "wav 8": ("WAV", "PCM_U8", 1 / 128),
    "wav 16": ("WAV", "PCM_16", 5e-5),
    "wav 24": ("WAV", "PCM_24", 2e-5),
    "wav float": ("WAV", "FLOAT", 2e-5),
    "flac 16": ("FLAC", "PCM_16", 5e-5),
    "flac 24": ("FLAC", "PCM_24", 2e-5),
    "aiff": ("AIFF", "PCM_16", 5e-5),
    "ogg": ("OGG", "VORBIS", 0.1),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_keep_the_amplitudes(name):
    kind, subtype, tolerance = FORMATS[name]
    columns, found = decoded(sound(kind=kind, subtype=subtype), normalize="none")
    assert (columns["length"], columns["rate"], columns["peak"]) == (len(TONE), RATE, 1.0)
    assert np.abs(found[:, 0] - TONE).max() <= tolerance


def test_the_peak_becomes_one_and_is_recorded():
    columns, found = decoded(sound(subtype="FLOAT"))
    assert np.abs(found).max() == pytest.approx(1, abs=2e-5)
    assert columns["peak"] == pytest.approx(np.abs(TONE).max(), rel=1e-6)
    assert np.abs(found[:, 0] * columns["peak"] - TONE).max() <= 2e-5
    loud, _ = decoded(sound(TONE * 10, subtype="FLOAT"))
    assert loud["pixels"] == columns["pixels"]
    with pytest.raises(RejectedSample, match=r"amplitudes up to .*set normalize: peak"):
        decoded(sound(TONE * 10, subtype="FLOAT"), normalize="none")


def test_channels_are_averaged_or_kept():
    stereo = np.stack([TONE, 0.2 * TONE], 1)
    _, mono = decoded(sound(stereo, subtype="FLOAT"), normalize="none")
    assert np.abs(mono[:, 0] - 0.6 * TONE).max() <= 2e-5
    columns, both = decoded(sound(stereo, subtype="FLOAT"), channels="keep", normalize="none")
    assert columns["channels"] == 2
    assert np.abs(both - stereo).max() <= 2e-5


@pytest.mark.parametrize("at", ["start", "middle"])
def test_a_part_is_cut_out(at):
    _, found = decoded(sound(subtype="FLOAT"), seconds=0.1, at=at, normalize="none")
    first = 0 if at == "start" else (4000 - 800) // 2
    assert len(found) == 800
    assert np.abs(found[:, 0] - TONE[first : first + 800]).max() <= 2e-5


@pytest.mark.parametrize(
    ("rate", "wanted"), [(8000, 4000), (8000, 16000), (44100, 8000), (999983, 8000)]
)
def test_another_rate_keeps_what_both_can_hold(rate, wanted):
    t = np.arange(rate // 4) / rate
    tone = np.sin(2 * np.pi * 440 * t)
    found = resample(
        (tone + np.sin(2 * np.pi * 3900 * t) * (wanted == 4000))[:, None], rate, wanted
    )
    at = np.arange(len(found)) / wanted
    inner = slice(len(found) // 5, -len(found) // 5)  # the window of the filter sees the ends
    assert np.abs(found[:, 0] - np.sin(2 * np.pi * 440 * at))[inner].max() < 0.01
    assert len(found) == pytest.approx(len(t) * wanted / rate, abs=1)


def test_held_out_steps_are_a_function_of_seed_and_id_alone():
    first, again = (decoded(sound(), held_out=0.1)[0]["held_out"] for _ in range(2))
    held = np.unpackbits(np.frombuffer(first, np.uint8), count=4000)
    assert first == again
    assert held.sum() == 400
    assert decoded(sound(), held_out=0.1, seed=1)[0]["held_out"] != first


def test_a_wav_whose_writer_left_the_length_open_is_read_to_its_end():
    data = sound()
    at = data.index(b"data") + 4
    streamed = data[:4] + b"\xff" * 4 + data[8:at] + b"\xff" * 4 + data[at + 4 :]
    columns, found = decoded(streamed, normalize="none")
    assert columns["length"] == 4000
    assert np.abs(found[:, 0] - TONE).max() <= 5e-5


FLAC = sound(kind="FLAC")
BAD = {  # name: (bytes, code, words)
    "zero.wav": (b"", Code.EMPTY, "no bytes"),
    "none.wav": (sound(TONE[:0]), Code.EMPTY, "no time steps"),
    "one.wav": (sound(TONE[40:41]), Code.DEGENERATE, "one time step"),
    "silent.wav": (sound(0 * TONE), Code.DEGENERATE, "silent: no amplitude"),
    "hum.flac": (sound(TONE * 1e-3, kind="FLAC"), Code.DEGENERATE, "silent: -66 dB"),
    "offset.wav": (sound(0 * TONE + 0.5), Code.DEGENERATE, "silent"),
    "against.wav": (
        sound(np.stack([TONE, -TONE], 1)), Code.DEGENERATE, "mixed from 2 channels",
    ),
    "nan.wav": (
        sound(np.where(T < 0.01, np.nan, TONE), subtype="FLOAT"), Code.NAN_INPUT, "80 of 4000",
    ),
    "inf.wav": (sound(np.where(T < 0.01, np.inf, TONE), subtype="FLOAT"), Code.NAN_INPUT, "80"),
    "cut.wav": (sound()[:4000], Code.DECODE, "cut short: 3956 bytes of 8000"),
    "cut.flac": (FLAC[: len(FLAC) // 2], Code.DECODE, ""),
    "header.wav": (b"RIFF" + b"\x17" * 4 + b"WAVE" + sound()[50:], Code.DECODE, ""),
    "header.flac": (FLAC[:8] + b"\xff" * 30 + FLAC[38:], Code.DECODE, ""),
    "noise.wav": (bytes(range(1, 256)) * 20, Code.DECODE, "begins with 01 02 03"),
    "rate.wav": (claimed_rate(sound(), 3_000_000), Code.DECODE, "claims 3000000 Hz; 100 to"),
    "rates.wav": (claimed_rate(sound(), 4_000_000_000), Code.DECODE, "not a sound"),
    "slow.wav": (claimed_rate(sound(), 1), Code.DECODE, "claims 1 Hz; 100 to"),
    "channels.wav": (
        sound()[:22] + struct.pack("<H", 60000) + sound()[24:], Code.DECODE, "",
    ),
    "picture.wav": (encoded(picture(0)), Code.DECODE, "not a sound"),
    "long.wav": (sound(np.tile(TONE, 3)), Code.TOO_LARGE, "max_samples is 9000"),
}  # fmt: skip


def test_a_silent_part_of_a_sound_is_told_to_be_a_part():
    with pytest.raises(RejectedSample, match=r"in the 0\.25 s from its start"):
        decoded(sound(np.r_[0 * TONE, TONE]), seconds=0.25)
    assert decoded(sound(np.r_[0 * TONE, TONE]), seconds=0.25, at="middle")[0]["length"] == 2000


def test_every_bad_file_is_a_row_with_a_code_and_a_sentence(tmp_path):
    files = {name: data for name, (data, _, _) in BAD.items()}
    good = {
        "tone.wav": sound(),
        "flac-named.wav": sound(TONE * 0.9, kind="FLAC"),
        "tone.flac": sound(TONE * 0.8, kind="FLAC"),
    }
    write(tmp_path / "data", files | good | {"notes.txt": b"no sound"})
    dataset = images(tmp_path / "data", kind="audio")
    ingest = AudioIngest(max_samples=9000, timeout_s=20)
    prepared = run_ingest(dataset, Location(url=str(tmp_path / "p")), ingest)
    found = lines(prepared)
    for name, (_, code, words) in BAD.items():
        assert (found[name]["status"], found[name]["code"]) == ("rejected", code.value), found[name]
        assert words in found[name]["message"], found[name]
        assert len(found[name]["message"]) > 10
    assert {k for k, v in found.items() if v["status"] == "accepted"} == set(good)
    assert found["notes.txt"]["status"] == "ignored"
    assert prepared.rows(0, 3)["rate"].to_pylist() == [RATE] * 3


def test_the_length_that_is_kept_is_what_the_limit_is_for():
    data = sound(np.tile(TONE, 3))
    assert decoded(data, seconds=0.5, max_samples=9000)[0]["length"] == 4000


def test_sample_sounds_are_distinct_and_as_long_as_they_say():
    for path in folder("sounds").rglob("*.*"):
        columns, found = decoded(path.read_bytes())
        assert (columns["length"], columns["rate"]) == (8000, 8000)
        assert 0.05 < found.std() < 0.7, path
