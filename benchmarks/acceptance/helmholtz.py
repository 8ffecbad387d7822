"""Helmholtz equations on a line, from the equation alone: sine layers against tanh ones."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures

DATA = (
    "3 Helmholtz equations on a line, k = 12 in the box with its absorbing layer: one source, two "
    "complex sources, a medium of varying speed (reference by finite differences, error 2e-4)"
)
METRIC = "relative L2 against the outgoing wave at 257 places of the domain, of the worst problem"
CONTROL = "the sine layers (tanh)"
CLAIM = "sine networks solve the Helmholtz equation with a matched layer; others fail (sec. 4.3)"
HIGHER = False


def run(seed: int) -> Figures:
    """Ours, the twin, and the distance from waves that come in."""
    from benchmarks.acceptance import _problems

    random = np.random.default_rng([seed, 12])
    a, b, c, d = random.uniform(-0.4, 0.4, 4).round(3).tolist()
    one = {"equation": "helmholtz", "dimension": 1, "wavenumber": 6.0}
    two = [
        {"at": [b - 0.3], "variance": 0.01, "amplitude": [1.0, 0.5]},
        {"at": [c + 0.3], "variance": 0.0064, "amplitude": [0.3, -0.7]},
    ]
    nodes = np.linspace(0, np.pi, 17)
    problems = [
        {**one, "sources": [{"at": [a], "variance": 0.01}]},
        {**one, "sources": two},
        {
            **one,
            "sources": [{"at": [d], "variance": 0.01}],
            "speed": (1 + 0.2 * np.sin(2 * nodes + a)).round(4).tolist(),
        },
    ]
    table = _problems.prepared(problems)
    ours = _problems.errors("helmholtz", table, seed)
    tanh = _problems.errors("helmholtz", table, seed, activation="tanh")["relative_l2"]
    also = {
        "one source": float(ours["relative_l2"][0]),
        "conjugate": float(ours["relative_l2_conjugate"][0]),
    }
    return Figures(float(ours["relative_l2"].max()), float(tanh.min()), also)


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours <= 0.05, f"relative L2 {figures.ours:.3f}, 0.05 is asked"
    assert also["conjugate"] >= 1, f"{also['conjugate']:.2f} from the wave that comes in, 1 asked"
    assert figures.control >= 0.8, f"tanh does it too: {figures.control:.2f}"
