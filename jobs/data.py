"""A Ray Data source over a store: one read task for a few shards, nothing held in the driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata

from pipeline.downstream.selection import Selection, select
from pipeline.downstream.shard_source import ShardSource
from schemas.base import Location


def read_store(
    url: str | Location,
    array: str | None = None,
    *,
    columns: Sequence[str] = (),
    parallelism: int = -1,
    **options: Any,
) -> ray.data.Dataset:
    """Rows of a store as a Ray dataset: `row`, `sample_id`, `label`, the array by its last name.

    Args:
        array: `params`, `latents/<name>` or the name of a latent; absent: the only one.
        columns: Further columns of the index, e.g. metrics.
        parallelism: Read tasks, at most one a shard; -1 lets Ray choose.
        options: Those of `select`: split, label, where, status, starts, partial.
    """
    source = StoreSource(select(url, array, **options), columns)
    return ray.data.read_datasource(source, override_num_blocks=source.tasks(parallelism))


class StoreSource(Datasource):
    """Splits the rows of a selection into read tasks of whole shards."""

    def __init__(self, selection: Selection, columns: Sequence[str] = ()):
        for name in columns:
            if name not in selection.index.column_names:
                raise ValueError(
                    f"no column '{name}' (columns: {', '.join(selection.index.column_names)})"
                )
        names = dict.fromkeys(["row", "sample_id", "label", *columns])
        self.source = selection.source
        self.lines = selection.index.select(list(names))
        self.units = selection.source.unit_of(selection.rows)

    def tasks(self, parallelism: int) -> int | None:
        """Number of tasks, None for Ray's choice."""
        return None if parallelism < 1 else max(min(parallelism, len(np.unique(self.units))), 1)

    def get_name(self) -> str:
        return "Store"

    def estimate_inmemory_data_size(self) -> int:
        return len(self.units) * _row_bytes(self.source)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        units = np.unique(self.units)
        tasks = []
        for part in np.array_split(units, min(max(parallelism, 1), max(len(units), 1))):
            lines = self.lines.filter(pa.array(np.isin(self.units, part)))
            metadata = BlockMetadata(
                num_rows=lines.num_rows,
                size_bytes=lines.num_rows * _row_bytes(self.source),
                input_files=None,
                exec_stats=None,
            )
            read = _Read(self.source, lines.combine_chunks())
            tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
        return tasks


class _Read:
    """Reads the shards of some index lines, one block a shard; travels without a client."""

    def __init__(self, source: ShardSource, lines: pa.Table):
        self.source, self.lines = source, lines

    def __call__(self) -> Iterable[Block]:
        rows = self.lines["row"].to_numpy()
        units = self.source.unit_of(rows)
        name = self.source.spec.name.rsplit("/", 1)[-1]
        for unit in np.unique(units):
            inside = units == unit
            lines = self.lines.filter(pa.array(inside))
            values = self.source.read_from_unit(int(unit), rows[inside])
            block = {c: lines[c].to_numpy(zero_copy_only=False) for c in lines.column_names}
            yield BlockAccessor.batch_to_block({**block, name: values})


def _row_bytes(source: ShardSource) -> int:
    return int(np.prod(source.spec.shape)) * np.dtype(source.spec.dtype).itemsize
