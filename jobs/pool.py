"""The map over actors of a Ray cluster: workers may die, raise or never start."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.cluster import fitting
from jobs.units import (
    Done,
    Quarantined,
    Stop,
    Stopped,
    Task,
    Watch,
    WorldError,
    new_attempt,
    one_line,
)
from pipeline.storage import StorageError
from schemas.run import Resources

FLYING = 2
"""Units an actor holds: one that computes, one that is read ahead or written behind."""
GRACE_S = 20.0
"""Seconds that running units get after a signal; what is dropped then is done by the next run."""


@dataclass
class Account:
    """What a unit has been through."""

    machine: int = 0
    application: int = 0
    avoid: int | None = None
    """The worker it raised on."""
    alone: bool = False
    """A worker died that held it and another unit: from now on it has a worker to itself."""


class RayPool:
    """Actors that pull units: at most two each, small records back, lost ones are replaced.

    A worker that dies is replaced and its units are handed out again, after a growing pause and
    within `resources.retries` for the unit on which it died; so is a unit whose storage failed. A
    unit that raises anything else is tried once more, on another worker if there is one, then
    quarantined.
    """

    def __init__(
        self,
        make: type,
        args: Sequence[Any],
        resources: Resources,
        stop: Stop,
        *,
        size: int,
        gpus: float = 0.0,
        pause_s: float = 1.0,
    ):
        import ray

        self.ray, self.stop, self.resources, self.pause_s = ray, stop, resources, pause_s
        self.size, self.gpus = size, gpus
        self.kind = ray.remote(make).options(
            num_cpus=resources.cores,
            num_gpus=gpus,
            max_restarts=0,  # the driver replaces them: it checks each before it gets a unit
            max_task_retries=0,
            max_concurrency=FLYING,
        )
        self.args = args
        self.actors: dict[int, _Actor] = {}
        self.made = self.lost_at_start = 0
        self.watch = Watch()

    def __enter__(self) -> RayPool:
        try:
            for _ in range(self.size):
                self._start()
            self._await_first()
        except BaseException:
            self._kill_all()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._kill_all()

    def map(self, tasks: Sequence[Task]) -> Iterator[Done | Quarantined]:
        """One event for each task, in the order in which they end."""
        self.stop.graceful = True
        try:
            yield from self._map(tasks)
        finally:
            self.stop.graceful = False

    def _map(self, tasks: Sequence[Task]) -> Iterator[Done | Quarantined]:
        queue, later, tick = deque(tasks), [], 0
        accounts: dict[Task, Account] = {task: Account() for task in tasks}
        idle_since = time.monotonic()
        while queue or later or self._flying():
            if self.stop.number is not None:
                yield from self._drain()
                raise Stopped(self.stop.number)
            while later and later[0][0] <= time.monotonic():
                queue.append(heapq.heappop(later)[2])
            self._hand_out(queue, accounts)
            if self._flying() or not queue:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > self.resources.start_s:
                raise WorldError(self._no_worker())
            for actor, task, event, error in self._collect(0.25):
                if event is not None:
                    self.lost_at_start = 0
                    self.watch.see(event)
                    yield event
                    continue
                account = accounts[task]
                wait, verdict = self._judge(actor, task, account, error)
                if verdict is not None:
                    self.watch.see(verdict)
                    yield verdict
                else:
                    tick += 1
                    heapq.heappush(later, (time.monotonic() + wait, tick, task))

    # --- handing out and taking back --------------------------------------------------------

    def _hand_out(self, queue: deque[Task], accounts: dict[Task, Account]) -> None:
        """Gives each ready actor a unit, and a second one while units outnumber the actors."""
        ready = [a for a in self.actors.values() if a.ready]
        for depth in range(FLYING):
            for actor in ready:
                if not queue or (depth and len(queue) < len(ready)):
                    return
                if len(actor.flying) > depth:
                    continue
                if any(accounts[task].alone for task in actor.flying.values()):
                    continue
                for _ in range(len(queue)):
                    task, avoided = queue.popleft(), len(ready) > 1
                    avoided &= accounts[task].avoid == actor.number
                    if avoided or (depth and accounts[task].alone):
                        queue.append(task)
                        continue
                    ref = actor.handle.work.remote(task, new_attempt())
                    actor.flying[ref] = task
                    break

    def _collect(self, timeout: float) -> Iterator[tuple[_Actor, Task, Done | None, Any]]:
        """What ended within `timeout`: done units, and units with their error."""
        owners = {ref: a for a in self.actors.values() for ref in [*a.flying, *a.starting()]}
        if not owners:
            time.sleep(min(timeout, 0.05))
            return
        ended, _ = self.ray.wait(list(owners), num_returns=1, timeout=timeout)
        for ref in ended:
            actor = owners[ref]
            if actor.number not in self.actors:
                continue
            if ref is actor.checked:
                self._see_start(actor)
                continue
            task = actor.flying[ref]
            try:
                record = self.ray.get(ref)
            except self.ray.exceptions.RayTaskError as error:
                del actor.flying[ref]
                yield actor, task, None, error
            except self.ray.exceptions.RayError as error:
                yield from self._lose(actor, error)
            else:
                del actor.flying[ref]
                yield actor, task, Done(task, record), None

    def _lose(self, actor: _Actor, error: Any) -> Iterator[tuple[_Actor, Task, Done | None, Any]]:
        """Replaces a dead worker; a unit that it held alone is charged.

        Of several nobody knows which one it was: they are tried again, each on a worker of its own.
        """
        self._replace(actor)
        lost = []
        for ref, task in actor.flying.items():
            try:
                record = self.ray.get(ref, timeout=5.0)
            except self.ray.exceptions.RayTaskError as raised:
                yield actor, task, None, raised
            except self.ray.exceptions.RayError:
                lost.append(task)
            else:
                yield actor, task, Done(task, record), None
        for task in lost:
            yield actor, task, None, error if len(lost) == 1 else None

    def _judge(
        self, actor: _Actor, task: Task, account: Account, error: Any
    ) -> tuple[float, Quarantined | None]:
        """Seconds until the unit is handed out again, or that it is quarantined."""
        if error is None:
            account.alone = True
            return self.pause_s, None
        raised = isinstance(error, self.ray.exceptions.RayTaskError)
        if raised and not isinstance(error.cause, StorageError):
            account.application += 1
            account.avoid = actor.number
            if account.application > 1:
                return 0.0, Quarantined(task, "application", str(error))
            return 0.0, None
        account.machine += 1
        if account.machine > self.resources.retries:
            what = "storage failed" if raised else "workers died"
            text = f"{what} {account.machine} times on this unit; the last time: {error}"
            return 0.0, Quarantined(task, "machine", text)
        return min(60.0, self.pause_s * 2 ** (account.machine - 1)), None

    def _drain(self) -> Iterator[Done | Quarantined]:
        """Lets units end that compute now, within GRACE_S; the rest is dropped."""
        until = self.stop.at + GRACE_S
        while self._flying() and time.monotonic() < until:
            for _, _, event, _ in self._collect(0.25):
                if event is not None:
                    yield event

    def _flying(self) -> bool:
        return any(actor.flying for actor in self.actors.values())

    # --- actors -------------------------------------------------------------------------------

    def _start(self) -> None:
        handle = self.kind.remote(*self.args)
        self.made += 1
        self.actors[self.made] = _Actor(self.made, handle, handle.check.remote())

    def _replace(self, actor: _Actor) -> None:
        del self.actors[actor.number]
        self.ray.kill(actor.handle)  # it may only have been out of reach
        self._start()

    def _see_start(self, actor: _Actor) -> None:
        """A worker came up: it is ready, or refused, or died and is replaced."""
        try:
            self.ray.get(actor.checked)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise WorldError(f"a worker cannot work: {one_line(cause)}") from error
        except self.ray.exceptions.RayError as error:
            self.lost_at_start += 1
            if self.lost_at_start > self.resources.retries:
                raise WorldError(
                    f"{self.lost_at_start} workers in a row died as they started: {one_line(error)}"
                ) from error
            self._replace(actor)
        else:
            actor.ready = True

    def _await_first(self) -> None:
        """Waits for the workers that the cluster has room for now, at least one."""
        need, until = (
            min(self.size, max(self._room(), 1)),
            time.monotonic() + self.resources.start_s,
        )
        while sum(a.ready for a in self.actors.values()) < need:
            self.stop.raise_if_set()
            if time.monotonic() > until:
                if any(a.ready for a in self.actors.values()):
                    return
                raise WorldError(self._no_worker())
            for _ in self._collect(0.25):
                pass

    def _room(self) -> int:
        """Workers that fit into the nodes of the cluster as they are."""
        room = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                room += fitting(node["Resources"], self.resources.cores, self.gpus)
        return room

    def _no_worker(self) -> str:
        return (
            f"no worker started within {self.resources.start_s:g} s: each wants "
            f"{self.resources.cores} CPU and {self.gpus:g} GPU, the cluster has "
            f"{self.ray.cluster_resources().get('CPU', 0):g} CPU and "
            f"{self.ray.cluster_resources().get('GPU', 0):g} GPU; lower resources.cores or "
            "resources.gpus, or raise resources.start_s"
        )

    def _kill_all(self) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor.handle)
        self.actors.clear()


@dataclass
class _Actor:
    """A worker, as the driver sees it."""

    number: int
    handle: Any
    checked: Any
    ready: bool = False
    flying: dict[Any, Task] = field(default_factory=dict)
    """Oldest first."""

    def starting(self) -> list[Any]:
        return [] if self.ready else [self.checked]
