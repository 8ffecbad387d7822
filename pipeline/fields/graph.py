"""Networks that are graphs: nodes with an activation each, weighted edges (CPPN, Stanley 2007).

A sample owns a population of graphs over common slots: first the inputs, then the outputs, then
hidden nodes in the order in which evolution made them. A slot is a historical marking (NEAT,
Stanley & Miikkulainen 2002): equal slots are the same node in every graph. Each slot has a place
between 0 (inputs) and 1 (outputs); edges lead from lower to higher places, so there is no cycle.

Axis letters beside the usual: `g` graphs of a sample's population, `k` slots, `i` inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.fields.latent import IntegerLatent, Latent

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda x: torch.sigmoid(5 * x),
    "tanh": lambda x: torch.tanh(2.5 * x),
    "gaussian": lambda x: torch.exp(-5 * x.square()),
    "sine": torch.sin,
    "absolute": torch.abs,
    "identity": lambda x: x,
    "relu": torch.relu,
}
"""Steep where CPPNs usually are; a node's number in a store is its place in this table."""
NAMES = tuple(FUNCTIONS)


@dataclass(frozen=True)
class Mixed:
    """An activation of `FUNCTIONS` for each unit of a layer, in turn."""

    functions: tuple[str, ...] = NAMES

    def __call__(self, x: Tensor) -> Tensor:
        number = torch.arange(x.shape[-1], device=x.device) % len(self.functions)
        parts = [torch.where(number == i, FUNCTIONS[f](x), 0) for i, f in enumerate(self.functions)]
        return torch.stack(parts).sum(0)


NOWHERE = 2.0
"""The place of a slot that is not made yet."""


def evaluate_graphs(
    inputs: Float[Tensor, "n p i"],
    weight: Float[Tensor, "n g k k"],
    enabled: Int[Tensor, "n g k k"],
    function: Int[Tensor, "n g k"],
    place: Float[Tensor, "n k"],
    outputs: int,
) -> Float[Tensor, "n g p c"]:
    """Values of the output nodes, slots `i .. i + outputs - 1`.

    Args:
        inputs: Values of the input nodes.
        weight: Weight of the edge from the last axis' slot to the one before.
        enabled: 1 where the edge is there.
        function: Number of each node's activation, as in `FUNCTIONS`.
        place: Order of evaluation.
    """
    n, points, count = inputs.shape
    graphs, slots = function.shape[1:]
    order = place.argsort(dim=1, stable=True)
    by_row = order[:, None, :, None].expand(n, graphs, slots, slots)
    edges = (weight * enabled).gather(2, by_row).gather(3, by_row.transpose(2, 3))
    kind = function.gather(2, order[:, None].expand(n, graphs, slots))
    chosen = nn.functional.one_hot(kind.long(), len(FUNCTIONS)).to(inputs.dtype)
    values = [inputs[:, None, :, i].expand(n, graphs, points) for i in range(count)]
    for t in range(count, slots):
        before = torch.stack(values, -1)
        total = (before * edges[:, :, t, None, :t]).sum(-1)
        each = torch.stack([function(total) for function in FUNCTIONS.values()], -1)
        values.append((each * chosen[:, :, t, None]).sum(-1))
    back = order.argsort(dim=1)[:, count : count + outputs]
    found = torch.stack(values, -1)
    return found.gather(3, back[:, None, None].expand(n, graphs, points, outputs))


class Graph(nn.Module):
    """A population of graphs a sample, the best first; calling it evaluates the best.

    Args:
        inputs: Number of input nodes.
        outputs: Number of output nodes, sigmoids: values in [0, 1].
        population: Graphs a sample.
        capacity: Slots; graphs stop growing when all are made.
    """

    def __init__(self, inputs: int, outputs: int, population: int, capacity: int):
        super().__init__()
        if capacity <= inputs + outputs:
            raise ValueError(
                f"capacity: {capacity} slots leave none for hidden nodes beside {inputs} inputs "
                f"and {outputs} outputs"
            )
        self.inputs, self.outputs = inputs, outputs
        self.population, self.capacity = population, capacity
        edges = (population, capacity, capacity)
        axes = ("graph", "slot_to", "slot_from")
        self.weight = Latent(edges, dims=axes)
        self.enabled = IntegerLatent(edges, dims=axes)
        self.function = IntegerLatent(
            (population, capacity), dims=axes[:2], attributes={"functions": list(NAMES)}
        )
        self.place = Latent((capacity,), trained=False, dims=("slot",))
        self.parents = IntegerLatent((capacity, 2), dims=("slot", "end"))
        self.fitness = Latent((population,), trained=False, dims=("graph",))

    def forward(self, inputs: Float[Tensor, "n p i"]) -> Float[Tensor, "n p c"]:
        best = [latent()[:, :1] for latent in (self.weight, self.enabled, self.function)]
        inputs = inputs.expand(len(best[0]), -1, -1)
        return evaluate_graphs(inputs, *best, self.place(), self.outputs)[:, 0]

    def describe(self, prefix: str) -> list[dict[str, Any]]:
        return [
            {
                "kind": "graph",
                "arrays": [f"latents/{prefix}.{name}" for name, _ in self.named_children()],
                "inputs": self.inputs,
                "outputs": self.outputs,
                "functions": list(NAMES),
                "slots": "inputs, then outputs, then hidden nodes; parents: the edge it split",
                "evaluation": "ascending place; graph 0 is the best",
            }
        ]


class PatternField(nn.Module):
    """A network of (x, y, radius, 1) or some of them: what a CPPN sees of a point.

    The network is named `graph` if it is a `Graph`, else `net`.
    """

    def __init__(self, net: nn.Module, inputs: Sequence[str], *, aspect: float, scale: float):
        super().__init__()
        self.name = "graph" if isinstance(net, Graph) else "net"
        self.add_module(self.name, net)
        self.inputs, self.aspect, self.scale = tuple(inputs), aspect, scale

    def inputs_of(self, coords: Float[Tensor, "*n p 2"]) -> Float[Tensor, "*n p i"]:
        """Values of the input nodes; x and y run over the same length where the picture is square,
        the shorter side from -scale to scale."""
        shorter = min(self.aspect, 1.0)
        x = coords[..., 0] * (self.scale * self.aspect / shorter)
        y = coords[..., 1] * (self.scale / shorter)
        parts = {"x": x, "y": y, "radius": (x.square() + y.square()).sqrt()}
        return torch.stack([*(parts[name] for name in self.inputs), torch.ones_like(x)], -1)

    def forward(self, coords: Float[Tensor, "*n p 2"]) -> Float[Tensor, "*n p c"]:
        return getattr(self, self.name)(self.inputs_of(coords))

    def describe(self) -> list[dict[str, Any]]:
        first = {"kind": "pattern_inputs", "inputs": [*self.inputs, "one"]}
        first |= {"aspect": self.aspect, "scale": self.scale}
        return [first, *getattr(self, self.name).describe(self.name)]
