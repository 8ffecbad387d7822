"""Units through the kernel, one after another: a launch ends with its queue, so nothing refills."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pipeline.fields.bind import Tensors
from pipeline.fitting.cuda.layout import Layout, modes_of
from pipeline.fitting.cuda.run import Loop, Mode
from pipeline.fitting.cuda.usable import why_not
from pipeline.fitting.fused.recognize import recognize
from pipeline.fitting.method import Method
from pipeline.fitting.starts import entered, starts_of
from pipeline.fitting.units import Unit


def fit_by_kernel(
    method: Method, shared: Tensors, mode: Mode, device: torch.device
) -> Callable[[Callable[[], Unit | None]], Iterator[Unit]]:
    """What fits the units that it pulls, each with its rows in one piece (`Unit.rows`)."""
    why = why_not(method)
    if not why and mode not in modes_of(Layout.of(recognize(method))):
        why = f"too large for {mode}"
    if why:
        raise ValueError(f"this method cannot be fitted by the kernel of GPUs here: {why}")
    loop = Loop(method, shared, mode, device)

    def run(pull: Callable[[], Unit | None]) -> Iterator[Unit]:
        while (unit := pull()) is not None:

            def starts(index: torch.Tensor, unit: Unit = unit) -> Tensors:
                of = method, shared, unit.samples, index
                rows, _ = starts_of(*of, unit.seed)
                return entered(*of, method.fit[0], rows, unit.seed, 0)[0]

            kept = {i: o.rows for i, o in enumerate(unit.outcomes) if o is not None}
            whole: Tensors = {}
            for at, rows, outcomes in loop.fit(unit, starts):
                for name, value in rows.items():
                    if name not in whole:
                        whole[name] = value.new_zeros(len(unit.outcomes), *value.shape[1:])
                    whole[name][at.to(value.device)] = value
                for outcome in outcomes:
                    unit.outcomes[outcome.request.index] = outcome
            if whole:
                for i, rows in kept.items():
                    for name, value in rows.items():
                        whole[name][i] = value
                unit.rows = whole
            yield unit

    return run
