"""Units through lanes: rows of the next unit take the lanes that the one before leaves free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch

from pipeline.fields.bind import Tensors
from pipeline.fitting.lanes import Lanes, Outcome, Request
from pipeline.fitting.memory import out_of_memory
from pipeline.fitting.method import Method, row_names
from pipeline.fitting.paths import default_lanes, points_of
from pipeline.fitting.starts import entered, starts_of
from pipeline.fitting.step import SPENT
from pipeline.fitting.units import ENDED, UNFIT, Pull, Unit

AHEAD = 2
"""Units in work at a time: one that ends, and the next one, which takes its lanes."""
Kind = tuple[int, ...]
"""A shape class."""


class LaneStream:
    """Fits the units that `run` pulls, in lanes; what was compiled stays.

    Methods with one phase refill lanes across units: the next unit is pulled while the last rows of
    the one before still run. Several phases follow one another unit by unit.
    """

    def __init__(
        self,
        method: Method,
        shared: Tensors,
        *,
        lanes: int | None = None,
        device: str | torch.device = "cpu",
        compiled: bool = False,
        parts: int = 1,
    ):
        if lanes is not None and lanes < 2:
            raise ValueError(
                f"lanes: {lanes}, must be at least 2: one lane takes other matrix kernels"
            )
        method.model.eval()
        self.method, self.lanes, self.compiled, self.parts = method, lanes, compiled, parts
        self.device = torch.device(device)
        self.shared = {name: value.detach().to(self.device) for name, value in shared.items()}
        self.engines: dict[tuple[int, Kind, int], Lanes] = {}

    def run(self, pull: Pull) -> Iterator[Unit]:
        """Fits the units that it pulls; each is yielded when its last row is done."""
        return (self._lanes if len(self.method.fit) == 1 else self._phases)(pull)

    @property
    def occupancy(self) -> tuple[int, int, int]:
        """Steps, lanes computed in them all told, and those of them that held a row."""
        engines = self.engines.values()
        return tuple(sum(getattr(e, n) for e in engines) for n in ("steps", "computed", "used"))

    def _lanes(self, pull: Pull) -> Iterator[Unit]:
        """One phase over a stream of units, one shape class after another."""
        phase = self.method.fit[0]
        queues: dict[Kind, deque[tuple[Unit, int]]] = {}
        working: list[Unit] = []

        def take() -> bool:
            unit = pull() if len(working) < AHEAD else None
            if unit is None:
                return False
            working.append(unit)
            classes = unit.samples.shape_classes(phase.role, phase.size).tolist()
            for index in unit.waiting:
                queues.setdefault(tuple(classes[index]), deque()).append((unit, index))
            return True

        while True:
            for unit in [unit for unit in working if unit.done]:
                working.remove(unit)
                yield unit
            waiting = {kind: queue for kind, queue in queues.items() if queue}
            if not waiting:
                if take():
                    continue
                return
            # The oldest unit first: it is what the next one waits for.
            kind = min(waiting, key=lambda k: working.index(waiting[k][0][0]))
            queue = waiting[kind]
            count = self._count(kind)
            starts: deque[Request] = deque()

            def following(queue=queue, starts=starts, count=count) -> Request | None:
                while not starts:
                    if not queue:
                        take()
                    if not queue:
                        return None
                    batch = []
                    while (
                        queue and len(batch) < count and (not batch or batch[0][0] is queue[0][0])
                    ):
                        batch.append(queue.popleft())
                    starts.extend(self.requests(batch[0][0], [i for _, i in batch]))
                return starts.popleft()

            engine = self._engine(0, kind, count, len(queue))
            for outcome in engine.run(following):
                unit = outcome.request.unit
                unit.outcomes[outcome.request.index] = outcome
                if unit.done:
                    working.remove(unit)
                    yield unit

    def _count(self, kind: Kind) -> int:
        return self.lanes or default_lanes(self.method, self.device, points_of(kind))

    def _engine(self, number: int, kind: Kind, count: int, rows: int) -> Lanes:
        if self.compiled or self.device.type != "cpu":
            count = max(2, min(count, rows))  # these lanes do not become fewer with the rows
        if (number, kind, count) not in self.engines:
            self.engines[number, kind, count] = Lanes(
                self.method,
                self.method.fit[number],
                self.shared,
                lanes=count,
                full=min(kind) > 0,
                compiled=self.compiled,
                parts=self.parts,
            )
        return self.engines[number, kind, count]

    def requests(self, unit: Unit, index: list[int]) -> list[Request]:
        """Rows of a unit at the start of the only phase; those that do not fit end here."""
        method, samples, at = self.method, unit.samples, torch.tensor(index)
        try:
            rows, _ = starts_of(method, self.shared, samples, at, unit.seed)
            phase = method.fit[0]
            rows, unfit = entered(method, self.shared, samples, at, phase, rows, unit.seed, 0)
        except Exception as error:
            if len(index) == 1 or not out_of_memory(error):
                raise
            rows = None
        if rows is None:
            half = len(index) // 2
            return [*self.requests(unit, index[:half]), *self.requests(unit, index[half:])]
        keys = unit.keys(at, "fit/0")
        requests = [
            Request(samples, i, {n: v[k] for n, v in rows.items()}, keys[k], unit)
            for k, i in enumerate(index)
        ]
        for k, why in unfit.items():
            unit.outcomes[index[k]] = _unfit(requests[k], why)
        return [request for k, request in enumerate(requests) if k not in unfit]

    def _phases(self, pull: Pull) -> Iterator[Unit]:
        """All phases of `fit`, one after another, over one unit after another."""
        while (unit := pull()) is not None:
            self._all_phases(unit)
            yield unit

    def _all_phases(self, unit: Unit) -> None:
        method, shared, samples, seed = self.method, self.shared, unit.samples, unit.seed
        kept, everything = list(unit.outcomes), torch.arange(len(samples))
        size = max(2, self.lanes or default_lanes(method, samples.device))
        pieces = [starts_of(method, shared, samples, part, seed) for part in everything.split(size)]
        rows = {name: torch.cat([p[0][name] for p in pieces]) for name in row_names(method)}
        first = torch.cat([p[1] for p in pieces]).tolist()
        unit.outcomes = [
            done
            or Outcome(
                Request(samples, i, {}, samples.keys[i], unit),
                {name: value[i] for name, value in rows.items()},
                SPENT,
                0,
                loss,
                loss,
            )
            for i, (done, loss) in enumerate(zip(kept, first))
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
                        some, no = entered(method, shared, samples, part, phase, some, seed, number)
                        pieces.append(some)
                        for i, why in ((int(part[k]), why) for k, why in no.items()):
                            if kept[i] is None:
                                unit.outcomes[i] = _unfit(unit.outcomes[i].request, why)
                back = torch.tensor(order).argsort()
                rows = {name: torch.cat([p[name] for p in pieces])[back] for name in rows}
            queues: dict[Kind, deque[int]] = {}
            for i, kind in enumerate(classes):
                if kept[i] is None and unit.outcomes[i].reason not in ENDED:
                    queues.setdefault(tuple(kind), deque()).append(i)
            keys = unit.keys(everything, f"fit/{number}")
            for kind, members in queues.items():

                def following(members=members, rows=rows, keys=keys) -> Request | None:
                    if not members:
                        return None
                    i = members.popleft()
                    own = {name: value[i] for name, value in rows.items()}
                    return Request(samples, i, own, keys[i], unit)

                engine = self._engine(number, kind, self._count(kind), len(members))
                for outcome in engine.run(following):
                    i = outcome.request.index
                    unit.outcomes[i] = outcome
                    unit.steps[i] += outcome.steps
            rows = {n: torch.stack([o.rows[n] for o in unit.outcomes]) for n in rows}


def _unfit(request: Request, why: str) -> Outcome:
    """What becomes of a row whose sample the method cannot hold."""
    nan = float("nan")
    return Outcome(replace(request, note=why), request.rows, UNFIT, 0, nan, nan)
