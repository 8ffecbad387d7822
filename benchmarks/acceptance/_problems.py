"""Boundary value problems as prepared tables, and how near a method comes to their answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.run import EquationIngest
from schemas.samples import EQUATIONS, IDENTITY


def prepared(problems: list[dict[str, Any]], **ingest: Any) -> pa.Table:
    """What ingest makes of problems of one equation and dimension."""
    from pipeline.ingest.equations import decode_equation

    first, lines = problems[0], []
    keys = EquationIngest(equation=first["equation"], dimension=first["dimension"], **ingest)
    for row, problem in enumerate(problems):
        name = f"problem{row}.json"
        line = decode_equation({name: json.dumps(problem).encode()}, name, keys, "")
        lines.append({"row": row, "sample_id": name, "label": "", "split": "train", **line})
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *EQUATIONS]))


def errors(
    name: str, table: pa.Table, seed: int, preset: str = "default", **settings: Any
) -> dict[str, np.ndarray]:
    """The metrics of every row of a table after fitting."""
    from pipeline import methods
    from pipeline.evaluate.metrics import measure
    from pipeline.fitting import fit_rows
    from pipeline.samples import load_samples

    samples = load_samples(table, "equations")
    method = methods.build(name, methods.configure(name, preset, settings), samples.form)
    rows = fit_rows(method, {}, samples, seed=seed).rows
    return measure("equations", method, {}, rows, samples, table)
