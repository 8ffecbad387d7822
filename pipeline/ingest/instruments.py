"""Sounds that are computed, not recorded: physical models of strings, bars, pipes and voices.

No package that can be depended on ships recordings of any length, so `sample:sounds` solves small
models of what sounds: a plucked string as a delayed loop, a struck bar by its modes, a pipe as a
reed that drives a delay, a voice as pulses through resonances. They have what makes recordings hard
to fit: attacks, decay, noise and overtones up to half of the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

RATE = 8000
"""Time steps a second."""
SECONDS = 1.0
EACH = 4
"""Sounds an instrument."""
BAR = (1.0, 2.756, 5.404, 8.933, 13.344)
"""Frequencies of the bending modes of a free bar, of the lowest (Fletcher and Rossing, The Physics
of Musical Instruments)."""
MEMBRANE = (1.0, 1.594, 2.136, 2.296, 2.653, 2.918, 3.156, 3.501, 3.6, 4.06)
"""... and of a circular membrane (ratios of the zeros of Bessel functions)."""
VOWELS = {
    "a": ((730, 90), (1090, 110), (2440, 120)),
    "i": ((270, 60), (2290, 100), (3010, 120)),
    "u": ((300, 60), (870, 90), (2240, 120)),
    "e": ((530, 60), (1840, 100), (2480, 120)),
}
"""Resonances of vowels and their widths, Hz (Peterson and Barney 1952, men)."""
Sound = Float[np.ndarray, "t"]


def make_sounds(folder: Path, *, each: int = EACH, seed: int = 0) -> None:
    """Writes folder/INSTRUMENT/NUMBER.wav or .flac: mono, 16 bits."""
    import soundfile

    for number, (name, play) in enumerate(sorted(INSTRUMENTS.items())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            sound = play(np.random.default_rng([seed, number, i]))
            peak = np.abs(sound).max()
            stored = np.round(sound / peak * 0.8 * 32767).astype(np.int16)
            path = folder / name / f"{i:02d}.{('wav', 'flac')[i % 2]}"
            soundfile.write(path, stored, RATE, subtype="PCM_16")


def string(random: np.random.Generator, rate: int = RATE) -> Sound:
    """Plucked strings, a new one every quarter of a second (Karplus and Strong 1983)."""
    out = np.zeros(round(SECONDS * rate))
    for start in range(0, len(out), rate // 4):
        pitch = 110 * 2 ** (random.integers(0, 25) / 12)
        out[start:] += _loop(random, rate / pitch, 0.996, len(out) - start)
    return out


def _loop(random: np.random.Generator, delay: float, loss: float, count: int) -> Sound:
    whole = int(delay - 0.5)
    turn = (1 - (delay - 0.5 - whole)) / (1 + (delay - 0.5 - whole))  # all-pass: rest of the delay
    noise = random.uniform(-1, 1, whole)
    for _ in range(4):  # a soft pick
        noise = (noise + np.roll(noise, 1)) / 2
    line = (noise - noise.mean()).tolist()
    out, before, last_in, last_out = [0.0] * count, 0.0, 0.0, 0.0
    for i in range(count):
        now = line[i % whole]
        low = loss * 0.5 * (now + before)
        before = now
        last_out = turn * (low - last_out) + last_in
        last_in = low
        line[i % whole] = last_out
        out[i] = now
    return np.array(out)


def bar(random: np.random.Generator, rate: int = RATE) -> Sound:
    """Struck bars: decaying modes; where the hammer hits decides how loud each is."""
    return _struck(random, rate, BAR, pitch=(200, 700), decay=(0.15, 0.5), hits=3)


def drum(random: np.random.Generator, rate: int = RATE) -> Sound:
    """Struck membranes, with the noise of the stick."""
    out = _struck(random, rate, MEMBRANE, pitch=(70, 160), decay=(0.05, 0.15), hits=5)
    stick = random.normal(size=len(out)) * np.exp(-(np.arange(len(out)) % (rate // 5)) / 60)
    return out + 0.15 * np.abs(out).max() * stick


def _struck(random: np.random.Generator, rate: int, modes, *, pitch, decay, hits: int) -> Sound:
    out = np.zeros(round(SECONDS * rate))
    for start in range(0, len(out), rate // hits):
        t = np.arange(len(out) - start) / rate
        base, length, place = random.uniform(*pitch), random.uniform(*decay), random.uniform(0.1, 1)
        for i, ratio in enumerate(modes):
            if base * ratio < rate / 2:
                loud = np.sin(np.pi * place * (i + 1)) / (i + 1)
                out[start:] += (
                    loud * np.exp(-t * ratio / length) * np.sin(2 * np.pi * base * ratio * t)
                )
    return out


def pipe(random: np.random.Generator, rate: int = RATE) -> Sound:
    """Blown pipes: breath noise and a reed that closes drive a delay with a dull end."""
    count = round(SECONDS * rate)
    pitch = 130 * 2 ** (random.integers(0, 13) / 12)
    delay = max(int(rate / pitch / 2), 2)
    line, low, out = [0.0] * delay, 0.0, [0.0] * count
    rise = np.minimum(np.arange(count) / (0.08 * rate), 1) * np.minimum(
        (count - np.arange(count)) / (0.1 * rate), 1
    )
    wobble = 1 + 0.04 * np.sin(2 * np.pi * 5 * np.arange(count) / rate)
    breath = (0.85 * rise * wobble * (1 + 0.02 * random.normal(size=count))).tolist()
    for i in range(count):
        end = line[i % delay]
        low = 0.35 * end + 0.65 * low
        back = -0.95 * low
        difference = back - breath[i]
        reed = min(max(0.7 - 0.3 * difference, -1.0), 1.0)
        line[i % delay] = breath[i] + difference * reed
        out[i] = end
    sound = np.array(out)
    return sound - sound.mean()


def voice(random: np.random.Generator, rate: int = RATE) -> Sound:
    """Vowels that glide into one another: pulses of the glottis through three resonances."""
    count = round(SECONDS * rate)
    t = np.arange(count) / rate
    pitch = random.uniform(95, 160) * (1 + 0.15 * np.sin(2 * np.pi * (1.3 * t + random.uniform())))
    phase = np.cumsum(pitch / rate) % 1
    pulse = np.where(phase < 0.6, phase**2 * (0.6 - phase), 0.0)
    source = np.diff(pulse, prepend=0) + 0.002 * random.normal(size=count)
    names = random.permutation(sorted(VOWELS))[:3]
    at = t / SECONDS * (len(names) - 1)
    sound = source
    for i in range(3):
        centers = np.interp(at, range(len(names)), [VOWELS[n][i][0] for n in names])
        widths = np.interp(at, range(len(names)), [VOWELS[n][i][1] for n in names])
        sound = _resonance(sound, centers, widths, rate)
    swell = np.sin(np.pi * np.minimum(t / SECONDS * 3 % 1 + 0.05, 1)) ** 0.5
    return sound * swell


def _resonance(sound: Sound, centers: Sound, widths: Sound, rate: int) -> Sound:
    """A resonance that moves: y[i] = x[i] + 2 r cos(w) y[i-1] - r^2 y[i-2]."""
    radius = np.exp(-np.pi * widths / rate)
    first = (2 * radius * np.cos(2 * np.pi * centers / rate)).tolist()
    second, gain = (radius**2).tolist(), (1 - radius).tolist()
    out, before, older = [0.0] * len(sound), 0.0, 0.0
    for i, value in enumerate(sound.tolist()):
        now = gain[i] * value + first[i] * before - second[i] * older
        out[i], before, older = now, now, before
    return np.array(out)


INSTRUMENTS: dict[str, Callable[[np.random.Generator], Sound]] = {
    "bar": bar,
    "drum": drum,
    "pipe": pipe,
    "string": string,
    "voice": voice,
}
