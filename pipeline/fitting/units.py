"""Units of rows in work, and what becomes of rows: parameters, status, message."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors
from pipeline.fields.latent import limited_rows
from pipeline.fitting.lanes import Outcome, Request
from pipeline.fitting.method import Method, Target, row_names
from pipeline.fitting.rows import lost
from pipeline.fitting.step import DIVERGED, FULL, MET
from pipeline.samples import Samples
from schemas.samples import Code
from schemas.store import RowStatus

UNFIT = 5
"""Why a row ended, beside those of lanes: its sample needs larger tables; the note says more."""
ENDED = (DIVERGED, FULL, UNFIT)
"""Rows that have no values."""


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


@dataclass(eq=False)
class Unit:
    """Samples that are fitted and handed back together, and which of their rows are done."""

    key: Hashable
    samples: Samples
    seed: int
    outcomes: list[Outcome | None]
    rows: Tensors | None = None
    """All rows, where they were fitted in one piece; their outcomes hold none."""
    steps: list[int] = field(default_factory=list)
    """Of all phases together, where there are several."""

    @classmethod
    def of(
        cls,
        key: Hashable,
        samples: Samples,
        seed: int,
        kept: dict[int, Tensors] | None = None,
    ) -> Unit:
        """A unit of which the rows in `kept` are done as they are."""
        unit = cls(key, samples, seed, [None] * len(samples))
        for i, rows in (kept or {}).items():
            rows = {name: value.to(samples.device) for name, value in rows.items()}
            request = Request(samples, i, rows, samples.keys[i], unit)
            unit.outcomes[i] = Outcome(request, rows, MET, 0, float("nan"), float("nan"))
        return unit

    @property
    def done(self) -> bool:
        return all(outcome is not None for outcome in self.outcomes)

    @property
    def waiting(self) -> list[int]:
        """Rows that are not done."""
        return [i for i, outcome in enumerate(self.outcomes) if outcome is None]

    def keys(self, index: Int[Tensor, "m"], stage: str) -> Int[Tensor, "m"]:
        """Draw keys of some rows."""
        keys = self.samples.keys[index.to(self.samples.device)]
        return Draw.of(keys, seed=self.seed, stage=stage).keys


Pull = Callable[[], Unit | None]
"""The next unit; None when there is none now, and it may be asked again."""


def fitted_unit(method: Method, unit: Unit) -> Fitted:
    """The rows of a unit that is done."""
    target = method.fit[-1].target if method.fit else None
    if not all(bool(torch.isfinite(v).all()) for o in unit.outcomes for v in o.rows.values()):
        unit.outcomes = [_finite(o) for o in unit.outcomes]
    verdicts = [_verdict(outcome, target) for outcome in unit.outcomes]

    def values(outcome: Outcome, name: str) -> Tensor:
        value = outcome.rows[name]
        return lost(value) if outcome.reason in ENDED else value

    if unit.rows is None:
        rows = {n: torch.stack([values(o, n) for o in unit.outcomes]) for n in row_names(method)}
    else:
        rows = {n: unit.rows[n] for n in row_names(method)}
        gone = [i for i, o in enumerate(unit.outcomes) if o.reason in ENDED]
        for value in rows.values() if gone else ():
            value[gone] = lost(value[gone])
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
    return outcome if finite or outcome.reason in ENDED else replace(outcome, reason=DIVERGED)


def _verdict(outcome: Outcome, target: Target | None) -> tuple[RowStatus, Code, str]:
    if outcome.reason == UNFIT:
        return RowStatus.FAILED, Code.TOO_LARGE, outcome.request.note
    if outcome.reason == FULL:
        words = f"not enough memory for two rows at a time: {outcome.request.note}"
        return RowStatus.FAILED, Code.OOM, words
    how = "at a lower rate" if outcome.request.factor != 1 else "in a more exact mode"
    note = f"{outcome.request.note}; again {how}: " if outcome.request.note else ""
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
