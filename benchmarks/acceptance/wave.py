"""Waves on a line, from the equation and the start alone: sine layers against tanh ones."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures

DATA = (
    "2 waves on a line for t up to 0.4: a pulse of deviation 0.05, and two pulses in a medium of "
    "varying speed (reference by finite differences, error 1e-3)"
)
METRIC = "relative L2 against the reference at 65 x 257 times and places, of the worse problem"
CONTROL = "the sine layers (tanh)"
CLAIM = "sine networks solve the wave equation from its start; tanh fails (sec. 4.4)"
HIGHER = False


def run(seed: int) -> Figures:
    """Ours against d'Alembert's answer and finite differences, and the twin."""
    from benchmarks.acceptance import _problems

    random = np.random.default_rng([seed, 4])
    a, b, c = random.uniform(-0.2, 0.2, 3).round(3).tolist()
    nodes = np.linspace(0, np.pi, 17)
    one = {"equation": "wave", "dimension": 1, "duration": 0.4}
    two = [
        {"at": [b - 0.3], "variance": 0.0036},
        {"at": [c + 0.3], "variance": 0.0064, "amplitude": -0.7},
    ]
    problems = [
        {**one, "sources": [{"at": [a], "variance": 0.0025}]},
        {**one, "sources": two, "speed": (1 + 0.2 * np.sin(2 * nodes + a)).round(4).tolist()},
    ]
    table = _problems.prepared(problems)
    settings = {"steps": 700}
    ours = _problems.errors("wave", table, seed, **settings)["relative_l2"]
    tanh = _problems.errors("wave", table, seed, activation="tanh", **settings)["relative_l2"]
    return Figures(float(ours.max()), float(tanh.min()), {"one pulse": float(ours[0])})


def check(figures: Figures) -> None:
    assert figures.ours <= 0.05, f"relative L2 {figures.ours:.3f}, 0.05 is asked"
    assert figures.control >= 5 * figures.ours, f"tanh nearly as well: {figures.control:.3f}"
