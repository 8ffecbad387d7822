"""Rows fitted by the kernel, many at a time, with the lanes' outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw, word
from pipeline.fields.bind import Tensors
from pipeline.fitting.cuda.exact import losses
from pipeline.fitting.cuda.layout import FEW, Layout, modes_of, shape_of
from pipeline.fitting.cuda.load import kernel
from pipeline.fitting.fused.recognize import recognize
from pipeline.fitting.lanes import RETRY_FACTOR, Outcome, Request
from pipeline.fitting.method import Method
from pipeline.fitting.schedules import schedule
from pipeline.fitting.units import Unit
from pipeline.objectives.photometric import ColorError
from pipeline.samples import ALL, Samples, Size
from schemas.samples import GRIDS

Mode = Literal["fp32", "tf32", "bf16"]
"""What the products' factors are rounded to, see `kernel`."""
MET, DIVERGED, SPENT = 1, 2, 3
"""Why a row ends, numbered as in the lanes."""
POINTS = {"cuda": 2**25, "cpu": 2**18}
"""Points that are decoded at a time (32 bytes each)."""
SLACK = 1e-3
"""Part of the target by which a row may be off and still be at it: rounding."""
PROGRAMS = 4
"""Programs launched for each multiprocessor: as many as could be resident at once."""


@dataclass(frozen=True)
class Data:
    """What the kernel reads of some samples; arguments of `kernel.descend` of the same names."""

    coords: Float[Tensor, "t 4"]
    wanted: Float[Tensor, "t 4"]
    starts: Int[Tensor, "m"]
    sets: Int[Tensor, "m 2 3"]
    drawn: int


@dataclass(frozen=True)
class Ends:
    """What became of some rows."""

    flat: Float[Tensor, "m _"]
    steps: Int[Tensor, "m"]
    reason: Int[Tensor, "m"]
    loss: Float[Tensor, "m"]
    watched: Float[Tensor, "m"]


class Loop:
    """A method ready to be run by the kernel.

    On a CPU Triton's interpreter runs it, slowly, with the roundings of `mode` emulated. In a mode
    of rounded factors a row that meets its target is looked at again by the plain path, where a
    step sees all of a sample; if it falls short there, the row is fitted again in float32 (or the
    next best that there is room for: then what falls short again has missed its target).
    """

    def __init__(
        self,
        method: Method,
        shared: Tensors,
        mode: Mode,
        device: str | torch.device,
        *,
        programs: int | None = None,
        tile: int | None = None,
    ):
        found = recognize(method)
        if isinstance(found, str):
            raise ValueError(f"the kernel cannot fit this method: {found}")
        self.method, self.shared, self.found, self.mode = method, shared, found, mode
        self.device = torch.device(device)
        self.layout = Layout.of(found)
        self.shape = shape_of(self.layout, mode)
        if tile is not None:
            self.shape = replace(self.shape, tile=tile)
        cuda = self.device.type == "cuda"
        if programs is None:
            programs = 2
            if cuda:
                chip = torch.cuda.get_device_properties(self.device)
                programs = PROGRAMS * chip.multi_processor_count
        self.programs = programs
        self.kernel = kernel(interpreted=not cuda)
        adam, steps = found.optimizer, torch.arange(found.phase.steps)
        rates = schedule(adam.rate)(steps).to(torch.float64)
        count = (steps + 1).to(torch.float64)
        self.sizes = self._on_device(rates / (1 - adam.betas[0] ** count))
        self.roots = self._on_device((1 - adam.betas[1] ** count).sqrt())
        self.scales = self._on_device(torch.tensor(found.scales))
        self.moments = torch.zeros(programs, 2, self.layout.size, device=self.device)

    def _on_device(self, values: Tensor) -> Float[Tensor, "_"]:
        return values.to(torch.float32).to(self.device)

    def fit(self, unit: Unit, starts: Callable[[Int[Tensor, "m"]], Tensors]) -> Iterator[tuple]:
        """Fits the rows of a unit that wait; `starts` gives what some of them begin with.

        Yields (positions, rows by name, outcomes without rows), a part of the unit at a time.
        """
        for part in self._parts(unit.samples, unit.waiting):
            at = torch.tensor(part)
            data = self._data(unit.samples, part)
            keys = unit.keys(at, "fit/0")
            ends = self.descend(self.layout.pack(starts(at)), data, keys)
            requests = [Request(unit.samples, i, {}, k, unit) for i, k in zip(part, keys.unbind())]
            ends = self._again(ends, requests, data, keys, starts, at)
            ends = self._verified(ends, requests, data, keys, starts, at)
            outcomes = [
                Outcome(*line)
                for line in zip(
                    requests,
                    [{} for _ in part],
                    ends.reason.tolist(),
                    ends.steps.tolist(),
                    ends.loss.tolist(),
                    ends.watched.tolist(),
                )
            ]
            yield at, self.layout.unpack(ends.flat), outcomes

    def _again(self, ends, requests, data, keys, starts, at) -> Ends:
        """Rows that diverged once more at a lower rate; notes it in `requests`."""
        lost = (ends.reason == DIVERGED).nonzero()[:, 0]
        if not len(lost):
            return ends
        for k in lost.tolist():
            steps, loss = int(ends.steps[k]), float(ends.loss[k])
            note = f"loss not finite at step {steps} (last finite loss {loss:.4g})"
            requests[k] = replace(requests[k], factor=RETRY_FACTOR, note=note)
        return self._replace(self, ends, lost, data, keys, starts, at, RETRY_FACTOR)

    def _verified(self, ends, requests, data, keys, starts, at) -> Ends:
        """Rows at their target by rounded factors alone once more in float32, noted likewise; the
        others with the loss of the plain path."""
        target = self.found.phase.target
        if self.mode == "fp32" or target is None or data.drawn:
            return ends
        rows = self.layout.unpack(ends.flat)
        samples = requests[0].samples
        exact = losses(self.method, self.shared, samples, at, rows, keys)
        met = ends.reason == MET
        ends = replace(ends, loss=torch.where(met, exact, ends.loss))
        short = (met & ~(exact <= target.value * (1 + SLACK))).nonzero()[:, 0]
        if not len(short):
            return ends
        for k, loss in zip(short.tolist(), exact[short].tolist()):
            requests[k] = replace(
                requests[k], note=f"{target.describe(loss)} in float32 after a fit in {self.mode}"
            )
        ends = self._replace(self._exact, ends, short, data, keys, starts, at)
        if self._exact.mode == "fp32":
            return ends
        rows = self.layout.unpack(ends.flat)
        exact = losses(self.method, self.shared, samples, at, rows, keys)
        met, close = ends.reason == MET, exact <= target.value * (1 + SLACK)
        return replace(
            ends,
            reason=torch.where(met & ~close, SPENT, ends.reason),
            loss=torch.where(met, exact, ends.loss),
            watched=torch.where(met & ~close, exact, ends.watched),
        )

    @cached_property
    def _exact(self) -> Loop:
        """The most exact mode that there is room for."""
        mode = modes_of(self.layout)[-1]
        return Loop(self.method, self.shared, mode, self.device, programs=self.programs)

    def _replace(self, loop, ends, which, data, keys, starts, at, factor=1.0) -> Ends:
        """`ends` with some rows fitted again from their start by `loop`."""
        some = replace(data, starts=data.starts[which], sets=data.sets[which])
        flat = self.layout.pack(starts(at[which.cpu()]))
        new = loop.descend(flat, some, keys[which], factor)
        columns = {}
        for name, old in vars(ends).items():
            columns[name] = old.index_copy(0, which, getattr(new, name))
        return Ends(**columns)

    def descend(
        self,
        flat: Float[Tensor, "m _"],
        data: Data,
        keys: Int[Tensor, "m"],
        factor: float = 1.0,
    ) -> Ends:
        """One launch; `flat` is overwritten."""
        count, found, loss = len(flat), self.found, self.found.loss
        target = found.phase.target
        smooth = 0.0 if target is None else target.smooth
        betas, color = found.optimizer.betas, isinstance(loss, ColorError)
        new = torch.zeros(count, 2, dtype=torch.int32, device=self.device)
        values = torch.zeros(count, 2, device=self.device)
        tags = [word(tag) for tag in (*self._tags(), "")[:2]]
        options, scope = {}, np.errstate(all="ignore")  # the interpreter computes with numpy
        if self.device.type == "cuda":
            options = {
                "num_warps": self.shape.warps,
                "num_stages": self.shape.stages,
                "enable_fp_fusion": True,
            }
            scope = torch.cuda.device(self.device)
        arguments = (
            flat,
            self.moments,
            self.scales,
            data.coords,
            data.wanted,
            data.starts,
            data.sets,
            torch.tensor(tags, device=self.device),
            keys,
            self.sizes,
            self.roots,
            torch.full((count,), factor, device=self.device),
            new,
            values,
            torch.zeros(1, dtype=torch.int32, device=self.device),
            count,
            found.phase.steps,
            int(2 / (1 - smooth)) if smooth else 0,
            -1.0 if target is None else target.value,
            1 - smooth,
            0.0 if color else float(loss.clamp),
            1 - betas[0],
            1 - betas[1],
            betas[1],
            found.optimizer.eps,
        )
        options |= {
            "SIZE": self.layout.size,
            "WIDTH": self.layout.padded,
            "HIDDEN": found.hidden,
            "DIMS": found.dims,
            "CHANNELS": found.channels,
            "SINE": found.sine,
            "LOSS": 0 if color else 2 if loss.both else 1,
            "SMOOTH": smooth > 0,
            "DRAWN": data.drawn,
            "TILE": self.shape.tile,
            "MODE": self.mode,
            "EMULATE": self.device.type != "cuda",
        }
        with scope:
            self.kernel.descend[(min(self.programs, count),)](*arguments, **options)
        reason = torch.where(torch.isfinite(flat).all(1), new[:, 1], DIVERGED)
        return Ends(flat, new[:, 0], reason, values[:, 0], values[:, 1])

    def _tags(self) -> list[str]:
        """Names under which the sets draw, as `samples.Samples` gives them."""
        if self.method.field.form.kind in GRIDS:
            return ["pixels"]
        size, prefix = self.found.phase.size, ""
        if self.found.phase.role == "query":
            prefix = "held_"
        return [prefix + name for name in ("near", "uniform") if getattr(size, name)]

    def _parts(self, samples: Samples, index: list[int]) -> Iterator[list[int]]:
        """Rows whose points are decoded together; those that draw are never beside those that do
        not, so that nothing of a row hangs on the others."""
        most, counts = POINTS[self.device.type], self._counts(samples)
        drawn = self._drawn(samples)
        for kind in (False, True):
            points, part = 0, []
            for i in index:
                if drawn[i] != kind:
                    continue
                if part and points + counts[i] > most:
                    yield part
                    points, part = 0, []
                part.append(i)
                points += counts[i]
            if part:
                yield part

    def _counts(self, samples: Samples) -> list[int]:
        return sum(samples.sets[name].counts for name in self._sets(samples)).tolist()

    def _drawn(self, samples: Samples) -> list[bool]:
        """Whether steps draw blocks; whole sets beside others are blocks of all their points."""
        taken = samples.shape_classes(self.found.phase.role, self.found.phase.size)
        return ((taken < 0).any(1) | (taken.shape[1] > 1)).tolist()

    def _sets(self, samples: Samples) -> list[str]:
        return list(samples.parts(self.found.phase.role, self.found.phase.size))

    def _data(self, samples: Samples, part: list[int]) -> Data:
        """Points of some rows, decoded; a shape class at a time."""
        role, size = self.found.phase.role, self.found.phase.size
        names = self._sets(samples)
        whole = {name: _all_of(samples, name) for name in names}
        room = torch.cat([samples.shape_classes(role, whole[n]) for n in names], 1)[part]
        taken = samples.shape_classes(role, size)[part]
        sets = torch.zeros(len(part), 2, 3, dtype=torch.int64)
        sets[:, :, 1] = 1
        starts = torch.zeros(len(part), dtype=torch.int64)
        coords, wanted, total = [], [], 0
        by_class: dict[tuple[int, ...], list[int]] = {}
        for k, kind in enumerate(room.tolist()):
            by_class.setdefault(tuple(kind), []).append(k)
        for kind, members in by_class.items():
            at = torch.tensor(members)
            index = torch.tensor(part)[at]
            starts[at] = total + torch.arange(len(members)) * sum(kind)
            total += len(members) * sum(kind)
            first, columns = 0, []
            for s, (name, capacity) in enumerate(zip(names, kind)):
                held = samples.sets[name].counts[index]
                step = torch.where(taken[at, s] < 0, -taken[at, s], held)
                sets[at, s, 0] = first
                sets[at, s, 1] = held.clamp(min=1)
                sets[at, s, 2] = torch.where(held > 0, step, 0)
                columns.append(self._decode(samples, index, whole[name]))
                first += capacity
            for rows, parts in ((coords, 0), (wanted, 1)):
                rows.append(torch.cat([c[parts] for c in columns], 1).reshape(-1, FEW))
        return Data(
            torch.cat(coords),
            torch.cat(wanted),
            starts.to(self.device),
            sets.to(torch.int32).to(self.device),
            int(self._drawn(samples)[part[0]]) * (1 + bool((sets[:, :, 2] > sets[:, :, 1]).any())),
        )

    def _decode(self, samples: Samples, index: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Coordinates with a 1 after them, and what is wanted there, of one set of some rows."""
        step = torch.zeros(len(index), dtype=torch.int64, device=self.device)
        batch = samples.draw(index, self.found.phase.role, size, Draw(step, step))
        at = batch.points.coords if batch.grid is None else batch.grid.coords
        values = self.found.loss.wanted(batch)
        coords = at.new_zeros(*at.shape[:2], FEW)
        coords[..., : at.shape[2]] = at
        coords[..., at.shape[2]] = 1
        wanted = at.new_zeros(*at.shape[:2], FEW)
        wanted[..., : values.shape[2]] = values
        return coords, wanted


def _all_of(samples: Samples, name: str) -> Size:
    if samples.form.kind in GRIDS:
        return Size(pixels=ALL)
    return Size(pixels=0, **{name.removeprefix("held_"): ALL})
