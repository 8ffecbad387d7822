"""Ways in which a latent enters a field."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.latent import Latent
from pipeline.fields.mlp import MLP


class CodedField(nn.Module):
    """A network of (code, coordinates), concatenated in this order, with one code a sample."""

    def __init__(self, width: int, net: MLP, *, std: float, max_norm: float | None = None):
        super().__init__()
        self.code = Latent((width,), std, max_norm=max_norm)
        self.net = net

    def forward(self, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p c"]:
        return self.net(self.code().unsqueeze(-2), coords)

    def describe(self) -> list[dict[str, Any]]:
        first = {"kind": "concat", "parts": [self.code.describe("code"), {"kind": "coords"}]}
        return [first, *self.net.describe("net")]
