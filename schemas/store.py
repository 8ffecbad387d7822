"""Layout of a store: arrays, rows, units and shards, status numbers, field specification."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from schemas.base import Schema

LAYOUT_VERSION = 1
SHARD_BYTES = 64 * 2**20
PRIVATE = "_fieldmill"
"""Everything that is not Zarr lies below this prefix of a store."""


class RowStatus(IntEnum):
    """What became of a row; stored as uint8, numbers never change."""

    ABSENT = 0
    OK = 1
    BELOW_TARGET = 2
    DIVERGED = 3
    FAILED = 4
    FORGOTTEN = 5


USABLE = (RowStatus.OK, RowStatus.BELOW_TARGET)
ORIGINS = ("inferred", "trained")


class ArraySpec(Schema):
    """One big array with a row axis, or (`rows=False`) one shared array."""

    name: str = Field(pattern=r"^(params|(latents|observations|shared)/[A-Za-z0-9_.]+)$")
    """`params`, `latents/<name>`, `observations/<name>` or `shared/<name>`."""
    shape: tuple[int, ...]
    """Shape of one row; of the whole array when shared."""
    dims: tuple[str, ...]
    """Dimension names of `shape`, e.g. ("param",) or ("z",)."""
    dtype: Literal["float32", "float16", "float64", "int32", "int64", "uint8", "uint16"] = "float32"
    rows: bool = True
    attributes: dict[str, Any] = {}
    """Stored as the array's attributes: the name -> (offset, shape) table of `params`, units."""


class ColumnSpec(Schema):
    """One small column along the rows, e.g. a metric; in the commit record, then at the root."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    dtype: Literal["float32", "float64", "int32", "int64", "uint8", "string", "bool"]
    description: str
    """Convention and unit, e.g. "PSNR of held-out pixels in dB, values in [0, 1]"."""


BASE_COLUMNS = (
    ColumnSpec(name="sample_id", dtype="string", description="path relative to the dataset URL"),
    ColumnSpec(name="label", dtype="string", description="class of the sample, '' = none"),
    ColumnSpec(name="split", dtype="string", description="train, val or test"),
    ColumnSpec(name="status", dtype="uint8", description="see attribute 'statuses'"),
    ColumnSpec(name="code", dtype="string", description="reason of a failure, '' = none"),
    ColumnSpec(name="message", dtype="string", description="the failure in words"),
    ColumnSpec(name="steps", dtype="int32", description="optimisation steps taken"),
    ColumnSpec(name="loss", dtype="float32", description="last finite loss of the row"),
    ColumnSpec(name="copy", dtype="int32", description="number of this fit of its sample, from 0"),
    ColumnSpec(name="origin", dtype="string", description="inferred, or trained with the shared"),
)


class FieldSpec(Schema):
    """Complete description of a store's fields; with the arrays it suffices to evaluate them."""

    method: str
    config: dict[str, Any]
    """Every key of the method's config class."""
    form: dict[str, Any] = {}
    """`FormSpec` of the dataset: what the network was built for."""
    layers: list[dict[str, Any]]
    """The network in order of evaluation, each with its kind, sizes, names of its parameters and
    constants (omega_0, scale, offset): enough to evaluate it in plain numpy."""
    coords: dict[str, Any]
    """Axes in order, range, where pixel centres lie, handedness."""
    output: dict[str, Any]
    """Meaning of the channels, range, sign convention, level of the surface."""
    init: dict[str, Any]
    """Rule of initialisation, seed, and `start`: "own" or the id of a common start."""
    groups: dict[str, list[str]]
    """Names of the parameters in `rows` and in `shared`."""
    dataset_fingerprint: str
    versions: dict[str, str]


class Segment(Schema):
    """Prepared rows [prepared, prepared + rows) are store rows [store, store + rows)."""

    prepared: int
    store: int
    rows: int


class Plan(Schema):
    """What a store will hold; written once before any worker starts, superseded only by growth."""

    layout: int = LAYOUT_VERSION
    name: str
    fit_identity: str
    fit_keys: dict[str, Any]
    """The keys behind `fit_identity`, to name the one that differs."""
    numerics: int
    """Hand-kept number: a change of it changes results."""
    prepared_fingerprint: str
    rows: int
    """Length of the row axis; a multiple of `unit_rows` except at the end."""
    unit_rows: int
    """Rows of a unit = rows of a shard of every array."""
    segments: tuple[Segment, ...]
    arrays: tuple[ArraySpec, ...]
    columns: tuple[ColumnSpec, ...]
    """Metrics; `BASE_COLUMNS` are always there."""
    field: FieldSpec
    lanes: int
    compiled: bool
    fused: bool = False
    """Rows are fitted by the compiled loop over single networks."""
    kernel: str = ""
    """Rows are fitted by the kernel of GPUs (fp32, tf32 or bf16: how factors of products are
    rounded), or their inner steps taken by the compiled loop of CPUs (`fitting/encoding.py`);
    empty: neither."""

    @property
    def units(self) -> int:
        return -(-self.rows // self.unit_rows)

    def unit_range(self, unit: int) -> tuple[int, int]:
        """First and one past the last row of a unit that hold samples.

        Rows of a unit past the end of its segment are padding (ABSENT, no sample, no values).
        """
        first = unit * self.unit_rows
        for segment in self.segments:
            if segment.store <= first < segment.store + segment.rows:
                return first, min(first + self.unit_rows, segment.store + segment.rows)
        raise ValueError(f"unit {unit} is not one of the {self.units} units of '{self.name}'")


def unit_columns(columns: tuple[ColumnSpec, ...]) -> pa.Schema:
    """Arrow schema of the small columns of a unit: `BASE_COLUMNS` and the metrics."""
    types = {"string": pa.string(), "bool": pa.bool_()}
    return pa.schema(
        [
            pa.field(c.name, types.get(c.dtype) or pa.type_for_alias(c.dtype), False)
            for c in (*BASE_COLUMNS, *columns)
        ]
    )
