"""Units of work and what becomes of them; the loop that does them in this process, without Ray."""

from __future__ import annotations

import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

ROW_OF_FAILURES = 10
"""Units quarantined in a row, none done, after which a run stops: the cause is not in the data."""


class WorldError(RuntimeError):
    """The cluster or the storage does not allow the run to go on; the same command continues it."""


class Stopped(Exception):
    """A signal ended the run."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Worker(Protocol):
    """What computes units; made once in its process from small arguments, lost at any time."""

    def check(self) -> None:
        """Raises when this process cannot work: it does not see the store, or a package lacks."""
        ...

    def work(self, task: Task, attempt: str) -> dict[str, Any]:
        """Does one unit and returns a small record; may be called from two threads."""
        ...


@dataclass(frozen=True, order=True)
class Task:
    """One unit of work."""

    unit: int
    generation: int = 0
    action: str = "fit"
    """What the worker shall do, where it can do several things."""


@dataclass(frozen=True)
class Done:
    """A unit that was done."""

    task: Task
    record: dict[str, Any]


@dataclass(frozen=True)
class Quarantined:
    """A unit that was given up; the others go on."""

    task: Task
    cause: str
    """`application`: it raised twice; `machine`: workers died, or storage failed, on it more often
    than allowed."""
    traceback: str


@dataclass
class Stop:
    """SIGINT and SIGTERM, as the handler leaves them for whoever hands out units.

    While units are handed out the first signal lets those that compute end; a second one, and any
    signal at another time, raises `Stopped` in the main thread.
    """

    number: int | None = None
    """The signal, once it came."""
    at: float = 0.0
    """When it came, on the monotonic clock."""
    graceful: bool = False
    """Somebody looks at `number` often."""

    def install(self) -> None:
        """Takes over both signals; to be called again after ray.init, which sets its own."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        second = self.number is not None
        self.number, self.at = number, time.monotonic()
        if second or not self.graceful:
            raise Stopped(number)

    def raise_if_set(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Handles signals inside, and puts the handlers back that were there."""
    stop, numbers = Stop(), (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.getsignal(number) for number in numbers}
    stop.install()
    try:
        yield stop
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in old.items():
                signal.signal(number, handler)


class LocalPool:
    """Units one after the other in this process: no Ray, memory:// works, a debugger too."""

    size = 1

    def __init__(self, make: Callable[..., Worker], args: Sequence[Any], stop: Stop):
        self.worker, self.stop = make(*args), stop

    def __enter__(self) -> LocalPool:
        self.worker.check()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, tasks: Sequence[Task]) -> Iterator[Done | Quarantined]:
        """One event for each task, in order."""
        watch = Watch()
        for task in tasks:
            self.stop.raise_if_set()
            event = self._once(task) or self._once(task, last=True)
            assert event is not None
            watch.see(event)
            yield event

    def _once(self, task: Task, *, last: bool = False) -> Done | Quarantined | None:
        try:
            return Done(task, self.worker.work(task, new_attempt()))
        except Stopped:
            raise
        except Exception:
            return Quarantined(task, "application", traceback.format_exc()) if last else None


@dataclass
class Watch:
    """Stops a run in which nothing works."""

    failures: int = 0

    def see(self, event: Done | Quarantined) -> None:
        self.failures = 0 if isinstance(event, Done) else self.failures + 1
        if self.failures >= ROW_OF_FAILURES:
            raise WorldError(
                f"{self.failures} units in a row failed, the last one with: "
                f"{event.traceback.strip().splitlines()[-1]}"
            )


def new_attempt() -> str:
    """A name for one try at one unit."""
    return secrets.token_hex(8)


def one_line(error: BaseException) -> str:
    """An error as one line, for a message."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
