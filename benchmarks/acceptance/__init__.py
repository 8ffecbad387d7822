"""Acceptance of every method: held-out figures of ours beside a twin without its decisive part.

One module a method, named as in `pipeline/methods/`. It says what it shows (`DATA`, `METRIC`,
`CONTROL`, `CLAIM`), computes it (`run`), and holds the gate (`check`). The test suite runs each
with one seed; `python -m benchmarks.methods` with several, and writes the table.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Figures:
    """What one seed gave."""

    ours: float
    """The method's metric on held-out points, pixels or samples."""
    control: float
    """The same metric of the twin: the same run with the decisive part removed."""
    also: dict[str, float] = field(default_factory=dict)
    """Other figures that the gate uses, by name."""


class Acceptance(Protocol):
    """What a module of this folder offers."""

    DATA: str
    """Samples, their number and source; which of them are held out."""
    METRIC: str
    """Name, unit, and on what it is measured."""
    CONTROL: str
    """The part that the twin lacks."""
    CLAIM: str
    """What the paper claims, that this reproduces in kind."""

    def run(self, seed: int) -> Figures:
        """Trains or fits ours and the control on the same data."""
        ...

    def check(self, figures: Figures) -> None:
        """Asserts the gates."""
        ...


def names() -> list[str]:
    """All methods with an acceptance module."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def acceptance(name: str) -> Acceptance:
    """The module of a method."""
    return importlib.import_module(f"{__name__}.{name}")
