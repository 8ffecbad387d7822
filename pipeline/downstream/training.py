"""One training loop for everything that is learned from a store, on one worker or many.

Randomness is a function of (seed, step, place in the batch over all workers), gradients are added
up by one explicit all-reduce, all state goes into one checkpoint: what comes out does not depend on
interruptions, and on the number of workers by rounding only.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.downstream.distribution import Update
from pipeline.draw import Draw, sample_keys, word
from schemas.downstream import Learning

LOG_POINTS = 100
"""Lines of the log."""

Log = list[dict[str, int | float]]


class Interrupted(Exception):
    """Training was asked to stop; its checkpoint is written."""


@dataclass
class Hooks:
    """What happens beside training, on rank 0."""

    checkpoint: Callable[[bytes], None] | None = None
    """Takes all state as bytes."""
    scalars: Callable[[int, dict[str, float]], None] | None = None
    """Takes the mean of each named value since the last time."""
    preview: Callable[[Any, int], None] | None = None
    """Called after a step with the model, averaged parameters in it."""
    preview_steps: Sequence[int] = ()
    stop: Callable[[], bool] = field(default=lambda: False)
    """Asked after every step."""


def train(
    model: nn.Module,
    updates: Sequence[Update],
    batches: Callable[[int], Any],
    learning: Learning,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    hooks: Hooks | None = None,
    resume: bytes | None = None,
) -> Log:
    """Descends the updates in turn; leaves the averaged parameters in the model.

    Args:
        model: On its device; the same values on every rank.
        batches: Gives this rank's part of batch number 0, 1, ...; has `slots`, the place of each
            row in the batch over all ranks.
        resume: State of an earlier call, the same on all ranks; training goes on from there.
    """
    return _Loop(model, updates, batches, learning, seed, rank, world, hooks or Hooks()).run(resume)


class _Loop:
    def __init__(self, model, updates, batches, learning, seed, rank, world, hooks):
        self.model, self.updates, self.batches = model, updates, batches
        self.learning, self.seed, self.hooks = learning, seed, hooks
        self.rank, self.world = rank, world
        self.device = next(model.parameters()).device
        self.moved = [
            [p for name, p in model.named_parameters() if name.startswith(update.prefix)]
            for update in updates
        ]
        for update, parameters in zip(updates, self.moved):
            if not parameters:
                raise ValueError(f"no parameter's name begins with '{update.prefix}'")
        self.optimizers = [
            torch.optim.AdamW(
                p, lr=learning.rate, betas=update.betas, weight_decay=learning.weight_decay
            )
            for update, p in zip(updates, self.moved)
        ]
        self.average = {n: p.detach().clone() for n, p in model.named_parameters()}
        keys = sample_keys([str(i) for i in range(learning.batch)]).to(self.device)
        self.draws = [Draw.of(keys, seed=seed, stage=update.prefix) for update in updates]
        self.per_step = sum(update.times for update in updates)
        self.random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.log: Log = []
        self.sums: dict[str, Tensor] = {}
        self.counted = self.step = 0

    def run(self, resume: bytes | None) -> Log:
        if resume is not None:
            self._load(resume)
        self.model.train()
        last, every = time.monotonic(), max(1, self.learning.steps // LOG_POINTS)
        with torch.random.fork_rng(enabled=self.random):
            while self.step < self.learning.steps:
                self._one_step()
                self.step += 1
                if self.step % every == 0 or self.step == self.learning.steps:
                    self._note()
                if self.rank:
                    continue
                if self.step in self.hooks.preview_steps and self.hooks.preview:
                    with self._averaged():
                        self.hooks.preview(self.model, self.step)
                stop = self.hooks.stop()
                due = stop or time.monotonic() - last >= self.learning.checkpoint_s
                if due and self.hooks.checkpoint and self.step < self.learning.steps:
                    self.hooks.checkpoint(self._save())
                    last = time.monotonic()
                if stop and self.step < self.learning.steps:
                    raise Interrupted(f"stopped after step {self.step} of {self.learning.steps}")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.average[name])
        self.model.eval()
        return self.log

    def _one_step(self) -> None:
        number = self.step * self.per_step
        for update, parameters, optimizer, draw in zip(
            self.updates, self.moved, self.optimizers, self.draws
        ):
            for _ in range(update.times):
                if self.random:
                    mixed = word(f"{self.seed}/{number}/{self.rank}")
                    torch.manual_seed(mixed & (2**63 - 1))
                batch = self.batches(number)
                part = Draw(draw.keys[batch.slots], torch.full_like(batch.slots, number))
                self._move(update, parameters, optimizer, batch, part)
                number += 1
        with torch.no_grad():
            decay = min(self.learning.ema, (1 + self.step) / (10 + self.step))
            names, values = zip(*self.model.named_parameters())
            torch._foreach_lerp_([self.average[n] for n in names], list(values), 1 - decay)

    def _move(self, update: Update, parameters, optimizer, batch, draw: Draw) -> None:
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.learning.precision == "bfloat16"):
            terms = update.loss(self.model, batch, draw)
        loss = torch.stack(list(terms.values())).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
        if self.world > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            flat *= len(batch.slots) / self.learning.batch
            dist.all_reduce(flat)
            parts = flat.split([p.numel() for p in parameters])
            gradients = [part.reshape(p.shape) for part, p in zip(parts, parameters)]
        if self.learning.clip is not None:
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            factor = (self.learning.clip / (length + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = self.learning.rate * self._factor()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in {**terms, "loss": loss}.items():
            if len(self.updates) > 1 and name == "loss":
                continue
            self.sums[name] = self.sums.get(name, 0) + value.detach() / update.times
        self.counted += 1

    def _factor(self) -> float:
        """Of the learning rate at this step."""
        done = self.step / self.learning.steps
        rise = min(1.0, (self.step + 1) / max(self.learning.warmup, 1))
        if self.learning.schedule == "constant":
            return rise
        return rise * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)

    def _note(self) -> None:
        """One line of the log: means since the last one, over all workers."""
        steps = max(self.counted / self.per_step, 1)
        names = sorted(self.sums)
        values = torch.stack([self.sums[name].float() for name in names]) / steps
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        found = dict(zip(names, values.tolist()))
        self.sums, self.counted = {}, 0
        if not all(map(math.isfinite, found.values())):
            raise RuntimeError(
                f"training diverged at step {self.step} ({found}); lower train.rate, or set "
                "method.normalize"
            )
        self.log.append({"step": self.step, **found})
        if self.rank == 0 and self.hooks.scalars:
            self.hooks.scalars(self.step, {**found, "rate": self.learning.rate * self._factor()})

    @contextlib.contextmanager
    def _averaged(self):
        """The model with averaged parameters, then as it was."""
        held = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        try:
            self.model.eval()
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(self.average[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(held[name])
            self.model.train()

    # --- state --------------------------------------------------------------------------------

    def _save(self) -> bytes:
        """Everything as safetensors; small numbers as JSON in its metadata."""
        tensors = {f"model/{n}": p.detach() for n, p in self.model.named_parameters()}
        tensors |= {f"average/{n}": v for n, v in self.average.items()}
        tensors |= {f"sum/{n}": v for n, v in self.sums.items()}
        for i, (parameters, optimizer) in enumerate(zip(self.moved, self.optimizers)):
            for k, parameter in enumerate(parameters):
                for name, value in optimizer.state[parameter].items():
                    tensors[f"optimizer/{i}/{k}/{name}"] = value
        note = {"step": self.step, "counted": self.counted, "log": self.log}
        kept = {name: value.contiguous().cpu() for name, value in tensors.items()}
        return save(kept, {"state": json.dumps(note)})

    def _load(self, data: bytes) -> None:
        note, tensors = read_state(data)
        self.step, self.counted, self.log = note["step"], note["counted"], note["log"]
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
        self.sums = {
            name.removeprefix("sum/"): value.to(self.device)
            for name, value in tensors.items()
            if name.startswith("sum/")
        }
        for i, (parameters, optimizer) in enumerate(zip(self.moved, self.optimizers)):
            for k, parameter in enumerate(parameters):
                start = f"optimizer/{i}/{k}/"
                optimizer.state[parameter] = {
                    name.removeprefix(start): value
                    if name == start + "step"
                    else value.to(self.device)
                    for name, value in tensors.items()
                    if name.startswith(start)
                }


def read_state(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON note and the tensors of saved state."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return json.loads(header["__metadata__"]["state"]), load(data)
