"""What a sample owns besides network weights: codes, grids, planes, cameras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
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
    """

    def __init__(
        self,
        shape: Sequence[int],
        std: float = 0.0,
        *,
        trained: bool = True,
        max_norm: float | None = None,
    ):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(*shape), requires_grad=trained)
        self.max_norm = max_norm
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
