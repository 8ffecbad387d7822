"""Jobs that run outside of the interpreter's lock, some at a time, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.fitting.units import Unit


def in_threads(jobs: Iterator, fit: Callable, threads: int) -> Iterator:
    """(unit, outcome) of each job in order; the next jobs are made ready while others run."""
    if threads == 1:
        for unit, job in jobs:
            yield unit, None if job is None else fit(job)
        return
    flying: deque[tuple[Unit, Future | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            while len(flying) < 2 * threads and (found := next(jobs, None)) is not None:
                unit, job = found
                flying.append((unit, None if job is None else pool.submit(fit, job)))
            if not flying:
                return
            unit, future = flying.popleft()
            yield unit, None if future is None else future.result()
