"""The field specification: with the arrays of a store it suffices to evaluate every row."""

from __future__ import annotations

import platform

import numpy as np
import torch

from pipeline.fitting.method import MetaLearned, Method, PerSample, row_names, shared_names
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
    return FieldSpec(
        method=method.field.method,
        config=method.field.config.model_dump(mode="json"),
        form=method.field.form.model_dump(mode="json"),
        layers=method.field.layers,
        coords=method.field.coords,
        output=method.field.output,
        init={"start": start, "seed": seed, "strategy": type(method).__name__},
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
