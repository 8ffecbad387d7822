"""The field specification: with the arrays of a store it suffices to evaluate every row."""

from __future__ import annotations

import platform
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from pipeline.fitting.lanes import RETRY_FACTOR
from pipeline.fitting.method import (
    Encoded,
    MetaLearned,
    Method,
    PerSample,
    Phase,
    row_names,
    shared_names,
)
from pipeline.fitting.paths import NUMERICS
from schemas.store import FieldSpec


def describe(
    method: Method,
    *,
    seed: int,
    dataset_fingerprint: str = "",
    versions: dict[str, str] | None = None,
) -> FieldSpec:
    """Writes down a method as built: network, conventions, start, groups, versions."""
    start = "own"
    if isinstance(method, MetaLearned):
        start = "learned"
    elif isinstance(method, PerSample) and method.start == "common":
        start = f"common/{seed}"
    elif isinstance(method, Encoded) and method.weights:
        start = "encoded"
    return FieldSpec(
        method=method.field.method,
        config=method.field.config.model_dump(mode="json"),
        form=method.field.form.model_dump(mode="json"),
        layers=method.field.layers,
        coords=method.field.coords,
        output=method.field.output,
        init={
            "start": start,
            "seed": seed,
            "strategy": type(method).__name__,
            "fit": [describe_phase(phase) for phase in method.fit],
        },
        groups={"rows": row_names(method), "shared": shared_names(method)},
        dataset_fingerprint=dataset_fingerprint,
        versions={
            "numerics": str(NUMERICS),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **(versions or {}),
        },
    )


def describe_phase(phase: Phase) -> dict[str, Any]:
    """How a phase moves rows: steps, optimizers and rates by the parameters they move, target."""
    target = phase.target
    return {
        "steps": phase.steps,
        "optimizers": [
            {prefix: _plain(optimizer) for prefix, optimizer in update.groups.items()}
            for update in phase.updates
        ],
        "target": None if target is None else target.describe(target.value),
        "retry_rate": RETRY_FACTOR,
    }


def _plain(value: Any) -> Any:
    """A dataclass as its name and fields."""
    if not is_dataclass(value):
        return list(value) if isinstance(value, tuple) else value
    held = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return {"kind": type(value).__name__.lower(), **held}
