"""A network on the weights of networks that is blind to the order of their hidden units.

The layer is that of NFN's NP variant (Zhou et al. 2023, "Permutation Equivariant Neural
Functionals"; DWSNets, Navon et al. 2023, have the same maps): every weight sees itself, the means
of its row and column and of those of the layers beside, the biases, and the means of all layers.
Inputs and outputs of a network are no hidden units: learned encodings tell them apart.

With probes, every unit is also told by what it gives at a few learned coordinates (Kofinas et al.
2024, "Graph neural networks for learning equivariant representations of neural networks"): that
says the same of weights that look different, but are the same function of sines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.draw import Draw
from pipeline.fields.activations import (
    Activation,
    Identity,
    LeakyClip,
    LeakyRelu,
    Relu,
    Sigmoid,
    Sine,
    Softplus,
    Tanh,
)
from pipeline.fields.linear import linear
from schemas.store import FieldSpec

ACTIVATIONS: tuple[type, ...] = (
    Identity,
    Relu,
    LeakyRelu,
    LeakyClip,
    Softplus,
    Tanh,
    Sigmoid,
    Sine,
)

Weights = tuple[list[Tensor], list[Tensor]]
"""Of each layer the weight [n, o, i, c] and the bias [n, o, c], with c channels."""


@dataclass(frozen=True)
class Chain:
    """Where the layers of a plain perceptron lie in a flat row."""

    widths: tuple[int, ...]
    """Inputs, hidden units of each layer, outputs."""
    weights: tuple[int, ...]
    """Offset of each weight [o, i]."""
    biases: tuple[int, ...]
    odd: tuple[bool, ...]
    """Of each hidden layer, whether turning the sign of a unit's weights turns its output: sine."""
    size: int
    activations: tuple[Activation, ...] = ()
    """Of each layer, the last too; sines carry the factor of their layer. Empty: not known, and
    units cannot be probed."""

    def units(
        self, rows: Float[Tensor, "n p"], coords: Float[Tensor, "q d"]
    ) -> list[Float[Tensor, "n o q"]]:
        """What the units of each layer give at coordinates."""
        if not self.activations:
            raise ValueError("the activations of these networks are not known; set probes=0")
        weights, biases = self.split(rows)
        hidden, found = coords.expand(len(rows), -1, -1), []
        for weight, bias, activation in zip(weights, biases, self.activations):
            hidden = linear(hidden, weight[..., 0], bias[..., 0])
            if isinstance(activation, Sine):
                hidden = hidden * activation.omega_0
            hidden = activation(hidden)
            found.append(hidden.transpose(1, 2))
        return found

    def split(self, rows: Float[Tensor, "n p"]) -> Weights:
        """Flat rows as weights with one channel; views."""
        weights, biases = [], []
        for layer, (start, bias) in enumerate(zip(self.weights, self.biases)):
            i, o = self.widths[layer : layer + 2]
            weights.append(rows[:, start : start + o * i].reshape(-1, o, i, 1))
            biases.append(rows[:, bias : bias + o].reshape(-1, o, 1))
        return weights, biases

    def join(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Float[Tensor, "n p"]:
        """The inverse of `split`."""
        rows = weights[0].new_zeros(len(weights[0]), self.size)
        for start, bias, w, b in zip(self.weights, self.biases, weights, biases):
            rows[:, start : start + w[0].numel()] = w.flatten(1)
            rows[:, bias : bias + b[0].numel()] = b.flatten(1)
        return rows

    def reorder(
        self, rows: Float[Tensor, "n p"], orders: Sequence[Int[Tensor, "n h"]]
    ) -> Float[Tensor, "n p"]:
        """The same functions with the units of each hidden layer in another order."""
        weights, biases = self.split(rows)
        for layer, order in enumerate(orders):
            at = torch.arange(len(rows))[:, None]
            weights[layer], biases[layer] = weights[layer][at, order], biases[layer][at, order]
            weights[layer + 1] = weights[layer + 1].transpose(1, 2)[at, order].transpose(1, 2)
        return self.join(weights, biases)

    def turn(
        self, rows: Float[Tensor, "n p"], signs: Sequence[Float[Tensor, "n h"]]
    ) -> Float[Tensor, "n p"]:
        """The rows with units of odd layers turned (-1) or as they are (1): the same functions."""
        weights, biases = self.split(rows)
        for layer, sign in enumerate(signs):
            if self.odd[layer]:
                weights[layer] = weights[layer] * sign[:, :, None, None]
                biases[layer] = biases[layer] * sign[:, :, None]
                weights[layer + 1] = weights[layer + 1] * sign[:, None, :, None]
        return self.join(weights, biases)

    def random_orders(self, count: int, random: torch.Generator) -> list[Int[Tensor, "n h"]]:
        hidden = self.widths[1:-1]
        return [torch.rand(count, width, generator=random).argsort(1) for width in hidden]

    def random_signs(self, count: int, random: torch.Generator) -> list[Float[Tensor, "n h"]]:
        hidden = self.widths[1:-1]
        return [torch.randint(2, (count, w), generator=random) * 2.0 - 1 for w in hidden]

    def drawn_signs(self, draw: Draw) -> list[Float[Tensor, "n h"]]:
        """As `random_signs`, from the draw of the rows."""
        hidden = self.widths[1:-1]
        return [draw.integers(f"sign{k}", 2, w) * 2.0 - 1 for k, w in enumerate(hidden)]


def chain_of(spec: FieldSpec, table: dict[str, Any], size: int) -> Chain:
    """The layers of a store's per-sample networks; ValueError where they are no plain chain."""
    found = [layer for layer in spec.layers if layer["kind"] == "linear"]
    reason = None
    for layer in found:
        if layer.get("skip"):
            reason = "layers with a skip"
        elif layer.get("weight_norm"):
            reason = "weight-normalized layers"
        elif layer["weight"] not in table or layer.get("bias") not in table:
            reason = f"a layer '{layer['weight']}' that is not a row's own"
    own = {name for layer in found for name in (layer["weight"], layer.get("bias"))}
    strange = sorted(name for name, place in table.items() if isinstance(place, dict)
                     and name not in own)  # fmt: skip
    if strange:
        reason = f"parameters besides linear layers ({', '.join(strange[:3])})"
    if len(found) < 2:
        reason = "fewer than two linear layers"
    if reason is not None:
        raise ValueError(
            f"classifiers: 'equivariant' reads plain perceptrons; those of '{spec.method}' have "
            f"{reason}; use linear, knn or mlp"
        )
    return Chain(
        widths=(int(found[0]["inputs"]), *(int(layer["outputs"]) for layer in found)),
        weights=tuple(int(table[layer["weight"]]["offset"]) for layer in found),
        biases=tuple(int(table[layer["bias"]]["offset"]) for layer in found),
        odd=tuple(layer.get("activation") in ("sine", "sin", "tanh") for layer in found[:-1]),
        size=size,
        activations=_activations(found),
    )


def _activations(layers: Sequence[dict[str, Any]]) -> tuple[Activation, ...]:
    """Those that layers describe; nothing where one is not known here."""
    kinds = {kind.__name__.lower(): kind for kind in ACTIVATIONS}
    made = []
    for layer in layers:
        kind = kinds.get(str(layer.get("activation", "identity")))
        if kind is None or (kind is not Sine and layer.get("scale", 1.0) != 1.0):
            return ()
        keys = [field.name for field in fields(kind) if field.name in layer]
        made.append(kind(**{key: layer[key] for key in keys}))
    return tuple(made)


class EquivariantLayer(nn.Module):
    """New channels of every weight and bias from old ones; moves with any order of hidden units."""

    def __init__(self, layers: int, inputs: int, outputs: int):
        super().__init__()
        c = inputs
        self.each = nn.ModuleList(nn.Linear(c, outputs) for _ in range(layers))
        # a row is an output unit: own row, own bias, and the column of the layer after
        self.rows = nn.ModuleList(
            nn.Linear((2 + (k < layers - 1)) * c, outputs, bias=False) for k in range(layers)
        )
        # a column is an input unit: own column, and row and bias of the layer before
        self.columns = nn.ModuleList(
            nn.Linear((1 + 2 * (k > 0)) * c, outputs, bias=False) for k in range(layers)
        )
        self.biases = nn.ModuleList(
            nn.Linear((2 + (k < layers - 1)) * c, outputs) for k in range(layers)
        )
        self.whole = nn.ModuleList(
            nn.Linear(2 * layers * c, 2 * outputs, bias=False) for _ in range(layers)
        )

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> Weights:
        last = len(weights) - 1
        rows, columns = [w.mean(2) for w in weights], [w.mean(1) for w in weights]
        means = torch.cat([x.mean(1) for x in (*rows, *biases)], -1)
        new_weights, new_biases = [], []
        for k, weight in enumerate(weights):
            after = [columns[k + 1]] if k < last else []
            before = [rows[k - 1], biases[k - 1]] if k else []
            unit = torch.cat([rows[k], biases[k], *after], -1)
            of_weight, of_bias = self.whole[k](means).chunk(2, -1)
            new_weights.append(
                self.each[k](weight)
                + self.rows[k](unit)[:, :, None]
                + self.columns[k](torch.cat([columns[k], *before], -1))[:, None]
                + of_weight[:, None, None]
            )
            new_biases.append(self.biases[k](unit) + of_bias[:, None])
        return new_weights, new_biases


class WeightNetwork(nn.Module):
    """Encodings of scalars, equivariant layers, means over units, a perceptron.

    Args:
        statistics: Mean and deviation of each weight and bias as a whole, [2 layers, 2]: those of
            entries would tell units apart.
        frequencies: Random Fourier features of every scalar (NFN), besides itself.
        probes: Learned coordinates at which units are watched; 0: weights alone (NFN).
    """

    def __init__(
        self,
        chain: Chain,
        outputs: int,
        *,
        statistics: Float[Tensor, "k 2"],
        channels: int = 24,
        depth: int = 3,
        frequencies: int = 8,
        scale: float = 0.3,
        dropout: float = 0.0,
        probes: int = 0,
    ):
        super().__init__()
        self.chain = chain
        self.coords = nn.Parameter(torch.rand(probes, chain.widths[0]) * 2 - 1)
        self.watch = nn.ModuleList(
            nn.Linear(probes, channels) for _ in range(len(chain.weights) if probes else 0)
        )
        layers = len(chain.weights)
        self.register_buffer("statistics", statistics)
        self.register_buffer("frequencies", torch.randn(frequencies) * scale)
        self.encode = nn.ModuleList(
            nn.Linear(1 + 2 * frequencies, channels) for _ in range(2 * layers)
        )
        self.of_inputs = nn.Parameter(torch.randn(chain.widths[0], channels) * 0.5)
        self.of_outputs = nn.Parameter(torch.randn(chain.widths[-1], channels) * 0.5)
        self.layers = nn.ModuleList(
            EquivariantLayer(layers, channels, channels) for _ in range(depth)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.LayerNorm(channels) for _ in range(2 * layers)) for _ in range(depth)
        )
        pooled = 4 * layers * channels
        self.head = nn.Sequential(
            nn.Linear(pooled, 4 * channels), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(4 * channels, outputs),
        )  # fmt: skip

    def _encoded(self, part: int, values: Float[Tensor, "*n 1"]) -> Float[Tensor, "*n c"]:
        mean, deviation = self.statistics[part]
        x = (values - mean) / deviation
        angles = 2 * math.pi * x * self.frequencies
        return self.encode[part](torch.cat([x, angles.sin(), angles.cos()], -1))

    def forward(self, rows: Float[Tensor, "n p"]) -> Float[Tensor, "n k"]:
        weights, biases = self.chain.split(rows)
        count = len(weights)
        weights = [self._encoded(k, w) for k, w in enumerate(weights)]
        biases = [self._encoded(count + k, b) for k, b in enumerate(biases)]
        weights[0] = weights[0] + self.of_inputs
        weights[-1] = weights[-1] + self.of_outputs[:, None]
        biases[-1] = biases[-1] + self.of_outputs
        if len(self.watch):
            seen = self.chain.units(rows, self.coords)
            biases = [b + watch(u) for b, watch, u in zip(biases, self.watch, seen)]
        for layer, norms in zip(self.layers, self.norms):
            moved, shifted = layer(weights, biases)
            act = nn.functional.silu
            weights = [w + act(norms[k](m)) for k, (w, m) in enumerate(zip(weights, moved))]
            biases = [b + act(norms[count + k](m)) for k, (b, m) in enumerate(zip(biases, shifted))]
        pooled = [w.mean((1, 2)) for w in weights] + [b.mean(1) for b in biases]
        pooled += [w.amax((1, 2)) for w in weights] + [b.amax(1) for b in biases]
        return self.head(torch.cat(pooled, -1))


def layer_statistics(chain: Chain, rows: Float[Tensor, "n p"]) -> Float[Tensor, "k 2"]:
    """Mean and deviation of each weight, then of each bias, over rows and entries."""
    weights, biases = chain.split(rows)
    found = [torch.stack([x.mean(), x.std().clamp(min=1e-8)]) for x in (*weights, *biases)]
    return torch.stack(found)
