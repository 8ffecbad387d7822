"""Which rows of a store a downstream task reads, and of which array."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.downstream.shard_source import ShardSource
from pipeline.evaluate.where import Where, where_mask
from pipeline.store import open_arrays
from schemas.base import Location
from schemas.store import USABLE, ArraySpec, Plan, RowStatus

logger = logging.getLogger("fieldmill")


@dataclass(frozen=True)
class Selection:
    """Rows of one array, with their labels; small, and free of clients."""

    source: ShardSource
    rows: np.ndarray
    """Row numbers, ascending."""
    labels: np.ndarray
    """Class number of each row, -1 where it has no label."""
    classes: tuple[str, ...]
    """Names of the classes by number, sorted."""
    left_out: dict[str, int]
    """Rows that are not in the selection because of their status, by status."""
    index: pa.Table = field(repr=False, compare=False)
    """The index lines of the rows."""

    def __len__(self) -> int:
        return len(self.rows)

    def units(self) -> np.ndarray:
        """Units that hold at least one of the rows."""
        return np.unique(self.source.unit_of(self.rows))


def select(
    url: str | Location,
    array: str | None = None,
    *,
    split: str | Sequence[str] | None = None,
    label: str | Sequence[str] | None = None,
    where: Where | None = None,
    status: Sequence[RowStatus] = USABLE,
    starts: str = "common",
    partial: bool = False,
) -> Selection:
    """Chooses rows by split, label, metric and status.

    Args:
        array: `params`, `latents/<name>`, or the name of a latent; absent: the only latent, else
            `params`. Keys and counts of sparse cells, whole numbers, are latents only by name.
        where: Bounds on columns, e.g. `{"psnr": (30, None)}`, or a pyarrow expression.
        status: What is read; rows of another status are counted in `left_out`. Rows that failed
            have no values.
        starts: "common" refuses weights of networks that did not start alike; "any" reads them.
    """
    unreadable = [s.name.lower() for s in status if s not in USABLE]
    if unreadable:
        raise ValueError(f"rows that are {', '.join(unreadable)} have no values to read")
    location = url if isinstance(url, Location) else Location(url=url)
    reader = open_arrays(location, partial=partial)
    spec = array_of(reader.plan, array)
    index = reader.index
    chosen = np.ones(index.num_rows, bool)
    for name, wanted in (("split", split), ("label", label)):
        if wanted is not None:
            values = [wanted] if isinstance(wanted, str) else list(wanted)
            known = set(index[name].unique().to_pylist())
            if not known & set(values):
                raise ValueError(f"no row has {name} {values}; there are {sorted(known)}")
            strange = sorted(set(values) - known)
            if name == "label" and strange:
                raise ValueError(f"no row has label {strange}; there are {sorted(known)}")
            chosen &= np.isin(index[name].to_numpy(zero_copy_only=False).astype(str), values)
    if where is not None:
        chosen &= where_mask(index, where)
    found = index["status"].to_numpy()
    kept = chosen & np.isin(found, [int(s) for s in status])
    numbers, counts = np.unique(found[chosen & ~kept], return_counts=True)
    left_out = {RowStatus(int(n)).name.lower(): int(c) for n, c in zip(numbers, counts)}
    if left_out:
        parts = ", ".join(f"{count} {name}" for name, count in left_out.items())
        logger.warning("%s: %d of %d rows left out: %s", location.url, sum(left_out.values()),
                       int(chosen.sum()), parts)  # fmt: skip
    index = index.filter(pa.array(kept))
    if spec.name == "params" and starts != "any":
        _refuse_mixed_starts(reader.plan, index, location.url)
    names = np.asarray(index["label"].to_pylist(), dtype=object)
    classes = tuple(sorted({name for name in names if name}))
    number = {name: i for i, name in enumerate(classes)}
    return Selection(
        source=ShardSource(location, spec, reader.plan.unit_rows, os.getpid()),
        rows=index["row"].to_numpy().astype(np.int64),
        labels=np.array([number.get(name, -1) for name in names], np.int64),
        classes=classes,
        left_out=left_out,
        index=index,
    )


def array_of(plan: Plan, name: str | None) -> ArraySpec:
    """An array with rows by its name, or the one to read by default."""
    arrays = {spec.name: spec for spec in plan.arrays if spec.rows}
    places = [n for n, spec in arrays.items() if _is_latent(n) and not _has_fractions(spec)]
    latents = [n for n in arrays if _is_latent(n) and n not in places]
    if name is None:
        if len(latents) == 1:
            if places:
                logger.warning(
                    "'%s': reading %s; %s are left out: whole numbers say where codes are and how "
                    "many, so slot k of one row and slot k of another may be different places",
                    plan.name, latents[0], ", ".join(places),
                )  # fmt: skip
            return arrays[latents[0]]
        if "params" in arrays and not latents:
            return arrays["params"]
        asked = [n for n in arrays if n not in places]
        raise ValueError(
            f"'{plan.name}' holds {', '.join(asked)}; say which one to read (source.array)"
        )
    for full in (name, f"latents/{name}"):
        if full in arrays:
            return arrays[full]
    raise ValueError(f"'{plan.name}' has no array '{name}'; it holds {', '.join(arrays)}")


def _is_latent(name: str) -> bool:
    return name.startswith("latents/")


def _has_fractions(spec: ArraySpec) -> bool:
    return spec.dtype.startswith("float")


def _refuse_mixed_starts(plan: Plan, index: pa.Table, url: str) -> None:
    start = plan.field.init.get("start", "own")
    origins = set(index["origin"].unique().to_pylist())
    if start == "own":
        raise ValueError(
            f"{url}: every row started from random weights of its own, so equal functions have "
            "unequal weights and a plain network on weights learns nothing; fit with "
            "method.start: common, take a store of latents, or read them by a "
            "permutation-equivariant network (fieldmill probe: classifiers [equivariant]; in "
            "Python: starts='any')"
        )
    if len(origins) > 1:
        raise ValueError(
            f"{url}: some rows are as training left them, others were inferred from the start; "
            "select one kind by source.where {origin: inferred} (in Python: where, or starts='any')"
        )
