"""The field specification: with the arrays of a store it suffices to evaluate every row."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from pipeline.fitting.fit import NUMERICS
from pipeline.fitting.method import MetaLearned, Method, PerSample, row_names, shared_names
from schemas.samples import FormSpec
from schemas.store import FieldSpec


def describe(
    name: str,
    method: Method,
    config: Any,
    form: FormSpec,
    *,
    seed: int,
    dataset_fingerprint: str = "",
) -> FieldSpec:
    """Writes down a method as built: network, conventions, start, groups, versions.

    Args:
        name: The method's module name.
        config: Its configuration (a pydantic model).
        form: What it was built for.
    """
    start = "own"
    if isinstance(method, MetaLearned):
        start = "learned"
    elif isinstance(method, PerSample) and method.start == "common":
        start = f"common/{seed}"
    return FieldSpec(
        method=name,
        config=config.model_dump(mode="json"),
        form=form.model_dump(mode="json"),
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
        },
    )
