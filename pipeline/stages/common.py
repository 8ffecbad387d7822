"""What several stages need: the prepared dataset of a run, its method, this process's memory."""

from __future__ import annotations

import resource
from typing import Any

import pyarrow as pa

from pipeline import methods
from pipeline.ingest.prepared import Prepared, open_prepared
from schemas.run import Run
from schemas.samples import PreparedMeta


def prepared_of(run: Run) -> Prepared:
    """The finished prepared dataset of a run."""
    return open_prepared(run.prepared_location)


def row_count(run: Run, meta: PreparedMeta) -> int:
    """Prepared rows that the run takes."""
    return meta.rows if run.limit is None else min(run.limit, meta.rows)


def build_method(run: Run, prepared: Prepared) -> Any:
    """The method of a run, built for the form its prepared samples have."""
    from pipeline.samples import form_of, require

    config = methods.configure(run.method.name, run.method.preset, run.method.settings())
    form = form_of(prepared.rows(0, min(4, prepared.meta.rows)), prepared.meta.kind)
    method = methods.load(run.method.name).build(config, form)
    for size in sizes_of(method):
        try:
            require(form, size)
        except ValueError as error:
            raise ValueError(f"{run.method.name}: {error}") from None
    return method


def sizes_of(method: Any) -> list[Any]:
    """What a method draws of a sample: in its phases, its inner loop, its encoder."""
    parts = [*method.train, *method.fit, getattr(method, "inner", None), method]
    return [part.size for part in parts if hasattr(part, "size")]


def take_rows(prepared: Prepared, rows: list[int]) -> pa.Table:
    """Any ascending rows of a prepared dataset, read as consecutive ranges."""
    parts, start = [], 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            parts.append(prepared.rows(rows[start], rows[i - 1] + 1))
            start = i
    return pa.concat_tables(parts)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
