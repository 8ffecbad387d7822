"""Reading a store: its index, rows of its arrays, its shared arrays; from the store alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Objects, open_objects
from pipeline.store import keys, layout
from pipeline.store.create import load_numbered_plan, shared_hashes
from pipeline.store.finalize import index_table, read_commits
from pipeline.store.progress import progress
from pipeline.store.records import FinalRecord, latest_final, sha256
from pipeline.store.write import rows_with_nan, spec_of, usable_rows
from schemas.base import Location
from schemas.store import USABLE, Plan


def open_arrays(location: Location, partial: bool = False) -> StoreReader:
    """Opens a finished store, or (`partial`) the published units of one in the making."""
    return StoreReader(location, partial)


class StoreReader:
    """A store's rows. Travels between processes as its location; each opens its own client."""

    def __init__(self, location: Location, partial: bool = False):
        self.location, self.partial = location, partial
        self.objects: Objects = open_objects(location)
        self.final: FinalRecord | None = None
        if not partial:
            self.final, _ = latest_final(self.objects)
        number = None if self.final is None else self.final.plan
        plan, _ = load_numbered_plan(self.objects, number)
        if plan is None:
            raise RuntimeError(f"{location.url} holds no fieldmill store")
        if self.final is None and not partial:
            raise RuntimeError(
                f"{location.url} has no final record: it is not finished. Run its command again, "
                "or open it with partial=True to see the units that are published"
            )
        self.plan: Plan = plan

    def __reduce__(self):
        return open_arrays, (self.location, self.partial)

    @cached_property
    def index(self) -> pa.Table:
        """One line a row that holds a sample (in a partial store: a published one)."""
        if self.final is None:
            published = progress(self.objects, self.plan).published
            commits = read_commits(self.objects, published)
            batches = {unit: commit.columns for unit, commit in commits.items()}
            return index_table(layout.column_table(self.plan, batches))
        data = self.objects.get(keys.index_key(self.final.number))
        if sha256(data) != self.final.objects[keys.INDEX][1]:
            raise RuntimeError(
                f"{self.location.url}: the index does not match the final record; run 'repair'"
            )
        # A buffer, not a Python file: Arrow's threads must not need the interpreter while it ends.
        return pq.read_table(pa.BufferReader(data))

    def rows(self, where: pc.Expression | None = None, *, usable: bool = True) -> np.ndarray:
        """Row numbers, ascending: usable rows that match an expression over the index columns."""
        index = self.index
        if usable:
            index = index.filter(pc.field("status").isin([int(status) for status in USABLE]))
        if where is not None:
            index = index.filter(where)
        return index["row"].to_numpy()

    def params(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Per-sample weights `[k, p]` of k rows."""
        return self.array("params", rows)

    def latents(self, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """A latent `[k, ...]` of k rows."""
        return self.array(f"latents/{name}", rows)

    def array(self, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of any array with rows, in the order asked for; reads only the chunks they lie in.

        Raises:
            ValueError: No such array, or a number that is not a row.
            RuntimeError: A usable row reads NaN, or a shard is not there: the store is damaged.
        """
        spec = spec_of(self.plan, name)
        if not spec.rows:
            raise ValueError(f"'{name}' is shared and has no rows; use shared()")
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= self.plan.rows)]
        if len(outside):
            raise ValueError(f"row {outside[0]} is not one of the {self.plan.rows} rows")
        if not len(wanted):
            return np.zeros((0, *spec.shape), spec.dtype)
        unique, back = np.unique(wanted, return_inverse=True)
        array = self._zarr(name)
        if unique[-1] - unique[0] + 1 == len(unique):
            values = np.asarray(array[int(unique[0]) : int(unique[-1]) + 1])
        else:
            values = np.asarray(array.oindex[unique])
        self._check(name, unique, values)
        return values if np.array_equal(unique, wanted) else values[back]

    def shared(self) -> dict[str, np.ndarray]:
        """All shared arrays by name (without `shared/`), checked against their hashes."""
        hashes = shared_hashes(self.objects)
        nodes = layout.metadata(self.plan)
        found = {}
        for spec in layout.shared_arrays(self.plan):
            chunks = {}
            for key, (_, digest) in hashes.items():
                if key.startswith(spec.name + "/c"):
                    try:
                        data = self.objects.get(key)
                    except FileNotFoundError:
                        data = b""
                    if sha256(data) != digest:
                        raise RuntimeError(
                            f"{self.objects.address(key)} is missing or damaged; create the store "
                            "again with the same run file, or copy it anew"
                        )
                    chunks[key.removeprefix(spec.name + "/")] = data
            node = nodes[f"{spec.name}/zarr.json"]
            found[spec.name.removeprefix("shared/")] = layout.decode_array(node, chunks)
        return found

    def _zarr(self, name: str) -> Any:
        """The zarr array, with the shape of the plan that was opened."""
        if name not in self._arrays:
            path = self.objects.zarr(read_only=True) / name
            self._arrays[name] = layout.open_zarr_array(self._nodes[f"{name}/zarr.json"], path)
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _nodes(self) -> dict[str, bytes]:
        return layout.metadata(self.plan)

    @cached_property
    def _usable(self) -> np.ndarray:
        """Which of all rows are usable."""
        usable = np.zeros(self.plan.rows, bool)
        usable[self.index["row"].to_numpy()] = usable_rows(self.index)
        return usable

    @cached_property
    def _present(self) -> set[str]:
        """Shards of integer arrays that were found."""
        return set()

    def _check(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Zarr reads a missing shard as fill values: a usable row must not be one."""
        bad = rows[self._usable[rows] & rows_with_nan(values)]
        if not len(bad) and values.dtype.kind != "f":
            for unit in np.unique(rows[self._usable[rows]] // self.plan.unit_rows):
                key = layout.shard_key(spec_of(self.plan, name), int(unit))
                if key not in self._present and self.objects.size(key) is None:
                    bad = rows[rows // self.plan.unit_rows == unit]
                    break
                self._present.add(key)
        if len(bad):
            line = self.index.filter(pc.field("row") == int(bad[0]))
            name_of_row = line["sample_id"][0].as_py()
            raise RuntimeError(
                f"{self.location.url}: row {bad[0]} ('{name_of_row}') is usable but "
                f"'{name}' has no values for it: the store is damaged; run 'verify --full'"
            )
