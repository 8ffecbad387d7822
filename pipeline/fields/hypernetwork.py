"""Hypernetworks: networks that give the weights of another network, the trunk, for each sample.

Any module that takes weights with a leading sample axis serves as trunk. Two fields are built of
them: `HyperField`, whose rows are codes (the weights are made anew wherever it is evaluated), and
`PredictedField`, whose rows are the weights themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.fields.bind import Tensors
from pipeline.fields.initializers import Constant, Initializer, Normal, Uniform
from pipeline.fields.latent import Latent
from pipeline.fields.linear import Linear


@dataclass(frozen=True)
class LastLayer:
    """How the last layer of each network of a hypernetwork starts.

    With PyTorch's own rule the weights of the trunk would start many times too large.
    """

    scale: float = 0.01
    """Factor of Kaiming weights (SIREN, authors' code: 1 / 100; SRN, authors' code: 1 / 10)."""
    bias: Literal["fan_in", "zero"] = "fan_in"
    """`fan_in`: uniform within 1 / (inputs of the trunk's layer), which is then how the weights of
    the trunk start, for every code (SIREN, authors' code)."""

    def rules(self, inputs: int, fan_in: int) -> dict[str, Initializer]:
        bias = Uniform(1 / fan_in) if self.bias == "fan_in" else Constant(0.0)
        return {"weight": Normal(self.scale * math.sqrt(2 / inputs)), "bias": bias}


class WeightsNetwork(nn.Module):
    """A ReLU network from a code to some tensors of a trunk, end to end."""

    def __init__(
        self,
        latent: int,
        width: int,
        depth: int,
        outputs: int,
        *,
        start: dict[str, Initializer],
        norm: bool,
    ):
        super().__init__()
        widths = [latent, *[width] * depth]
        kaiming = [Normal(math.sqrt(2 / inputs)) for inputs in widths[:-1]]
        self.hidden = nn.ModuleList(
            Linear(inputs, width, start={"weight": rule, "bias": Uniform(1 / math.sqrt(inputs))})
            for inputs, rule in zip(widths[:-1], kaiming)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth if norm else 0))
        self.last = Linear(widths[-1], outputs, start=start)

    def forward(self, code: Float[Tensor, "n 1 z"]) -> Float[Tensor, "n w"]:
        x = code
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            x = (self.norms[i](x) if len(self.norms) else x).relu()
        return self.last(x)[:, 0]

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "hidden": [x.describe(f"{prefix}.hidden.{i}") for i, x in enumerate(self.hidden)],
            "norms": [f"{prefix}.norms.{i}" for i in range(len(self.norms))],
            "activation": "relu",
            "last": self.last.describe(f"{prefix}.last"),
        }


class HyperNetwork(nn.Module):
    """A code to all parameters of a trunk, by one ReLU network for each tensor or each layer.

    Args:
        latent: Length of the code.
        trunk: Says which tensors there are, and what they are called; it is not kept.
        width, depth: Of the hidden layers of each network.
        per: A network for each `tensor` (SIREN), or one for weight and bias of a `layer` (SRN).
        norm: A layer normalization before each ReLU (SRN).
    """

    def __init__(
        self,
        latent: int,
        trunk: nn.Module,
        *,
        width: int,
        depth: int,
        per: Literal["tensor", "layer"] = "tensor",
        norm: bool = False,
        last: LastLayer = LastLayer(),
    ):
        super().__init__()
        self.shapes = {name: tuple(p.shape) for name, p in trunk.named_parameters()}
        groups: dict[str, list[str]] = {}
        for name in self.shapes:
            owner = name if per == "tensor" else name.rpartition(".")[0]
            groups.setdefault(owner, []).append(name)
        self.groups = list(groups.values())
        self.networks = nn.ModuleList()
        for names in self.groups:
            outputs = sum(math.prod(self.shapes[name]) for name in names)
            rules = last.rules(width if depth else latent, self._fan_in(names[0]))
            self.networks.append(
                WeightsNetwork(latent, width, depth, outputs, start=rules, norm=norm)
            )

    def forward(self, code: Float[Tensor, "n z"]) -> Tensors:
        """Parameters of the trunk by name, each with a leading sample axis."""
        found = {}
        for names, network in zip(self.groups, self.networks):
            sizes = [math.prod(self.shapes[name]) for name in names]
            for name, part in zip(names, network(code[:, None]).split(sizes, 1)):
                found[name] = part.reshape(len(code), *self.shapes[name])
        return found

    def describe(self, prefix: str, *, of: str, code: str = "code") -> dict[str, Any]:
        """`of`: prefix of the trunk's parameters."""
        networks = [
            {"gives": [f"{of}.{n}" for n in names], **x.describe(f"{prefix}.networks.{i}")}
            for i, (names, x) in enumerate(zip(self.groups, self.networks))
        ]
        return {"kind": "hypernetwork", "code": code, "networks": networks}

    def _fan_in(self, name: str) -> int:
        """Inputs of the trunk's layer that a tensor belongs to."""
        shape = self.shapes[name]
        if len(shape) < 2:
            shape = self.shapes.get(name.rpartition(".")[0] + ".weight", shape)
        return max(1, math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape))


def mean_square(weights: Tensors) -> Float[Tensor, "n"]:
    """Mean square of all weights of each sample."""
    count = sum(value[0].numel() for value in weights.values())
    return torch.stack([w.flatten(1).square().sum(1) for w in weights.values()]).sum(0) / count


def without_parameters(module: nn.Module) -> nn.Module:
    """The module itself, its parameters taken away (buffers stay): they are given with each call by
    `evaluate`, and are no parameters of what it is part of."""
    for part in module.modules():
        for name in list(part._parameters):
            part.register_parameter(name, None)
    return module


def evaluate(trunk: nn.Module, weights: Tensors, *inputs: Tensor) -> Any:
    """A trunk with these parameters, whether it has any of its own or not."""
    return functional_call(trunk, weights, inputs)


class HyperField(nn.Module):
    """A field whose rows are codes, from which a shared hypernetwork makes its weights."""

    def __init__(self, latent: int, trunk: nn.Module, hyper: HyperNetwork, *, std: float = 0.0):
        super().__init__()
        self.code = Latent((latent,), std)
        self.hyper = hyper
        self.net = without_parameters(trunk)

    def forward(
        self, coords: Float[Tensor, "*n p d"], weights: Tensors | None = None
    ) -> Float[Tensor, "n p c"]:
        """`weights`: where they are known already."""
        return evaluate(self.net, self.hyper(self.code()) if weights is None else weights, coords)


class PredictedField(nn.Module):
    """A field whose rows are weights that a shared hypernetwork made once."""

    def __init__(self, trunk: nn.Module, hyper: HyperNetwork):
        super().__init__()
        self.net = trunk
        self.hyper = hyper

    def forward(self, coords: Float[Tensor, "*n p d"]) -> Float[Tensor, "*n p c"]:
        return self.net(coords)
