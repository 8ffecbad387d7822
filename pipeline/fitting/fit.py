"""Fitting rows: start each one, run the phases of `fit` over lanes, say what became of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fields.latent import limited_rows
from pipeline.fitting.adapt import adapt
from pipeline.fitting.lanes import DIVERGED, MET, SPENT, Lanes, Outcome, Request
from pipeline.fitting.method import (
    Adversarial,
    Encoded,
    MetaLearned,
    Method,
    Phase,
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
    outcomes: list[Outcome | None]
    steps: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, key: Hashable, samples: Samples, kept: dict[int, Tensors] | None = None) -> _Unit:
        """A unit of which the rows in `kept` are done as they are."""
        outcomes: list[Outcome | None] = [None] * len(samples)
        for i, rows in (kept or {}).items():
            request = Request(samples, i, {k: v.to(samples.device) for k, v in rows.items()})
            outcomes[i] = Outcome(request, request.rows, MET, 0, float("nan"), float("nan"))
        return cls(key, samples, outcomes)

    @property
    def done(self) -> bool:
        return all(outcome is not None for outcome in self.outcomes)


def default_lanes(
    method: Method, device: str | torch.device = "cpu", points: int | None = None
) -> int:
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


def points_of(kind: tuple[int, ...]) -> int:
    """Points that a step takes of a sample of this shape class."""
    return sum(abs(count) for count in kind)


def estimate_seconds(method: Method, fused: bool = False) -> float:
    """Rough seconds a row on one CPU core, for planning: products at 20 GFLOP/s (the compiled loop:
    80), half the steps where a target ends most rows early."""
    seconds = 0.0
    weights = sum(p.numel() for p in method.model.parameters() if p.dim() > 1)
    for phase in method.fit:
        size = phase.size
        counts = (size.pixels, size.near, size.uniform, size.surface)
        points = sum(c for c in counts if c != ALL) or size.most or 4096
        steps = phase.steps / 2 if phase.target is not None else phase.steps
        seconds += steps * points * weights * 6 / (80e9 if fused else 20e9)
    return max(seconds, 1e-3)


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
    kept: dict[int, Tensors] | None = None,
) -> Fitted:
    """Fits one row for each sample, with `shared` as it is.

    `fused` takes the compiled loop over single networks (`choose_path` says where it can). `kept`
    gives rows (by position, without a sample axis) that stay as they are: those of training.
    """
    units = [(0, samples)]
    keep = {0: kept or {}}
    ((_, fitted),) = fit_units(
        method,
        shared,
        units,
        seed=seed,
        lanes=lanes,
        device=device,
        compiled=compiled,
        fused=fused,
        kept=keep,
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
    kept: dict[Hashable, dict[int, Tensors]] | None = None,
) -> Iterator[tuple[Hashable, Fitted]]:
    """Fits units of samples; a unit is yielded when its last row is done. `kept` is by unit.

    Methods with one phase refill lanes across units: the next unit is pulled while the last rows of
    the one before still run, so no lane idles between them.
    """
    if lanes is not None and lanes < 2:
        raise ValueError(f"lanes: {lanes}, must be at least 2: one lane takes other matrix kernels")
    method.model.eval()
    device = torch.device(device)
    shared = {name: value.detach().to(device) for name, value in shared.items()}
    settings = {"seed": seed, "lanes": lanes, "compiled": compiled}
    work = (_Unit.of(key, samples, (kept or {}).get(key)) for key, samples in units)
    if fused:
        yield from _fused(method, shared, work, seed, device)
        return
    if len(method.fit) == 1:
        yield from _stream(method, shared, work, **settings)
        return
    for unit in work:
        yield unit.key, _phases(method, shared, unit, **settings)


def choose_path(
    method: Method, device: str | torch.device = "cpu", compiled: bool = False
) -> tuple[bool, str]:
    """Whether to fit with `fused`, and the path in words: part of what decides a row's bits."""
    from pipeline.fitting.fused.recognize import available, recognize

    if torch.device(device).type != "cpu":
        return False, "compiled by Inductor" if compiled else "plain PyTorch"
    found = recognize(method)
    why = found if isinstance(found, str) else available()
    if compiled or why:
        name = "compiled by Inductor" if compiled else "plain PyTorch"
        return False, f"{name} ({why})" if why else name
    from pipeline.fitting.fused.run import path_name

    return True, path_name()


def _fused(
    method: Method, shared: Tensors, units: Iterator[_Unit], seed: int, device: torch.device
) -> Iterator[tuple[Hashable, Fitted]]:
    """Units by the compiled loop: rows one after another, so nothing is left to refill."""
    from pipeline.fitting.fused.recognize import recognize
    from pipeline.fitting.fused.run import Loop

    if device.type != "cpu":
        raise ValueError(
            f"the plan chose the compiled loop of CPUs, this worker computes on {device}"
        )
    usable, path = choose_path(method)
    if not usable:
        raise ValueError(f"this method cannot be fitted by the compiled loop: {path}")
    loop = Loop(recognize(method), seed)
    for unit in units:
        waiting = [i for i, outcome in enumerate(unit.outcomes) if outcome is None]

        def starts(index: Tensor, unit: _Unit = unit) -> Tensors:
            return starts_of(method, shared, unit.samples, index, seed)[0]

        for outcome in loop.fit(unit.samples, waiting, starts):
            unit.outcomes[outcome.request.index] = outcome
        yield unit.key, _result(method, method.fit[0].target, unit)


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
        unit = next(units, None)
        if unit is None:
            return False
        working.append(unit)
        classes = unit.samples.shape_classes(phase.role, phase.size).tolist()
        for index, kind in enumerate(classes):
            if unit.outcomes[index] is None:
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
        count = lanes or default_lanes(method, working[0].samples.device, points_of(kind))
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
                method,
                phase,
                shared,
                lanes=count,
                seed=seed,
                stage="fit/0",
                full=min(kind) > 0,
                compiled=compiled,
            )
        for outcome in engines[kind, count].run(following(), following):
            unit = next(u for u in working if id(u) == outcome.request.unit)
            unit.outcomes[outcome.request.index] = outcome
            if unit.done:
                working.remove(unit)
                yield unit.key, _result(method, phase.target, unit)


def _requests(
    method: Method, shared: Tensors, unit: _Unit, index: list[int], seed: int
) -> list[Request]:
    rows, _ = starts_of(method, shared, unit.samples, torch.tensor(index), seed)
    phase = method.fit[0]
    if phase.enter is not None:
        rows = _enter(method, shared, unit.samples, torch.tensor(index), phase, rows, seed, 0)
    return [
        Request(unit.samples, i, {name: value[k] for name, value in rows.items()}, id(unit))
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
    unit: _Unit,
    *,
    seed: int,
    lanes: int | None,
    compiled: bool,
) -> Fitted:
    """All phases of `fit`, one after another, over one unit."""
    samples, kept = unit.samples, list(unit.outcomes)
    index = torch.arange(len(samples))
    size = max(2, lanes or default_lanes(method, samples.device))
    pieces = [starts_of(method, shared, samples, part, seed) for part in index.split(size)]
    rows = {name: torch.cat([p[0][name] for p in pieces]) for name in row_names(method)}
    unit.outcomes = [
        k or Outcome(Request(samples, i, {}), {n: v[i] for n, v in rows.items()}, SPENT, 0, at, at)
        for i, (k, at) in enumerate(zip(kept, torch.cat([p[1] for p in pieces]).tolist()))
    ]
    unit.steps = [0] * len(samples)
    for number, phase in enumerate(method.fit):
        classes = samples.shape_classes(phase.role, phase.size).tolist()
        if phase.enter is not None:
            order = sorted(range(len(samples)), key=lambda i: classes[i])
            pieces = []
            for kind in sorted(set(map(tuple, classes))):
                members = torch.tensor([i for i in order if tuple(classes[i]) == kind])
                for part in members.split(size):
                    some = {name: value[part] for name, value in rows.items()}
                    pieces.append(_enter(method, shared, samples, part, phase, some, seed, number))
            back = torch.tensor(order).argsort()
            rows = {name: torch.cat([p[name] for p in pieces])[back] for name in rows}
        queues: dict[tuple[int, ...], deque[int]] = {}
        for i, kind in enumerate(classes):
            if kept[i] is None and unit.outcomes[i].reason != DIVERGED:
                queues.setdefault(tuple(kind), deque()).append(i)
        for kind, members in queues.items():
            count = lanes or default_lanes(method, samples.device, points_of(kind))
            engine = Lanes(
                method,
                phase,
                shared,
                lanes=max(2, min(count, len(members))),
                seed=seed,
                stage=f"fit/{number}",
                full=min(kind) > 0,
                compiled=compiled,
            )

            def following(members=members, rows=rows) -> Request | None:
                if not members:
                    return None
                i = members.popleft()
                return Request(samples, i, {name: value[i] for name, value in rows.items()})

            for outcome in engine.run(following(), following):
                i = outcome.request.index
                unit.outcomes[i] = outcome
                unit.steps[i] += outcome.steps
        rows = {n: torch.stack([o.rows[n] for o in unit.outcomes]) for n in rows}
    return _result(method, method.fit[-1].target if method.fit else None, unit)


def _enter(
    method: Method,
    shared: Tensors,
    samples: Samples,
    index: Int[Tensor, "m"],
    phase: Phase,
    rows: Tensors,
    seed: int,
    number: int,
) -> Tensors:
    """Maps the rows of the samples at `index` into a phase."""
    count = len(index)
    if count == 1:
        index = index.repeat(2)
        rows = {name: torch.cat([value, value]) for name, value in rows.items()}
    keys = samples.keys[index.to(samples.device)]
    draw = Draw.of(keys, seed=seed, stage=f"enter/{number}")
    with torch.no_grad():
        bound = bind(method.model, bindable(method, shared, rows))
        batch = samples.draw(index, phase.role, phase.size, draw)
        entered = {**rows, **phase.enter(bound, rows, batch, draw)}
    return {name: value[:count] for name, value in entered.items()}


def _result(method: Method, target: Target | None, unit: _Unit) -> Fitted:
    if not all(bool(torch.isfinite(v).all()) for o in unit.outcomes for v in o.rows.values()):
        unit.outcomes = [_finite(o) for o in unit.outcomes]
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
        rows=limited_rows(method.model, rows),
        status=[v[0] for v in verdicts],
        code=[v[1] for v in verdicts],
        message=[v[2] for v in verdicts],
        steps=torch.tensor(unit.steps or [o.steps for o in unit.outcomes]),
        loss=torch.tensor([o.loss for o in unit.outcomes]),
    )


def _finite(outcome: Outcome) -> Outcome:
    """Rows that are not finite count as diverged."""
    finite = all(bool(torch.isfinite(value).all()) for value in outcome.rows.values())
    return outcome if finite else replace(outcome, reason=DIVERGED)


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
