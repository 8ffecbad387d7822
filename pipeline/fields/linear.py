"""The linear layer whose weights may be shared or one set a sample: the lowest layer of fields."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.initializers import Initializer, describe_rule, torch_default


def linear(
    x: Float[Tensor, "*x i"],
    weight: Float[Tensor, "*n o i"],
    bias: Float[Tensor, "*n o"] | None = None,
) -> Float[Tensor, "*y o"]:
    """x W^T + b with one weight for all (`[o, i]`) or one for each sample (`[n, o, i]`).

    With weights of its own, sample i uses weight i; `x` may have more axes between the sample axis
    and the last one, or a sample axis of length 1 that all share.
    """
    if weight.dim() == 2:
        if weight.requires_grad or x.dim() < 3 or len(x) < 2:
            return F.linear(x, weight, bias)
        # A frozen weight: one product a sample, whose bits do not depend on the number of samples.
        weight = weight.expand(len(x), *weight.shape)
        bias = None if bias is None else bias.expand(len(x), *bias.shape)
    n, middle = weight.shape[0], x.shape[1:-1]
    if x.shape[0] != n:
        x = x.expand(n, *x.shape[1:])
    flat = x.reshape(n, -1, x.shape[-1])
    if bias is None:
        y = torch.bmm(flat, weight.transpose(1, 2))
    else:
        y = torch.baddbmm(bias.reshape(-1, 1, bias.shape[-1]), flat, weight.transpose(1, 2))
    return y if len(middle) == 1 else y.reshape(n, *middle, -1)


def linear_parts(
    parts: tuple[Tensor, ...], weight: Float[Tensor, "*n o i"], bias: Float[Tensor, "*n o"] | None
) -> Tensor:
    """`linear` of parts that would be concatenated along the last axis, without building that.

    A part that is equal for all points (`[n, 1, z]`: a code) is multiplied once a sample.
    """
    if len(parts) == 1:
        return linear(parts[0], weight, bias)
    y = None
    for part in sorted(range(len(parts)), key=lambda k: -parts[k].shape[-2]):
        start = sum(q.shape[-1] for q in parts[:part])
        columns = weight[..., start : start + parts[part].shape[-1]]
        term = linear(parts[part], columns, bias if y is None else None)
        y = term if y is None else y + term
    return y


class Linear(nn.Module):
    """A linear layer, optionally weight-normalized (Salimans & Kingma 2016, one norm an output).

    `forward` takes the parts of its input (see `linear_parts`); `scale` multiplies weight and bias
    on the fly (SIREN's omega_0), which costs less than scaling the result.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        start: dict[str, Initializer] | None = None,
        weight_norm: bool = False,
        scale: float = 1.0,
    ):
        super().__init__()
        self.inputs, self.outputs, self.scale = inputs, outputs, scale
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.magnitude = nn.Parameter(torch.zeros(outputs)) if weight_norm else None
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.initializers = dict(start or torch_default(inputs))
        if weight_norm:
            self.initializers["magnitude"] = self.initializers["bias"]

    def derive_start(self, name, value, other):
        """Weight normalization starts with the norm of the weight it starts with."""
        if name == "magnitude":
            return other("weight").square().sum(-1).sqrt()
        return value

    def forward(self, *parts: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.magnitude is not None:
            norm = weight.square().sum(-1, keepdim=True).sqrt()
            weight = weight * (self.magnitude.unsqueeze(-1) / norm)
        if self.scale != 1.0:
            weight, bias = weight * self.scale, bias * self.scale
        return linear_parts(parts, weight, bias)

    def describe(self, prefix: str) -> dict[str, Any]:
        names = {n: f"{prefix}.{n}" for n, _ in self.named_parameters()}
        return {
            "kind": "linear",
            "inputs": self.inputs,
            "outputs": self.outputs,
            **names,
            "weight_norm": self.magnitude is not None,
            "scale": self.scale,
            "init": {k: describe_rule(v) for k, v in self.initializers.items() if k != "magnitude"},
        }
