"""Waves of Gaussian sources in closed form, where the speed is one number.

Free space, in the units of fields: speed 1, so that k is the wave number. Outgoing waves are
exp(-i k |x|), as the absorbing layer of `pipeline/objectives/waves.py` lets them out. Good to about
1e-7, which the tests compare with the differential equations.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex128, Float64
from numpy.polynomial.legendre import leggauss
from scipy.interpolate import CubicSpline
from scipy.special import erfc, hankel2, j0

TAIL = 9.0
"""Standard deviations after which a Gaussian is nothing."""


def outgoing_line(
    x: Float64[np.ndarray, "p"], k: float, variance: float
) -> Complex128[np.ndarray, "p"]:
    """u'' + k^2 u = a normal density about 0: (i / 2k) exp(-i k |x|), convolved with it."""
    std = np.sqrt(variance)

    def share(z: np.ndarray) -> np.ndarray:
        return erfc(-z / np.sqrt(2)) / 2

    # Beyond the tail the share is 1 on one side and 0 on the other; erfc would overflow there.
    at = np.clip(x, -TAIL * std, TAIL * std)
    right, left = (share((sign * at - 1j * k * variance) / std) for sign in (1, -1))
    right = np.where(x > TAIL * std, 1, np.where(x < -TAIL * std, 0, right))
    left = np.where(x < -TAIL * std, 1, np.where(x > TAIL * std, 0, left))
    waves = np.exp(-1j * k * x) * right + np.exp(1j * k * x) * left
    return 0.5j / k * np.exp(-(k**2) * variance / 2) * waves


def outgoing_plane(
    radius: Float64[np.ndarray, "p"], k: float, variance: float
) -> Complex128[np.ndarray, "p"]:
    """laplacian(u) + k^2 u = a normal density about 0: (i / 4) H_0^(2)(k r), convolved with it.

    By Graf's addition theorem, inside: H_0(k r) times the source within r, J_0(k r) times the one
    beyond it; outside only the first remains, in closed form.
    """
    std = np.sqrt(variance)
    edge, factor = TAIL * std, np.exp(-(k**2) * variance / 2)
    safe = np.maximum(radius, 1e-300)
    found = 0.25j * factor * hankel2(0, k * np.maximum(safe, edge))
    inside = radius < edge
    if inside.any():
        ends = np.linspace(0, edge, 257) ** 2 / edge  # dense at the origin, where H_0 is not smooth
        nodes, weights = leggauss(12)
        half = np.diff(ends)[:, None] / 2
        s = ends[:-1, None] + half * (1 + nodes)
        mass = np.exp(-(s**2) / (2 * variance)) / variance * s * half * weights
        within = np.concatenate([[0], np.cumsum((mass * j0(k * s)).sum(1))])
        beyond = np.cumsum((mass * hankel2(0, k * s)).sum(1)[::-1])[::-1]
        beyond = np.concatenate([beyond, [0]])
        at = np.maximum(ends, 1e-12 * edge)
        table = 0.25j * (hankel2(0, k * at) * within + j0(k * at) * beyond)
        found[inside] = CubicSpline(ends, table)(radius[inside])
    return found


def dalembert(
    t: Float64[np.ndarray, "p"], x: Float64[np.ndarray, "p"], variance: float
) -> Float64[np.ndarray, "p"]:
    """u_tt = u_xx from exp(-x^2 / (2 variance)) at rest: half of it each way."""
    right, left = (np.exp(-((x + sign * t) ** 2) / (2 * variance)) for sign in (-1, 1))
    return (right + left) / 2


def rings(
    t: Float64[np.ndarray, "m"], radius: Float64[np.ndarray, "p"], variance: float
) -> Float64[np.ndarray, "m p"]:
    """u_tt = laplacian(u) in the plane from exp(-r^2 / (2 variance)) at rest.

    Its Hankel transform, integral of variance exp(-variance k^2 / 2) cos(k t) J_0(k r) k dk, by
    Gauss-Legendre in panels; a table by radius is interpolated.
    """
    std, far = np.sqrt(variance), float(radius.max(initial=0)) + 1e-9
    most = TAIL / std
    panels = max(16, int(np.ceil(most * (far + t.max(initial=0)) / 4)))
    ends = np.linspace(0, most, panels + 1)
    nodes, weights = leggauss(10)
    half = (ends[1] - ends[0]) / 2
    k = (ends[:-1, None] + half * (1 + nodes)).ravel()
    spread = variance * np.exp(-variance * k**2 / 2) * k * np.tile(half * weights, panels)
    at = np.linspace(0, far, max(64, int(np.ceil(24 * far / std))))
    table = (spread * np.cos(np.outer(t, k))) @ j0(np.outer(k, at))
    return CubicSpline(at, table, axis=1)(radius)
