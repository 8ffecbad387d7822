"""One multilayer perceptron from a table of layers, for per-sample and shared weights alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.fields.activations import Activation, Identity, Sine, describe_activation
from pipeline.fields.initializers import Initializer
from pipeline.fields.linear import Linear


@dataclass(frozen=True)
class Layer:
    """One line of the table."""

    width: int
    activation: Activation = field(default_factory=Identity)
    start: dict[str, Initializer] | None = None
    """Rules of weight and bias; absent: as `torch.nn.Linear`."""
    skip: bool = False
    """The network's input is concatenated to this layer's input."""
    skip_scale: float = 1.0
    """Factor of this layer's whole input where there is a skip: 1 / sqrt(2) in SAL and IGR."""
    weight_norm: bool = False
    dropout: float = 0.0
    """After the activation, in training only."""


class MLP(nn.Module):
    """Layers in order. `forward` takes the parts of its input: coordinates, a code as [n, 1, z]."""

    def __init__(self, inputs: int, layers: Sequence[Layer]):
        super().__init__()
        self.table = tuple(layers)
        widths = [inputs, *(layer.width for layer in layers)]
        self.layers = nn.ModuleList(
            Linear(
                widths[i] + (inputs if layer.skip else 0),
                layer.width,
                start=layer.start,
                weight_norm=layer.weight_norm,
                scale=layer.activation.omega_0 if isinstance(layer.activation, Sine) else 1.0,
            )
            for i, layer in enumerate(layers)
        )

    def forward(self, *parts: Tensor) -> Tensor:
        hidden = parts
        for row, layer in zip(self.table, self.layers):
            if row.skip:
                hidden = (*hidden, *parts)
                if row.skip_scale != 1.0:
                    hidden = tuple(part * row.skip_scale for part in hidden)
            x = row.activation(layer(*hidden))
            if row.dropout and self.training:
                x = F.dropout(x, row.dropout)
            hidden = (x,)
        return hidden[0]

    def describe(self, prefix: str) -> list[dict[str, Any]]:
        """The layers in order of evaluation: y = activation(scale (W [x, skip] + b)).

        With `skip_scale` k other than 1: W (k [x, skip]).
        """
        return [
            {
                **layer.describe(f"{prefix}.layers.{i}" if prefix else f"layers.{i}"),
                **describe_activation(row.activation),
                "skip": row.skip,
                **({"skip_scale": row.skip_scale} if row.skip_scale != 1.0 else {}),
                "dropout": row.dropout,
            }
            for i, (row, layer) in enumerate(zip(self.table, self.layers))
        ]
