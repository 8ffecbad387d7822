"""Conditions on the columns of a store's index."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Where = Mapping[str, Any] | pc.Expression
"""Column -> (lowest, highest), either of them None, or a value; or a pyarrow expression."""


def where_mask(table: pa.Table, where: Where) -> np.ndarray:
    """Which lines of a table meet the conditions."""
    if isinstance(where, pc.Expression):
        numbered = table.append_column("_line", pa.array(np.arange(table.num_rows)))
        chosen = np.zeros(table.num_rows, bool)
        chosen[numbered.filter(where)["_line"].to_numpy()] = True
        return chosen
    chosen = np.ones(table.num_rows, bool)
    for name, wanted in where.items():
        if name not in table.column_names:
            near = difflib.get_close_matches(name, table.column_names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"no column '{name}'{hint} (columns: {', '.join(table.column_names)})")
        column = table[name]
        if not isinstance(wanted, tuple):
            chosen &= mask_of(_compared(pc.equal, name, column, wanted))
            continue
        if len(wanted) != 2 or wanted == (None, None):
            raise ValueError(f"bounds on '{name}' must be (lowest, highest), got {wanted}")
        low, high = wanted
        if low is not None:
            chosen &= mask_of(_compared(pc.greater_equal, name, column, low))
        if high is not None:
            chosen &= mask_of(_compared(pc.less_equal, name, column, high))
    return chosen


def _compared(how: Any, name: str, column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    try:
        return how(column, pa.scalar(value))
    except pa.ArrowNotImplementedError:
        raise ValueError(
            f"column '{name}' holds {column.type} and cannot be compared with {value!r}"
        ) from None


def mask_of(values: pa.ChunkedArray) -> np.ndarray:
    """A boolean column as numpy; null counts as false."""
    return pc.fill_null(values, False).to_numpy().astype(bool)
