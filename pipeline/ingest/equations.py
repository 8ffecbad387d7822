"""From the file of a boundary value problem to a prepared row: the problem in the units of fields,
and its answer at the nodes of a grid, which evaluation compares with and nothing is fitted to.

Units: lengths are multiplied by `scale`, so that the box of a field is [-1, 1]^d: of a wave its
domain, of a Helmholtz equation the domain with an absorbing layer around it. Times are multiplied
by `time_scale`, so that the fastest speed of a wave is 1. Values are divided by `amplitude`, the
size that the sources lead one to expect (not that of the answer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.interpolate import RegularGridInterpolator

from pipeline.ingest.exact_waves import dalembert, outgoing_line, outgoing_plane, rings
from pipeline.ingest.wave_solvers import A_WAVE, A_WIDTH, intervals, solve_helmholtz, solve_wave
from schemas.equations import LAYER, Problem, flat, read_problem
from schemas.run import EquationIngest
from schemas.samples import Code, RejectedSample

EQUATION_SUFFIXES = (".json", ".yaml", ".yml")
NODES = {1: 256, 2: 64}
"""Intervals an axis of the reference where none are asked for."""
TIMES = 4
"""Intervals in space for one in time."""


@dataclass(frozen=True)
class Scaled:
    """A problem in the units of fields."""

    equation: str
    d: int
    scale: float
    """Units of fields in one of the file, of lengths."""
    time_scale: float
    """The same of times; 0 of a Helmholtz equation."""
    amplitude: float
    """Value in the file's units of a field's 1."""
    wavenumber: float
    """0 of a wave."""
    duration: float
    """0 of a Helmholtz equation."""
    at: Float64[np.ndarray, "s d"]
    variance: Float64[np.ndarray, "s"]
    strength: Float64[np.ndarray, "s 2"]
    """Real and imaginary part: of a Helmholtz equation integrals, of a wave heights."""
    speed: Float64[np.ndarray, "*m"]
    """At evenly spaced nodes of the domain, first axis x; linear in between, constant beyond."""

    @property
    def half(self) -> float:
        """Half width of the domain."""
        return 1 - LAYER if self.equation == "helmholtz" else 1.0

    @property
    def constant(self) -> bool:
        return bool((self.speed == self.speed.flat[0]).all())

    def speed_at(self, *x: np.ndarray) -> np.ndarray:
        """The speed at places given by broadcasting arrays."""
        if self.constant:
            return np.full(np.broadcast_shapes(*(a.shape for a in x)), self.speed.flat[0])
        nodes = [np.linspace(-self.half, self.half, n) for n in self.speed.shape]
        clipped = [np.clip(a, -self.half, self.half) for a in x]
        places = np.stack(np.broadcast_arrays(*clipped), -1)
        return RegularGridInterpolator(nodes, self.speed)(places)

    def gaussians(self, *x: np.ndarray) -> np.ndarray:
        """Sum of the sources at places: complex densities, or heights of a wave."""
        total: np.ndarray | float = 0.0
        for at, variance, (real, imaginary) in zip(self.at, self.variance, self.strength):
            away = sum((a - c) ** 2 for a, c in zip(x, at))
            height = np.exp(-away / (2 * variance))
            if self.equation == "wave":
                total = total + real * height
            else:
                height = height / (2 * np.pi * variance) ** (self.d / 2)
                total = total + (real + 1j * imaginary) * height
        return total


def scaled(problem: Problem, medium: int) -> Scaled:
    """A problem in the units of fields, its medium at `medium` nodes an axis."""
    d, waves = problem.dimension, problem.equation == "wave"
    scale = (1.0 if waves else 1 - LAYER) / problem.domain
    variance = np.array([s.variance for s in problem.sources]) * scale**2
    strength = np.array([(*flat(s.amplitude), 0.0)[:2] for s in problem.sources])
    total = np.abs(strength @ np.array([1, 1j]))
    speed = np.array(problem.speed, float)
    given = [np.linspace(0, 1, n) for n in speed.shape]
    nodes = np.meshgrid(*[np.linspace(0, 1, medium)] * d, indexing="ij")
    if speed.ndim:
        speed = RegularGridInterpolator(given, speed)(np.stack(nodes, -1))
    else:
        speed = np.full((medium,) * d, float(speed))
    k, time_scale = (0.0 if waves else problem.wavenumber / scale), 0.0
    if waves:
        time_scale, speed = scale * float(speed.max()), speed / speed.max()
    if waves:
        amplitude = float(total.max())
    else:  # the size of the free wave at half the domain's width, of all sources together
        fade = np.exp(-(k**2) * variance / 2)
        size = 1 / (2 * k) if d == 1 else 1 / math.sqrt(4 * math.pi * k)
        amplitude = float((total * fade).sum()) * size * scale ** (d - 2)
        strength = strength * scale ** (d - 2)
    if not (math.isfinite(amplitude) and amplitude > 1e-30):
        raise RejectedSample(
            Code.DEGENERATE,
            f"sources: a variance down to {min(s.variance for s in problem.sources):g} is too wide "
            f"for the waves (wavenumber {problem.wavenumber}): they send out {amplitude:g}",
        )
    return Scaled(
        equation=problem.equation,
        d=d,
        scale=scale,
        time_scale=time_scale,
        amplitude=amplitude,
        wavenumber=k,
        duration=problem.duration * time_scale if waves else 0.0,
        at=np.array([s.at for s in problem.sources]) * scale,
        variance=variance,
        strength=strength / amplitude,
        speed=speed,
    )


def reference(problem: Scaled, count: int) -> tuple[np.ndarray, str, float]:
    """The answer at `count` intervals an axis of the domain (waves: and in time), its channels
    last; how it was found, and about how wrong it is, relative.
    """
    half = problem.half
    axes = np.meshgrid(*[np.linspace(-half, half, count + 1)] * problem.d, indexing="ij")
    if problem.constant:
        return _exact(problem, axes, count // TIMES), "closed form", 1e-6
    fastest, slowest = float(problem.speed.max()), float(problem.speed.min())
    finest = float(np.sqrt(problem.variance.min())) / A_WIDTH[problem.equation]
    if problem.equation == "wave":
        found, error = solve_wave(
            problem.gaussians,
            problem.speed_at,
            d=problem.d,
            count=(whole := intervals("wave", problem.d, count, finest * slowest / fastest)),
            times=count // TIMES,
            duration=problem.duration,
        )
        step = whole // count
        found = found[(slice(None), *(slice(None, None, step),) * problem.d)]
        return found[..., None], "finite differences", error
    finest = min(finest, 2 * np.pi * slowest / problem.wavenumber / A_WAVE)
    least = round(count / half)  # intervals of the whole box, on whose nodes the domain's lie
    whole = intervals("helmholtz", problem.d, least, finest)
    found, error = solve_helmholtz(
        problem.gaussians,
        lambda *x: 1 / problem.speed_at(*x),
        problem.wavenumber,
        d=problem.d,
        count=whole,
        depth=LAYER,
    )
    step, first = whole // least, round((1 - half) * whole / 2)
    found = found[(slice(first, whole - first + 1, step),) * problem.d]
    return np.stack([found.real, found.imag], -1), "finite differences", error


def _exact(problem: Scaled, axes: list[np.ndarray], times: int) -> np.ndarray:
    """The sum of the sources' waves in a medium of one speed."""
    shape = axes[0].shape
    t = np.linspace(0, problem.duration, times + 1)
    total: np.ndarray | float = 0.0
    for at, variance, (real, imaginary) in zip(problem.at, problem.variance, problem.strength):
        away = [axis.ravel() - center for axis, center in zip(axes, at)]
        if problem.equation == "wave":
            if problem.d == 1:
                found = dalembert(t[:, None], away[0][None], variance)
            else:
                found = rings(t, np.hypot(*away), variance)
            total = total + real * found.reshape(len(t), *shape)
        else:
            k = problem.wavenumber / float(problem.speed.flat[0])
            if problem.d == 1:
                found = outgoing_line(away[0], k, variance)
            else:
                found = outgoing_plane(np.hypot(*away), k, variance)
            total = total + (real + 1j * imaginary) * found.reshape(shape)
    parts = [total] if problem.equation == "wave" else [total.real, total.imag]
    return np.stack(parts, -1)


def decode_equation(
    files: dict[str, bytes], main: str, ingest: EquationIngest, seed_key: str
) -> dict[str, object]:
    """Columns of `schemas.samples.EQUATIONS` of one problem.

    Raises:
        RejectedSample: it is no problem of the kind the dataset is prepared for; the message names
            the key and its value.
    """
    if not files[main].strip():
        raise RejectedSample(Code.EMPTY, "the file is empty")
    try:
        problem = read_problem(files[main], main.lower().endswith((".yaml", ".yml")))
    except ValueError as error:
        code = Code.NAN_INPUT if "is not a number" in str(error) else Code.DECODE
        raise RejectedSample(code, str(error)[:500]) from error
    for key in ("equation", "dimension"):
        asked, found = getattr(ingest, key), getattr(problem, key)
        if asked != found:
            raise RejectedSample(
                Code.DECODE, f"{key}: {found}; this dataset is prepared for {asked} (ingest.{key})"
            )
    if len(problem.sources) > ingest.sources:
        raise RejectedSample(
            Code.TOO_LARGE,
            f"sources: {len(problem.sources)}; ingest.sources is {ingest.sources}",
        )
    found = scaled(problem, ingest.medium)
    answer, how, error = reference(found, ingest.reference or NODES[found.d])
    spare = ingest.sources - len(found.at)
    table = np.concatenate([found.at, found.variance[:, None], found.strength], 1)
    filler = np.tile([*[0.0] * found.d, 1.0, 0.0, 0.0], (spare, 1))
    return {
        "equation": found.equation,
        "wavenumber": found.wavenumber,
        "duration": found.duration,
        "scale": found.scale,
        "time_scale": found.time_scale,
        "amplitude": found.amplitude,
        "sources": np.concatenate([table, filler]).astype("<f4").tobytes(),
        "speed": found.speed.astype("<f4").tobytes(),
        "medium": list(found.speed.shape),
        "reference": answer.astype("<f4").tobytes(),
        "reference_shape": list(answer.shape),
        "reference_by": how,
        "reference_error": error,
    }
