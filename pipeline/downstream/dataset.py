"""PyTorch datasets over a store: rows at random (`RowDataset`) or streamed (`RowStream`).

    stream = RowStream("s3://bucket/shapes.zarr", where={"iou_near": (0.9, None)}, batch_size=256)
    for values, label, row in DataLoader(stream, batch_size=None, num_workers=2): ...

Neither holds a client: every process opens its own on first use, so both work in forked and in
spawned workers, on local disks and on S3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pipeline.downstream.selection import Selection, select
from schemas.base import Location

WINDOW_BYTES = 128 * 2**20
"""Shards that are shuffled together have at most this size (but at least one is read)."""


class Row(NamedTuple):
    """One row, or a batch of rows with the sample axis first."""

    values: Tensor
    """Weights or a latent."""
    label: Tensor
    """int64: number of the class in `classes`, -1 = none."""
    row: Tensor
    """int64: row number in the store."""


class RowDataset(Dataset):
    """Rows of a store by position; reads the chunks that the asked rows lie in.

    For random access and small stores; `RowStream` reads large ones faster. `load()` takes all.
    Options are those of `select`.
    """

    def __init__(self, url: str | Location, array: str | None = None, **options: Any):
        self.selection = select(url, array, **options)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.selection.classes

    def __len__(self) -> int:
        return len(self.selection)

    def __getitem__(self, position: int) -> Row:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Row]:
        """Several rows with few requests; the DataLoader asks for whole batches this way."""
        batch = self.take(np.asarray(positions, np.int64))
        return [Row(*parts) for parts in zip(*batch)]

    def take(self, positions: np.ndarray) -> Row:
        """A batch of rows."""
        outside = positions[(positions < -len(self)) | (positions >= len(self))]
        if len(outside):
            raise IndexError(f"position {outside[0]} is outside a selection of {len(self)} rows")
        rows = self.selection.rows[positions]
        return _batch(
            self.selection, positions % max(len(self), 1), self.selection.source.read(rows)
        )

    def load(self) -> Row:
        """All rows in memory, shard by shard, in the order of the rows."""
        source, rows = self.selection.source, self.selection.rows
        units = source.unit_of(rows)
        values = np.zeros((len(rows), *source.spec.shape), source.spec.dtype)
        for unit in np.unique(units):
            inside = units == unit
            values[inside] = source.read_from_unit(int(unit), rows[inside])
        return _batch(self.selection, np.arange(len(rows)), values)

    def __repr__(self) -> str:
        return _describe(self)


class RowStream(IterableDataset):
    """Rows of a store in shuffled order, each shard read once.

    Shards are taken in random order; those of a window are mixed row by row. Consumers (the workers
    of a DataLoader times the ranks of torch.distributed) share the rows without loss or repeats.

    Args:
        batch_size: Yields batches of this size (use `DataLoader(..., batch_size=None)`): far
            faster than collating rows one by one. Absent: yields single rows.
        shuffle: False gives the order of the store.
        seed: With the epoch, decides who reads what; with the pass, in which order.
        even: Consumers get equal numbers of rows, to one, by cutting shards that lie on a border
            (which two consumers then read): with `drop_last` all take equally many steps, as
            distributed training needs. Absent: when there are several ranks.
        drop_last: Leaves out the last batch of a consumer if it is not full.
        rank, world: Absent: those of torch.distributed, if it is initialised.
        options: Those of `select`: split, label, where, status, starts, partial.
    """

    def __init__(
        self,
        url: str | Location,
        array: str | None = None,
        *,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        even: bool | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world: int | None = None,
        **options: Any,
    ):
        if (rank is None) != (world is None):
            raise ValueError(f"give both rank and world or neither, got {rank} and {world}")
        if rank is None or world is None:
            rank, world = _distributed()
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0 .. {world - 1}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is less than 1")
        self.selection = select(url, array, **options)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.even = world > 1 if even is None else even
        self.drop_last, self.rank, self.world = drop_last, rank, world
        # shared with workers, so that persistent ones see the epoch that is set later
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._passes = 0

    @property
    def classes(self) -> tuple[str, ...]:
        return self.selection.classes

    def set_epoch(self, epoch: int) -> None:
        """Deals the shards to the consumers anew; call it on every rank before an epoch starts."""
        self._epoch[0] = epoch

    def epoch(self, number: int) -> Iterator[Row]:
        """One epoch in this process; its order is the same whenever it is asked for."""
        self.set_epoch(number)
        self._passes = 0
        return iter(self)

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        shards = self.positions(self.rank * count + number, self.world * count)
        # differs from pass to pass even if nobody sets the epoch: a DataLoader draws a base seed
        drawn = (worker.seed - worker.id) % 2**63 if worker else self._passes
        self._passes += 1
        random = np.random.default_rng([self.seed, int(self._epoch[0]), drawn, self.rank, number])
        if self.shuffle:
            shards = [shards[i] for i in random.permutation(len(shards))]
        buffer = np.zeros((0, *self.selection.source.spec.shape), self.selection.source.spec.dtype)
        rest: Row | None = None
        for window in self._windows(shards):
            count = sum(map(len, window))
            if len(buffer) < count:
                buffer = np.zeros((count, *buffer.shape[1:]), buffer.dtype)
            start = 0
            for part in window:
                buffer[start : start + len(part)] = self._read(part)
                start += len(part)
            positions = np.concatenate(window)
            order = random.permutation(count) if self.shuffle else np.arange(count)
            if self.batch_size is None:
                for place in order:
                    yield Row(*(part[0] for part in self._gather(buffer, positions, [place])))
                continue
            first = 0
            if rest is not None:  # a batch that two windows fill
                first = self.batch_size - len(rest.row)
                head = self._gather(buffer, positions, order[:first])
                rest = Row(*(torch.cat(pair) for pair in zip(rest, head)))
                if len(rest.row) < self.batch_size:
                    continue
                yield rest
                rest = None
            for start in range(first, count, self.batch_size):
                batch = self._gather(buffer, positions, order[start : start + self.batch_size])
                if len(batch.row) == self.batch_size:
                    yield batch
                else:
                    rest = batch
        if rest is not None and not self.drop_last:
            yield rest

    def _gather(self, buffer: np.ndarray, positions: np.ndarray, places: Any) -> Row:
        """Copies rows out of the window."""
        return _batch(self.selection, positions[places], buffer[places])

    def positions(self, consumer: int, consumers: int) -> list[np.ndarray]:
        """What a consumer reads: positions in the selection, one array a shard, in order."""
        units = self.selection.source.unit_of(self.selection.rows)
        known, starts = np.unique(units, return_index=True)
        shards = np.split(np.arange(len(units)), starts[1:]) if len(known) else []
        if self.shuffle:
            order = np.random.default_rng([self.seed, int(self._epoch[0])]).permutation(len(shards))
            shards = [shards[i] for i in order]
        if not self.even:
            return shards[consumer::consumers]
        total = len(units)
        first, last = total * consumer // consumers, total * (consumer + 1) // consumers
        if self.drop_last and self.batch_size is not None:
            last = first + total // consumers  # equal to the row, so that steps are equal
        taken, begin = [], 0
        for shard in shards:
            a, b = max(first - begin, 0), min(last - begin, len(shard))
            if a < b:
                taken.append(shard[a:b])
            begin += len(shard)
        return taken

    def _windows(self, shards: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Neighbouring shards that fit into memory together."""
        row_bytes = int(np.prod(self.selection.source.spec.shape)) * 4
        window: list[np.ndarray] = []
        held = 0
        for shard in shards:
            size = len(shard) * row_bytes
            if window and held + size > WINDOW_BYTES:
                yield window
                window, held = [], 0
            window.append(shard)
            held += size
        if window:
            yield window

    def _read(self, positions: np.ndarray) -> np.ndarray:
        rows = self.selection.rows[positions]
        source = self.selection.source
        return source.read_from_unit(int(source.unit_of(rows[:1])[0]), rows)

    def steps(self, num_workers: int = 0) -> int:
        """Items that this rank gets in an epoch, from a DataLoader with so many workers."""
        count = max(num_workers, 1)
        items = 0
        for number in range(count):
            parts = self.positions(self.rank * count + number, self.world * count)
            rows = sum(len(part) for part in parts)
            if self.batch_size is not None:
                rows = rows // self.batch_size + (rows % self.batch_size > 0 and not self.drop_last)
            items += rows
        return items

    def __repr__(self) -> str:
        return _describe(self)


def _batch(selection: Selection, positions: np.ndarray, values: np.ndarray) -> Row:
    return Row(
        torch.from_numpy(values),
        torch.from_numpy(selection.labels[positions]),
        torch.from_numpy(selection.rows[positions]),
    )


def _distributed() -> tuple[int, int]:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _describe(dataset: RowDataset | RowStream) -> str:
    chosen = dataset.selection
    left_out = sum(chosen.left_out.values())
    return (
        f"{type(dataset).__name__}({chosen.source.location.url!r}, {chosen.source.spec.name!r}: "
        f"{len(chosen)} rows of shape {chosen.source.spec.shape}, {len(chosen.classes)} classes, "
        f"{left_out} left out)"
    )
