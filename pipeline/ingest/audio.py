"""Sounds as amplitudes in [-1, 1]: read by libsndfile, cropped, mixed, resampled, normalized."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from math import gcd
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.ingest.images import held_out_mask
from schemas.run import AudioIngest
from schemas.samples import Code, RejectedSample

AUDIO_SUFFIXES = frozenset(
    f".{name}" for name in ("wav", "wave", "flac", "aif", "aiff", "ogg", "oga", "mp3")
)
RATES = (100, 1_000_000)
"""Rates a file may claim, in Hz; others are of damaged headers."""
CHANNELS = 64
PART = 2**16
"""Time steps that are read at once."""
STREAMED = 0x7FFFF000
"""A WAV whose writer could not go back to fill in its length claims at least this many bytes."""
RATIO = 20_000
"""Largest numerator and denominator of a change of rate: odd ratios are off by less than 1e-8."""


def decode_sound(data: bytes, ingest: AudioIngest, seed_key: str) -> dict:
    """The SOUND columns of an encoded sound.

    Args:
        data: The file's bytes.
        ingest: Rate, length, channels, normalization and limits.
        seed_key: The sample id: it and `ingest.seed` decide the held-out time steps.

    Raises:
        RejectedSample: with code DECODE, EMPTY, TOO_LARGE, NAN_INPUT or DEGENERATE.
    """
    import soundfile

    if not data:
        raise RejectedSample(Code.EMPTY, "the file has no bytes")
    _check_wav(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            amplitude, rate = _read(file, ingest), file.samplerate
    except soundfile.LibsndfileError as error:
        words = f"not a sound that can be read; it begins with {data[:8].hex(' ')}"
        raise RejectedSample(Code.DECODE, f"{words}: {error.error_string}"[:500]) from error
    return sound_columns(amplitude, rate, ingest, seed_key)


def sound_columns(
    amplitude: Float[np.ndarray, "t c"], rate: int, ingest: AudioIngest, seed_key: str
) -> dict:
    """Amplitudes as they are stored; what cannot be fitted is rejected with the reason."""
    if not np.isfinite(amplitude).all():
        bad = int((~np.isfinite(amplitude)).sum())
        raise RejectedSample(Code.NAN_INPUT, f"{bad} of {amplitude.size} amplitudes are not finite")
    mixed = f", mixed from {amplitude.shape[1]} channels" if amplitude.shape[1] > 1 else ""
    if ingest.channels == "mono":
        amplitude = amplitude.mean(1, keepdims=True)
    else:
        mixed = ""
    if len(amplitude) == 1:
        raise RejectedSample(Code.DEGENERATE, "a sound of one time step")
    loudest = float(np.abs(amplitude - amplitude.mean(0)).max())
    if loudest <= 10 ** (ingest.silence_db / 20):
        level = "no amplitude" if loudest == 0 else f"{20 * np.log10(loudest):.0f} dB"
        part = ""
        if ingest.seconds is not None:
            part = f" in the {len(amplitude) / rate:g} s from its {ingest.at}{mixed}"
        raise RejectedSample(
            Code.DEGENERATE,
            f"silent: {level} besides its mean{part or mixed}; ingest.silence_db is "
            f"{ingest.silence_db:g}",
        )
    highest = float(np.abs(amplitude).max())
    if ingest.normalize == "none" and highest > 1:
        raise RejectedSample(
            Code.DECODE, f"amplitudes up to {highest:g}, not in [-1, 1]; set normalize: peak"
        )
    if ingest.rate is not None and ingest.rate != rate:
        amplitude = resample(amplitude, rate, ingest.rate)
        if ingest.seconds is not None:
            amplitude = amplitude[: max(round(ingest.seconds * ingest.rate), 2)]
        if len(amplitude) < 2:
            raise RejectedSample(
                Code.DEGENERATE, f"{len(amplitude)} time steps are left at {ingest.rate} Hz"
            )
        rate = ingest.rate
    peak = float(np.abs(amplitude).max()) if ingest.normalize == "peak" else 1.0
    stored = np.floor((np.clip(amplitude / peak, -1, 1) + 1) / 2 * 65535 + 0.5).astype(np.uint16)
    length, channels = stored.shape
    held = held_out_mask(1, length, ingest.held_out, ingest.seed, seed_key)
    return {
        "pixels": stored.tobytes(),
        "length": length,
        "channels": channels,
        "dtype": "uint16",
        "held_out": np.packbits(held).tobytes(),
        "rate": rate,
        "peak": peak,
    }


def resample(
    amplitude: Float[np.ndarray, "t c"], rate: int, wanted: int
) -> Float[np.ndarray, "k c"]:
    """The sound at another rate: what lies above half of the lower one is filtered out.

    Time step i of the result lies at i / wanted seconds, as i / rate before.
    """
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    up, down = wanted // common, rate // common
    if max(up, down) > RATIO:
        ratio = Fraction(up, down)
        if ratio < 1:
            ratio = ratio.limit_denominator(RATIO)
        else:
            ratio = 1 / (1 / ratio).limit_denominator(RATIO)
        up, down = ratio.numerator, ratio.denominator
    return resample_poly(amplitude, up, down, axis=0)


def _read(file: Any, ingest: AudioIngest) -> Float[np.ndarray, "t c"]:
    """The part of an open sound that is kept; refuses what its header makes impossible."""
    rate, channels, frames = file.samplerate, file.channels, file.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise RejectedSample(
            Code.DECODE, f"the header claims {rate} Hz; {RATES[0]} to {RATES[1]:,} can be read"
        )
    if not 1 <= channels <= CHANNELS:
        raise RejectedSample(
            Code.DECODE, f"the header claims {channels} channels; 1 to {CHANNELS} can be read"
        )
    if frames == 0:
        raise RejectedSample(Code.EMPTY, "a sound of no time steps")
    known = frames < 2**62  # else the header leaves the length open
    wanted = frames
    if ingest.seconds is not None:
        wanted = min(frames, max(round(ingest.seconds * rate), 2))
    if known and wanted * channels > ingest.max_samples:
        raise RejectedSample(
            Code.TOO_LARGE,
            f"{wanted} time steps of {channels} channels; ingest.max_samples is "
            f"{ingest.max_samples}",
        )
    if ingest.at == "middle" and known and wanted < frames:
        file.seek((frames - wanted) // 2)
    parts, count = [], 0
    while count < wanted:
        part = file.read(min(PART, wanted - count), dtype="float64", always_2d=True)
        if not len(part):
            break
        parts.append(part)
        count += len(part)
        if count * channels > ingest.max_samples:
            raise RejectedSample(
                Code.TOO_LARGE,
                f"more than {count} time steps of {channels} channels; ingest.max_samples is "
                f"{ingest.max_samples}",
            )
    if count == 0:
        raise RejectedSample(Code.EMPTY, "a sound of no time steps")
    if known and count < wanted:
        raise RejectedSample(
            Code.DECODE, f"the file is cut short: {count} of {wanted} time steps can be read"
        )
    return np.concatenate(parts)


def _check_wav(data: bytes) -> None:
    """Refuses a RIFF file whose samples end before its header says: libsndfile is silent on it."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        there = len(data) - place - 8
        if name == b"data":
            if there < size < STREAMED:
                raise RejectedSample(
                    Code.DECODE, f"the file is cut short: {there} bytes of {size} with samples"
                )
            if there == 0:
                raise RejectedSample(Code.EMPTY, "a sound of no time steps")
            return
        place += 8 + size + size % 2
    raise RejectedSample(Code.DECODE, "a WAV file without samples (no chunk 'data')")
