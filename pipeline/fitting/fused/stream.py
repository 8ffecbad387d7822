"""Units through the compiled loop, one row after another, or some at a time in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pipeline.fields.bind import Tensors
from pipeline.fitting.fused.run import Job, loop_of
from pipeline.fitting.method import Method
from pipeline.fitting.paths import choose_path, recognize_any
from pipeline.fitting.starts import entered, starts_of
from pipeline.fitting.threads import in_threads
from pipeline.fitting.units import Pull, Unit


def fit_by_loop(method: Method, shared: Tensors) -> Callable[[Pull], Iterator[Unit]]:
    """What fits the units that it pulls, as many rows at a time as PyTorch may use threads."""
    usable, path = choose_path(method)
    if not usable:
        raise ValueError(f"this method cannot be fitted by the compiled loop: {path}")
    loop = loop_of(recognize_any(method), shared)

    def jobs(pull: Pull) -> Iterator[tuple[Unit, Job | None]]:
        while (unit := pull()) is not None:
            waiting = unit.waiting
            if not waiting:
                yield unit, None

            def starts(at: torch.Tensor, unit: Unit = unit) -> Tensors:
                of = method, shared, unit.samples, at
                rows, _ = starts_of(*of, unit.seed)
                return entered(*of, method.fit[0], rows, unit.seed, 0)[0]

            for job in loop.jobs(unit, waiting, starts):
                yield unit, job

    def run(pull: Pull) -> Iterator[Unit]:
        for unit, outcome in in_threads(jobs(pull), loop.fit, torch.get_num_threads()):
            if outcome is not None:
                unit.outcomes[outcome.request.index] = outcome
            if unit.done:
                yield unit

    return run
