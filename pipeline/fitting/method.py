"""What a method is: a model, phases of optimization, and where a row's parameters come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.draw import Draw
from pipeline.fields.bind import Bound, Tensors
from pipeline.fields.latent import latent_names
from pipeline.fitting.optimizers import Optimizer
from pipeline.samples import Batch, Role, Size
from schemas.base import Schema
from schemas.samples import FormSpec

Loss = Callable[[Bound, Batch, Draw], dict[str, Float[Tensor, "n"]]]
"""Named terms, one value a sample each; their sum is minimized."""
Edit = Callable[[Bound, Tensors, Batch, Draw], Tensors]
"""Rows to rows, without gradient."""
Read = Callable[[Bound, Float[Tensor, "n p d"]], dict[str, Tensor]]
"""Named quantities at coordinates: color in [0, 1], sdf, occupancy, density."""


@dataclass(frozen=True)
class Descend:
    """One update: a loss, and which parameters follow its gradient."""

    loss: Loss
    groups: dict[str, Optimizer]
    """Name prefix -> optimizer, longest prefix first; parameters under no prefix are frozen."""
    every: int = 1
    ema: float | None = None
    """In training: decay of a running mean of the shared parameters, kept as the result."""


@dataclass(frozen=True)
class Target:
    """A row may leave once its loss has come down to `value`."""

    value: float
    term: str | None = None
    """Which term is watched; absent: their sum."""
    smooth: float = 0.0
    """Share of the running mean that each step keeps: above 0 where a step sees few points."""
    describe: Callable[[float], str] = field(default=lambda v: f"loss {v:.4g}")
    """A watched value in words, e.g. as PSNR."""


@dataclass(frozen=True)
class Phase:
    """A stretch of optimization in which nothing changes shape."""

    steps: int
    size: Size
    updates: tuple[Descend, ...]
    edits: tuple[tuple[int, Edit], ...] = ()
    """(k, edit): applied to a row after every k of its steps."""
    enter: Edit | None = None
    """Maps the rows of the phase before into this one."""
    enter_size: Size | None = None
    """What `enter` sees; absent: `size`."""
    target: Target | None = None
    batch: int = 1
    """In training: samples a step over all workers."""
    role: Role = "context"


@dataclass(frozen=True)
class Inner:
    """The inner loop of a meta-learner: plain gradient steps from the shared start."""

    loss: Loss
    steps: int
    rate: float
    size: Size
    learned: Literal["none", "tensor", "parameter"] = "none"
    """Learned rates: one a tensor and step, or one a parameter and step (MetaSDF)."""
    order: Literal[0, 1, 2] = 2
    """2 differentiates through the steps in training; 1 takes the last gradient as it is; 0 moves
    the start to where the steps end (Reptile, Nichol et al. 2018), whatever the outer loss."""


@dataclass(frozen=True)
class Field:
    """What every method has: the model, how its fields are read, and how they are written down."""

    method: str
    """Module name of the method."""
    config: Schema
    form: FormSpec
    """What it was built for."""
    model: nn.Module
    read: Read
    layers: list[dict[str, Any]]
    """The network for the field specification, in order of evaluation."""
    coords: dict[str, Any]
    output: dict[str, Any]


@dataclass(frozen=True)
class _Strategy:
    """What the five types share."""

    field: Field

    @property
    def model(self) -> nn.Module:
        return self.field.model

    @property
    def read(self) -> Read:
        return self.field.read


@dataclass(frozen=True)
class PerSample(_Strategy):
    """A row = weights and latents of a network of its own."""

    fit: tuple[Phase, ...]
    start: Literal["own", "common"] = "own"
    """Each row starts from draws of its own, or all from one draw that the store keeps."""
    train: tuple[Phase, ...] = ()
    """Always empty: nothing is shared but fixed encodings and a common start."""


@dataclass(frozen=True)
class Autodecoded(_Strategy):
    """A row = latents; the network is shared, trained together with the latents of some rows."""

    train: tuple[Phase, ...]
    fit: tuple[Phase, ...]


@dataclass(frozen=True)
class MetaLearned(_Strategy):
    """A row = what a few inner steps make of a learned start."""

    rows: tuple[str, ...]
    """Prefixes of the parameters that the inner loop adapts."""
    inner: Inner
    train: tuple[Phase, ...]
    fit: tuple[Phase, ...] = ()


@dataclass(frozen=True)
class Encoded(_Strategy):
    """A row = latents that an encoder computes from the context, or weights that a hypernetwork
    behind it does."""

    encode: Callable[[Bound, Batch, Draw], tuple[Tensors, dict[str, Tensor]]]
    """Rows, and loss terms of its own (a divergence from the prior)."""
    size: Size
    """What the encoder sees."""
    train: tuple[Phase, ...]
    fit: tuple[Phase, ...] = ()
    weights: tuple[str, ...] = ()
    """Prefixes of the network weights that `encode` gives for each sample."""


@dataclass(frozen=True)
class Adversarial(_Strategy):
    """A row = latents; in training they are drawn from a prior, in fitting found by inversion."""

    prior: Callable[[Bound, Draw], Tensors]
    train: tuple[Phase, ...]
    fit: tuple[Phase, ...] = ()


Method = PerSample | Autodecoded | MetaLearned | Encoded | Adversarial


def row_names(method: Method) -> list[str]:
    """Names of the parameters with a sample axis, in the order in which they are stored."""
    model = method.field.model
    parameters = [name for name, _ in model.named_parameters()]
    latents = latent_names(model)
    match method:
        case PerSample():
            return parameters
        case MetaLearned(rows=prefixes) | Encoded(weights=prefixes):
            return [n for n in parameters if n in latents or n.startswith(prefixes)]
        case Autodecoded() | Adversarial():
            return [name for name in parameters if name in latents]


def shared_names(method: Method) -> list[str]:
    """Names of all other parameters and buffers of the model."""
    rows = set(row_names(method))
    model = method.field.model
    names = [n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()]
    return [name for name in names if name not in rows]


def group_of(name: str, groups: dict[str, Optimizer]) -> str | None:
    """The longest prefix in `groups` that covers a parameter."""
    fits = [prefix for prefix in groups if name.startswith(prefix)]
    return max(fits, key=len) if fits else None
