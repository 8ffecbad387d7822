"""Where rows start: initializer or common start, inner steps, encoder or prior; then a phase."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fitting.adapt import adapt
from pipeline.fitting.enter import enter_phase
from pipeline.fitting.method import Adversarial, Encoded, MetaLearned, Method, Phase
from pipeline.fitting.rows import bindable, started
from pipeline.samples import Role, Samples, Size


def starts_of(
    method: Method, shared: Tensors, samples: Samples, index: Int[Tensor, "m"], seed: int
) -> tuple[Tensors, Float[Tensor, "m"]]:
    """Rows before the first phase of fitting, and the loss where one was computed for them."""
    count = len(index)
    kinds = by_class(samples, index, *(("context", size) for size in inner_sizes(method)))
    if len(kinds) > 1:
        parts = [starts_of(method, shared, samples, index[at], seed) for at in kinds]
        back = torch.cat(kinds).argsort().to(samples.device)
        rows = {name: torch.cat([part[name] for part, _ in parts])[back] for name in parts[0][0]}
        return rows, torch.cat([loss for _, loss in parts])[back]
    if count == 1:  # one row alone would take other matrix kernels than it takes in company
        index = index.repeat(2)
    draw = Draw.of(samples.keys[index.to(samples.device)], seed=seed, stage="start")
    rows = started(method, shared, draw)
    loss = torch.full((len(index),), float("nan"), device=samples.device)
    model = method.field.model
    match method:
        case MetaLearned():
            rows, loss = adapt(method, shared, rows, samples, index, draw, graph=False)
        case Encoded():
            with torch.no_grad():
                bound = bind(model, bindable(method, shared, rows))
                batch = samples.draw(index, "context", method.size, draw)
                encoded, terms = method.encode(bound, batch, draw)
                rows = {**rows, **encoded}
                if terms:
                    loss = torch.stack(list(terms.values())).sum(0)
        case Adversarial():
            with torch.no_grad():
                bound = bind(model, bindable(method, shared, rows))
                rows = {**rows, **method.prior(bound, draw)}
    return {k: v.detach()[:count] for k, v in rows.items()}, loss.detach()[:count]


def inner_sizes(method: Method) -> list[Size]:
    """What is drawn of samples to find where their rows start: by inner steps or by an encoder."""
    match method:
        case MetaLearned():
            return [method.inner.size]
        case Encoded():
            return [method.size]
    return []


def by_class(
    samples: Samples, index: Int[Tensor, "m"], *drawn: tuple[Role, Size]
) -> list[Int[Tensor, "k"]]:
    """Positions in `index` that may share a batch of everything that is drawn."""
    classes = [samples.shape_classes(*of)[index] for of in drawn]
    classes = [columns for columns in classes if columns.shape[1]]
    if not classes:  # voxels and views have one shape
        return [torch.arange(len(index))]
    classes = torch.cat(classes, 1)
    _, members = torch.unique(classes, dim=0, return_inverse=True)
    return [torch.nonzero(members == kind)[:, 0] for kind in range(int(members.max()) + 1)]


def entered(
    method: Method,
    shared: Tensors,
    samples: Samples,
    index: Int[Tensor, "m"],
    phase: Phase,
    rows: Tensors,
    seed: int,
    number: int,
) -> tuple[Tensors, dict[int, str]]:
    """Maps the rows of the samples at `index` into a phase; says which ones do not fit, and why."""
    draw = Draw.of(samples.keys[index.to(samples.device)], seed=seed, stage=f"enter/{number}")
    return enter_phase(method, shared, samples, index, phase, rows, draw)
