"""Statistics of rows: how a prior normalizes what it learns from; principal components.

They are kept with the prior, never in the store that the rows come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 1e-12
"""Relative to the largest: smaller deviations count as none."""
MOST_ENTRIES = 4_096
"""Entries of a row up to which all pairs are correlated."""


@dataclass(frozen=True)
class Normalization:
    """An affine map between rows as stored and rows as learned; exact both ways on its range."""

    mean: Float[Tensor, "*shape"]
    scale: Float[Tensor, "..."]
    """Standard deviations; broadcast against a row. With `axes`: of the components."""
    axes: Float[Tensor, "k d"] | None = None
    """Principal directions of a row as one vector, unit length, the widest first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row as learned."""
        return tuple(self.mean.shape) if self.axes is None else (len(self.axes),)

    def forth(self, rows: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *normalized"]:
        """Stored -> learned."""
        centered = rows - self.mean
        if self.axes is not None:
            centered = centered.flatten(1) @ self.axes.T
        return centered / self.scale

    def back(self, rows: Float[Tensor, "n *normalized"]) -> Float[Tensor, "n *shape"]:
        """Learned -> stored."""
        scaled = rows * self.scale
        if self.axes is not None:
            scaled = (scaled @ self.axes).reshape(len(rows), *self.mean.shape)
        return scaled + self.mean

    def log_volume(self) -> float:
        """log |d stored / d learned|: subtract it from a log-density of learned rows."""
        each = torch.broadcast_to(self.scale.double().log(), self.shape)
        return float(each.sum())

    def to(self, device: str | torch.device) -> Normalization:
        axes = None if self.axes is None else self.axes.to(device)
        return Normalization(self.mean.to(device), self.scale.to(device), axes)

    def save(self) -> bytes:
        from safetensors.torch import save

        tensors = {"mean": self.mean, "scale": self.scale}
        if self.axes is not None:
            tensors["axes"] = self.axes
        return save({name: value.contiguous() for name, value in tensors.items()})

    @classmethod
    def load(cls, data: bytes) -> Normalization:
        from safetensors.torch import load

        found = load(data)
        return cls(found["mean"], found["scale"], found.get("axes"))


class Moments:
    """Count, mean and (up to `MOST_ENTRIES`) covariance of rows that come in parts, in float64."""

    def __init__(self, shape: tuple[int, ...], *, pairs: bool):
        self.shape, self.count = shape, 0
        size = int(torch.Size(shape).numel())
        if pairs and size > MOST_ENTRIES:
            raise ValueError(
                f"rows of {size} entries have too many pairs to whiten at once (most: "
                f"{MOST_ENTRIES}); keep them in memory (source.resident_bytes) or set "
                "method.normalize to entries"
            )
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.square = torch.zeros((size, size) if pairs else (size,), dtype=torch.float64)

    def add(self, rows: Float[Tensor, "n *shape"]) -> None:
        """Takes rows in (Chan et al. 1979: parts are merged by their means)."""
        part = rows.detach().to("cpu", torch.float64).flatten(1)
        count = self.count + len(part)
        mean = part.mean(0)
        shift = mean - self.mean
        part = part - mean
        weight = self.count * len(part) / count
        if self.square.dim() == 2:
            self.square += part.T @ part + weight * torch.outer(shift, shift)
        else:
            self.square += (part**2).sum(0) + weight * shift**2
        self.mean += shift * (len(part) / count)
        self.count = count

    @property
    def variance(self) -> Tensor:
        square = self.square.diagonal() if self.square.dim() == 2 else self.square
        return square / max(self.count, 1)


def normalization_of(
    parts: Iterable[Float[Tensor, "_ *shape"]],
    shape: tuple[int, ...],
    how: str,
    components: int | None = None,
) -> Normalization:
    """Statistics of rows in one pass over their parts.

    Args:
        how: entries, channels, whole, whiten or none.
        components: With whiten: principal components kept.
    """
    if components is not None and how != "whiten":
        raise ValueError(f"method.components has no effect with normalize={how}; set it to whiten")
    if how == "none":
        return Normalization(torch.zeros(shape), torch.ones(()))
    if how == "whiten":
        return _whitening(torch.cat(list(parts)), components)
    moments = Moments(shape, pairs=False)
    for part in parts:
        moments.add(part)
    mean, variance = moments.mean.reshape(shape), moments.variance.reshape(shape)
    if how == "entries":
        scale = variance.sqrt()
    else:
        axes = tuple(range(len(shape) - 1)) if how == "channels" else tuple(range(len(shape)))
        wide = mean.mean(axes, keepdim=True).expand(shape) if axes else mean
        scale = (
            (variance + (mean - wide) ** 2).mean(axes, keepdim=True).sqrt()
            if axes
            else variance.sqrt()
        )
        mean = wide
        if how == "whole":
            scale = scale.reshape(())
    return Normalization(mean.float().contiguous(), _floored(scale).float())


def _floored(scale: Tensor) -> Tensor:
    """Deviations with 1 where there is none: such entries stay what they are."""
    return torch.where(scale > LEAST * scale.max().clamp(min=LEAST), scale, torch.ones_like(scale))


def shrinkage(values: Float[Tensor, "k"], size: int, count: float) -> float:
    """Share of a covariance of `size` entries and `count` rows that becomes a ball (oracle
    approximating shrinkage, Chen et al. 2010, eq. 23); values: its eigenvalues."""
    square, whole = float(values.square().sum()), float(values.sum()) ** 2
    below = (count + 1 - 2 / size) * (square - whole / size)
    if below <= 0:
        return 1.0 if size > 1 else 0.0
    return min(1.0, ((1 - 2 / size) * square + whole) / below)


def _whitening(rows: Float[Tensor, "n *shape"], components: int | None) -> Normalization:
    found = principal_components(rows, components)
    return Normalization(found.mean, found.deviation, found.axes)


@dataclass(frozen=True)
class Components:
    """Principal components of rows."""

    mean: Float[Tensor, "*shape"]
    axes: Float[Tensor, "k d"]
    """Unit directions, the widest first."""
    deviation: Float[Tensor, "k"]
    """Standard deviation along each."""
    explained: Float[Tensor, "k"]
    """Share of the variance that the first 1, 2, ... explain."""

    def project(self, rows: Float[Tensor, "n *shape"]) -> Float[Tensor, "n k"]:
        """Coordinates of rows along the axes."""
        return (rows - self.mean).flatten(1) @ self.axes.T

    def note(self, most: int = 32) -> str:
        """Deviations and shares of the first components as JSON."""
        kept = {
            "deviation": [float(f"{v:.4g}") for v in self.deviation[:most]],
            "explained": [float(f"{v:.4g}") for v in self.explained[:most]],
        }
        return json.dumps({**kept, "components": len(self.axes)})


def principal_components(
    rows: Float[Tensor, "n *shape"], components: int | None = None
) -> Components:
    """Principal components of rows, by the smaller of the two Gram matrices.

    Args:
        components: How many; absent: as many as have a variance.
    """
    flat = rows.flatten(1).double()
    mean = flat.mean(0)
    flat = flat - mean
    total = (flat**2).sum()
    if flat.shape[1] <= len(flat):
        values, vectors = torch.linalg.eigh(flat.T @ flat)
        axes = vectors.T
    else:
        values, vectors = torch.linalg.eigh(flat @ flat.T)
        axes = vectors.T @ flat
    order = torch.argsort(values, descending=True)
    values, axes = values[order].clamp(min=0), axes[order]
    kept = int((values > 1e-10 * values[0].clamp(min=1e-300)).sum())
    if components is not None:
        if components > kept:
            raise ValueError(
                f"{len(rows)} rows of {flat.shape[1]} entries have {kept} principal components, "
                f"{components} were asked for"
            )
        kept = components
    axes = axes[:kept] / axes[:kept].norm(dim=1, keepdim=True)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.sign(largest)  # a sign of its own for every axis, whatever the solver gives
    return Components(
        mean.reshape(rows.shape[1:]).float(),
        axes.float(),
        (values[:kept] / len(rows)).sqrt().float(),
        (values[:kept].cumsum(0) / total.clamp(min=1e-300)).float(),
    )
