"""Samples one by one where a kernel's bits would depend on the size of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def alone(function: Callable[[Tensor], Tensor], x: Tensor, training: bool) -> Tensor:
    """`function` of a batch; outside training of one sample after another.

    Convolutions choose their blocking by the shape of the batch, and with it the order of sums.
    """
    if training or len(x) == 1:
        return function(x)
    return torch.cat([function(x[i : i + 1]) for i in range(len(x))])
