"""What the command line prints: progress lines, tables, sizes; nothing secret ever."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

SECRET_NAMES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "RAY_AUTH_TOKEN",
)


def redact(text: str) -> str:
    """The text without the values of credentials in the environment; errors may quote them."""
    for name in SECRET_NAMES:
        value = os.environ.get(name)
        if value and len(value) >= 4:
            text = text.replace(value, f"<{name}>")
    return text


def say(text: str = "") -> None:
    """One line of result, on standard output."""
    print(redact(text), flush=True)


def warn(text: str) -> None:
    """One line about trouble, on standard error."""
    print(redact(text), file=sys.stderr, flush=True)


def table(rows: Iterable[Sequence[Any]], *, header: Sequence[str] = ()) -> str:
    """Columns padded to their widest cell; numbers to the right."""
    lines = [[str(cell) for cell in row] for row in ([header] if header else [])]
    lines += [[number(cell) for cell in row] for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    numeric = [
        all(_is_number(line[i]) for line in lines[1 if header else 0 :])
        for i in range(len(lines[0]))
    ]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric)
        ).rstrip()
        for line in lines
    )


def number(value: Any) -> str:
    """A figure with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as `12 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def counts(values: dict[str, int]) -> str:
    """`61 ok, 2 below_target`."""
    return ", ".join(f"{count} {name}" for name, count in values.items() if count) or "none"


PACE = "_fieldmill/progress.json"
"""Where a driver notes its pace, for `status`."""


class Meter:
    """Progress of one stage: how much is done, how long the rest takes."""

    def __init__(self, stage: str, units: int, workers: int):
        self.stage, self.units, self.workers = stage, units, max(workers, 1)
        self.done = self.samples = self.bytes = self.peak = 0
        self.busy = 0.0
        self.started = time.monotonic()

    def add(self, samples: int, seconds: float, written: int = 0, peak: int = 0) -> None:
        """One unit more; `seconds` is what one worker spent on it."""
        self.done += 1
        self.samples += samples
        self.busy += seconds
        self.bytes += written
        self.peak = max(self.peak, peak)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def eta(self) -> float:
        """Seconds that the remaining units take with all workers."""
        return (self.units - self.done) * self.busy / max(self.done, 1) / self.workers

    def line(self, unit: int, detail: str, seconds: float) -> str:
        rest = f"; {duration(self.eta())} left" if self.done < self.units else ""
        width = len(str(self.units))
        return (
            f"{self.stage} {self.done:{width}d}/{self.units}: unit {unit}, {detail}, "
            f"{duration(seconds)}{rest}"
        )

    def pace(self) -> dict[str, Any]:
        """What `status` wants to know; times are those of this clock."""
        return {
            "stage": self.stage,
            "updated": time.time(),
            "samples_s": self.samples / max(self.seconds, 1e-9),
            "unit_s": self.busy / max(self.done, 1),
            "workers": self.workers,
        }

    def figures(self) -> dict[str, Any]:
        """What the summary shows of the stage."""
        return {
            "samples": self.samples,
            "seconds": self.seconds,
            "samples_s": self.samples / max(self.seconds, 1e-9),
            "bytes": self.bytes,
            "peak_bytes": self.peak,
        }
