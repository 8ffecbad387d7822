"""Lanes with refill: many rows optimized side by side, each as if it were alone.

A fixed number of lanes, at least two, run one phase in lockstep. A row leaves its lane when it
meets its target, diverges or has spent its steps; the next row takes the lane with its own step
count, moments, bias correction and schedules. Nothing crosses lanes: a row's bits do not depend on
its lane, its neighbors, the order of rows or the number of lanes (from two on; one lane would take
other matrix kernels).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors
from pipeline.fitting.memory import out_of_memory, release
from pipeline.fitting.method import Method, Phase
from pipeline.fitting.rows import lost
from pipeline.fitting.step import DIVERGED, FULL, RUNNING, SPENT, State, Step, pointwise
from pipeline.fitting.step import MET as MET
from pipeline.samples import Batch, Samples, join

RETRY_FACTOR = 0.25
"""A row that diverges starts once more with its rates multiplied by this."""
MOST_PARTS = 64
"""Into no more parts is a step cut where memory runs out."""


@dataclass(frozen=True)
class Request:
    """A row to be fitted."""

    samples: Samples
    index: int
    rows: Tensors
    """Where it starts, without the sample axis."""
    key: Int[Tensor, ""]
    """Of its draws in this phase."""
    unit: object = None
    """Told back with the outcome: what the row belongs to."""
    factor: float = 1.0
    note: str = ""
    """What happened at an earlier try."""


@dataclass(frozen=True)
class Outcome:
    """A row that left its lane."""

    request: Request
    rows: Tensors
    reason: int
    steps: int
    loss: float
    """Sum of the terms at the returned parameters; the last finite one of a diverged row."""
    watched: float
    """The value that the target watches, smoothed."""


class Lanes:
    """One phase of a method over at most `lanes` lanes, for samples of one shape class.

    `full`: every step sees all of a sample, so its data is decoded once. Where the lanes may differ
    in number from step to step (eager code on CPUs), there are as many as there are rows, and no
    lane idles; elsewhere empty ones are computed and ignored.

    Where memory runs out, half the lanes go on, and the other rows wait for a lane; two lanes go on
    in parts (see `Step`) if the loss can be cut; then what is in the lanes leaves as `FULL`.
    """

    def __init__(
        self,
        method: Method,
        phase: Phase,
        shared: Tensors,
        *,
        lanes: int,
        full: bool,
        compiled: bool = False,
        parts: int = 1,
    ):
        if lanes < 2:
            raise ValueError(f"lanes: {lanes}, must be at least 2")
        self.phase, self.lanes, self.full = phase, lanes, full
        self.step = Step(method, phase, shared, compiled=compiled, parts=parts)
        self.groups, self.compiled = self.step.groups, compiled
        self.steps = self.computed = self.used = 0
        """Steps, lanes computed in them all told, and those of them that held a row."""
        self.shortages = 0
        """How often memory ran out."""

    def run(self, following: Callable[[], Request | None]) -> Iterator[Outcome]:
        """Fits rows as long as `following` has one when a lane is free; yields them as they leave.

        `following` is asked again at every step while lanes are free.
        """
        now, again = _Now(), deque[Request]()
        while True:
            new: list[Request] = []
            while len(new) < self.lanes - len(now.live):
                request = again.popleft() if again else following()
                if request is None:
                    break
                new.append(request)
            if not new and not now.live:
                return
            words = ""
            try:
                now = self._some_steps(self._admit(now, new))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                words = " ".join(str(error).split())[:200] or type(error).__name__
            if words:  # outside of the handler: the error holds on to what filled the memory
                again.extendleft(reversed(new))
                now, ended = self._shrink(now, again, words)
                yield from ended
                continue
            for lane, reason in enumerate(now.state.reason.tolist()):
                request = now.held[lane]
                if reason == RUNNING or request is None:
                    continue
                outcome = self._collect(now.state, lane, request, reason)
                now.held[lane] = None
                retry = self._retry(outcome)
                if retry is not None:
                    again.append(retry)
                else:
                    yield outcome

    def _admit(self, now: _Now, new: list[Request]) -> _Now:
        """The lanes of the next step, with new rows in free ones; `now` stays as it is."""
        some = new[0] if new else now.held[now.live[0]]
        device = some.samples.device
        source = self._places(now, len(new), device.type == "cpu")
        state, fixed, held = now.state, now.fixed, now.held
        if state is None:
            state = self._empty(device, len(source))
        elif source != list(range(len(held))):
            at = torch.tensor([max(lane, 0) for lane in source], device=device)
            state, fixed = _lanes_at(state, at), None if fixed is None else _taken(fixed, at)
        held = [held[lane] if lane >= 0 else None for lane in source]
        free = [lane for lane, request in enumerate(held) if request is None]
        filled = free[: len(new)]
        for lane, request in zip(filled, new):
            held[lane] = request
        if filled:
            state = self._fill(state, filled, new)
            if self.full:
                fixed = self._refresh(fixed, filled, held, state)
        return _Now(held, state, fixed)

    def _places(self, now: _Now, new: int, elastic: bool) -> list[int]:
        """The lanes of the next step by where each comes from; -1: from nowhere."""
        live = now.live
        wanted = max(2, len(live) + new) if elastic and not self.compiled else self.lanes
        spare = [lane for lane in range(len(now.held)) if now.held[lane] is None]
        kept = sorted([*live, *spare[: wanted - len(live)]])
        return [*kept, *[-1] * (wanted - len(kept))]

    def _some_steps(self, now: _Now) -> _Now:
        """One step; some on a GPU, where each look at the verdicts waits for it."""
        some = now.held[now.live[0]]
        state, device = now.state, now.state.step.device
        keys = torch.stack([(request or some).key for request in now.held]).to(device)
        for _ in range(1 if device.type == "cpu" else 8):
            draw = Draw(keys, state.step)
            batch = now.fixed if now.fixed is not None else self._draw(now.held, draw)
            state = self.step.advance(state, batch, draw)
            if self.phase.edits:
                state = self.step.edit(state, batch, draw)
            self.steps += 1
            self.computed += len(now.held)
            self.used += len(now.live)
        return _Now(now.held, state, now.fixed)

    def _shrink(self, now: _Now, again: deque[Request], words: str) -> tuple[_Now, list[Outcome]]:
        """After memory ran out: fewer lanes, or smaller parts, or the rows give up."""
        release()
        self.shortages += 1
        if self.lanes > 2:
            self.lanes = max(2, self.lanes // 2)
        elif pointwise(self.phase) and self.step.parts < MOST_PARTS:
            self.step = self.step.cut(2 * self.step.parts)
        else:
            rows = [now.held[lane] for lane in now.live]
            while again and len(rows) < 2:
                rows.append(again.popleft())
            return _Now(), [_full(request, words) for request in rows]
        # Rows beyond the lanes start again; what waited waits on.
        beyond = now.live[self.lanes :]
        again.extendleft(now.held[lane] for lane in reversed(beyond))
        held = [None if lane in beyond else request for lane, request in enumerate(now.held)]
        return _Now(held, now.state, now.fixed), []

    def _empty(self, device: torch.device, n: int) -> State:
        flats = [torch.zeros(n, g.layout.width, device=device) for g in self.groups]
        return State(
            flats=flats,
            moments=[
                [torch.zeros_like(flat) for _ in range(g.optimizer.moments if g.optimizer else 0)]
                for g, flat in zip(self.groups, flats)
            ],
            step=torch.zeros(n, dtype=torch.int64, device=device),
            reason=torch.full((n,), SPENT, device=device),
            factor=torch.ones(n, device=device),
            watched=torch.zeros(n, device=device),
            loss=torch.zeros(n, device=device),
        )

    def _fill(self, state: State, lanes: list[int], requests: list[Request]) -> State:
        """Gives lanes to rows: their start, fresh moments, step 0."""
        at = torch.tensor(lanes, device=state.step.device)

        def put(old: Tensor, new: Tensor | float | int) -> Tensor:
            if not isinstance(new, Tensor):
                new = torch.full((len(lanes), *old.shape[1:]), new)
            return old.index_copy(0, at, new.to(old.device, old.dtype))

        starts = {
            name: torch.stack([request.rows[name] for request in requests])
            for name in requests[0].rows
        }
        flats = [put(f, g.layout.flat(starts)) for g, f in zip(self.groups, state.flats)]
        return State(
            flats=flats,
            moments=[[put(moment, 0.0) for moment in group] for group in state.moments],
            step=put(state.step, 0),
            reason=put(state.reason, RUNNING),
            factor=put(state.factor, torch.tensor([r.factor for r in requests])),
            watched=put(state.watched, 0.0),
            loss=put(state.loss, float("nan")),
        )

    def _draw(self, held: list[Request | None], draw: Draw, only: list[int] | None = None) -> Batch:
        """A batch over the lanes; empty ones repeat a neighbor's sample, and are ignored."""
        some = next(request for request in held if request is not None)
        by_source: dict[int, tuple[Samples, list[int], list[int]]] = {}
        for place, lane in enumerate(range(len(held)) if only is None else only):
            request = held[lane] or some
            source = by_source.setdefault(id(request.samples), (request.samples, [], []))
            source[1].append(place)
            source[2].append(request.index)
        parts = []
        for samples, places, index in by_source.values():
            at = torch.tensor(places)
            on_device = at.to(draw.step.device)
            part = Draw(draw.keys[on_device], draw.step[on_device])
            index = torch.tensor(index)
            parts.append((at, samples.draw(index, self.phase.role, self.phase.size, part)))
        return join(parts)

    def _refresh(
        self, fixed: Batch | None, filled: list[int], held: list[Request | None], state: State
    ) -> Batch:
        """Replaces the data of newly filled lanes where every step sees all of a sample."""
        only = list(range(len(held))) if fixed is None else filled
        index = torch.tensor(only, device=state.step.device)
        draw = Draw(torch.zeros_like(index), torch.zeros_like(index))
        new = self._draw(held, draw, only)
        if fixed is None:
            return new

        def put(old: object | None, part: object | None) -> object | None:
            if old is None:
                return None
            columns = {}
            for f in fields(old):
                before, after = getattr(old, f.name), getattr(part, f.name)
                columns[f.name] = None if before is None else before.index_copy(0, index, after)
            return replace(old, **columns)

        return Batch(
            **{f.name: put(getattr(fixed, f.name), getattr(new, f.name)) for f in fields(new)}
        )

    def _collect(self, state: State, lane: int, request: Request, reason: int) -> Outcome:
        rows: Tensors = {}
        for group, flat in zip(self.groups, state.flats):
            split = group.layout.split(flat[lane : lane + 1].clone())
            rows |= {name: value[0] for name, value in split.items()}
        if not all(bool(torch.isfinite(value).all()) for value in rows.values()):
            reason = DIVERGED
        return Outcome(
            request=request,
            rows=rows,
            reason=reason,
            steps=int(state.step[lane]),
            loss=float(state.loss[lane]),
            watched=float(state.watched[lane]),
        )

    def _retry(self, outcome: Outcome) -> Request | None:
        """A diverged row once more from its start, at a lower rate."""
        if outcome.reason != DIVERGED or outcome.request.factor != 1.0:
            return None
        note = f"loss not finite at step {outcome.steps} (last finite loss {outcome.loss:.4g})"
        return replace(outcome.request, factor=RETRY_FACTOR, note=note)


@dataclass
class _Now:
    """What is in the lanes."""

    held: list[Request | None] = field(default_factory=list)
    state: State | None = None
    fixed: Batch | None = None
    """Their data, where it stays the same."""

    @property
    def live(self) -> list[int]:
        return [lane for lane, request in enumerate(self.held) if request is not None]


def _full(request: Request, words: str) -> Outcome:
    """A row for which there is not the memory."""
    rows = {name: lost(value) for name, value in request.rows.items()}
    return Outcome(replace(request, note=words), rows, FULL, 0, float("nan"), float("nan"))


def _lanes_at(state: State, at: Int[Tensor, "m"]) -> State:
    """The state of these lanes."""
    return State(
        flats=[flat[at] for flat in state.flats],
        moments=[[moment[at] for moment in group] for group in state.moments],
        **{
            name: getattr(state, name)[at]
            for name in ("step", "reason", "factor", "watched", "loss")
        },
    )


def _taken(batch: Batch, at: Int[Tensor, "m"]) -> Batch:
    """The data of these lanes."""

    def members(part: object | None) -> object | None:
        if part is None:
            return None
        columns = {f.name: getattr(part, f.name) for f in fields(part)}
        return replace(part, **{n: v if v is None else v[at] for n, v in columns.items()})

    return Batch(**{f.name: members(getattr(batch, f.name)) for f in fields(batch)})
