"""Units that several threads bring, fitted in one stream.

Whichever thread waits for a unit drives the stream until its own is done, then another one that
waits takes over: no thread of its own, so signals and errors come out where the caller is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from pipeline.fields.bind import Tensors
from pipeline.fitting.stream import Stream
from pipeline.fitting.units import Fitted, Unit, fitted_unit
from pipeline.samples import Samples


@dataclass(eq=False)
class _Job:
    """A unit that some thread waits for."""

    unit: Unit
    alone: bool
    """Nothing is fitted beside it."""
    began: float = 0.0
    seconds: float = 0.0
    fitted: Fitted | None = None
    error: BaseException | None = None
    company: bool = False
    """Other units were in work when it failed: it may have been their fault."""

    @property
    def ended(self) -> bool:
        return self.fitted is not None or self.error is not None


class Together:
    """One stream for all threads that call `fit`; the next unit takes the lanes that get free."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.changed = threading.Condition()
        self.waiting: deque[_Job] = deque()
        self.working: dict[Unit, _Job] = {}
        self.units = None
        self.driven = False
        self.last_end = 0.0

    def fit(
        self, samples: Samples, seed: int, kept: dict[int, Tensors] | None = None
    ) -> tuple[Fitted, float]:
        """Fits one unit; returns it with the seconds of the stream that were its own.

        A unit that failed beside others is fitted once more alone, so that no unit fails for what
        another one raised.
        """
        job = self._await(_Job(Unit.of(0, samples, seed, kept), alone=False))
        if job.error is not None and job.company:
            job = self._await(_Job(Unit.of(0, samples, seed, kept), alone=True))
        if job.error is not None:
            raise job.error
        return job.fitted, job.seconds

    def _await(self, job: _Job) -> _Job:
        with self.changed:
            self.waiting.append(job)
            self.changed.wait_for(lambda: job.ended or not self.driven)
            if job.ended:
                return job
            self.driven = True
        try:
            while not job.ended:
                self._advance()
        finally:
            with self.changed:
                if job in self.waiting:
                    self.waiting.remove(job)
                self.driven = False
                self.changed.notify_all()
        return job

    def _pull(self) -> Unit | None:
        with self.changed:
            if not self.waiting:
                return None
            first = self.waiting[0]
            if self.working and (first.alone or any(j.alone for j in self.working.values())):
                return None
            self.waiting.popleft()
            self.working[first.unit] = first
            first.began = time.monotonic()
            return first.unit

    def _advance(self) -> None:
        """Until the next unit ends, or what is in work fails."""
        if self.units is None:
            self.units = self.stream.run(self._pull)
        try:
            unit = next(self.units, None)
            fitted = None if unit is None else fitted_unit(self.stream.method, unit)
        except BaseException as error:
            self.units = None
            with self.changed:
                for job in self.working.values():
                    job.error, job.company = error, len(self.working) > 1
                self.working.clear()
                self.changed.notify_all()
            if isinstance(error, Exception):
                return
            raise
        if unit is None:
            self.units = None
            return
        with self.changed:
            now, job = time.monotonic(), self.working.pop(unit)
            job.seconds = now - max(job.began, self.last_end)
            self.last_end = now
            job.fitted = fitted
            self.changed.notify_all()
