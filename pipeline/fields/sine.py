"""Layer tables of sinusoidal networks (SIREN, Sitzmann et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal

from pipeline.fields.activations import Activation, Identity, Sine, Tanh
from pipeline.fields.initializers import Uniform
from pipeline.fields.mlp import MLP, Layer


def sine_layers(
    inputs: int,
    width: int,
    depth: int,
    outputs: int,
    *,
    omega_first: float = 30.0,
    omega_hidden: float = 30.0,
    last: Activation | None = None,
) -> list[Layer]:
    """`depth` sine layers and a linear one, started as the authors' code starts them.

    First weight uniform in +-1/inputs (the published text had another rule; the code is right), all
    others, the last too, in +-sqrt(6 / width) / omega_hidden, biases in +-1/sqrt(fan in): then
    pre-activations keep a standard deviation of about 1 at any depth.
    """
    table = []
    for i in range(depth):
        fan_in = inputs if i == 0 else width
        bound = 1 / inputs if i == 0 else math.sqrt(6 / width) / omega_hidden
        start = {"weight": Uniform(bound), "bias": Uniform(1 / math.sqrt(fan_in))}
        table.append(Layer(width, Sine(omega_first if i == 0 else omega_hidden), start))
    start = {
        "weight": Uniform(math.sqrt(6 / width) / omega_hidden),
        "bias": Uniform(1 / math.sqrt(width)),
    }
    return [*table, Layer(outputs, last or Identity(), start)]


def sine_or_tanh(
    activation: Literal["sine", "tanh"],
    inputs: int,
    width: int,
    depth: int,
    outputs: int,
    *,
    omega_first: float,
    omega_hidden: float,
) -> MLP:
    """A network of `sine_layers`, or of tanh layers of the same sizes, started as PyTorch starts
    them: the smooth network with which the paper compares where derivatives are fitted."""
    if activation == "tanh":
        return MLP(inputs, [*[Layer(width, Tanh()) for _ in range(depth)], Layer(outputs)])
    omegas = {"omega_first": omega_first, "omega_hidden": omega_hidden}
    return MLP(inputs, sine_layers(inputs, width, depth, outputs, **omegas))
