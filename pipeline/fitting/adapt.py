"""The inner loop of meta-learning: a few gradient steps from a learned start, each sample alone."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import RATE, Tensors, bind
from pipeline.fitting.method import MetaLearned
from pipeline.fitting.rows import bindable
from pipeline.samples import Samples


def adapt(
    method: MetaLearned,
    shared: Tensors,
    rows: Tensors,
    samples: Samples,
    index: Int[Tensor, "n"],
    draw: Draw,
    *,
    graph: bool,
) -> tuple[Tensors, Float[Tensor, "n"]]:
    """Rows after the inner steps on the context, and the loss at the last step taken.

    The loss is a mean over a sample's own points and a sum over samples, so a step does not depend
    on the number of samples. `graph` keeps the graph (second order if the method says so).
    """
    inner = method.inner
    loss = torch.zeros(len(index), device=draw.step.device)
    if not graph:
        rows = {name: value.detach() for name, value in rows.items()}
    for step in range(inner.steps):
        with torch.enable_grad():
            leaves = {
                name: value if value.requires_grad else value.detach().requires_grad_()
                for name, value in rows.items()
            }
            at = draw.at(torch.full_like(draw.step, step) + draw.step * inner.steps)
            batch = samples.draw(index, "context", inner.size, at)
            bound = bind(method.field.model, bindable(method, shared, leaves))
            total = torch.stack(list(inner.loss(bound, batch, at).values())).sum(0)
            gradients = torch.autograd.grad(
                total.sum(), list(leaves.values()), create_graph=graph and inner.order == 2
            )
        moved = {}
        for (name, value), gradient in zip(leaves.items(), gradients):
            rate = shared[RATE + name][step] if RATE + name in shared else inner.rate
            moved[name] = value - rate * gradient
        rows = moved if graph else {name: value.detach() for name, value in moved.items()}
        loss = total.detach()
    return rows, loss
