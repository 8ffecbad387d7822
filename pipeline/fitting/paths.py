"""Which way rows are fitted on a device, with how many lanes, and about how long that takes."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.fitting.method import MetaLearned, Method, PerSample
from pipeline.samples import ALL

NUMERICS = 2
"""Raised by hand when a change of this package changes results."""
CPU_POINTS = 16_384
"""Points that the lanes of a CPU core take in one step: more of them spill its cache."""


def choose_path(
    method: Method, device: str | torch.device = "cpu", compiled: bool = False
) -> tuple[bool, str]:
    """Whether to fit with `fused`, and the path in words: part of what decides a row's bits."""
    from pipeline.fitting.fused.recognize import available

    if torch.device(device).type != "cpu":
        return False, "compiled by Inductor" if compiled else "plain PyTorch"
    found = recognize_any(method)
    why = found if isinstance(found, str) else available()
    if compiled or why:
        name = "compiled by Inductor" if compiled else "plain PyTorch"
        return False, f"{name} ({why})" if why else name
    from pipeline.fitting.fused.run import path_name

    return True, path_name()


def recognize_any(method: Method) -> Any:
    """The method in the terms of one of the compiled loops, or why none can fit it."""
    from pipeline.fitting.fused.codes import recognize_codes
    from pipeline.fitting.fused.recognize import recognize

    found = recognize(method)
    if not isinstance(found, str) or isinstance(method, PerSample):
        return found
    return recognize_codes(method)


def default_lanes(
    method: Method, device: str | torch.device = "cpu", points: int | None = None
) -> int:
    """Lanes that suit a device: small batches that stay in cache on CPUs, wide ones on GPUs.

    `points` is what one step sees of a sample; absent: of the first phase's size, or of the inner
    steps'.
    """
    if points is None:
        size = method.fit[0].size if method.fit else None
        if size is None and isinstance(method, MetaLearned):
            size = method.inner.size
        counts = [] if size is None else [size.pixels, size.near, size.uniform, size.surface]
        counts += [] if size is None else [size.places]
        points = sum(c for c in counts if c != ALL) or 1024
    if torch.device(device).type == "cpu":
        return max(2, min(32, CPU_POINTS // points))
    return max(2, min(4096, 4_194_304 // points))


def points_of(kind: tuple[int, ...]) -> int:
    """Points that a step takes of a sample of this shape class."""
    return sum(abs(count) for count in kind)


def estimate_seconds(method: Method, fused: bool = False) -> float:
    """Rough seconds a row on one CPU core, for planning: products at 20 GFLOP/s (the compiled loop:
    80), half the steps where a target ends most rows early."""
    seconds = 0.0
    weights = sum(p.numel() for p in method.model.parameters() if p.dim() > 1)
    works = [(phase.size, phase.steps, phase.target) for phase in method.fit]
    if isinstance(method, MetaLearned):
        works.append((method.inner.size, method.inner.steps, None))
    for size, steps, target in works:
        counts = (size.pixels, size.near, size.uniform, size.surface, size.places)
        points = sum(c for c in counts if c != ALL) or size.most or 4096
        steps = steps / 2 if target is not None else steps
        seconds += steps * points * weights * 6 / (80e9 if fused else 20e9)
    return max(seconds, 1e-3)
