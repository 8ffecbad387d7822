"""Layer tables of distance fields that start as a sphere (SAL, Atzmon & Lipman 2020; IGR)."""

from __future__ import annotations

import math

from pipeline.fields.activations import Activation, Identity
from pipeline.fields.initializers import geometric_hidden, geometric_last
from pipeline.fields.mlp import Layer


def distance_layers(
    inputs: int,
    width: int,
    depth: int,
    activation: Activation,
    *,
    radius: float = 0.5,
    slope: float = 1.0,
    std: float = 1e-5,
    skip: int | None = None,
    weight_norm: bool = False,
    geometric: bool = True,
) -> list[Layer]:
    """`depth` hidden layers and a linear one, whose field starts near slope (|x| - radius).

    Args:
        inputs: Width of code and coordinates; the sphere lies in this whole space, so codes should
            start near zero.
        activation: A ReLU, or a softplus that is close to one.
        radius: Of the sphere that is the first zero set.
        slope: Length of the first gradient.
        std: Noise of the last layer's weights.
        skip: Hidden layer (from 0) whose input also gets the network's, both divided by sqrt 2.
        weight_norm: Weight normalization of the hidden layers.
        geometric: Whether to start so at all; otherwise as `torch.nn.Linear`.
    """
    if skip is not None and not 0 < skip < depth:
        raise ValueError(f"skip: {skip} is not a hidden layer 1 .. {depth - 1}")
    if skip is not None and width - inputs < 1:
        raise ValueError(f"width {width} leaves no room for a skip of {inputs} inputs")
    layers = []
    for i in range(depth):
        outputs = width - inputs if skip == i + 1 else width
        layers.append(
            Layer(
                outputs,
                activation,
                geometric_hidden(outputs) if geometric else None,
                skip=skip == i,
                skip_scale=math.sqrt(0.5) if skip == i else 1.0,
                weight_norm=weight_norm,
            )
        )
    last = geometric_last(width, radius=radius, slope=slope, std=std) if geometric else None
    return [*layers, Layer(1, Identity(), last)]
