"""Rows of a store as what is learned from: chosen, checked, and dealt in batches of any number of
workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.downstream.dataset import RowDataset, RowStream
from pipeline.downstream.selection import Selection
from schemas.downstream import Source
from schemas.store import ArraySpec

FEWEST = 8
"""Rows below which nothing is learned."""


@dataclass(frozen=True)
class Space:
    """What one row is."""

    array: str
    """Name in the store."""
    shape: tuple[int, ...]
    tensors: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    """Of weights: name, offset and shape of each tensor."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where the rows are labelled."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def kind(self) -> str:
        """`weights`, `vector`, or `grid`: positions along all axes but the last."""
        if self.tensors:
            return "weights"
        return "vector" if len(self.shape) == 1 else "grid"


def space_of(selection: Selection) -> Space:
    """The space of a selection's rows."""
    spec = selection.source.spec
    table = spec.attributes.get("table", {}) if spec.name == "params" else {}
    tensors = []
    for name, place in table.items():
        if isinstance(place, dict):
            tensors.append((name, int(place["offset"]), tuple(place["shape"])))
    return Space(spec.name, tuple(spec.shape), tuple(tensors), selection.classes)


def selection_options(source: Source) -> dict[str, Any]:
    """What `select`, `RowDataset` and `RowStream` are given."""
    return {
        "split": list(source.split),
        "label": list(source.label) or None,
        "where": dict(source.where) or None,
    }


def choose(source: Source, **changes: Any) -> RowDataset:
    """The rows of a source; refuses what nothing can be learned from.

    Args:
        changes: Options of `select` that differ from the source's, e.g. another split.
    """
    dataset = RowDataset(source, source.array, **{**selection_options(source), **changes})
    refuse_unusable(dataset.selection.source.spec, source.url)
    return dataset


def refuse_unusable(spec: ArraySpec, url: str) -> None:
    """Raises ValueError for arrays that are no points of a space."""
    if not spec.dtype.startswith("float"):
        raise ValueError(
            f"{url}: '{spec.name}' holds {spec.dtype}: keys and counts cannot be interpolated or "
            "drawn; name an array of numbers with source.array"
        )


def refuse_too_few(rows: int, source: Source) -> None:
    """Raises ValueError when too few rows are left to learn from."""
    if rows < FEWEST:
        conditions = ", ".join(f"{n}={v}" for n, v in source.where.items())
        raise ValueError(
            f"{source.url}: {rows} rows are left of split {', '.join(source.split)}"
            + (f", label {', '.join(source.label)}" if source.label else "")
            + (f", {conditions}" if conditions else "")
            + f"; learning needs {FEWEST} at least: widen source.split, label or where"
        )


def finite_rows(
    values: Float[Tensor, "n *shape"], rows: Int[Tensor, "n"], url: str
) -> Float[Tensor, "n *shape"]:
    """The values, when all of them are finite; else ValueError names the first row that is not."""
    bad = ~torch.isfinite(values.flatten(1)).all(1)
    if bad.any():
        raise ValueError(
            f"{url}: row {int(rows[bad][0])} has values that are not finite, as have "
            f"{int(bad.sum()) - 1} others; leave them out with source.where"
        )
    return values


# --- batches --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codes:
    """One batch."""

    values: Float[Tensor, "n *shape"]
    """Normalized."""
    labels: Int[Tensor, "n"]
    """Number of the class, -1 = none."""
    slots: Int[Tensor, "n"]
    """Place of each row in the batch over all workers."""


class ResidentBatches:
    """Rows in memory: batch k is the same for any number of workers, and costs no pass to reach."""

    def __init__(
        self,
        values: Float[Tensor, "n *shape"],
        labels: Int[Tensor, "n"],
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.values, self.labels = values, labels
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, number: int) -> Codes:
        """Batch `number`: epochs follow one another in orders of their own."""
        slots = np.arange(self.rank, self.batch, self.world)
        places = number * self.batch + slots
        epochs, inside = np.divmod(places, len(self.values))
        index = np.zeros(len(places), np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            index[chosen] = self._order(int(epoch))[inside[chosen]]
        taken = torch.from_numpy(index).to(self.values.device)
        return Codes(
            self.values[taken], self.labels[taken], torch.from_numpy(slots).to(taken.device)
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}
            random = np.random.default_rng([self.seed, epoch])
            self._orders[epoch] = random.permutation(len(self.values))
        return self._orders[epoch]


class StreamedBatches:
    """Rows read shard by shard, each rank its own; continuing skips to where it was in an epoch."""

    def __init__(
        self,
        stream: RowStream,
        normalize: Any,
        *,
        labelled: bool,
        device: str = "cpu",
    ):
        if stream.batch_size is None or not stream.drop_last:
            raise ValueError("streamed batches need a batch_size and drop_last=True")
        self.stream, self.normalize, self.device = stream, normalize, device
        self.labelled = labelled
        self._epoch, self._next = -1, 0
        self._rows: Iterator[Any] = iter(())
        self.per_epoch = _batches(stream)

    def __call__(self, number: int) -> Codes:
        epoch, inside = divmod(number, self.per_epoch)
        if epoch != self._epoch or inside < self._next:
            self._rows, self._epoch, self._next = self.stream.epoch(epoch), epoch, 0
            # the deal of shards to ranks, and so the number of batches, is that of the epoch
        while self._next < inside:
            next(self._rows)
            self._next += 1
        batch = next(self._rows)
        self._next += 1
        values = self.normalize(batch.values.to(self.device, torch.float32))
        slots = torch.arange(len(values), device=self.device) * self.stream.world + self.stream.rank
        labels = batch.label if self.labelled else torch.full_like(batch.label, -1)
        return Codes(values, labels.to(self.device), slots)


def _batches(stream: RowStream) -> int:
    """Full batches of an epoch: the same in every epoch and on every rank."""
    count = len(stream.selection) // stream.world // int(stream.batch_size or 1)
    if count < 1:
        raise ValueError(
            f"{len(stream.selection)} rows do not fill one batch of {stream.batch_size} on each of "
            f"{stream.world} workers; set a smaller train.batch"
        )
    return count
