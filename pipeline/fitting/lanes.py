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
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fitting.method import Method, Phase, group_of, row_names
from pipeline.fitting.optimizers import Optimizer
from pipeline.fitting.rows import Layout, bindable
from pipeline.samples import Batch, Samples, join

RUNNING, MET, DIVERGED, SPENT = 0, 1, 2, 3
RETRY_FACTOR = 0.25
"""A row that diverges starts once more with its rates multiplied by this."""


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


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer moves in one update; `optimizer` None: they stay."""

    layout: Layout
    update: int
    optimizer: Optimizer | None


@dataclass(frozen=True)
class State:
    """All that changes from step to step."""

    flats: list[Float[Tensor, "n _"]]
    moments: list[list[Float[Tensor, "n _"]]]
    step: Int[Tensor, "n"]
    reason: Int[Tensor, "n"]
    factor: Float[Tensor, "n"]
    watched: Float[Tensor, "n"]
    loss: Float[Tensor, "n"]


def row_groups(method: Method, phase: Phase) -> list[Group]:
    """Splits the rows of a method by the optimizer that moves them."""
    model = method.field.model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    members: dict[tuple[int, str | None], list[str]] = {}
    for name in row_names(method):
        claims = [
            (i, prefix)
            for i, update in enumerate(phase.updates)
            if name in trained and (prefix := group_of(name, update.groups)) is not None
        ]
        if len(claims) > 1:
            raise ValueError(f"row parameter {name!r} is moved by two updates of one phase")
        members.setdefault(claims[0] if claims else (-1, None), []).append(name)
    return [
        Group(
            Layout.of(model, names),
            update,
            None if prefix is None else phase.updates[update].groups[prefix],
        )
        for (update, prefix), names in members.items()
    ]


class Lanes:
    """One phase of a method over at most `lanes` lanes, for samples of one shape class.

    `full`: every step sees all of a sample, so its data is decoded once. Where the lanes may differ
    in number from step to step (eager code on CPUs), there are as many as there are rows, and no
    lane idles; elsewhere empty ones are computed and ignored.
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
    ):
        if lanes < 2:
            raise ValueError(f"lanes: {lanes}, must be at least 2")
        self.method, self.phase, self.shared = method, phase, shared
        self.lanes, self.full = lanes, full
        self.groups = row_groups(method, phase)
        self.compiled = compiled
        self.advance = compiled_step(self._advance) if compiled else self._advance
        self.steps = self.computed = self.used = 0
        """Steps, lanes computed in them all told, and those of them that held a row."""

    def run(self, following: Callable[[], Request | None]) -> Iterator[Outcome]:
        """Fits rows as long as `following` has one when a lane is free; yields them as they leave.

        `following` is asked again at every step while lanes are free.
        """
        held: list[Request | None] = []
        again: deque[Request] = deque()
        state = fixed = None
        while True:
            room = self.lanes - sum(request is not None for request in held)
            new: list[Request] = []
            while len(new) < room:
                request = again.popleft() if again else following()
                if request is None:
                    break
                new.append(request)
            if not new and all(request is None for request in held):
                return
            some = new[0] if new else next(r for r in held if r is not None)
            device = some.samples.device
            source = self._places(held, len(new), elastic=device.type == "cpu")
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
            keys = torch.stack([(request or some).key for request in held]).to(device)
            for _ in range(1 if device.type == "cpu" else 8):
                draw = Draw(keys, state.step)
                batch = fixed if fixed is not None else self._draw(held, draw)
                state = self.advance(state, batch, draw)
                if self.phase.edits:
                    state = self._edit(state, batch, draw)
                self.steps += 1
                self.computed += len(held)
                self.used += sum(request is not None for request in held)
            for lane, reason in enumerate(state.reason.tolist()):
                if reason == RUNNING or held[lane] is None:
                    continue
                outcome = self._collect(state, lane, held[lane], reason)
                held[lane] = None
                retry = self._retry(outcome)
                if retry is not None:
                    again.append(retry)
                else:
                    yield outcome

    def _places(self, held: list[Request | None], new: int, *, elastic: bool) -> list[int]:
        """The lanes of the next step by where each comes from; -1: from nowhere."""
        live = [lane for lane, request in enumerate(held) if request is not None]
        if self.compiled or not elastic:
            return [*range(len(held)), *[-1] * (self.lanes - len(held))]
        wanted = max(2, len(live) + new)
        spare = [lane for lane in range(len(held)) if held[lane] is None]
        kept = sorted([*live, *spare[: wanted - len(live)]])
        return [*kept, *[-1] * (wanted - len(kept))]

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

    def _bind(self, flats: list[Tensor]):
        rows: Tensors = {}
        for group, flat in zip(self.groups, flats):
            rows |= group.layout.split(flat)
        return bind(self.method.field.model, bindable(self.method, self.shared, rows))

    def _advance(self, state: State, batch: Batch, draw: Draw) -> State:
        """One step of all lanes."""
        flats, moments = list(state.flats), [list(m) for m in state.moments]
        go = reason = watched = loss = None
        for number, update in enumerate(self.phase.updates):
            mine = [i for i, g in enumerate(self.groups) if g.update == number]

            def losses(leaves: list[Tensor], mine=mine, update=update, flats=flats):
                used = [f.detach() for f in flats]
                for i, leaf in zip(mine, leaves):
                    used[i] = leaf
                terms = update.loss(self._bind(used), batch, draw)
                total = torch.stack(list(terms.values())).sum(0)
                return total.sum(), (terms, total)

            gradients, (terms, total) = self._gradients(losses, [flats[i] for i in mine])
            if number == 0:
                go, reason, watched, loss = self._judge(state, terms, total.detach())
            due = go & (state.step % update.every == 0) if update.every > 1 else go
            count = torch.div(state.step, update.every, rounding_mode="floor")
            for i, gradient in zip(mine, gradients):
                flats[i], moments[i] = self.groups[i].optimizer.update(
                    flats[i], gradient, moments[i], count, due, state.factor
                )
        return State(flats, moments, state.step + go, reason, state.factor, watched, loss)

    def _gradients(self, losses: Callable, leaves: list[Tensor]) -> tuple[list[Tensor], tuple]:
        """Gradients of a scalar by `leaves`, and what else `losses` returns."""
        if not leaves:
            return [], losses([])[1]
        if self.compiled:  # the compiler traces functional derivatives only
            _, pull, rest = torch.func.vjp(losses, leaves, has_aux=True)
            (gradients,) = pull(torch.ones((), device=leaves[0].device))
            return gradients, rest
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        scalar, rest = losses(leaves)
        return list(torch.autograd.grad(scalar, leaves)), rest

    def _judge(
        self, state: State, terms: dict[str, Tensor], total: Tensor
    ) -> tuple[Bool[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Which lanes go on, why others end, the watched values and the losses."""
        target = self.phase.target
        running = state.reason == RUNNING
        finite = torch.isfinite(total)
        watched = total if target is None or target.term is None else terms[target.term].detach()
        if target is not None and target.smooth:
            mean = state.watched + (1 - target.smooth) * (watched - state.watched)
            watched = torch.where(state.step == 0, watched, mean)
        met = torch.zeros_like(running) if target is None else watched <= target.value
        if target is not None and target.smooth:
            met = met & (state.step >= int(2 / (1 - target.smooth)))
        over = state.step >= self.phase.steps
        reason = torch.where(over, SPENT, RUNNING)
        reason = torch.where(met, MET, reason)
        reason = torch.where(finite, reason, DIVERGED)
        reason = torch.where(running, reason, state.reason)
        keep = running & finite
        return (
            running & (reason == RUNNING),
            reason,
            torch.where(keep, watched, state.watched),
            torch.where(keep, total, state.loss),
        )

    def _edit(self, state: State, batch: Batch, draw: Draw) -> State:
        """Applies the edits to the lanes whose own step is due."""
        flats = state.flats
        for every, edit in self.phase.edits:
            due = (state.reason == RUNNING) & (state.step > draw.step)
            due &= state.step % every == 0
            if not bool(due.any()):
                continue
            bound = self._bind(flats)
            rows: Tensors = {}
            for group, flat in zip(self.groups, flats):
                rows |= group.layout.split(flat)
            with torch.no_grad():
                edited = edit(bound, rows, batch, draw)
            flats = [
                torch.where(due[:, None], group.layout.flat({**rows, **edited}), flat)
                for group, flat in zip(self.groups, flats)
            ]
        return replace(state, flats=flats)

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


def compiled_step(step: Callable) -> Callable:
    """A step compiled by Inductor, once for each shape class and lane count.

    Falling back to eager code unnoticed would change bits, so it is an error (`fullgraph`).
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(step, dynamic=False, fullgraph=True)
