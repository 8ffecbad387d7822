"""One step of all lanes of a phase: losses, gradients, verdicts, updates; nothing crosses lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Bound, Tensors, bind
from pipeline.fitting.compiled import compiled_step
from pipeline.fitting.cuda.graphs import Graphed
from pipeline.fitting.method import Descend, Method, Phase, group_of, row_names
from pipeline.fitting.optimizers import Optimizer
from pipeline.fitting.rows import Layout, bindable
from pipeline.samples import Batch

RUNNING, MET, DIVERGED, SPENT, FULL = 0, 1, 2, 3, 4
"""Why a row leaves its lane; FULL: there was not the memory for it."""


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer moves in one update; `optimizer` None: they stay."""

    layout: Layout
    update: int
    optimizer: Optimizer | None


@dataclass(frozen=True)
class State:
    """All that changes from step to step."""

    flats: list[Float[Tensor, "n _"]]
    moments: list[list[Float[Tensor, "n _"]]]
    step: Int[Tensor, "n"]
    reason: Int[Tensor, "n"]
    factor: Float[Tensor, "n"]
    watched: Float[Tensor, "n"]
    loss: Float[Tensor, "n"]


def row_groups(method: Method, phase: Phase) -> list[Group]:
    """Splits the rows of a method by the optimizer that moves them."""
    model = method.field.model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    members: dict[tuple[int, str | None], list[str]] = {}
    for name in row_names(method):
        claims = [
            (i, prefix)
            for i, update in enumerate(phase.updates)
            if name in trained and (prefix := group_of(name, update.groups)) is not None
        ]
        if len(claims) > 1:
            raise ValueError(f"row parameter {name!r} is moved by two updates of one phase")
        members.setdefault(claims[0] if claims else (-1, None), []).append(name)
    return [
        Group(
            Layout.of(model, names),
            update,
            None if prefix is None else phase.updates[update].groups[prefix],
        )
        for (update, prefix), names in members.items()
    ]


class Step:
    """A step of a phase.

    `parts`: the points of a step are taken in so many parts one after another, which needs less
    memory. Only losses that are means over points can be cut (`pointwise`); sums in another order
    round differently, so the number belongs to what decides a row's bits.
    """

    def __init__(
        self, method: Method, phase: Phase, shared: Tensors, *, compiled: bool, parts: int = 1
    ):
        self.method, self.phase, self.shared = method, phase, shared
        self.groups = row_groups(method, phase)
        self.compiled, self.parts = compiled, parts if pointwise(phase) else 1
        self.advance = compiled_step(self._advance) if compiled else Graphed(self._advance)

    def cut(self, parts: int) -> Step:
        """The same step in so many parts."""
        return Step(self.method, self.phase, self.shared, compiled=self.compiled, parts=parts)

    def _bind(self, flats: list[Tensor]) -> Bound:
        rows: Tensors = {}
        for group, flat in zip(self.groups, flats):
            rows |= group.layout.split(flat)
        return bind(self.method.field.model, bindable(self.method, self.shared, rows))

    def _advance(self, state: State, batch: Batch, draw: Draw) -> State:
        """One step of all lanes."""
        flats, moments = list(state.flats), [list(m) for m in state.moments]
        go = reason = watched = loss = None
        for number, update in enumerate(self.phase.updates):
            mine = [i for i, g in enumerate(self.groups) if g.update == number]

            leaves = [flats[i] for i in mine]
            gradients, terms, total = self._learn(update, flats, mine, leaves, batch, draw)
            if number == 0:
                go, reason, watched, loss = self._judge(state, terms, total)
            due = go & (state.step % update.every == 0) if update.every > 1 else go
            count = torch.div(state.step, update.every, rounding_mode="floor")
            for i, gradient in zip(mine, gradients):
                flats[i], moments[i] = self.groups[i].optimizer.update(
                    flats[i], gradient, moments[i], count, due, state.factor
                )
        return State(flats, moments, state.step + go, reason, state.factor, watched, loss)

    def _learn(
        self,
        update: Descend,
        flats: list[Tensor],
        mine: list[int],
        leaves: list[Tensor],
        batch: Batch,
        draw: Draw,
    ) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
        """Gradients by `leaves`, the terms and their sum, over all parts of the batch."""
        gradients: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for part, share in parts_of(batch, self.parts):

            def losses(leaves: list[Tensor], part=part, share=share):
                used = [f.detach() for f in flats]
                for i, leaf in zip(mine, leaves):
                    used[i] = leaf
                found = update.loss(self._bind(used), part, draw)
                if share is not None:
                    found = {name: value * share for name, value in found.items()}
                return torch.stack(list(found.values())).sum(), found

            new, found = self._gradients(losses, leaves)
            gradients = [a + b for a, b in zip(gradients, new)] if gradients else new
            found = {name: value.detach() for name, value in found.items()}
            terms = {name: terms[name] + v for name, v in found.items()} if terms else found
        return gradients, terms, torch.stack(list(terms.values())).sum(0)

    def _gradients(self, losses: Callable, leaves: list[Tensor]) -> tuple[list[Tensor], tuple]:
        """Gradients of a scalar by `leaves`, and what else `losses` returns."""
        if not leaves:
            return [], losses([])[1]
        if self.compiled:  # the compiler traces functional derivatives only
            _, pull, rest = torch.func.vjp(losses, leaves, has_aux=True)
            (gradients,) = pull(torch.ones((), device=leaves[0].device))
            return gradients, rest
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        scalar, rest = losses(leaves)
        return list(torch.autograd.grad(scalar, leaves)), rest

    def _judge(
        self, state: State, terms: dict[str, Tensor], total: Tensor
    ) -> tuple[Bool[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Which lanes go on, why others end, the watched values and the losses."""
        target = self.phase.target
        running = state.reason == RUNNING
        finite = torch.isfinite(total)
        watched = total if target is None or target.term is None else terms[target.term]
        if target is not None and target.smooth:
            mean = state.watched + (1 - target.smooth) * (watched - state.watched)
            watched = torch.where(state.step == 0, watched, mean)
        met = torch.zeros_like(running) if target is None else watched <= target.value
        if target is not None and target.smooth:
            met = met & (state.step >= int(2 / (1 - target.smooth)))
        over = state.step >= self.phase.steps
        reason = torch.where(over, SPENT, RUNNING)
        reason = torch.where(met, MET, reason)
        reason = torch.where(finite, reason, DIVERGED)
        reason = torch.where(running, reason, state.reason)
        keep = running & finite
        return (
            running & (reason == RUNNING),
            reason,
            torch.where(keep, watched, state.watched),
            torch.where(keep, total, state.loss),
        )

    def edit(self, state: State, batch: Batch, draw: Draw) -> State:
        """Applies the edits to the lanes whose own step is due."""
        flats = state.flats
        for every, edit in self.phase.edits:
            due = (state.reason == RUNNING) & (state.step > draw.step)
            due &= state.step % every == 0
            if not bool(due.any()):
                continue
            bound = self._bind(flats)
            rows: Tensors = {}
            for group, flat in zip(self.groups, flats):
                rows |= group.layout.split(flat)
            with torch.no_grad():
                edited = edit(bound, rows, batch, draw)
            flats = [
                torch.where(due[:, None], group.layout.flat({**rows, **edited}), flat)
                for group, flat in zip(self.groups, flats)
            ]
        return replace(state, flats=flats)


def pointwise(phase: Phase) -> bool:
    """Whether every loss of a phase says that it is a weighted mean over points."""
    return all(getattr(update.loss, "pointwise", False) for update in phase.updates)


def parts_of(batch: Batch, parts: int) -> list[tuple[Batch, Float[Tensor, "n"] | None]]:
    """A batch cut along its points, and the share of each part in the weights of a sample."""
    if parts == 1:
        return [(batch, None)]
    name = "grid" if batch.grid is not None else "points"
    whole = getattr(batch, name)
    columns = {f.name: getattr(whole, f.name) for f in fields(whole)}
    count = whole.weight.shape[1]
    sum_ = whole.weight.sum(1).clamp(min=1e-12)
    cut = []
    for at in torch.arange(count).split(-(-count // parts)):
        part = slice(int(at[0]), int(at[-1]) + 1)
        some = {
            n: v[:, part] if v is not None and v.shape[1] == count else v
            for n, v in columns.items()
        }
        some = replace(whole, **some)
        cut.append((Batch(**{name: some}), some.weight.sum(1) / sum_))
    return cut
