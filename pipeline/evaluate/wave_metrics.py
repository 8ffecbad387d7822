"""How far a fitted wave is from the reference of its problem, at the nodes that both cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.evaluate.prepared_lines import Line
from schemas.equations import LAYER
from schemas.store import ColumnSpec

WAVE_METRICS = (
    ColumnSpec(
        name="relative_l2",
        dtype="float32",
        description="|field - reference| / |reference|, roots of sums of squares (of both parts of "
        "complex values) over the reference's nodes in the domain; of waves those that the start "
        "determines, |x_i| + t <= 1; no phase or size is fitted",
    ),
    ColumnSpec(
        name="relative_l2_conjugate",
        dtype="float32",
        description="the same against the complex conjugate of the reference, of which a field "
        "whose waves come in is near; NaN for waves in time",
    ),
)


@dataclass(frozen=True)
class Reference:
    """The answer of a problem at the nodes of a grid."""

    coords: Float[np.ndarray, "p d"]
    """In the coordinates of the field: (t,) x (, y)."""
    values: Float[np.ndarray, "*grid c"]
    determined: Bool[np.ndarray, "*grid"]
    """Nodes at which the problem alone decides the answer."""


def reference_of(line: Line) -> Reference:
    """The reference of a line of a prepared table of equations."""
    shape = line["reference_shape"].as_py()
    values = np.frombuffer(line["reference"].as_buffer(), "<f4").reshape(shape)
    waves = line["equation"].as_py() == "wave"
    axes = grid_axes(waves, line["duration"].as_py(), shape[:-1])
    coords = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    determined = np.ones(shape[:-1], bool)
    if waves:
        determined = np.abs(coords[..., 1:]).max(-1) + coords[..., 0] <= 1 + 1e-6
    return Reference(coords.reshape(-1, len(axes)).astype(np.float32), values, determined)


def grid_axes(waves: bool, duration: float, nodes: list[int]) -> list[np.ndarray]:
    """Evenly spaced coordinates of a field over its domain, an array an axis."""
    if waves:
        times, *space = nodes
        return [np.linspace(0, duration, times), *(np.linspace(-1, 1, n) for n in space)]
    return [np.linspace(LAYER - 1, 1 - LAYER, n) for n in nodes]


def measure_wave(
    ask: Callable[[Float[Tensor, "p d"]], dict[str, Tensor]], line: Line
) -> dict[str, float]:
    """`WAVE_METRICS` of one field."""
    reference = reference_of(line)
    quantities = ask(torch.from_numpy(reference.coords))
    if "wave" not in quantities:
        raise ValueError(f"the field gives {sorted(quantities)}; equations need 'wave'")
    found = quantities["wave"].float().cpu().numpy().reshape(reference.values.shape)
    found, wanted = (v[reference.determined] for v in (found, reference.values))
    metrics = {"relative_l2": relative(found, wanted)}
    if wanted.shape[-1] == 2:
        conjugate = wanted * np.array([1, -1], np.float32)
        metrics["relative_l2_conjugate"] = relative(found, conjugate)
    return metrics


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Length of the difference by that of what is wanted."""
    return float(np.linalg.norm(found.astype(float) - wanted) / np.linalg.norm(wanted))
