"""Whether the kernel can fit a method here, and which precision is good enough for it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import torch

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors
from pipeline.fitting.cuda.layout import Layout, modes_of
from pipeline.fitting.cuda.usable import why_not
from pipeline.fitting.fused.recognize import recognize
from pipeline.fitting.method import Method
from pipeline.samples import Samples

UNSEEN = "tf32"
"""The mode where the machine that plans has no GPU to compare on."""
COMPARED = 16
"""Samples on which modes are compared with the plain path."""
STEPS, LOSS = 1.05, 1.02
"""A mode is good enough if it takes at most this many times the steps, and ends at most at this
many times the loss (0.09 dB), both as geometric means over the samples compared."""


def path_name(mode: str) -> str:
    """The path in words; part of what decides a row's bits."""
    return f"one program a network by triton {importlib.metadata.version('triton')}, {mode}"


def choose_kernel(
    method: Method, shared: Tensors, some: Callable[[], Samples], seed: int
) -> tuple[str, str]:
    """The mode of the kernel, empty if rows are to be fitted in lanes, and the path in words.

    `some` loads samples on the GPU; it is called where there is one to compare modes on.
    """
    why = why_not(method)
    if why:
        return "", f"plain PyTorch ({why})"
    if not torch.cuda.is_available():
        if UNSEEN not in modes_of(Layout.of(recognize(method))):
            return "", f"plain PyTorch (too large for the kernel in {UNSEEN})"
        return UNSEEN, f"{path_name(UNSEEN)} (no GPU where this was planned to compare others on)"
    mode, words = choose_mode(method, shared, some(), seed)
    return mode, f"{path_name(mode) if mode else 'plain PyTorch'} ({words})"


def choose_mode(method: Method, shared: Tensors, samples: Samples, seed: int) -> tuple[str, str]:
    """The fastest mode that fits some samples as well as the plain path does, and a word on it.

    A mode that takes more steps or ends at a higher loss is passed over, and so is one that this
    chip has no room for; empty: none is left. The comparison runs where the samples lie.
    """
    from triton.runtime.errors import OutOfResources

    from pipeline.fitting.cuda.exact import float32_products, losses
    from pipeline.fitting.cuda.stream import fit_by_kernel
    from pipeline.fitting.lane_stream import LaneStream
    from pipeline.fitting.units import Unit, fitted_unit

    shared = {name: value.to(samples.device) for name, value in shared.items()}

    def fitted(run):
        units = iter([Unit.of(0, samples, seed)])
        (unit,) = run(lambda: next(units, None))
        found = fitted_unit(method, unit)
        index = torch.arange(len(samples))
        keys = Draw.of(samples.keys, seed=seed, stage="fit/0").keys
        loss = losses(method, shared, samples, index, found.rows, keys)
        return found.steps.double().clamp(min=1).log(), loss.double().clamp(min=1e-30).log().cpu()

    with float32_products():
        plain = fitted(LaneStream(method, shared, device=samples.device).run)
    told = []
    for mode in modes_of(Layout.of(recognize(method))):
        try:
            found = fitted(fit_by_kernel(method, shared, mode, samples.device))
        except OutOfResources as error:  # of this chip: shared memory
            told.append(f"{mode}: {error.name}, {error.required} of {error.limit}")
            continue
        known = torch.isfinite(plain[1])  # a row that diverges in float32 may do so again
        more = [float((new - old)[known].mean().exp()) for new, old in zip(found, plain)]
        told.append(f"{mode}: {more[0]:.2f} x the steps, {more[1]:.3f} x the loss of float32")
        if more[0] <= STEPS and more[1] <= LOSS:
            return mode, told[-1]
    return "", "; ".join(told)
