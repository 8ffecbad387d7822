"""The sample set of equations: waves and Helmholtz fields, in one medium and in several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.ingest.procedural import generator

EACH = 6
"""Problems of each class."""


def _sources(
    rng: np.random.Generator, d: int, count: int, reach: float, deviation: tuple[float, float]
) -> list[dict]:
    """Sources at least three of their widths apart."""
    found: list[dict] = []
    while len(found) < count:
        width = round(float(rng.uniform(*deviation)), 4)
        at = [round(float(x), 3) for x in rng.uniform(-reach, reach, d)]
        if all(np.hypot.reduce(np.subtract(at, s["at"])) > 3 * width for s in found):
            sign = float(rng.choice([-1, 1])) if found else 1.0
            amplitude = round(sign * float(rng.uniform(0.5, 1)) if found else 1.0, 3)
            found.append({"at": at, "variance": round(width**2, 8), "amplitude": amplitude})
    return found


def _medium(rng: np.random.Generator, d: int, nodes: int, change: float) -> list:
    """Speeds about 1 that go smoothly up and down by as much as `change`."""
    x = np.linspace(-1, 1, nodes)
    axes = np.meshgrid(*[x] * d, indexing="ij")
    total = np.zeros((nodes,) * d)
    for _ in range(3):
        wave = rng.uniform(-2, 2, d)
        total += np.sin(sum(k * a for k, a in zip(wave, axes)) + rng.uniform(0, 2 * np.pi))
    return (1 + change * total / np.abs(total).max()).round(4).tolist()


def _helmholtz(rng: np.random.Generator, d: int, number: int, varied: bool) -> dict:
    low, high = (5.0, 10.0) if d == 1 else (3.0, 6.0)
    k = low + (high - low) * number / (EACH - 1)
    problem = {
        "equation": "helmholtz",
        "dimension": d,
        "domain": 1.0,
        "wavenumber": round(k, 3),
        "sources": _sources(rng, d, 1 + number % 2, 0.6, (0.08, 0.12)),
    }
    return problem | ({"speed": _medium(rng, d, 17, 0.2)} if varied else {})


def _wave(rng: np.random.Generator, d: int, number: int, varied: bool) -> dict:
    problem = {
        "equation": "wave",
        "dimension": d,
        "domain": 1.0,
        "duration": round(float(rng.uniform(0.35, 0.5)), 3),
        "sources": _sources(rng, d, 1 + number % 3, 0.4, (0.05, 0.1) if d == 1 else (0.1, 0.15)),
    }
    return problem | ({"speed": _medium(rng, d, 17, 0.2)} if varied else {})


CLASSES = {
    "helmholtz-line": (_helmholtz, 1, False),
    "helmholtz-line-medium": (_helmholtz, 1, True),
    "helmholtz-plane": (_helmholtz, 2, False),
    "wave-line": (_wave, 1, False),
    "wave-line-medium": (_wave, 1, True),
    "wave-plane": (_wave, 2, False),
}
"""By folder: what makes a problem, its dimension, and whether its medium varies."""


def make_problems(folder: Path, seed: int = 0) -> None:
    """Writes `EACH` problems of each class as JSON."""
    for kind, (name, (make, d, varied)) in enumerate(CLASSES.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(EACH):
            problem = make(generator(seed, kind, number), d, number, varied)
            text = json.dumps(problem, indent=1) + "\n"
            (folder / name / f"{name}_{number:02d}.json").write_text(text)
