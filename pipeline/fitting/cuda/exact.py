"""Losses of rows by the plain path, in float32: what a row is worth whatever fitted it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fitting.method import Method
from pipeline.fitting.rows import bindable
from pipeline.samples import Samples

POINTS = 2**21
"""Points evaluated at a time."""


@contextmanager
def float32_products(precision: str = "highest") -> Iterator[None]:
    """Products of float32 matrices in this precision (`torch.set_float32_matmul_precision`), and as
    before afterwards: rows must not depend on what the surrounding program has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def losses(
    method: Method,
    shared: Tensors,
    samples: Samples,
    index: Int[Tensor, "m"],
    rows: Tensors,
    keys: Int[Tensor, "m"],
) -> Float[Tensor, "m"]:
    """The loss of the first phase at `rows`, on all that a step sees, or on its first draw."""
    phase = method.fit[0]
    classes = samples.shape_classes(phase.role, phase.size)[index]
    found = torch.zeros(len(index), device=samples.device)
    for kind in classes.unique(dim=0):
        members = (classes == kind).all(1).nonzero()[:, 0]
        count = max(1, POINTS // int(kind.abs().sum().clamp(min=1)))
        for at in members.split(count):
            here = at.to(samples.device)
            draw = Draw(keys[here], torch.zeros_like(here))
            batch = samples.draw(index[at], phase.role, phase.size, draw)
            some = {name: value[here] for name, value in rows.items()}
            bound = bind(method.model, bindable(method, shared, some))
            with float32_products():
                terms = phase.updates[0].loss(bound, batch, draw)
            found[here] = torch.stack(list(terms.values())).sum(0)
    return found
