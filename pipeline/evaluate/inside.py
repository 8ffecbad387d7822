"""One meaning of inside for all fields: a value that is negative inside and 0 at the surface."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.objectives.occupancy import logit


def level_of(output: dict[str, Any]) -> float:
    """The occupancy (a probability) at the surface of fields with this `output`; 1/2 for others."""
    return float(output["level"]) if output.get("quantity") == "occupancy" else 0.5


def signed_values(quantities: dict[str, Tensor], level: float = 0.5) -> Tensor:
    """What a field says of points, as values that are negative inside: `sdf`, or `level` less the
    occupancy; on logits where the field gives them, since probabilities bend at the surface.
    """
    if "sdf" in quantities:
        return quantities["sdf"]
    if "logits" in quantities:
        return logit(level) - quantities["logits"]
    if "occupancy" in quantities:
        return level - quantities["occupancy"]
    raise ValueError(f"the field gives {sorted(quantities)}; an inside needs 'sdf' or 'occupancy'")
