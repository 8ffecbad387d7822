"""Waves in any medium by finite differences: the reference where there is no closed form.

Both solvers are of second order in the spacing; each solves on two grids, one twice as fine, and
extrapolates (Richardson), which is of fourth order where medium and layer are smooth. A third of
the difference of the two, relative to the answer, is kept as the error of the finer one: what is
returned is nearer. Coordinates are those of fields: the box [-1, 1]^d, for Helmholtz with its
absorbing layer, for waves the free space around it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Complex128, Float64
from scipy.linalg import solve_banded
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu

from schemas.samples import Code, RejectedSample

Function = Callable[..., np.ndarray]
"""Of one array an axis, which broadcast."""
A_WAVE = 24
"""Nodes of the finer grid in one wavelength, at least."""
A_WIDTH = {"helmholtz": 2, "wave": 6}
"""And in the standard deviation of a source."""
MOST = {("helmholtz", 1): 2**18, ("helmholtz", 2): 640, ("wave", 1): 2**15, ("wave", 2): 1536}
"""Intervals of an axis: beyond, a solution takes minutes or gigabytes."""
COURANT = 0.5
"""Largest speed x time step / spacing (leapfrog is stable below 1 / sqrt(d))."""


def intervals(equation: str, d: int, least: int, finest: float) -> int:
    """Intervals of the coarser grid along [-1, 1]: a multiple of `least`, for a spacing of
    `finest` in the finer grid."""
    count = least * max(1, math.ceil(1 / (finest * least)))
    if 2 * count > MOST[equation, d]:
        raise RejectedSample(
            Code.TOO_LARGE,
            f"waves or sources so short need {2 * count} intervals an axis of the reference "
            f"solution; {MOST[equation, d]} are the most in {d} dimensions",
        )
    return count


def solve_helmholtz(
    source: Function,
    slowness: Function,
    k: float,
    *,
    d: int,
    count: int,
    depth: float,
    strength: float = 5.0,
) -> tuple[Complex128[np.ndarray, "*grid"], float]:
    """Nodes of `count` intervals an axis in [-1, 1]^d, and the relative error of the finer grid.

    div(a grad u) + s k^2 m^2 u = source, zero at the border, in a perfectly matched layer of this
    depth (as `pipeline/objectives/waves.py`, whose constants are the defaults).
    """
    fine = _helmholtz(source, slowness, k, d, 2 * count, depth, strength)
    coarse = _helmholtz(source, slowness, k, d, count, depth, strength)
    return _extrapolated(fine[(slice(None, None, 2),) * d], coarse)


def _helmholtz(source, slowness, k, d, count, depth, strength) -> np.ndarray:
    h = 2 / count
    nodes, middles = np.linspace(-1, 1, count + 1), np.linspace(-1 + h / 2, 1 - h / 2, count)

    def stretch(x: np.ndarray) -> np.ndarray:
        inward = np.maximum(np.abs(x) - (1 - depth), 0) / depth
        return 1 - 1j * strength * inward**2

    inner = nodes[1:-1]
    if d == 1:
        flux = 1 / stretch(middles) / h**2
        mass = stretch(inner) * (k * slowness(inner)) ** 2
        bands = np.zeros((3, count - 1), complex)
        bands[0, 1:] = bands[2, :-1] = flux[1:-1]
        bands[1] = mass - flux[1:] - flux[:-1]
        found = solve_banded((1, 1), bands, source(inner).astype(complex))
        return np.pad(found, 1)
    size, s = count - 1, stretch(inner)
    along = 1 / stretch(middles) / h**2  # flux / s of the other axis, whose s multiplies it below
    x, y = inner[:, None], inner[None, :]
    center = s[:, None] * s[None, :] * (k * slowness(x, y)) ** 2
    center = center - (along[1:] + along[:-1])[:, None] * s[None, :]
    center = center - (along[1:] + along[:-1])[None, :] * s[:, None]
    number = np.arange(size**2).reshape(size, size)
    across = np.broadcast_to(along[1:-1, None] * s[None, :], (size - 1, size)).ravel()
    beside = np.broadcast_to(s[:, None] * along[None, 1:-1], (size, size - 1)).ravel()
    pairs = [
        (number.ravel(), number.ravel(), center.ravel()),
        (number[:-1].ravel(), number[1:].ravel(), across),
        (number[1:].ravel(), number[:-1].ravel(), across),
        (number[:, :-1].ravel(), number[:, 1:].ravel(), beside),
        (number[:, 1:].ravel(), number[:, :-1].ravel(), beside),
    ]
    rows, columns, values = (np.concatenate(parts) for parts in zip(*pairs))
    matrix = coo_matrix((values, (rows, columns)), (size**2, size**2)).tocsc()
    right = np.broadcast_to(source(x, y), (size, size)).astype(complex).ravel()
    found = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(right)
    return np.pad(found.reshape(size, size), 1)


def solve_wave(
    start: Function, speed: Function, *, d: int, count: int, times: int, duration: float
) -> tuple[Float64[np.ndarray, "times *grid"], float]:
    """u_tt = speed^2 laplacian(u) from rest: `times` + 1 instants from 0 to `duration`, nodes of
    `count` intervals an axis in [-1, 1]^d, and the relative error of the finer grid.

    By leapfrog; the grid reaches so far beyond the box that nothing comes back from its border.
    """
    fine = _wave(start, speed, d, 2 * count, times, duration)
    coarse = _wave(start, speed, d, count, times, duration)
    return _extrapolated(fine[(slice(None), *(slice(None, None, 2),) * d)], coarse)


def _wave(start, speed, d, count, times, duration) -> np.ndarray:
    h = 2 / count
    box = np.linspace(-1, 1, 257)
    fastest = float(np.max(speed(*np.meshgrid(*[box] * d, indexing="ij"))))
    more = math.ceil(fastest * duration / h) + 2
    nodes = (np.arange(count + 1 + 2 * more) - more) * h - 1
    axes = np.meshgrid(*[nodes] * d, indexing="ij", sparse=True)
    within = math.ceil(fastest * duration * math.sqrt(d) / (COURANT * h * times))
    step = duration / times / within
    weight = np.broadcast_to((speed(*axes) * step / h) ** 2, (len(nodes),) * d)
    inner = (slice(1, -1),) * d
    now = np.array(np.broadcast_to(start(*axes), weight.shape), float)
    weight = weight[inner]

    def push(u: np.ndarray) -> np.ndarray:
        total = -2 * d * u[inner]
        for axis in range(d):
            for side in (slice(2, None), slice(None, -2)):
                total += u[(*inner[:axis], side, *inner[axis + 1 :])]
        return total * weight

    before = now.copy()
    before[inner] += push(now) / 2  # at rest: the step back is the step ahead
    kept = (slice(more, more + count + 1),) * d
    found = [now[kept].copy()]
    for _ in range(times):
        for _ in range(within):
            before *= -1
            before += 2 * now
            before[inner] += push(now)
            before, now = now, before
        found.append(now[kept].copy())
    return np.stack(found)


def _extrapolated(fine: np.ndarray, coarse: np.ndarray) -> tuple[np.ndarray, float]:
    change = (fine - coarse) / 3
    return fine + change, float(np.linalg.norm(change) / np.linalg.norm(fine))
