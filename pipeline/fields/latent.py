"""What a sample owns besides network weights: codes, grids, planes, cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.fields.bind import Tensors
from pipeline.fields.initializers import Constant, Normal


class Latent(nn.Module):
    """A tensor that every sample has its own of; calling it returns the values in use.

    Args:
        shape: Shape of one sample's latent.
        std: Standard deviation of the start; 0 starts at zero.
        trained: Whether fitting may change it.
        max_norm: Codes longer than this are scaled back when they are looked up (Euclidean norm
            over the last axis), as in DeepSDF.
        dims: Names of the axes in a store; absent: the latent's own name and a number.
        attributes: What a reader of the stored array should know.
    """

    def __init__(
        self,
        shape: Sequence[int],
        std: float = 0.0,
        *,
        trained: bool = True,
        max_norm: float | None = None,
        dims: Sequence[str] | None = None,
        attributes: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(tuple(shape)), requires_grad=trained)
        self.max_norm = max_norm
        self.dims = None if dims is None else tuple(dims)
        self.attributes = dict(attributes or {})
        self.initializers = {"value": Normal(std) if std else Constant(0.0)}

    def forward(self) -> Float[Tensor, "*n *shape"]:
        return self.limited(self.value)

    def limited(self, value: Float[Tensor, "*n *shape"]) -> Float[Tensor, "*n *shape"]:
        """Values scaled back to `max_norm`."""
        if self.max_norm is None:
            return value
        norm = value.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt()
        return value * (self.max_norm / norm).clamp(max=1.0)

    def describe(self, name: str) -> dict[str, Any]:
        return {
            "kind": "latent",
            "array": f"latents/{name}",
            "shape": list(self.value.shape),
            "max_norm": self.max_norm,
        }


class IntegerLatent(Latent):
    """Integers that every sample has its own of: keys and counts of a table. Never trained.

    Lanes carry them as float32, so they stay within 2**24.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        dims: Sequence[str] | None = None,
        attributes: dict[str, Any] | None = None,
    ):
        super().__init__(shape, trained=False, dims=dims, attributes=attributes)
        value = torch.zeros(tuple(shape), dtype=torch.int32)
        self.value = nn.Parameter(value, requires_grad=False)

    def forward(self) -> Int[Tensor, "*n *shape"]:
        return self.value

    def limited(self, value: Int[Tensor, "*n *shape"]) -> Int[Tensor, "*n *shape"]:
        return value

    def describe(self, name: str) -> dict[str, Any]:
        return {**super().describe(name), "dtype": "int32"}


def latents_of(model: nn.Module) -> dict[str, Latent]:
    """Latent name -> module, of every latent of a model in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Latent)}


def latent_names(model: nn.Module) -> dict[str, str]:
    """Parameter name -> latent name, of every latent of a model in order."""
    return {
        f"{name}.value" if name else "value": name
        for name, module in model.named_modules()
        if isinstance(module, Latent)
    }


def limited_rows(model: nn.Module, rows: Tensors) -> Tensors:
    """Rows with every latent within its norm: as they are used, so as they should be stored."""
    limits = {
        f"{name}.value" if name else "value": module
        for name, module in model.named_modules()
        if isinstance(module, Latent)
    }
    return {n: limits[n].limited(v) if n in limits else v for n, v in rows.items()}
