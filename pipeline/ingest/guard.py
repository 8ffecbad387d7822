"""Decodes samples in a child process, replaced when a sample makes it hang or die."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.ingest.frames import HEAD, pack, unpack
from pipeline.ingest.members import Member
from schemas.run import CommonIngest
from schemas.samples import Code

START_S = 120.0
"""A child that has not started after this long is given up."""
AHEAD = 64
"""Samples sent to the child before the first is answered."""
PATIENCE_S = 0.005
"""After this long of sending ahead, answers that are there are taken first."""
AHEAD_BYTES = 32 * 2**20
PIPE = 2**20
VECTOR = 256
"""Buffers written in one call."""
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.ingest.guard_child import main; main()"
)
"""The child takes the packages from where this one did, whatever the working folder holds."""


@dataclass
class Decoded:
    """What became of one sample in the child."""

    columns: dict[str, Any] | None
    """None if it was rejected."""
    code: str = ""
    message: str = ""


@dataclass
class _Waiting:
    member: Member
    frame: list[bytes]
    answer: Decoded | None = None
    size: int = 0


class Guard:
    """A decoding child for one kind and configuration.

    Samples are sent ahead, so the child need not wait; it answers in order, so the first one that
    is unanswered is the culprit when the child dies or is late. A sample that ends a child which
    had served others before is tried once more in a fresh one: it is judged by itself alone.
    """

    def __init__(self, kind: str, ingest: CommonIngest):
        self.kind, self.ingest = kind, ingest
        self.child: subprocess.Popen | None = None
        self.decodes = 0

    def run(self, members: Iterator[Member], seed_key: Any) -> Iterator[tuple[Member, Decoded]]:
        """Decodes members in order; `seed_key(member)` is what seeds its random choices."""
        waiting: deque[_Waiting] = deque()
        more, held = True, 0
        try:
            while more or waiting:
                if more and len(waiting) <= AHEAD // 2:
                    began = time.monotonic()
                    while len(waiting) < AHEAD and (held < AHEAD_BYTES or not waiting):
                        member = next(members, None)
                        if member is None:
                            more = False
                            break
                        waiting.append(self._prepare(member, seed_key))
                        held += waiting[-1].size
                        if waiting[-1].answer is None:
                            self._send(waiting[-1])
                        late = time.monotonic() - began > PATIENCE_S
                        # the next member may be long in coming: leave the child no idle hands
                        if (late or len(waiting) % 8 < 2) and self._answer_is_there() and late:
                            break
                if not waiting:
                    continue
                if waiting[0].answer is None:
                    self._await(waiting)
                if waiting[0].answer is not None:
                    item = waiting.popleft()
                    held -= item.size
                    yield item.member, item.answer
        except BaseException:
            self.close()  # answers to samples nobody waits for must not meet the next unit
            raise

    def _prepare(self, member: Member, seed_key: Any) -> _Waiting:
        if member.ignored is not None:
            return _Waiting(member, [], Decoded(None))
        if member.problem is not None:
            code, message = member.problem
            return _Waiting(member, [], Decoded(None, code.value, message))
        if not any(member.files.values()):
            return _Waiting(member, [], Decoded(None, Code.EMPTY.value, "the file has no bytes"))
        header = {"main": member.main, "array": member.array, "seed_key": seed_key(member)}
        self.decodes += 1
        return _Waiting(member, pack(header, member.files), size=member.size)

    def _await(self, waiting: deque[_Waiting]) -> None:
        """Gets the answer of the first, or finds out why there is none."""
        first = waiting[0]
        deadline = time.monotonic() + self.ingest.timeout_s
        try:
            header, buffers = unpack(lambda size: self._read(size, deadline))
        except TimeoutError:
            seconds = self.ingest.timeout_s
            first.answer = Decoded(
                None, Code.PARSER_TIMEOUT.value, f"decoding took longer than {seconds:g} s"
            )
            self.close()
        except EOFError:
            code, message = self._autopsy()
            if self.served == 0:
                first.answer = Decoded(None, code, message)
        else:
            self.served += 1
            columns = header.get("columns")
            if columns is not None:
                first.answer = Decoded(columns | buffers)
            elif header["code"] == Code.PARSER_MEMORY.value and self.served > 1:
                self.close()
            else:
                first.answer = Decoded(None, header["code"], header["message"])
        if self.child is None:  # the others were lost with the child
            for item in waiting:
                if item.answer is None:
                    self._send(item)

    def _send(self, item: _Waiting) -> None:
        if self.child is None:
            self._start()
        self.outgoing.extend(memoryview(piece) for piece in item.frame if piece)

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
        )
        for stream in (self.child.stdin, self.child.stdout):
            os.set_blocking(stream.fileno(), False)
            _widen(stream.fileno())
        self.outgoing: deque[memoryview] = deque()
        self.incoming = bytearray()
        self.served = 0
        settings = {"kind": self.kind, "ingest": self.ingest.model_dump(mode="json")}
        self.outgoing.extend(map(memoryview, pack(settings, {})))
        try:
            unpack(lambda size: self._read(size, time.monotonic() + START_S))
        except (EOFError, TimeoutError):
            _, message = self._autopsy()
            raise RuntimeError(f"the decoding process does not start: {message}") from None

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self.incoming) < size:
            late = time.monotonic() >= deadline
            if not self._pump(0 if late else deadline - time.monotonic()) and late:
                raise TimeoutError
        with memoryview(self.incoming) as view:
            data = bytes(view[:size])
        del self.incoming[:size]
        return data

    def _answer_is_there(self) -> bool:
        if self.child is None:
            return False
        with contextlib.suppress(EOFError):
            self._pump(0)
        return len(self.incoming) >= HEAD.size

    def _pump(self, timeout: float) -> bool:
        """Moves bytes both ways, waiting up to `timeout`; EOFError when the child has ended."""
        child = self.child
        poll = select.poll()
        poll.register(child.stdout.fileno(), select.POLLIN)
        if self.outgoing:
            poll.register(child.stdin.fileno(), select.POLLOUT)
        moved = False
        for fd, event in poll.poll(timeout * 1000):
            if fd == child.stdout.fileno():
                data = os.read(fd, PIPE) if event & select.POLLIN else b""
                if not data:
                    raise EOFError
                self.incoming += data
                moved = True
            else:
                moved |= self._write_some(fd)
        return moved

    def _write_some(self, fd: int) -> bool:
        try:
            while self.outgoing:
                count = os.writev(fd, list(islice(self.outgoing, VECTOR)))
                while self.outgoing and count >= len(self.outgoing[0]):
                    count -= len(self.outgoing.popleft())
                if count:
                    self.outgoing[0] = self.outgoing[0][count:]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self.outgoing.clear()
            return False
        return True

    def _autopsy(self) -> tuple[str, str]:
        """Why the child ended."""
        child = self.child
        try:
            status = child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 2000))
        said = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        last = said[-1][:300] if said else ""
        self.close()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        words = f"the decoder ended with {how}" + (f": {last}" if last else "")
        memory = status == -signal.SIGKILL or "bad_alloc" in last or "MemoryError" in last
        return (Code.PARSER_MEMORY if memory else Code.PARSER_CRASH).value, words

    def close(self) -> None:
        """Ends the child; the next sample starts another."""
        if self.child is not None:
            child, self.child = self.child, None
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
            self.errors.close()


_guards: dict[tuple[str, str], Guard] = {}


def guard(kind: str, ingest: CommonIngest) -> Guard:
    """The guard of this process for a configuration: starting a child costs half a second."""
    key = (kind, ingest.model_dump_json())
    if key not in _guards:
        close_guards()
        _guards[key] = Guard(kind, ingest)
    return _guards[key]


def close_guards() -> None:
    """Ends the decoding children of this process."""
    for old in _guards.values():
        old.close()
    _guards.clear()


atexit.register(close_guards)


def _widen(fd: int) -> None:
    """A larger pipe buffer, where the system has the call."""
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE)
    except (AttributeError, OSError):
        return
