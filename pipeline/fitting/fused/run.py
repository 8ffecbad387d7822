"""Rows fitted by the compiled loop, one network at a time, with the lanes' outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.draw import Draw, word
from pipeline.fields.bind import Tensors
from pipeline.fitting.fused import kernel, passes
from pipeline.fitting.fused.codes import NAME, RecognizedCodes, frozen
from pipeline.fitting.fused.network import Network, few, points_of
from pipeline.fitting.fused.recognize import Recognized
from pipeline.fitting.lanes import RETRY_FACTOR, Outcome, Request
from pipeline.fitting.schedules import schedule
from pipeline.fitting.step import DIVERGED
from pipeline.fitting.units import Unit
from pipeline.objectives.photometric import ColorError
from pipeline.samples import ALL, Samples, Size
from schemas.samples import GRIDS

CHUNK_POINTS = 2**18
"""Points that are decoded at a time."""


def path_name() -> str:
    """Which compiled loop this machine runs; part of what decides a row's bits."""
    return f"fused by numba {numba.__version__}, vectors of {passes.LANES}"


@dataclass(frozen=True)
class Job:
    """A row ready to be fitted."""

    request: Request
    data: tuple
    """Its points, as `kernel.descend` reads them."""
    key: np.uint64


class Loop:
    """A method ready to be run by the compiled loop."""

    def __init__(self, method: Recognized):
        self.method = method
        self.network = Network(
            dims=method.dims,
            width=method.width,
            hidden=method.hidden,
            channels=method.channels,
            scales=method.scales,
            lanes=passes.LANES,
        )
        color = isinstance(method.loss, ColorError)
        kinds = {True: passes.CLAMPED, False: passes.ABSOLUTE}
        self.net = passes.Net(
            width=self.network.padded,
            hidden=method.hidden,
            channels=method.channels,
            sine=method.sine,
            factors=self.network.factors(),
            loss=passes.SQUARED if color else kinds[method.loss.both],
            clamp=0.0 if color else float(method.loss.clamp),
            tile=64 if self.network.padded <= 128 else 32,
        )
        self._schedule()

    def _schedule(self) -> None:
        steps = torch.arange(self.method.phase.steps)
        self.rates = schedule(self.method.optimizer.rate)(steps).to(torch.float64).numpy()

    def jobs(
        self, unit: Unit, index: list[int], starts: Callable[[Int[Tensor, "m"]], Tensors]
    ) -> Iterator[Job]:
        """The rows at `index`, some decoded at a time; `starts` gives what they begin with."""
        samples = unit.samples
        for part, data in self._chunks(samples, index):
            at = torch.tensor(part)
            rows = {name: value.numpy() for name, value in starts(at).items()}
            keys = unit.keys(at, "fit/0")
            words = keys.numpy().view(np.uint64)
            for k, i in enumerate(part):
                own = {n: torch.from_numpy(v[k]) for n, v in rows.items()}
                yield Job(Request(samples, i, own, keys[k], unit), data[k], words[k])

    def fit(self, job: Job) -> Outcome:
        """A row, once more at a lower rate if it diverges."""
        outcome = self._one(job.request, job.data, job.key)
        if outcome.reason != DIVERGED:
            return outcome
        note = f"loss not finite at step {outcome.steps} (last finite loss {outcome.loss:.4g})"
        again = replace(job.request, factor=RETRY_FACTOR, note=note)
        return self._one(again, job.data, job.key)

    def _one(self, request: Request, data: tuple, key: np.uint64) -> Outcome:
        coords, wanted, sets, tags = data
        method, target = self.method, self.method.phase.target
        weights = [request.rows[w].numpy() for w, _ in method.names]
        biases = [request.rows[b].numpy() for _, b in method.names]
        row = self.network.pack(weights, biases)
        steps, reason, loss, watched = kernel.descend(
            self.net,
            row,
            coords,
            wanted,
            sets,
            tags,
            key,
            self.rates * request.factor,
            method.optimizer.betas,
            method.optimizer.eps,
            -1.0 if target is None else target.value,
            0.0 if target is None else target.smooth,
        )
        if not np.isfinite(row).all():
            reason = DIVERGED
        rows = {}
        for (w, b), (weight, bias) in zip(method.names, self.network.parts(row)):
            rows[w] = torch.from_numpy(np.ascontiguousarray(weight))
            rows[b] = torch.from_numpy(bias.copy())
        rows = {name: rows[name] for name in request.rows}
        return Outcome(request, rows, reason, steps, loss, watched)

    def _chunks(self, samples: Samples, index: list[int]) -> Iterator[tuple[list[int], list]]:
        """Samples decoded a few at a time: positions, and what `kernel.descend` reads of each."""
        role, size = self.method.phase.role, self.method.phase.size
        names = list(samples.parts(role, size))
        whole = {name: _all_of(samples, name) for name in names}
        capacity = torch.cat([samples.shape_classes(role, whole[n]) for n in names], 1)
        taken = samples.shape_classes(role, size).numpy()
        by_class: dict[tuple[int, ...], list[int]] = {}
        for i in index:
            by_class.setdefault(tuple(capacity[i].tolist()), []).append(i)
        for kind, members in by_class.items():
            count = max(1, CHUNK_POINTS // max(sum(kind), 1))
            for first in range(0, len(members), count):
                part = members[first : first + count]
                decoded = {n: self._decode(samples, part, whole[n]) for n in names}
                yield (
                    part,
                    [self._data(samples, i, k, decoded, taken[i]) for k, i in enumerate(part)],
                )

    def _decode(self, samples: Samples, part: list[int], size: Size) -> tuple[np.ndarray, ...]:
        index = torch.tensor(part)
        nothing = Draw(torch.zeros_like(index), torch.zeros_like(index))
        batch = samples.draw(index, self.method.phase.role, size, nothing)
        coords = batch.points.coords if batch.grid is None else batch.grid.coords
        return coords.numpy(), self.method.loss.wanted(batch).numpy()

    def _data(self, samples: Samples, i: int, k: int, decoded: dict, taken: np.ndarray) -> tuple:
        counts = [int(samples.sets[name].counts[i]) for name in decoded]
        coords = np.concatenate([c[k, :n] for (c, _), n in zip(decoded.values(), counts)])
        wanted = np.concatenate([w[k, :n] for (_, w), n in zip(decoded.values(), counts)])
        sets, tags = [], []
        if (taken < 0).any():
            starts = np.cumsum([0, *counts[:-1]])
            # A set drawn whole beside others: a block of all its points, from any of them on.
            sizes = [-t if t < 0 else n for t, n in zip(taken, counts)]
            sets = [[int(s), n, int(t)] for s, n, t in zip(starts, counts, sizes)]
            tags = ["pixels" if samples.form.kind in GRIDS else name for name in decoded]
        return (
            points_of(coords, passes.ROWS),
            few(wanted),
            np.array(sets, np.int64).reshape(-1, 3),
            np.array([word(tag) for tag in tags], np.int64).view(np.uint64),
        )


class CodeLoop(Loop):
    """A method whose rows are codes of a frozen network, ready to be run by the compiled loop."""

    def __init__(self, method: RecognizedCodes, shared: Tensors):
        self.method = method
        self.net = frozen(method, shared, passes.LANES)
        self._schedule()

    def _one(self, request: Request, data: tuple, key: np.uint64) -> Outcome:
        from pipeline.fitting.fused.frozen import infer

        target, optimizer = self.method.phase.target, self.method.optimizer
        code = request.rows[NAME].numpy().copy()
        steps, reason, loss, watched = infer(
            self.net,
            code,
            *data,
            key,
            self.rates * request.factor,
            optimizer.betas,
            optimizer.eps,
            -1.0 if target is None else target.value,
            0.0 if target is None else target.smooth,
            target is None or target.term is None,
        )
        if not np.isfinite(code).all():
            reason = DIVERGED
        return Outcome(request, {NAME: torch.from_numpy(code)}, reason, steps, loss, watched)


def loop_of(method: Recognized | RecognizedCodes, shared: Tensors) -> Loop:
    """The loop that fits a recognized method."""
    return CodeLoop(method, shared) if isinstance(method, RecognizedCodes) else Loop(method)


def _all_of(samples: Samples, name: str) -> Size:
    if samples.form.kind in GRIDS:
        return Size(pixels=ALL)
    return Size(pixels=0, **{name.removeprefix("held_"): ALL})
