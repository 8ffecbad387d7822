"""Fitting rows: start each one, run the phases of `fit` over lanes, say what became of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fitting.adapt import adapt
from pipeline.fitting.lanes import DIVERGED, MET, Lanes, Outcome, Request
from pipeline.fitting.method import (
    Adversarial,
    Encoded,
    MetaLearned,
    Method,
    Target,
    row_names,
)
from pipeline.fitting.rows import bindable, started
from pipeline.samples import ALL, Samples
from schemas.samples import Code
from schemas.store import RowStatus

NUMERICS = 1
"""Raised by hand when a change of this package changes results."""
CPU_POINTS = 16_384
"""Points that the lanes of a CPU core take in one step: more of them spill its cache."""


@dataclass
class Fitted:
    """Fitted rows, in the order of the samples."""

    rows: Tensors
    """`[n, ...]` by parameter name; NaN where a row diverged."""
    status: list[RowStatus]
    code: list[Code]
    message: list[str]
    steps: Int[Tensor, "n"]
    loss: Float[Tensor, "n"]
    """At the returned parameters; the last finite one of a diverged row."""


@dataclass
class _Unit:
    """A unit in work: which of its rows are done."""

    key: Hashable
    samples: Samples
    outcomes: list[Outcome | None] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return all(outcome is not None for outcome in self.outcomes)


def default_lanes(method: Method, device: str | torch.device, points: int | None = None) -> int:
    """Lanes that suit a device: small batches that stay in cache on CPUs, wide ones on GPUs.

    `points` is what one step sees of a sample; of the first phase's size when absent.
    """
    if points is None:
        size = method.fit[0].size if method.fit else None
        counts = [] if size is None else [size.pixels, size.near, size.uniform, size.surface]
        points = sum(c for c in counts if c != ALL) or 1024
    if torch.device(device).type == "cpu":
        return max(2, min(32, CPU_POINTS // points))
    return max(2, min(4096, 4_194_304 // points))


def fit_rows(
    method: Method,
    shared: Tensors,
    samples: Samples,
    *,
    seed: int,
    lanes: int | None = None,
    device: str | torch.device = "cpu",
    compiled: bool = False,
) -> Fitted:
    """Fits one row for each sample, with `shared` as it is."""
    units = [(0, samples)]
    ((_, fitted),) = fit_units(
        method, shared, units, seed=seed, lanes=lanes, device=device, compiled=compiled
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
) -> Iterator[tuple[Hashable, Fitted]]:
    """Fits units of samples; a unit is yielded when its last row is done.

    Methods with one phase refill lanes across units: the next unit is pulled while the last rows of
    the one before still run, so no lane idles between them.
    """
    method.field.model.eval()
    device = torch.device(device)
    shared = {name: value.detach().to(device) for name, value in shared.items()}
    settings = {"seed": seed, "lanes": lanes, "compiled": compiled}
    if len(method.fit) == 1:
        yield from _stream(method, shared, iter(units), **settings)
        return
    for key, samples in units:
        yield key, _phases(method, shared, samples, **settings)


def _stream(
    method: Method,
    shared: Tensors,
    units: Iterator,
    *,
    seed: int,
    lanes: int | None,
    compiled: bool,
) -> Iterator[tuple[Hashable, Fitted]]:
    """One phase over a stream of units, by shape class, with at most two units in work."""
    phase = method.fit[0]
    queues: dict[tuple[int, ...], deque[tuple[_Unit, int]]] = {}
    working: list[_Unit] = []
    engines: dict[tuple[int, ...], Lanes] = {}

    def pull() -> bool:
        if len(working) >= 2:
            return False
        following = next(units, None)
        if following is None:
            return False
        unit = _Unit(*following)
        unit.outcomes = [None] * len(unit.samples)
        working.append(unit)
        classes = unit.samples.shape_classes(phase.role, phase.size).tolist()
        for index, kind in enumerate(classes):
            queues.setdefault(tuple(kind), deque()).append((unit, index))
        return True

    while True:
        finished = [unit for unit in working if unit.done]
        for unit in finished:
            working.remove(unit)
            yield unit.key, _result(method, phase.target, unit)
        waiting = {kind: queue for kind, queue in queues.items() if queue}
        if not waiting:
            if pull():
                continue
            return
        # The oldest unit first: it is what the next one waits for.
        kind = min(waiting, key=lambda k: working.index(waiting[k][0][0]))
        queue = waiting[kind]
        count = lanes or default_lanes(method, working[0].samples.device, sum(kind))
        count = max(2, min(count, len(queue)))
        starts: deque[Request] = deque()

        def following(queue=queue, starts=starts, count=count) -> Request | None:
            if starts:
                return starts.popleft()
            if not queue and not pull():
                return None
            if not queue:
                return None
            batch = []
            while queue and len(batch) < count and (not batch or batch[0][0] is queue[0][0]):
                batch.append(queue.popleft())
            unit = batch[0][0]
            starts.extend(_requests(method, shared, unit, [i for _, i in batch], seed))
            return starts.popleft()

        if (kind, count) not in engines:
            engines[kind, count] = Lanes(
                method, phase, shared, lanes=count, seed=seed, stage="fit/0", compiled=compiled
            )
        for outcome in engines[kind, count].run(following(), following):
            unit = next(u for u in working if u.samples is outcome.request.samples)
            unit.outcomes[outcome.request.index] = outcome
            if unit.done:
                working.remove(unit)
                yield unit.key, _result(method, phase.target, unit)


def _requests(
    method: Method, shared: Tensors, unit: _Unit, index: list[int], seed: int
) -> list[Request]:
    rows, _ = starts_of(method, shared, unit.samples, torch.tensor(index), seed)
    return [
        Request(unit.samples, i, {name: value[k] for name, value in rows.items()})
        for k, i in enumerate(index)
    ]


def starts_of(
    method: Method, shared: Tensors, samples: Samples, index: Int[Tensor, "m"], seed: int
) -> tuple[Tensors, Float[Tensor, "m"]]:
    """Where rows start: initializer or common start; then inner steps, encoder or prior."""
    count = len(index)
    if count == 1:  # one row alone would take other matrix kernels than it takes in company
        index = index.repeat(2)
    draw = Draw.of(samples.keys[index.to(samples.device)], seed=seed, stage="start")
    rows = started(method, shared, draw)
    loss = torch.full((len(index),), float("nan"), device=samples.device)
    model = method.field.model
    match method:
        case MetaLearned():
            rows, loss = adapt(method, shared, rows, samples, index, draw, graph=False)
        case Encoded():
            with torch.no_grad():
                bound = bind(model, bindable(method, shared, rows))
                batch = samples.draw(index, "context", method.size, draw)
                encoded, terms = method.encode(bound, batch, draw)
                rows = {**rows, **encoded}
                if terms:
                    loss = torch.stack(list(terms.values())).sum(0)
        case Adversarial():
            with torch.no_grad():
                bound = bind(model, bindable(method, shared, rows))
                rows = {**rows, **method.prior(bound, draw)}
    return {k: v.detach()[:count] for k, v in rows.items()}, loss.detach()[:count]


def _phases(
    method: Method,
    shared: Tensors,
    samples: Samples,
    *,
    seed: int,
    lanes: int | None,
    compiled: bool,
) -> Fitted:
    """All phases of `fit`, one after another, over one unit."""
    index = torch.arange(len(samples))
    size = max(2, lanes or default_lanes(method, samples.device))
    pieces = [starts_of(method, shared, samples, part, seed) for part in index.split(size)]
    rows = {name: torch.cat([p[0][name] for p in pieces]) for name in row_names(method)}
    loss = torch.cat([p[1] for p in pieces])
    unit = _Unit(0, samples, [None] * len(samples))
    steps = [0] * len(samples)
    for number, phase in enumerate(method.fit):
        if phase.enter is not None:
            rows = _enter(method, shared, samples, phase, rows, seed, number, size)
        before, unit.outcomes = unit.outcomes, [None] * len(samples)
        classes = samples.shape_classes(phase.role, phase.size).tolist()
        for kind in sorted(set(map(tuple, classes))):
            members = deque(i for i, k in enumerate(classes) if tuple(k) == kind)
            lost = [i for i in members if before[i] and before[i].reason == DIVERGED]
            for i in lost:
                unit.outcomes[i] = before[i]
                members.remove(i)
            if not members:
                continue
            count = lanes or default_lanes(method, samples.device, sum(kind))
            engine = Lanes(
                method,
                phase,
                shared,
                lanes=count,
                seed=seed,
                stage=f"fit/{number}",
                compiled=compiled,
            )

            def following(members=members, rows=rows) -> Request | None:
                if not members:
                    return None
                i = members.popleft()
                return Request(samples, i, {name: value[i] for name, value in rows.items()})

            for outcome in engine.run(following(), following):
                unit.outcomes[outcome.request.index] = outcome
        for i, outcome in enumerate(unit.outcomes):
            steps[i] += outcome.steps if outcome is not before[i] else 0
        rows = {n: torch.stack([o.rows[n] for o in unit.outcomes]) for n in rows}
    if not method.fit:
        return _started_only(rows, loss)
    unit.steps = steps
    return _result(method, method.fit[-1].target, unit)


def _enter(method, shared, samples, phase, rows, seed, number, size) -> Tensors:
    """Maps rows into a phase, a few at a time."""
    entered = []
    for part in torch.arange(len(samples)).split(size):
        at = part if len(part) > 1 else part.repeat(2)
        keys = samples.keys[at.to(samples.device)]
        draw = Draw.of(keys, seed=seed, stage=f"enter/{number}")
        some = {name: value[at.to(value.device)] for name, value in rows.items()}
        with torch.no_grad():
            bound = bind(method.field.model, bindable(method, shared, some))
            batch = samples.draw(at, phase.role, phase.size, draw)
            new = {**some, **phase.enter(bound, some, batch, draw)}
        entered.append({name: value[: len(part)] for name, value in new.items()})
    return {name: torch.cat([piece[name] for piece in entered]) for name in rows}


def _started_only(rows: Tensors, loss: Tensor) -> Fitted:
    """Rows of a method without phases of `fit`: what the start made of them."""
    finite = torch.stack([torch.isfinite(v).flatten(1).all(1) for v in rows.values()]).all(0)
    ok = finite.tolist()
    return Fitted(
        rows={k: torch.where(_like(finite, v), v, torch.nan) for k, v in rows.items()},
        status=[RowStatus.OK if good else RowStatus.DIVERGED for good in ok],
        code=[Code.NONE if good else Code.NAN_LOSS for good in ok],
        message=["" if good else "the start of the row is not finite" for good in ok],
        steps=torch.zeros(len(ok), dtype=torch.int64),
        loss=loss.cpu(),
    )


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(-1, *(1 for _ in value.shape[1:]))


def _result(method: Method, target: Target | None, unit: _Unit) -> Fitted:
    verdicts = [_verdict(outcome, target) for outcome in unit.outcomes]
    rows = {
        name: torch.stack(
            [
                o.rows[name] if o.reason != DIVERGED else torch.full_like(o.rows[name], torch.nan)
                for o in unit.outcomes
            ]
        )
        for name in row_names(method)
    }
    return Fitted(
        rows=rows,
        status=[v[0] for v in verdicts],
        code=[v[1] for v in verdicts],
        message=[v[2] for v in verdicts],
        steps=torch.tensor(unit.steps or [o.steps for o in unit.outcomes]),
        loss=torch.tensor([o.loss for o in unit.outcomes]),
    )


def _verdict(outcome: Outcome, target: Target | None) -> tuple[RowStatus, Code, str]:
    note = f"{outcome.request.note}; again at a lower rate: " if outcome.request.note else ""
    if outcome.reason == DIVERGED:
        return (
            RowStatus.DIVERGED,
            Code.NAN_LOSS,
            f"{note}loss not finite at step {outcome.steps} (last finite loss {outcome.loss:.4g})",
        )
    if outcome.reason == MET or target is None:
        return RowStatus.OK, Code.NONE, f"{note}fine" if note else ""
    reached = f"{target.describe(outcome.watched)} after {outcome.steps} steps"
    wanted = f"target {target.describe(target.value)}"
    return RowStatus.BELOW_TARGET, Code.BUDGET, f"{note}{reached}; {wanted}"
