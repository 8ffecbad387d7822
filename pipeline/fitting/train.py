"""Training what all samples share, on one or several workers, with the latents of their samples.

Every worker owns a disjoint set of samples (every `world`-th) and their latents. A batch takes one
sample of each of `batch` stripes, in an order that is a function of the seed alone, so it is the
same batch for any number of workers; one explicit all-reduce a step adds up the gradients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.draw import Draw, word
from pipeline.fields.bind import Tensors, bind
from pipeline.fields.latent import limited_rows
from pipeline.fitting.adapt import adapt
from pipeline.fitting.enter import enter_phase
from pipeline.fitting.method import (
    Adversarial,
    Autodecoded,
    Descend,
    Encoded,
    MetaLearned,
    Method,
    Phase,
    group_of,
    row_names,
)
from pipeline.fitting.optimizers import Optimizer
from pipeline.fitting.rows import Layout, bindable, start_shared, started
from pipeline.fitting.starts import by_class, inner_sizes
from pipeline.samples import Batch, Samples

LOG_POINTS = 50
"""Lines of the log a phase."""


class TrainingDiverged(RuntimeError):
    """The loss is not finite any more: the same keys would bring it there again."""


@dataclass(frozen=True)
class Trained:
    """What training leaves."""

    shared: Tensors
    rows: Tensors
    """Latents of the training rows, in their order, on rank 0; empty where none are trained."""
    row_numbers: list[int]
    """Prepared row of each of them."""
    log: list[dict[str, float | int]]


@dataclass
class _Slot:
    """Parameters that one optimizer moves in one update, flat, with their moments."""

    update: int
    names: list[str]
    optimizer: Optimizer
    moments: list[Tensor] = field(default_factory=list)


def train(
    method: Method,
    samples: Samples,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    checkpoint: Callable[[bytes], None] | None = None,
    checkpoint_s: float = 60.0,
    resume: bytes | None = None,
) -> Trained:
    """Runs the phases of `train`; every rank calls it with its own samples.

    Args:
        samples: Rows `rank`, `rank + world`, ... of the training rows.
        checkpoint: Called on rank 0 every `checkpoint_s` seconds with all state as bytes
            (safetensors, its metadata in JSON). torch.distributed must be initialized if
            `world` > 1.
        resume: Such bytes, the same on all ranks; training goes on from there, also with another
            number of workers.
    """
    if not method.train:
        raise ValueError(f"method {method.field.method!r} has nothing to train; fit its rows")
    return _Training(method, samples, seed, rank, world).run(checkpoint, checkpoint_s, resume)


class _Training:
    def __init__(self, method: Method, samples: Samples, seed: int, rank: int, world: int):
        self.method, self.samples, self.seed = method, samples, seed
        self.rank, self.world = rank, world
        self.device = samples.device
        if world > 1:
            _refuse_own_statistics(method)
        counts = self._add(torch.tensor([float(len(samples))], device=self.device))
        self.total = int(counts[0])
        if self.total < world:
            raise ValueError(f"{self.total} samples cannot be shared by {world} training workers")
        expected = len(range(rank, self.total, world))
        if len(samples) != expected:
            raise ValueError(
                f"rank {rank} of {world} brought {len(samples)} of {self.total} samples, not "
                f"{expected}; give it rows {rank}, {rank + world}, ... of the training rows"
            )
        self.shared = start_shared(method, seed, self.device)
        self.rows: Tensors = {}
        self.layout = Layout.of(method.model, [])
        if isinstance(method, Autodecoded):
            self.layout = Layout.of(method.model, row_names(method))
            draw = Draw.of(samples.keys, seed=seed, stage="start")
            self.rows = started(method, self.shared, draw)
        self.counts = torch.zeros(len(samples), dtype=torch.int64, device=self.device)
        self.averages: Tensors = {}
        self.log: list[dict[str, float | int]] = []
        self.number = self.step = 0
        self.slots: list[_Slot] = []
        self.row_slots: list[_Slot] = []

    def run(self, checkpoint, checkpoint_s: float, resume: bytes | None) -> Trained:
        model = self.method.model
        model.train()
        random = any(_dropout(module) for module in model.modules())
        if resume is not None:
            self._load(resume)
        last = time.monotonic()
        with torch.random.fork_rng(devices=[], enabled=random):
            while self.number < len(self.method.train):
                phase = self.method.train[self.number]
                if not self.slots:
                    self._enter(phase)
                batch = self._batch_size(phase)
                orders: dict[int, tuple[int, np.ndarray]] = {}
                every = max(1, phase.steps // LOG_POINTS)
                while self.step < phase.steps:
                    if random:
                        mixed = word(f"{self.seed}/{self.number}/{self.step}/{self.rank}")
                        torch.manual_seed(mixed & (2**63 - 1))
                    index = self._pick(batch, orders)
                    due = checkpoint is not None and self.rank == 0
                    due = due and time.monotonic() - last >= checkpoint_s
                    values, due = self._one_step(phase, index, batch, due)
                    if self.step % every == 0 or self.step + 1 == phase.steps:
                        self._note(values, batch)
                    self.step += 1
                    if due:
                        data = self._save()
                        if self.rank == 0:
                            checkpoint(data)
                        last = time.monotonic()
                self.number, self.step, self.slots, self.row_slots = self.number + 1, 0, [], []
        model.eval()
        rows = {name: self._gather(value) for name, value in self.rows.items()}
        rows = limited_rows(model, rows)
        numbers = self._gather(torch.tensor(self.samples.rows, device=self.device)).tolist()
        shared = {**self.shared, **self.averages}
        return Trained(_detached(shared), _detached(rows), numbers, self.log)

    def _enter(self, phase: Phase) -> None:
        """Fresh moments; rows mapped into the phase."""
        if phase.edits:
            raise ValueError("edits belong to phases of `fit`; training has none")
        if phase.enter is not None and self.rows:
            index = torch.arange(len(self.samples))
            draw = Draw.of(self.samples.keys, seed=self.seed, stage=f"enter/{self.number}")
            for part in index.split(64):
                some = {name: value[part] for name, value in self.rows.items()}
                at = Draw(draw.keys[part], draw.step[part])
                new, unfit = enter_phase(
                    self.method, self.shared, self.samples, part, phase, some, at
                )
                if unfit:
                    names = [
                        f"{self.samples.ids[int(part[i])]!r} {unfit[i]}" for i in sorted(unfit)
                    ]
                    more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
                    raise ValueError(
                        f"method {self.method.field.method!r} cannot train on some samples: "
                        + "; ".join(names[:5])
                        + more
                    )
                for name, value in new.items():
                    self.rows[name][part] = value
        self.slots = _slots(self.shared, phase.updates, set(self._frozen()))
        for slot in self.slots:
            width = sum(self.shared[name].numel() for name in slot.names)
            slot.moments = [
                torch.zeros(1, width, device=self.device) for _ in range(slot.optimizer.moments)
            ]
        self.row_slots = _slots(self.rows, phase.updates, set(self._frozen()))
        for slot in self.row_slots:
            width = sum(self.rows[name][0].numel() for name in slot.names)
            slot.moments = [
                torch.zeros(len(self.samples), width, device=self.device)
                for _ in range(slot.optimizer.moments)
            ]
        self.counts.zero_()
        if any(update.ema is not None for update in phase.updates):
            moved = {name for slot in self.slots for name in slot.names}
            self.averages = {name: self.shared[name].clone() for name in moved}

    def _frozen(self) -> list[str]:
        """Buffers and parameters that ask for no gradient."""
        model = self.method.model
        return [name for name, _ in model.named_buffers()] + [
            name for name, p in model.named_parameters() if not p.requires_grad
        ]

    def _batch_size(self, phase: Phase) -> int:
        """Samples a step over all workers: a multiple of their number."""
        return max(min(phase.batch, self.total) // self.world, 1) * self.world

    def _pick(self, batch: int, orders: dict[int, tuple[int, np.ndarray]]) -> Int[Tensor, "b"]:
        """Own samples of this step: the next one of each stripe's seeded order."""
        index = []
        for stripe in range(self.rank, batch, self.world):
            size = len(range(stripe, self.total, batch))
            turn, place = divmod(self.step, size)
            if stripe not in orders or orders[stripe][0] != turn:
                draw = Draw.once(seed=self.seed, stage=f"order/{self.number}/{stripe}")
                bits = draw.at(torch.tensor([turn])).bits("order", size)[0]
                orders[stripe] = turn, bits.argsort().numpy()
            position = stripe + batch * int(orders[stripe][1][place])
            index.append(position // self.world)
        return torch.tensor(index)

    def _one_step(
        self, phase: Phase, index: Int[Tensor, "b"], batch: int, due: bool
    ) -> tuple[dict[str, float], bool]:
        """All updates of one step; returns the sums of the loss terms, and `due` of rank 0."""
        at = index.to(self.device)
        values: dict[str, float] = {}
        for number, update in enumerate(phase.updates):
            if self.step % update.every:
                continue
            slots = [slot for slot in self.slots if slot.update == number]
            row_slots = [slot for slot in self.row_slots if slot.update == number]
            leaves = {
                name: self.shared[name].detach().requires_grad_()
                for slot in slots
                for name in slot.names
            }
            own = {name: value[at].detach() for name, value in self.rows.items()}
            for slot in row_slots:
                own |= {name: own[name].requires_grad_() for name in slot.names}
            draw = Draw.of(
                self.samples.keys[at], seed=self.seed, stage=f"train/{self.number}/{number}"
            ).at(torch.full_like(at, self.step))
            terms = self._all_terms(update, phase, {**self.shared, **leaves}, own, index, draw)
            total = torch.stack(list(terms.values())).sum(0)
            moved = [own[name] for slot in row_slots for name in slot.names]
            gradients = torch.autograd.grad(
                total.sum(), [*leaves.values(), *moved], allow_unused=True
            )
            gradients = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip([*leaves.values(), *moved], gradients)
            ]
            sums = torch.stack([term.detach().sum() for term in terms.values()])
            flag = torch.tensor([float(due)], device=self.device)
            parts = [g.flatten() / batch for g in gradients[: len(leaves)]]
            added = self._add(torch.cat([*parts, sums.to(flag), flag]))
            due = bool(added[-1] > 0) if self.world > 1 else due
            sums = added[len(added) - 1 - len(terms) : -1]
            if not bool(torch.isfinite(added).all()):
                raise TrainingDiverged(
                    f"training of {self.method.field.method!r} diverged at step {self.step} of "
                    f"phase {self.number}: lower its learning rate"
                )
            values |= dict(zip(terms, sums.tolist()))
            self._move_shared(slots, added, update)
            self._move_rows(row_slots, own, gradients[len(leaves) :], at)
        if self.rows:
            self.counts[at] += 1
        return values, due

    def _all_terms(
        self,
        update: Descend,
        phase: Phase,
        shared: Tensors,
        own: Tensors,
        index: Int[Tensor, "b"],
        draw: Draw,
    ) -> dict[str, Tensor]:
        """`_terms` of the whole batch: one pass for each shape class that is in it."""
        drawn = [("context", size) for size in inner_sizes(self.method)]
        kinds = by_class(self.samples, index, (phase.role, phase.size), *drawn)
        if len(kinds) == 1:
            return self._terms(update, phase, shared, own, index, draw)
        parts = []
        for kind in kinds:
            at = kind.to(self.device)
            some = {name: value[at] for name, value in own.items()}
            part = Draw(draw.keys[at], draw.step[at])
            parts.append(self._terms(update, phase, shared, some, index[kind], part))
        back = torch.cat(kinds).argsort().to(self.device)
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def _terms(
        self,
        update: Descend,
        phase: Phase,
        shared: Tensors,
        own: Tensors,
        index: Int[Tensor, "b"],
        draw: Draw,
    ) -> dict[str, Tensor]:
        """Loss terms of an update, with rows from where the type of method takes them."""
        method, model, samples = self.method, self.method.model, self.samples
        extra: dict[str, Tensor] = {}
        rows = own
        if not isinstance(method, Autodecoded):
            rows = started(method, shared, draw)
        match method:
            case MetaLearned():
                inside = Draw.of(samples.keys[index], seed=self.seed, stage="inner").at(draw.step)
                if method.inner.order == 0:
                    return _reptile(method, shared, rows, samples, index, inside)
                rows, _ = adapt(method, shared, rows, samples, index, inside, graph=True)
            case Encoded():
                context = samples.draw(index, "context", method.size, draw)
                bound = bind(model, bindable(method, shared, rows))
                found, extra = method.encode(bound, context, draw)
                rows = {**rows, **found}
            case Adversarial():
                bound = bind(model, bindable(method, shared, rows))
                rows = {**rows, **method.prior(bound, draw)}
        batch: Batch = samples.draw(index, phase.role, phase.size, draw)
        return {**extra, **update.loss(bind(model, bindable(method, shared, rows)), batch, draw)}

    def _move_shared(self, slots: list[_Slot], added: Tensor, update: Descend) -> None:
        step = torch.tensor([self.step // update.every], device=self.device)
        go = torch.ones(1, dtype=torch.bool, device=self.device)
        start = 0
        for slot in slots:
            flat = torch.cat([self.shared[name].flatten() for name in slot.names])[None]
            gradient = added[start : start + flat.shape[1]][None]
            start += flat.shape[1]
            at = torch.tensor([self.step], device=self.device)
            flat, slot.moments = slot.optimizer.update(
                flat, gradient, slot.moments, step, go, at=at
            )
            for name, value in _unflat(flat[0], slot.names, self.shared).items():
                self.shared[name] = value
                if update.ema is not None:
                    self.averages[name].lerp_(value, 1 - update.ema)

    def _move_rows(
        self, slots: list[_Slot], own: Tensors, gradients: list[Tensor], at: Tensor
    ) -> None:
        """Moves the latents that were drawn, and only their moments."""
        gradients = list(gradients)
        go = torch.ones(len(at), dtype=torch.bool, device=self.device)
        step = torch.full_like(at, self.step)
        for slot in slots:
            mine = [gradients.pop(0).flatten(1) for _ in slot.names]
            flat = torch.cat([own[name].detach().flatten(1) for name in slot.names], 1)
            moments = [moment[at] for moment in slot.moments]
            flat, moments = slot.optimizer.update(
                flat, torch.cat(mine, 1), moments, self.counts[at], go, at=step
            )
            for old, new in zip(slot.moments, moments):
                old[at] = new
            start = 0
            for name in slot.names:
                width = own[name][0].numel()
                self.rows[name][at] = flat[:, start : start + width].reshape(own[name].shape)
                start += width

    def _note(self, values: dict[str, float], batch: int) -> None:
        means = {name: value / batch for name, value in values.items()}
        self.log.append({"phase": self.number, "step": self.step, **means})

    def _add(self, buffer: Tensor) -> Tensor:
        """Sum over all workers."""
        if self.world > 1:
            dist.all_reduce(buffer)
        return buffer

    def _gather(self, own: Tensor) -> Tensor:
        """Rows of all workers in the order of the training rows."""
        if self.world == 1:
            return own
        most = -(-self.total // self.world)
        padded = torch.zeros(most, *own.shape[1:], dtype=own.dtype, device=own.device)
        padded[: len(own)] = own
        parts = [torch.zeros_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[: self.total]

    def _save(self) -> bytes:
        tensors = {f"shared/{name}": value for name, value in self.shared.items()}
        tensors |= {f"average/{name}": value for name, value in self.averages.items()}
        tensors |= {f"rows/{name}": self._gather(value) for name, value in self.rows.items()}
        tensors["counts"] = self._gather(self.counts)
        for i, slot in enumerate(self.slots):
            tensors |= {f"moment/{i}/{j}": m for j, m in enumerate(slot.moments)}
        for i, slot in enumerate(self.row_slots):
            tensors |= {f"row_moment/{i}/{j}": self._gather(m) for j, m in enumerate(slot.moments)}
        state = {
            "phase": self.number,
            "step": self.step,
            "seed": self.seed,
            "total": self.total,
            "log": self.log,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return save(tensors, {"state": json.dumps(state)})

    def _load(self, data: bytes) -> None:
        tensors = {name: value.to(self.device) for name, value in load(data).items()}
        state = json.loads(_metadata(data)["state"])
        for key in ("seed", "total"):
            if state[key] != getattr(self, key):
                raise ValueError(
                    f"the checkpoint has {key} {state[key]}, this training {getattr(self, key)}; "
                    "delete it to start anew"
                )
        self.number, self.step, self.log = state["phase"], state["step"], state["log"]
        if self.number < len(self.method.train):
            phase = self.method.train[self.number]
            self._enter(Phase(phase.steps, phase.size, phase.updates))
        own = slice(self.rank, None, self.world)
        for name in self.shared:
            self.shared[name] = tensors[f"shared/{name}"]
        for name in self.averages:
            self.averages[name] = tensors[f"average/{name}"]
        for name in self.rows:
            self.rows[name] = tensors[f"rows/{name}"][own].clone()
        self.counts = tensors["counts"][own].clone()
        for i, slot in enumerate(self.slots):
            slot.moments = [tensors[f"moment/{i}/{j}"] for j in range(len(slot.moments))]
        for i, slot in enumerate(self.row_slots):
            slot.moments = [
                tensors[f"row_moment/{i}/{j}"][own].clone() for j in range(len(slot.moments))
            ]


def _reptile(
    method: MetaLearned,
    shared: Tensors,
    rows: Tensors,
    samples: Samples,
    index: Int[Tensor, "b"],
    draw: Draw,
) -> dict[str, Tensor]:
    """Half the squared way of the inner steps, whose gradient is start minus end; and the loss at
    the last step, which has none."""
    if method.inner.learned != "none":
        raise ValueError("inner steps of order 0 (Reptile) learn no rates; set learned to 'none'")
    ends, loss = adapt(method, shared, rows, samples, index, draw, graph=False)
    ways = [(rows[name] - ends[name]).flatten(1).square().sum(1) / 2 for name in ends]
    return {"way": torch.stack(ways).sum(0), "last": loss}


def _slots(tensors: Tensors, updates: tuple[Descend, ...], frozen: set[str]) -> list[_Slot]:
    """Groups names by the update and prefix that move them; one may not be moved twice."""
    members: dict[tuple[int, str], list[str]] = {}
    for name in tensors:
        claims = [
            (i, prefix)
            for i, update in enumerate(updates)
            if name not in frozen and (prefix := group_of(name, update.groups)) is not None
        ]
        if len(claims) > 1:
            raise ValueError(f"parameter {name!r} is moved by two updates of one phase")
        for claim in claims:
            members.setdefault(claim, []).append(name)
    return [_Slot(i, names, updates[i].groups[p]) for (i, p), names in members.items()]


def _unflat(flat: Tensor, names: list[str], like: Tensors) -> Tensors:
    parts = flat.split([like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape) for name, part in zip(names, parts)}


def _refuse_own_statistics(method: Method) -> None:
    """Raises where a module's statistics would be those of one worker's part of a batch."""
    for name, module in method.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"method {method.field.method!r}: {name} is a {type(module).__name__}, whose "
                "running statistics would differ from worker to worker; take "
                "pipeline.fields.blocks.BatchNorm, or train with one worker"
            )


def _dropout(module: nn.Module) -> bool:
    """Whether a module draws from PyTorch's own generator while it trains."""
    if isinstance(module, nn.Dropout):
        return True
    return any(getattr(layer, "dropout", 0) for layer in getattr(module, "table", ()))


def _metadata(data: bytes) -> dict[str, str]:
    """The text part of a safetensors file in memory."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


def _detached(tensors: Tensors) -> Tensors:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
