"""Mean intersection over union, in its two conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def intersection_over_union(
    wanted: dict[int, Int[Tensor, "p"]],
    guessed: dict[int, Int[Tensor, "p"]],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The two conventions of mIoU.

    `class_miou`: for each class the intersection and union are summed over all samples, and the
    mean is over classes that some sample has. `sample_miou`: in each sample the mean over the
    classes that are in it or were guessed there (an absent class is skipped, not counted 1), then
    the mean over samples.
    """
    both, either = torch.zeros(len(classes)), torch.zeros(len(classes))
    there = torch.zeros(len(classes), dtype=torch.bool)
    each, right, total = [], 0, 0
    for row, true in wanted.items():
        found = guessed[row]
        hit = torch.bincount(true[true == found], minlength=len(classes)).float()
        of_true = torch.bincount(true, minlength=len(classes)).float()
        union = of_true + torch.bincount(found, minlength=len(classes)).float() - hit
        each.append(float((hit[union > 0] / union[union > 0]).mean()))
        both, either, there = both + hit, either + union, there | (of_true > 0)
        right, total = right + int((true == found).sum()), total + len(true)
    of_class = both / either.clamp(min=1)
    return {
        "class_miou": float(of_class[there].mean()),
        "sample_miou": float(np.mean(each)),
        "accuracy": right / total,
        "classes": {c: float(of_class[i]) for i, c in enumerate(classes) if there[i]},
    }
