"""Arrow schemas of a prepared dataset: the manifest, and one prepared form a kind of sample."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pyarrow as pa
from pydantic import model_validator

from schemas.base import Schema


class SampleStatus(StrEnum):
    """What ingest made of one listed object or member."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    FORGOTTEN = "forgotten"


class Code(StrEnum):
    """Why a sample has no good row. A closed list: it is stored."""

    NONE = ""
    DECODE = "DECODE"
    EMPTY = "EMPTY"
    TOO_LARGE = "TOO_LARGE"
    NAN_INPUT = "NAN_INPUT"
    DEGENERATE = "DEGENERATE"
    DOUBTFUL_SIGN = "DOUBTFUL_SIGN"
    NO_NORMALS = "NO_NORMALS"
    PARSER_TIMEOUT = "PARSER_TIMEOUT"
    PARSER_MEMORY = "PARSER_MEMORY"
    PARSER_CRASH = "PARSER_CRASH"
    INPUT_CHANGED = "INPUT_CHANGED"
    INPUT_MISSING = "INPUT_MISSING"
    NAN_LOSS = "NAN_LOSS"
    BUDGET = "BUDGET"
    OOM = "OOM"
    FIT_ERROR = "FIT_ERROR"


class RejectedSample(Exception):
    """A sample that cannot be used; ingest turns it into a manifest row."""

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code
        self.message = message


MANIFEST = pa.schema(
    [
        pa.field("sample_id", pa.string(), False),
        pa.field("status", pa.string(), False),
        pa.field("code", pa.string(), False),
        pa.field("message", pa.string(), False),
        pa.field("row", pa.int64()),  # accepted samples only
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("same_as", pa.string()),  # duplicates: the sample that was kept
        pa.field("sha256", pa.string()),  # of the source bytes
        pa.field("bytes", pa.int64()),
        pa.field("objects", pa.list_(pa.string())),  # keys read for this sample
        pa.field("unit", pa.int32()),
        pa.field("index", pa.int32()),  # position in the unit's shard
    ]
)

LISTING = pa.schema(
    [
        pa.field("sample_id", pa.string(), False),  # of a container: its key
        pa.field("type", pa.string(), False),  # file | tar | parquet | npy | npz | idx
        pa.field("keys", pa.list_(pa.string()), False),  # objects to read, relative or URIs
        pa.field("sizes", pa.list_(pa.int64()), False),  # -1 = unknown
        pa.field("etags", pa.list_(pa.string()), False),
        pa.field("uri", pa.bool_(), False),  # keys stem from a table: may be absolute
        pa.field("start", pa.int64(), False),  # range of a container's members
        pa.field("stop", pa.int64(), False),
        pa.field("label", pa.string()),  # as the table gives it
        pa.field("split", pa.string()),
        pa.field("status", pa.string(), False),  # "" = to be decoded, or rejected, ignored
        pa.field("code", pa.string(), False),
        pa.field("message", pa.string(), False),
    ]
)
"""One frozen entry: a sample, a range of a container's members, or a file that is left out."""

IDENTITY = [
    pa.field("row", pa.int64(), False),
    pa.field("sample_id", pa.string(), False),
    pa.field("label", pa.string()),
    pa.field("split", pa.string(), False),
]
"""Columns that `Prepared.rows` puts before those of the form."""

# Bytes are little-endian and row-major; `float16` and `uint16` columns are stored as binary.
GRID = pa.schema(
    [
        pa.field("pixels", pa.large_binary(), False),  # [height, width, channels] of `dtype`
        pa.field("height", pa.int32(), False),
        pa.field("width", pa.int32(), False),
        pa.field("channels", pa.int32(), False),
        pa.field("dtype", pa.string(), False),  # uint8 | uint16
        pa.field("held_out", pa.large_binary(), False),  # bits, np.packbits of [height * width]
        pa.field("source", pa.large_binary()),  # full-resolution pixels when these are reduced
        pa.field("source_height", pa.int32()),
        pa.field("source_width", pa.int32()),
    ]
)

SOUND = pa.schema(
    [
        pa.field("pixels", pa.large_binary(), False),  # [length, channels]: (amplitude + 1) / 2
        pa.field("length", pa.int32(), False),  # time steps
        pa.field("channels", pa.int32(), False),
        pa.field("dtype", pa.string(), False),  # uint16
        pa.field("held_out", pa.large_binary(), False),  # bits, np.packbits of [length]
        pa.field("rate", pa.int32(), False),  # time steps a second
        pa.field("peak", pa.float64(), False),  # the file's amplitude = stored amplitude * peak
    ]
)

CLIP = pa.schema(
    [
        pa.field("pixels", pa.large_binary(), False),  # [frames, height, width, channels]
        pa.field("frames", pa.int32(), False),
        pa.field("height", pa.int32(), False),
        pa.field("width", pa.int32(), False),
        pa.field("channels", pa.int32(), False),
        pa.field("dtype", pa.string(), False),  # uint8
        pa.field("held_out", pa.large_binary(), False),  # bits of [frames * height * width]
        pa.field("fps", pa.float64(), False),  # frames a second, NaN where the file does not say
    ]
)

GRIDS = {
    "images": ("height", "width"),
    "audio": ("length",),
    "video": ("frames", "height", "width"),
}
"""Kinds whose samples are values on a regular grid, with the columns of its sides."""

EQUATIONS = pa.schema(
    [
        pa.field("equation", pa.string(), False),  # helmholtz | wave
        pa.field("wavenumber", pa.float64(), False),  # in units of fields; 0: a wave
        pa.field("duration", pa.float64(), False),  # in units of fields; 0: no wave
        pa.field("scale", pa.float64(), False),  # lengths: units of fields in one of the file
        pa.field("time_scale", pa.float64(), False),  # times, so that the fastest speed is 1
        pa.field("amplitude", pa.float64(), False),  # the file's value = value * amplitude
        pa.field("sources", pa.large_binary(), False),  # float32 [s, d + 3]: at, variance, re, im
        pa.field("speed", pa.large_binary(), False),  # float32 [*medium], first axis x
        pa.field("medium", pa.list_(pa.int32()), False),
        pa.field("reference", pa.large_binary(), False),  # float32 [*reference_shape]
        pa.field("reference_shape", pa.list_(pa.int32()), False),  # (t,) x, y, channels
        pa.field("reference_by", pa.string(), False),  # closed form | finite differences
        pa.field("reference_error", pa.float64(), False),  # about, relative
    ]
)

POINT_SETS = ("near", "uniform", "surface")
HELD_OUT_SETS = ("held_near", "held_uniform", "held_surface")


def points_schema(
    *,
    signed: bool,
    normals: bool,
    color: bool = False,
    part: bool = False,
    unsigned: bool = False,
    shape: bool | None = None,
    voxels: bool = False,
    views: bool = False,
) -> pa.Schema:
    """Schema of shapes and of point clouds.

    `signed`: sets near and uniform with signed distances (negative inside); `unsigned`: with
    distances that have no sign, under another name, so that nothing mistakes them for the others.
    Coordinates are uint16 steps of `1/65535` of the box [-1, 1]^3 ("compact"), or float32.
    Distances, float16 or float32, belong to the coordinates as stored.
    Every set is in seeded random order: any block of it is an unbiased draw.
    """
    fields = []
    distance = "distance" if signed else "unsigned_distance"
    for prefix in ("", "held_"):
        for name in ("near", "uniform") if signed or unsigned else ():
            fields += [
                pa.field(f"{prefix}{name}_coords", pa.large_binary(), False),  # [p, 3]
                pa.field(f"{prefix}{name}_{distance}", pa.large_binary(), False),  # [p]
            ]
        fields.append(pa.field(f"{prefix}surface_coords", pa.large_binary(), False))  # [p, 3]
        if normals:
            fields.append(pa.field(f"{prefix}surface_normals", pa.large_binary()))  # f16 [p, 3]
        if color:
            fields.append(pa.field(f"{prefix}surface_color", pa.large_binary()))  # uint8 [p, 3]
        if part:
            fields.append(pa.field(f"{prefix}surface_part", pa.large_binary()))  # uint16 [p]
    if part:
        fields.append(pa.field("part_names", pa.list_(pa.string())))  # by part number
    fields += [
        pa.field("precision", pa.string(), False),  # compact | float32
        pa.field("center", pa.list_(pa.float64(), 3), False),  # original = coords / scale + center
        pa.field("scale", pa.float64(), False),
    ]
    if signed if shape is None else shape:
        fields += [
            pa.field("doubt", pa.float32(), False),  # share of points with 0.25 < |w| < 0.75
            pa.field("faces", pa.int32(), False),
            pa.field("watertight", pa.bool_(), False),
        ]
    if voxels:  # bits, np.packbits of [R, R, R] in order x, y, z: whether a cell's center is inside
        fields.append(pa.field("voxels", pa.large_binary(), False))
    if views:  # v pictures of s x s pixels; cameras in axes x right, y down, z forward
        fields += [
            pa.field("views_color", pa.large_binary(), False),  # uint8 [v, s, s, 3]
            pa.field("views_mask", pa.large_binary(), False),  # bits, np.packbits of [v, s, s]
            pa.field("views_camera_to_world", pa.large_binary(), False),  # float32 [v, 4, 4]
            pa.field("views_intrinsics", pa.large_binary(), False),  # float32 [v, 3, 3], in pixels
        ]
    return pa.schema(fields)


SHAPES = points_schema(signed=True, normals=True, color=True, part=True)
POINTS = points_schema(signed=False, normals=True, color=True)
FORMS = {
    "images": GRID,
    "audio": SOUND,
    "video": CLIP,
    "shapes": SHAPES,
    "points": POINTS,
    "equations": EQUATIONS,
}
"""Columns of each kind with the default keys of ingest."""


def form_schema(kind: str, ingest: Mapping[str, Any]) -> pa.Schema:
    """Columns of a prepared dataset that was made with these keys of ingest.

    A key that is absent (the dataset was made before there was one) has its default.
    """
    if kind == "shapes":
        unsigned = ingest.get("sign", "winding") == "none"
        return points_schema(
            signed=not unsigned,
            unsigned=unsigned,
            shape=True,
            normals=True,
            color=True,
            part=True,
            voxels=ingest.get("voxels", 0) > 0,
            views=ingest.get("views", 0) > 0,
        )
    if kind == "points" and (ingest.get("near", 0) or ingest.get("uniform", 0)):
        return points_schema(signed=False, unsigned=True, shape=False, normals=True, color=True)
    return FORMS[kind]


class FormSpec(Schema):
    """What a method needs to know of a prepared dataset to build its network."""

    kind: str
    channels: int | None = None
    """Color channels of images and videos, channels of sounds."""
    dims: int
    """Coordinate axes of a field of these samples."""
    signed: bool = False
    """Distances have a sign: negative inside."""
    distances: bool = False
    """There are sets near and uniform with distances, signed or not."""
    normals: bool = False
    """Surface points of every sample carry normals of unit length."""
    color: bool = False
    """Surface points carry colors."""
    voxels: int = 0
    """Cells an axis of stored inside/outside grids; 0: none are stored."""
    views: int = 0
    """Pictures a sample, with cameras; 0: none are stored."""
    view_size: int = 0
    """Pixels a side of a view."""
    sets: tuple[str, ...] | None = None
    """Point sets that are not empty, of near, uniform and surface; None: not known."""
    equation: str = ""
    """Of equations: helmholtz or wave."""

    @model_validator(mode="before")
    @classmethod
    def _signs_are_of_distances(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("signed") and "distances" not in value:
            return {**value, "distances": True}
        return value


class IngestUnit(Schema):
    """A range of the frozen listing; its output is one prepared shard."""

    unit: int
    entries: int
    """Listed samples or, of a container, upper bound of its members."""
    bytes: int


class IngestOutcome(Schema):
    """What one call of `ingest_unit` did."""

    unit: int
    won: bool
    """This call committed the unit; False: it was there already, or another attempt was first."""
    decodes: int
    """Samples decoded by this call."""
    counts: dict[str, int]
    """The unit's samples by status, before duplicates are known."""
    read_bytes: int
    """Source bytes read by this call."""
    written_bytes: int
    """Bytes of prepared shards written by this call."""
    seconds: dict[str, float]
    """Wall time: `total`, and of it `read` (waiting for sources), `decode`, `write`."""


class NothingUsable(ValueError):
    """A dataset without a single usable sample; the message names the first reasons."""


class PreparedMeta(Schema):
    """`prepared.json`: written last, by the fold; a prepared dataset without it is unfinished."""

    layout: int = 1
    kind: str
    ingest_identity: str
    dataset: dict
    """The dataset keys of the run that made it (no endpoint, no profile)."""
    ingest: dict
    listed: str
    """UTC date of the frozen listing."""
    units: int
    """Ingest units that the fold has seen."""
    label_level: int | None
    """Folder level of the default labels; None: a rule of `dataset.label`, or no labels."""
    rows: int
    """Accepted samples; their row numbers are 0 .. rows - 1."""
    segments: tuple[int, ...]
    """First row of each segment: 0, then one for every `--update`."""
    shards: tuple[tuple[str, int, int], ...]
    """Name, first row and number of rows of each shard with rows, in row order."""
    counts: dict[str, int]
    """Samples by status."""
    labels: dict[str, int]
    """Accepted samples by label; beyond 4,096 different labels the rest is counted under "..."."""
    splits: dict[str, int]
    fingerprint: str
    """sha256 over the manifest's (sample_id, sha256) of the accepted rows in order."""
    missing: tuple[str, ...] = ()
    """Optional columns that some rows lack: methods see none of them in any row."""
