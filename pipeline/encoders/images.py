"""Pictures to codes: a ResNet-18 (He et al. 2016) under the names of torchvision's weights."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.encoders.alone import alone
from pipeline.fields.blocks import BatchNorm
from pipeline.fields.linear import Linear

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colors: what such weights were trained with."""


class Basic(nn.Module):
    """Two 3 x 3 convolutions with batch normalization beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(outputs, axis=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(outputs, axis=1)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, BatchNorm(outputs, axis=1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        hidden = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (hidden + (x if self.downsample is None else self.downsample(x))).relu()


class ImageEncoder(nn.Module):
    """ResNet-18 without its classifier, averaged over the picture, then linear to a code.

    Args:
        width: Channels of the first layer; 64 is ResNet-18, and fits its weights.
    """

    def __init__(self, outputs: int, width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = BatchNorm(width, axis=1)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for i in range(4):
            first = Basic(widths[i], widths[i + 1], 1 if i == 0 else 2)
            self.add_module(
                f"layer{i + 1}", nn.Sequential(first, Basic(*widths[i + 1 :][:1] * 2, 1))
            )
        self.head = Linear(widths[-1], outputs)

    def forward(self, color: Float[Tensor, "n h w c"]) -> Float[Tensor, "n z"]:
        """Colors in [0, 1]; gray pictures count as three equal channels."""
        mean, std = (torch.tensor(v, device=color.device) for v in (MEAN, STD))
        picture = ((color.expand(*color.shape[:-1], 3) - mean) / std).permute(0, 3, 1, 2)
        features = alone(self._features, picture.contiguous(), self.training)
        return self.head(features[:, None])[:, 0]

    def _features(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n z"]:
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return x.mean((2, 3))

    def describe(self, prefix: str) -> dict[str, Any]:
        return {"kind": "resnet-18", "trunk": prefix, "mean": list(MEAN), "std": list(STD)}
