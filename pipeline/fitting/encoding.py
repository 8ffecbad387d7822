"""Rows of meta-learners by the compiled loop: in which numbers, and units one after another.

`kernel` of a plan says both: "int8", or "int8@32x32" where the first step of pictures of this size
is taken from the network's derivative at the common start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Tensors, bind
from pipeline.fitting.adapt import adapt
from pipeline.fitting.cuda.choice import LOSS
from pipeline.fitting.fused.inner import (
    NAME,
    linear_start,
    network,
    no_start,
    recognize_inner,
    start_and_rates,
)
from pipeline.fitting.fused.recognize import available
from pipeline.fitting.lanes import Outcome, Request
from pipeline.fitting.method import MetaLearned, Method
from pipeline.fitting.rows import bindable, started
from pipeline.fitting.step import SPENT
from pipeline.fitting.threads import in_threads
from pipeline.fitting.units import Pull, Unit
from pipeline.samples import Samples

TOGETHER = 16
"""Pictures whose points are drawn together."""
COMPARED = 8
"""Pictures on which the kinds of numbers are compared."""
MOST_SLOPES = 2**28
"""Bytes of the derivative at the start beyond which the first step is computed as the others."""
_KERNEL = re.compile(r"(int8|bfloat16|float32)(?:@(\d+)x(\d+))?")


def why_not_encode(method: Method) -> str:
    """Empty if the compiled loop can find this method's rows here, else why it cannot."""
    found = recognize_inner(method)
    return found if isinstance(found, str) else available()


def choose_encoding(
    method: Method, shared: Tensors, some: Callable[[], Samples], seed: int
) -> tuple[str, str]:
    """`kernel` of the compiled loop and the path in words; empty: rows are found by plain PyTorch.

    The narrowest numbers with which some pictures end as close to their pixels as in plain float32.
    """
    from pipeline.fitting.fused.narrow import modes

    why = why_not_encode(method)
    if why:
        return "", f"plain PyTorch ({why})"
    samples = some()
    samples_at = torch.arange(min(len(samples), COMPARED))
    linear = linear_size(method, samples)
    plain = log_losses(method, shared, samples, samples_at, seed, "")
    known, told = torch.isfinite(plain), []  # what diverges in float32 compares nothing
    for mode in modes():
        kernel = mode + linear
        found = log_losses(method, shared, samples, samples_at, seed, kernel)
        more = float((found - plain)[known].mean().exp())
        told.append(f"{mode}: {more:.3f} x the loss of plain float32")
        if more <= LOSS or not known.any():
            return kernel, f"{path_name(kernel)} ({'; '.join(told)})"
    return "", f"plain PyTorch ({'; '.join(told)})"


def path_name(kernel: str) -> str:
    """The path in words; part of what decides a row's bits."""
    from pipeline.fitting.fused.run import path_name

    mode, size = parsed(kernel)
    linear = f", first step linear at {size[0]} x {size[1]}" if size else ""
    return f"{path_name()}, inner steps in {mode}{linear}"


def parsed(kernel: str) -> tuple[str, tuple[int, int] | None]:
    """Kind of numbers, and the size of pictures whose first step is linear."""
    found = _KERNEL.fullmatch(kernel)
    if found is None:
        raise ValueError(f"kernel: {kernel!r}; as in 'int8', 'bfloat16@32x32' or 'float32'")
    return found[1], (int(found[2]), int(found[3])) if found[2] else None


def linear_size(method: MetaLearned, samples: Samples) -> str:
    """The size that these pictures have in common, as `kernel` names it; empty: it does not pay."""
    sizes = samples.sizes.unique(dim=0)
    if len(sizes) != 1:
        return ""
    height, width = sizes[0].tolist()
    taken = method.inner.size.pixels
    seen = height * width if taken < 0 else taken
    model = method.model
    room = 4 * height * width * model.last.outputs * model.code.value.shape[-1]
    return f"@{height}x{width}" if height * width <= 4 * seen and room <= MOST_SLOPES else ""


@torch.no_grad()
def log_losses(
    method: MetaLearned, shared: Tensors, samples: Samples, index: Tensor, seed: int, kernel: str
) -> Tensor:
    """Logarithm of the loss of each picture by plain float32, at latents found by a path."""
    draw = Draw.of(samples.keys[index], seed=seed, stage="start")
    losses = []
    loop = Loop(method, shared, kernel) if kernel else None
    for k in range(len(index)):
        at, one = index[k : k + 1].repeat(2), Draw(draw.keys[k].repeat(2), draw.step[:2] * 0)
        rows = started(method, shared, one)
        if loop is None:
            rows, _ = adapt(method, shared, rows, samples, at, one, graph=False)
        else:
            code, _ = loop.latents(samples, at[:1], seed)
            rows = {NAME: code.repeat(2, *[1] * (code.dim() - 1))}
        bound = bind(method.model, bindable(method, shared, rows))
        batch = samples.draw(at, "context", method.inner.size, one)
        terms = method.inner.loss(bound, batch, one)
        losses.append(torch.stack(list(terms.values())).sum(0)[0])
    return torch.stack(losses).clamp(min=1e-30).log()


class Loop:
    """The compiled loop over the inner steps of one method, with its network made ready."""

    def __init__(self, method: MetaLearned, shared: Tensors, kernel: str):
        from pipeline.fitting.fused.narrow import modes
        from pipeline.fitting.fused.shifted import encode

        why = why_not_encode(method)
        mode, size = parsed(kernel)
        if not why and mode not in modes():
            why = f"this processor multiplies {', '.join(modes())}, the plan chose {mode}"
        if why:
            raise ValueError(f"inner steps cannot be taken by the compiled loop here: {why}")
        found = recognize_inner(method)
        self.method, self.size, self.encode = method, size, encode
        self.net = network(found, shared, mode)
        self.code, self.rates = start_and_rates(found, shared)
        self.none = no_start(found)
        self.start = linear_start(found, shared, *size) if size else self.none
        self.shape = tuple(found.model.code.value.shape)

    def latents(self, samples: Samples, index: Tensor, seed: int) -> tuple[Tensor, list[float]]:
        """Latents of samples of one shape class, and the losses where their last step began."""
        works = list(self.works(samples, index, seed))
        done = [self.work(work) for work in works]
        return torch.stack([code for code, _ in done]), [loss for _, loss in done]

    def works(self, samples: Samples, index: Tensor, seed: int) -> Iterator[Any]:
        """What `work` takes, of each sample."""
        inner = self.method.inner
        draw = Draw.of(samples.keys[index], seed=seed, stage="start")
        whole = bool((samples.shape_classes("context", inner.size)[index] > 0).all())
        batches = []
        for step in range(1 if whole else inner.steps):
            at = draw.at(torch.full_like(draw.step, step))
            batches.append(samples.draw(index, "context", inner.size, at))
        coords = torch.stack([b.grid.coords for b in batches], 1).numpy()
        wanted = torch.stack([inner.loss.wanted(b) for b in batches], 1).numpy()
        weight = torch.stack([b.grid.weight for b in batches], 1).numpy()
        for k, i in enumerate(index.tolist()):
            same = self.size == tuple(samples.sizes[i].tolist())
            start = self.start if same else self.none
            yield start, coords[k], wanted[k], np.ascontiguousarray(weight[k])

    def work(self, work: Any) -> tuple[Tensor, float]:
        """The latent of one sample, and the loss where its last step began."""
        start, coords, wanted, weight = work
        code = self.code.copy()
        loss = self.encode(self.net, start, code, self.rates, coords, wanted, weight)
        return torch.from_numpy(code).reshape(self.shape), float(loss)

    def run(self, pull: Pull) -> Iterator[Unit]:
        """Fits the units that it pulls, one picture after another, or as many at a time as PyTorch
        may use threads."""

        def jobs() -> Iterator[tuple[Unit, Any]]:
            while (unit := pull()) is not None:
                unit.steps = [0] * len(unit.outcomes)
                waiting = torch.tensor(unit.waiting, dtype=torch.int64)
                if not len(waiting):
                    yield unit, None
                size = self.method.inner.size
                classes = unit.samples.shape_classes("context", size)[waiting]
                for kind in classes.unique(dim=0):
                    members = waiting[(classes == kind).all(1)]
                    for at in members.split(TOGETHER):
                        works = self.works(unit.samples, at, unit.seed)
                        for i, work in zip(at.tolist(), works):
                            yield unit, (unit, i, work)

        def fit(job: Any) -> Outcome:
            unit, i, work = job
            code, loss = self.work(work)
            request = Request(unit.samples, i, {}, unit.samples.keys[i], unit)
            return Outcome(request, {NAME: code}, SPENT, 0, loss, loss)

        for unit, outcome in in_threads(jobs(), fit, torch.get_num_threads()):
            if outcome is not None:
                unit.outcomes[outcome.request.index] = outcome
            if unit.done:
                yield unit
