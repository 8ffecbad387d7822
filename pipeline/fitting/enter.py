"""Entering a phase: its `enter` maps the rows of samples, by what it sees of each."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fields.tables import TableOverflow
from pipeline.fitting.method import Method, Phase
from pipeline.fitting.rows import bindable
from pipeline.samples import Samples


def enter_phase(
    method: Method,
    shared: Tensors,
    samples: Samples,
    index: Int[Tensor, "m"],
    phase: Phase,
    rows: Tensors,
    draw: Draw,
) -> tuple[Tensors, dict[int, str]]:
    """The rows of the samples at `index` as the phase begins; `draw` is theirs.

    Also why samples, by position in `index`, cannot be held by the method's tables: their rows stay
    as they were.
    """
    if phase.enter is None:
        return rows, {}
    size = phase.enter_size or phase.size
    classes = samples.shape_classes(phase.role, size)[index]
    entered: Tensors = {name: value.clone() for name, value in rows.items()}
    unfit: dict[int, str] = {}
    kinds, members = torch.unique(classes, dim=0, return_inverse=True)
    for kind in range(len(kinds)):
        at = torch.nonzero(members == kind)[:, 0]
        while len(at):
            try:
                new = _enter(method, shared, samples, index[at], phase, size, rows, draw, at)
            except TableOverflow as error:
                unfit |= {int(at[i]): why for i, why in error.reasons.items() if i < len(at)}
                at = at[[i not in error.reasons for i in range(len(at))]]
                continue
            for name, value in new.items():
                entered[name][at.to(value.device)] = value[: len(at)]
            break
    return entered, unfit


def _enter(method, shared, samples, index, phase, size, rows, draw, at) -> Tensors:
    """Rows at `at`, which are of the samples at `index` and of one shape class."""
    if len(at) == 1:  # one row alone would take other matrix kernels than it takes in company
        at, index = at.repeat(2), index.repeat(2)
    at = at.to(draw.keys.device)
    some = {name: value[at] for name, value in rows.items()}
    part = Draw(draw.keys[at], draw.step[at])
    with torch.no_grad():
        bound = bind(method.model, bindable(method, shared, some))
        return phase.enter(bound, some, samples.draw(index, phase.role, size, part), part)
