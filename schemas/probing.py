"""Run files of what is read off a finished store: classes, neighbors and parts of samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from schemas.base import Location, Schema, identity
from schemas.downstream import Job, Split

Reader = Literal["linear", "knn", "mlp", "kernel", "equivariant"]


class Steps(Schema):
    """Training of a small network that fits into memory with all it learns from."""

    steps: int = Field(600, ge=1)
    """Optimization steps."""
    batch: int = Field(128, ge=1)
    """Rows a step."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of AdamW at its highest; it rises over a twentieth of the steps, then falls as
    a cosine."""
    weight_decay: float = Field(1e-2, ge=0)

    checkpoint_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""

    def learning_keys(self) -> dict[str, Any]:
        return self.descent()

    def descent(self) -> dict[str, Any]:
        """What decides where training ends."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k != "checkpoint_s"}


class _InMemory(Job):
    """What jobs share that hold their rows in memory."""

    train: Steps = Steps()
    test: tuple[Split, ...] = Field(("test", "val"), min_length=1)
    """Splits of the rows that are measured; nothing is learned from them."""
    prepared: Location | None = None
    """The prepared dataset of the store; absent: that of `source.run`, else NAME.prepared beside
    the store."""

    def result_keys(self, source_hash: str) -> dict[str, Any]:
        """The keys that decide what is found; `source_hash` is that of the store read."""
        left_out = {"name", "source", "store", "train", "seed", "resources", "prepared"}
        own = {k: v for k, v in self.model_dump(mode="json").items() if k not in left_out}
        return {**self.train_keys(source_hash), **own, "raw_data": self.prepared is not None}

    def result_identity(self, source_hash: str) -> str:
        return identity(self.result_keys(source_hash))


class ProbeJob(_InMemory):
    """`fieldmill probe`: how well classes can be read off rows, beside raw data and chance."""

    classifiers: tuple[Reader, ...] = ()
    """`linear` (ridge regression to the classes), `knn`, `mlp`, `kernel` (the same regression on
    Gaussian kernels: for few rows), and for weights of per-sample networks `equivariant` (blind to
    the order of hidden units); empty: the first three."""
    neighbors: int = Field(5, ge=1)
    """Neighbors that vote in `knn`."""
    retrieved: int = Field(10, ge=1)
    """The k of mAP@k: learned rows that a test row retrieves."""
    width: int = Field(256, ge=1)
    """Units of the two hidden layers of `mlp`."""
    channels: int = Field(24, ge=1)
    """Channels of the three layers of `equivariant`."""
    probes: int = Field(16, ge=0)
    """Learned coordinates at which `equivariant` watches every unit (Kofinas et al. 2024); 0: it
    reads weights alone (NFN)."""
    shuffles: int = Field(3, ge=1)
    """Times that labels are shuffled for the figure of chance: where classes are far apart, each
    falls to one answer as a whole, so one time says little."""
    flips: bool = True
    """`equivariant` learns from networks of sines with the sign of random units turned: sin is odd,
    so the function stays."""
    raw: bool = True
    """Also classify the raw data: pixels, or occupied cells of surface points."""
    raw_side: int = Field(32, ge=2)
    """Longest side of raw pictures: larger ones are reduced."""
    raw_cells: int = Field(8, ge=2)
    """Cells an axis into which surface points are counted."""
    raw_points: int = Field(1024, ge=16)
    """Surface points that the point network sees, 256 of them in a step."""

    @field_validator("classifiers")
    @classmethod
    def _once_each(cls, value: tuple[Reader, ...]) -> tuple[Reader, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"names twice what is done once: {', '.join(value)}")
        return value


class PartLabels(Schema):
    """Where the class of a point or pixel comes from."""

    kind: Literal["parts", "masks"] = "parts"
    """`parts`: named parts or materials of the shapes, stored by ingest; `masks`: pictures of class
    numbers, one a sample."""
    masks: Location | None = None
    """Folder of masks named as the samples, e.g. `cats/1.jpg` -> `cats/1.png`."""
    names: dict[str, str] = {}
    """Part -> class; a name may be a pattern (`PIN*`, `"*"`), of which the first that fits counts;
    parts that none fits have their own name, without a number at its end (`leg 3` -> `leg`)."""
    ignore: tuple[str, ...] = ()
    """Classes (of masks: numbers) that are neither learned nor measured."""

    @model_validator(mode="after")
    def _masks_are_somewhere(self) -> PartLabels:
        if (self.kind == "masks") != (self.masks is not None):
            raise ValueError(
                "labels.masks: name the folder of masks with kind: masks, and only there"
            )
        return self


class SegmentJob(_InMemory):
    """`fieldmill segment`: classes of points or pixels, from fields and a few labeled samples."""

    labels: PartLabels = PartLabels()
    labelled: int = Field(10, ge=1)
    """Samples whose labels are learned from: seeded, from `source.split`."""
    spread: bool = True
    """They are taken from the classes of samples in turn, as far as samples have classes."""
    measured: int = Field(200, ge=1)
    """Most samples that are measured, seeded, from `test`."""
    surroundings: tuple[PositiveFloat, ...] = (0.02, 0.05, 0.1, 0.25, 0.5)
    """Distances (scene units) at which heads on fields also look around each point; empty: they
    know the features of the point alone."""
    whole: bool = True
    """Also train from scratch a network that sees whole samples: a U-Net of pictures, a PointNet of
    points."""
    raw_side: int = Field(64, ge=8)
    """Longest side of the pictures that the U-Net sees."""
    points: int = Field(1024, ge=16)
    """Most points or pixels of a sample, in learning and in measuring."""
    width: int = Field(128, ge=1)
    """Units of the two hidden layers of the network that is trained from scratch."""
    train: Steps = Steps(steps=500, batch=4096, rate=5e-3, weight_decay=1e-4)
    """Of the linear head and of the network from scratch; `batch` counts points."""
