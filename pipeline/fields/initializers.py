"""Rules that start parameters, as functions of a draw, and starting whole models by them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.draw import SHARED, Draw, word
from pipeline.fields.bind import Tensors


@dataclass(frozen=True)
class Uniform:
    """Uniform in [-bound, bound)."""

    bound: float

    def __call__(self, draw: Draw, tag: str, shape: Sequence[int]) -> Tensor:
        return draw.uniform(tag, *shape).mul_(2 * self.bound).sub_(self.bound)


@dataclass(frozen=True)
class Normal:
    """Normal with a mean and a standard deviation."""

    std: float
    mean: float = 0.0

    def __call__(self, draw: Draw, tag: str, shape: Sequence[int]) -> Tensor:
        return draw.normal(tag, *shape).mul_(self.std).add_(self.mean)


@dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, draw: Draw, tag: str, shape: Sequence[int]) -> Tensor:
        return torch.full((len(draw.keys), *shape), self.value, device=draw.keys.device)


Initializer = Uniform | Normal | Constant


def torch_default(inputs: int) -> dict[str, Initializer]:
    """Weight and bias of `torch.nn.Linear`: both uniform within 1 / sqrt(inputs)."""
    return {"weight": Uniform(1 / math.sqrt(inputs)), "bias": Uniform(1 / math.sqrt(inputs))}


def glorot_normal(inputs: int, outputs: int) -> dict[str, Initializer]:
    """Normal weights of variance 2 / (inputs + outputs) (Glorot & Bengio 2010), small biases (as in
    JAX's stax, which Tancik et al. 2020 use)."""
    return {"weight": Normal(math.sqrt(2 / (inputs + outputs))), "bias": Normal(1e-2)}


def geometric_hidden(outputs: int) -> dict[str, Initializer]:
    """Hidden layers that keep the length of their input on average (SAL, Atzmon & Lipman 2020).

    With a ReLU (or a sharp softplus) behind it, |y| is about |x| for many outputs; also after a
    skip whose concatenation is divided by sqrt(2).
    """
    return {"weight": Normal(math.sqrt(2 / outputs)), "bias": Constant(0.0)}


def geometric_last(
    inputs: int, *, radius: float, slope: float = 1.0, std: float = 1e-5
) -> dict[str, Initializer]:
    """A last layer after `geometric_hidden` ones: the field starts near slope (|x| - radius).

    Weights all about slope sqrt(pi / inputs), since the mean of a unit's positive part is
    |x| / sqrt(pi inputs); bias - slope radius.
    """
    mean = slope * math.sqrt(math.pi / inputs)
    return {"weight": Normal(std, mean), "bias": Constant(-slope * radius)}


def describe_rule(rule: Initializer) -> dict[str, Any]:
    """A rule as plain values."""
    return {"rule": type(rule).__name__.lower(), **asdict(rule)}


def rules_of(model: nn.Module) -> dict[str, Initializer]:
    """The rule of every parameter and buffer whose module declares one (`module.initializers`)."""
    rules = {}
    for prefix, module in model.named_modules():
        for name, rule in getattr(module, "initializers", {}).items():
            rules[f"{prefix}.{name}" if prefix else name] = rule
    return rules


def start_rows(model: nn.Module, names: Iterable[str], draw: Draw) -> Tensors:
    """Starts parameters with a sample axis: each sample's depend on its own key only."""
    rules, shapes = rules_of(model), _shapes(model)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    rows = {}
    for name in names:
        if name not in rules:
            raise ValueError(
                f"parameter {name!r} cannot start for each sample: its module declares no rule in "
                "`initializers`"
            )
        start = rules[name](draw, name, shapes[name])
        whole = not types[name].is_floating_point
        rows[name] = start.to(types[name]) if whole else start
        _finish(model, name, rows)
    return rows


def start_once(model: nn.Module, names: Iterable[str], draw: Draw) -> Tensors:
    """Starts what all samples share. Modules without rules start as PyTorch starts them."""
    names = list(names)
    rules, shapes = rules_of(model), _shapes(model)
    plain = [name for name in names if name not in rules]
    if plain:
        _reset_plain(model, plain, draw)
    current = dict(model.named_parameters()) | dict(model.named_buffers())
    shared = {}
    for name in names:
        if name in rules:
            shared[name] = rules[name](draw, name, shapes[name])
            _finish(model, name, shared)
        else:
            shared[name] = current[name].detach().clone()[None]
    return {name: value[0] for name, value in shared.items()}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in [*model.named_parameters(), *model.named_buffers()]}


def _finish(model: nn.Module, name: str, tensors: Tensors) -> None:
    """Lets a module derive a start from another one (the magnitude of a normalized weight)."""
    prefix, _, last = name.rpartition(".")
    derive = getattr(model.get_submodule(prefix), "derive_start", None)
    if derive is not None:
        dot = prefix + "." if prefix else ""
        tensors[name] = derive(last, tensors[name], lambda other: tensors.get(dot + other))


def _reset_plain(model: nn.Module, names: list[str], draw: Draw) -> None:
    owners = {name.rpartition(".")[0] for name in names}
    with torch.random.fork_rng(devices=[]):
        for owner in sorted(owners):
            module = model.get_submodule(owner)
            seed = int(draw.at(torch.full_like(draw.step, word(owner + SHARED))).bits("reset")[0])
            torch.manual_seed(seed & (2**63 - 1))
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
