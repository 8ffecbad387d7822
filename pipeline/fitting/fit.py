"""Fitting rows: start each one, run the phases of `fit` over lanes, say what became of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

import torch

from pipeline.fields.bind import Tensors
from pipeline.fitting.method import Method
from pipeline.fitting.stream import Stream
from pipeline.fitting.units import Fitted, Unit, fitted_unit
from pipeline.samples import Samples


def fit_rows(
    method: Method,
    shared: Tensors,
    samples: Samples,
    *,
    seed: int,
    lanes: int | None = None,
    device: str | torch.device = "cpu",
    compiled: bool = False,
    fused: bool = False,
    kernel: str = "",
    kept: dict[int, Tensors] | None = None,
) -> Fitted:
    """Fits one row for each sample, with `shared` as it is.

    `fused` takes the compiled loop over single networks, `kernel` the kernel of GPUs in this
    precision (`choose_path` says where they can). `kept` gives rows (by position, without a sample
    axis) that stay as they are: those of training.
    """
    ((_, fitted),) = fit_units(
        method,
        shared,
        [(0, samples)],
        seed=seed,
        lanes=lanes,
        device=device,
        compiled=compiled,
        fused=fused,
        kernel=kernel,
        kept={0: kept or {}},
    )
    return fitted


def fit_units(
    method: Method,
    shared: Tensors,
    units: Iterable[tuple[Hashable, Samples]],
    *,
    seed: int,
    lanes: int | None = None,
    device: str | torch.device = "cpu",
    compiled: bool = False,
    fused: bool = False,
    kernel: str = "",
    kept: dict[Hashable, dict[int, Tensors]] | None = None,
) -> Iterator[tuple[Hashable, Fitted]]:
    """Fits units of samples; a unit is yielded when its last row is done. `kept` is by unit.

    Methods with one phase refill lanes across units: the next unit is pulled while the last rows of
    the one before still run, so no lane idles between them.
    """
    stream = Stream(
        method,
        shared,
        lanes=lanes,
        device=device,
        compiled=compiled,
        fused=fused,
        kernel=kernel,
    )
    work = (Unit.of(key, samples, seed, (kept or {}).get(key)) for key, samples in units)
    for unit in stream.run(lambda: next(work, None)):
        yield unit.key, fitted_unit(method, unit)
