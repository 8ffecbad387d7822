"""One run: the YAML file a user writes, from the dataset's URL to the store's."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from schemas.base import Location, Schema, identity

Kind = Literal["images", "audio", "video", "shapes", "points", "views", "sequences", "equations"]
Stage = Literal["ingest", "train", "fit", "evaluate"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Pixels = Annotated[int, Field(ge=1)]


class LabelRule(Schema):
    """Where a sample's label comes from; by default the shallowest folder level with two values."""

    level: int | None = None
    """Folder level, 0 = first below the dataset URL, -1 = the file's own folder."""
    regex: Pattern | None = None
    """Searched in the sample id; its first group is the label."""
    table: Location | None = None
    """CSV or Parquet with columns `id` and `label`."""

    @model_validator(mode="after")
    def _one_rule(self) -> LabelRule:
        given = [name for name in ("level", "regex", "table") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of level, regex, table; {' and '.join(given)} are set")
        return self


class SplitRule(Schema):
    """Shares of the splits; a sample's split is a hash of its id."""

    train: float = Field(0.8, ge=0)
    val: float = Field(0.0, ge=0)
    test: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _sums_to_one(self) -> SplitRule:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(
                f"train + val + test = {self.train + self.val + self.test:g}, must be 1"
            )
        return self


SAMPLE_SETS: dict[str, Kind] = {
    "photos": "images",
    "pictures": "images",
    "glyph-images": "images",
    "sounds": "audio",
    "clips": "video",
    "shapes": "shapes",
    "glyphs": "shapes",
    "scenes": "shapes",
    "clouds": "points",
    "equations": "equations",
}
"""Data sets that are made from what the installed packages ship: `sample:NAME`."""


def sample_set_name(url: str) -> str:
    """The name in `sample:NAME`; an unknown one is an error that names the nearest."""
    name = url.removeprefix("sample:").strip("/")
    if name not in SAMPLE_SETS:
        close = difflib.get_close_matches(name, SAMPLE_SETS, 1, 0.5)
        hint = f"did you mean 'sample:{close[0]}'? " if close else ""
        raise ValueError(f"there is no sample set '{name}'; {hint}all: {', '.join(SAMPLE_SETS)}")
    return name


class Dataset(Location):
    """What is read: a prefix, a container, a table of URIs, or `sample:NAME`."""

    kind: Kind
    """What one sample is."""
    include: tuple[str, ...] = ()
    """Glob patterns on sample ids; empty = every readable file."""
    exclude: tuple[str, ...] = ()
    """Glob patterns on sample ids that are left out (counted as ignored)."""
    group: Pattern | None = None
    """Regex searched in each path; its first group is the sample id: equal ids are one sample."""
    columns: dict[Literal["uri", "id", "label", "split", "image"], str] = {}
    """Names of the columns of a table, where they differ from uri, id, label, split, image."""
    label: LabelRule = LabelRule()
    split: SplitRule = SplitRule()

    @model_validator(mode="after")
    def _sample_set_of_the_kind(self) -> Dataset:
        if self.scheme == "sample":
            kind = SAMPLE_SETS[sample_set_name(self.url)]
            if kind != self.kind:
                raise ValueError(f"{self.url} holds {kind}; set kind: {kind}")
        return self


class CommonIngest(Schema):
    """Keys of ingest that every kind of sample has."""

    seed: int = 0
    """Seeds held-out choices, sampling and splits."""
    unit_objects: int = Field(256, ge=1)
    """Most samples in one ingest unit (one prepared shard)."""
    unit_bytes: int = Field(256 * 2**20, ge=1)
    """Most source bytes in one ingest unit."""
    max_bytes: int = Field(512 * 2**20, ge=1)
    """A larger object is rejected (TOO_LARGE)."""
    timeout_s: float = Field(120.0, gt=0)
    """A sample whose decoding takes longer is rejected (PARSER_TIMEOUT)."""
    memory_bytes: int = Field(8 * 2**30, ge=256 * 2**20)
    """A sample whose decoding needs more memory is rejected (PARSER_MEMORY)."""


class ImageIngest(CommonIngest):
    """Images as pixels: uint8 or uint16, as decoded."""

    resolution: Pixels | tuple[Pixels, Pixels] | None = None
    """Target height and width (one number: both); the picture is cropped centrally to the aspect
    and reduced by area averaging; absent = as it is."""
    color: Literal["rgb", "gray", "keep"] = "rgb"
    """Channels kept; transparent pixels are laid over `background`."""
    background: float = Field(1.0, ge=0, le=1)
    max_pixels: int = Field(64_000_000, ge=1)
    """A picture with more pixels is rejected (TOO_LARGE) before it is decoded."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of pixels set apart for evaluation, never drawn in fitting."""

    @model_validator(mode="after")
    def _resolution_that_fits(self) -> ImageIngest:
        _refuse_larger(self.resolution, 1, "max_pixels", self.max_pixels)
        return self


def _refuse_larger(
    resolution: int | tuple[int, int] | None, pictures: int, name: str, most: int
) -> None:
    """Raises ValueError where every sample would become larger than what a key allows."""
    if resolution is None:
        return
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if pictures * height * width > most:
        count = f"{pictures} frames of " if pictures > 1 else ""
        raise ValueError(f"resolution: {count}{height} x {width} pixels; {name} is {most}")


class AudioIngest(CommonIngest):
    """Sounds as amplitudes in [-1, 1], 16 bits, at one rate."""

    rate: int | None = Field(None, ge=100, le=1_000_000)
    """Samples a second after resampling (a Kaiser-windowed low-pass, polyphase); absent: each
    sound's own."""
    seconds: float | None = Field(None, gt=0)
    """Length of the part that is kept; shorter sounds are kept whole; absent: all of it."""
    at: Literal["start", "middle"] = "start"
    """Where the part that is kept lies."""
    channels: Literal["mono", "keep"] = "mono"
    """`mono`: the mean of the channels; `keep`: all, which must be as many in every sound."""
    normalize: Literal["peak", "none"] = "peak"
    """`peak`: the largest amplitude becomes 1, and what it was is recorded (column `peak`), as the
    authors of SIREN do; `none`: amplitudes as they are, which must lie in [-1, 1]."""
    silence_db: float = Field(-60.0, le=0)
    """A sound whose amplitude nowhere departs from its mean by this much, in dB of full scale, is
    silent: it is rejected (DEGENERATE)."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the time steps set apart for evaluation, never drawn in fitting."""
    max_samples: int = Field(50_000_000, ge=2)
    """A sound of which more would have to be read (time steps x channels) is rejected (TOO_LARGE)
    before it is decoded."""


class VideoIngest(CommonIngest):
    """Videos as voxels: frames of uint8 pixels."""

    unit_objects: int = Field(32, ge=1)
    """Most samples in one ingest unit: a video is large."""
    resolution: Pixels | tuple[Pixels, Pixels] | None = None
    """Target height and width (one number: both); frames are cropped centrally to the aspect and
    reduced by area averaging; absent = as they are."""
    frames: int | None = Field(None, ge=2)
    """Frames that are kept; shorter videos are kept whole; absent: all of them."""
    at: Literal["start", "middle"] = "start"
    """Where the frames that are kept lie."""
    stride: int = Field(1, ge=1)
    """Every how manieth frame is kept."""
    fps: float | None = Field(None, gt=0)
    """Frames a second instead of `stride`: of the file's own, those nearest before each moment."""
    color: Literal["rgb", "gray"] = "rgb"
    background: float = Field(1.0, ge=0, le=1)
    """What transparent pixels (of animated pictures) are laid over."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the voxels set apart for evaluation, never drawn in fitting."""
    max_pixels: int = Field(64_000_000, ge=1)
    """A video whose frames have more pixels is rejected (TOO_LARGE) before it is decoded."""
    max_frames: int = Field(20_000, ge=2)
    """A video of which more frames would have to be decoded is rejected (TOO_LARGE)."""
    max_voxels: int = Field(64_000_000, ge=2)
    """A video that would be larger after all this (frames x height x width) is rejected
    (TOO_LARGE)."""

    @model_validator(mode="after")
    def _one_pace(self) -> VideoIngest:
        if self.fps is not None and self.stride != 1:
            raise ValueError(f"fps: {self.fps:g} and stride: {self.stride} both choose the frames")
        return self

    @model_validator(mode="after")
    def _resolution_that_fits(self) -> VideoIngest:
        _refuse_larger(self.resolution, 2, "max_voxels", self.max_voxels)  # two frames at least
        return self


class ShapeIngest(CommonIngest):
    """Meshes as signed distances at points near the surface and in the box, and surface points."""

    LATER: ClassVar[tuple[str, ...]] = ("sign", "voxels", "views", "view_size")

    unit_objects: int = Field(32, ge=1)
    """Most samples in one ingest unit: a shape takes about a second."""
    near: int = Field(65_536, ge=0)
    """Near-surface points a sample."""
    uniform: int = Field(32_768, ge=0)
    """Points uniform in the box [-1, 1]^3."""
    surface: int = Field(32_768, ge=0)
    """Surface points with normals."""
    held_out: int = Field(8_192, ge=0)
    """Points of each of the three kinds set apart for evaluation, in addition."""
    near_std: tuple[float, ...] = (0.05, 0.0158)
    """Standard deviations of the near-surface noise, in normalised units
    (DeepSDF sec. 3: variances 0.0025 and 0.00025); each serves an equal share."""
    normalize: Literal["sphere", "box", "none"] = "sphere"
    """`sphere`: bbox centre, farthest vertex at 1/1.03 (DeepSDF preprocessing); `box`: longest
    bbox edge = 1 (OccNet); `none`: coordinates as they are, which must lie in [-1, 1]."""
    precision: Literal["compact", "float32"] = "compact"
    """`compact`: uint16 coordinates and float16 distances taken at the rounded coordinates."""
    max_faces: int = Field(2_000_000, ge=1)
    max_doubt: float = Field(0.25, ge=0, le=1)
    """A sample with a larger share of ambiguous winding numbers is rejected (DOUBTFUL_SIGN)."""
    sign: Literal["winding", "none"] = "winding"
    """`winding`: inside where |winding number| > 1/2; `none`: distances without sign, for methods
    that are agnostic to it: nothing is DOUBTFUL_SIGN, open surfaces and soups are as good."""
    voxels: Literal[0, 16, 32, 64] = 0
    """Cells an axis of a grid that says which cell centers, (2 i + 1) / R - 1, are inside."""
    views: int = Field(0, ge=0, le=256)
    """Pictures a sample, rendered from seeded directions all around; 0: none."""
    view_size: int = Field(64, ge=8, le=1024)
    """Pixels a side of a view."""

    @model_validator(mode="after")
    def _voxels_have_a_sign(self) -> ShapeIngest:
        if self.voxels and self.sign == "none":
            raise ValueError(
                f"voxels: {self.voxels} says what is inside, which sign: none leaves open; "
                "set sign: winding, or voxels: 0"
            )
        if not self.views and self.view_size != 64:
            raise ValueError(f"view_size: {self.view_size} has no effect with views: 0")
        return self


class PointIngest(CommonIngest):
    """Point clouds, with or without normals."""

    LATER: ClassVar[tuple[str, ...]] = ("near", "uniform", "normals")

    surface: int = Field(32_768, ge=1)
    """Points kept a sample (a seeded choice); smaller clouds are kept whole."""
    held_out: int = Field(8_192, ge=0)
    """Points set apart for evaluation; at most a quarter of the cloud. As many in addition of
    `near` and `uniform`, where these are drawn."""
    near: int = Field(0, ge=0)
    """Points near the cloud with their distance to it, without sign: a point of the cloud moved by
    Gaussian noise of its distance to the 50th neighbour (SAL sec. 4, IGR)."""
    uniform: int = Field(0, ge=0)
    """Points uniform in the box [-1, 1]^3 with their distance to the cloud, without sign."""
    normals: Literal["auto", "require", "none"] = "auto"
    """`auto`: as the files have them; where one sample has none, the dataset counts as without.
    `require`: a sample without normals is rejected (NO_NORMALS). `none`: left out."""
    normalize: Literal["sphere", "box", "none"] = "sphere"
    precision: Literal["compact", "float32"] = "compact"
    max_points: int = Field(50_000_000, ge=1)


ANSWER = 2**22
"""Most values of an answer, or of a medium, that is kept beside an equation."""


class EquationIngest(CommonIngest):
    """Boundary value problems, one a file, with their answers on a grid for evaluation."""

    unit_objects: int = Field(32, ge=1)
    """Most samples in one ingest unit: in the plane a reference takes seconds."""
    equation: Literal["helmholtz", "wave"] = "helmholtz"
    """Which equation the dataset is of; problems of another are rejected."""
    dimension: Literal[1, 2] = 1
    """Its axes of space; problems of another number are rejected."""
    reference: int | None = Field(None, ge=8, multiple_of=4)
    """Intervals an axis of the grid on which answers are compared (waves: a quarter as many in
    time); absent: 256 in one dimension, 64 in two."""
    medium: int = Field(33, ge=2)
    """Nodes an axis on which speeds are kept; the answer is that of the medium so kept."""
    sources: int = Field(8, ge=1, le=1024)
    """Most sources of a problem."""

    @model_validator(mode="after")
    def _grids_that_fit(self) -> EquationIngest:
        times = self.reference // 4 + 1 if self.reference and self.equation == "wave" else 1
        grids = {"reference": (self.reference or 0) + 1, "medium": self.medium}
        for name, side in grids.items():
            values = side**self.dimension * (times if name == "reference" else 1)
            if values > ANSWER:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is a grid of {values:,} values a problem; "
                    f"{ANSWER:,} are the most"
                )
        return self


INGEST = {
    "images": ImageIngest,
    "audio": AudioIngest,
    "video": VideoIngest,
    "shapes": ShapeIngest,
    "points": PointIngest,
    "equations": EquationIngest,
}


class MethodChoice(Schema):
    """Which of `pipeline/methods/`; every other key is one of that method's own config class."""

    model_config = ConfigDict(extra="allow")

    name: str
    preset: str = "default"
    """One of the method's own: every method has "default" and "paper"."""
    shared_from: Location | None = None
    """A finished store whose shared parameters (decoder) are used instead of training."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def settings(self) -> dict[str, Any]:
        """The keys that belong to the method's own config class."""
        return dict(self.__pydantic_extra__ or {})


class Train(Schema):
    """Training of shared parameters."""

    workers: int = Field(1, ge=1)
    """Data-parallel Ray Train workers; part of the result's identity."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)
    checkpoint_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""


class Fit(Schema):
    """Fitting of rows."""

    LATER: ClassVar[tuple[str, ...]] = ("context",)

    unit_rows: int | None = Field(None, ge=1)
    """Rows of a unit (= of a shard); chosen from size and time when absent."""
    lanes: int | None = Field(None, ge=2)
    """Samples fitted side by side; measured per device when absent."""
    trained_rows: Literal["infer", "keep"] = "infer"
    """Rows of the training split: inferred again like all others, or kept as training left them."""
    compile: Literal["auto", "never", "always"] = "auto"
    context: Literal["all", "half", "view"] = "all"
    """What fitting sees of a sample: all, one side of it, or what one camera sees of its surface
    (`pipeline/contexts.py`); metrics compare with the whole: completion."""

    @model_validator(mode="after")
    def _kept_rows_saw_all(self) -> Fit:
        if self.context != "all" and self.trained_rows == "keep":
            raise ValueError(
                f"context: {self.context} has no effect on rows that training left, which saw "
                "all; set trained_rows: infer"
            )
        return self


class Evaluate(Schema):
    """Metrics that are computed after fitting, from the store alone."""

    rows: int = Field(2_000, ge=0)
    """Most rows whose mesh metrics are computed (a seeded choice beyond that)."""
    resolution: int = Field(128, ge=8)
    """Cells an axis of the meshing grid."""
    points: int = Field(30_000, ge=100)
    """Surface points a mesh in Chamfer distances and F-scores."""


class Resources(Schema):
    """Where a run computes; never changes a result."""

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Fitting actors; `auto`: one per GPU, or one per core; 0: in this process, without Ray."""
    gpus: float = Field(0.0, ge=0)
    """GPUs an actor (0 = CPU)."""
    cores: int = Field(1, ge=1)
    """CPU cores an actor, also its number of threads."""
    address: str | None = None
    """Ray address to join; absent = RAY_ADDRESS, else a cluster of this machine is started."""
    retries: int = Field(5, ge=0)
    """Machine faults forgiven a unit."""
    start_s: float = Field(300.0, gt=0)
    """Seconds to wait for the first worker."""


class Run(Schema):
    """A run file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    dataset: Dataset
    ingest: ImageIngest | AudioIngest | VideoIngest | ShapeIngest | PointIngest | EquationIngest
    method: MethodChoice
    store: Location
    prepared: Location | None = None
    """Where the prepared dataset lies; beside the store when absent."""
    seed: int = 0
    """Seeds training and fitting."""
    limit: int | None = Field(None, ge=1)
    """Take only the first N samples (of the frozen order)."""
    train: Train = Train()
    fit: Fit = Fit()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    max_failed: float = Field(0.5, ge=0, le=1)
    """Share of unusable or failed samples above which the run ends with exit code 3."""

    @model_validator(mode="before")
    @classmethod
    def _ingest_of_the_kind(cls, value: Any) -> Any:
        """Reads `ingest` with the class of `dataset.kind`, so that its errors name real keys."""
        if not isinstance(value, dict) or isinstance(value.get("ingest"), Schema):
            return value
        dataset = value.get("dataset")
        kind = dataset.get("kind") if isinstance(dataset, dict) else getattr(dataset, "kind", None)
        given = value.get("ingest") or {}
        if kind in INGEST and isinstance(given, dict):
            return {**value, "ingest": INGEST[kind].model_validate(given)}
        return value

    @model_validator(mode="after")
    def _context_of_the_kind(self) -> Run:
        if self.fit.context != "all" and self.dataset.kind in ("audio", "video"):
            raise ValueError(
                f"fit.context: {self.fit.context} is of images, shapes and points; "
                f"{self.dataset.kind} has all"
            )
        if self.fit.context != "all" and self.dataset.kind == "equations":
            raise ValueError(
                f"fit.context: {self.fit.context} is of what is observed; equations have all"
            )
        if self.fit.context == "view" and self.dataset.kind == "images":
            raise ValueError("fit.context: view is of shapes and points; images have half")
        return self

    @field_validator("store")
    @classmethod
    def _store_is_writable(cls, store: Location) -> Location:
        if store.scheme in ("http", "https", "sample"):
            raise ValueError("a store needs a file, s3 or memory URL")
        if store.scheme == "s3" and not urlsplit(store.url).path.strip("/"):
            raise ValueError("a store needs a name in its bucket: s3://BUCKET/NAME.zarr")
        if store.url.rstrip("/").endswith(".prepared"):
            raise ValueError("a store is not a .prepared, which is what a dataset becomes")
        return store

    @property
    def prepared_location(self) -> Location:
        if self.prepared is not None:
            return self.prepared
        url = self.store.url.rstrip("/")
        stem = url[: -len(".zarr")] if url.endswith(".zarr") else url
        return Location(**{**self.store.location_fields(), "url": stem + ".prepared"})

    def stage_identity(self, stage: Stage) -> str:
        """Hash of the keys that determine what a stage writes, those of earlier stages included."""
        return identity(self.stage_keys(stage))

    def stage_keys(self, stage: Stage) -> dict[str, Any]:
        """The keys of `stage_identity`, for naming the one that changed.

        Endpoints, profiles, resources, retry limits, the sizes of units and the choice of evaluated
        rows are in none: no value of a row depends on them.
        """
        full = self.model_dump(mode="json")
        keys = ingest_keys(self.dataset, self.ingest)
        if stage == "ingest":
            return keys
        method = dict(full["method"])
        if method.get("shared_from"):
            method["shared_from"] = method["shared_from"]["url"]
        train = {k: v for k, v in full["train"].items() if k != "checkpoint_s"}
        keys |= {"method": method, "seed": self.seed, "train": train, "limit": self.limit}
        if stage == "train":
            return keys
        fit = {k: v for k, v in self.fit.deciding().items() if k not in LAYOUT_OF_FIT}
        keys |= {"fit": fit}
        if stage == "fit":
            return keys
        return keys | {"evaluate": full["evaluate"]}


NOT_IDENTITY = ("endpoint", "region", "profile", "anonymous")
LAYOUT_OF_FIT = ("unit_rows", "lanes")
"""What the first run of a store fixes in its plan; a later one takes it from there."""
LAYOUT_OF_INGEST = ("unit_objects", "unit_bytes")
"""What the first listing fixes; samples and their order are the same for any."""


def ingest_keys(dataset: Dataset, ingest: CommonIngest) -> dict[str, Any]:
    """The keys that determine a prepared dataset."""
    kept = {k: v for k, v in dataset.model_dump(mode="json").items() if k not in NOT_IDENTITY}
    kept["url"] = kept["url"].rstrip("/")
    if kept["label"]["table"]:
        kept["label"]["table"] = kept["label"]["table"]["url"]
    deciding = {k: v for k, v in ingest.deciding().items() if k not in LAYOUT_OF_INGEST}
    return {"dataset": kept, "ingest": deciding}
