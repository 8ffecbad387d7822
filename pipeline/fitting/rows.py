"""Rows as tensors by name, as one flat tensor a lane, and as the arrays of a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.draw import Draw
from pipeline.fields.bind import RATE, START, Tensors
from pipeline.fields.initializers import start_once, start_rows
from pipeline.fields.latent import latent_names, latents_of
from pipeline.fitting.method import MetaLearned, Method, PerSample, row_names, shared_names
from schemas.store import ArraySpec


@dataclass(frozen=True)
class Layout:
    """Places of named tensors in a flat row, which is float32; integers are exact up to 2**24."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str]) -> Layout:
        found = dict(model.named_parameters())
        shapes = tuple(tuple(found[name].shape) for name in names)
        return cls(tuple(names), shapes, tuple(found[name].dtype for name in names))

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    @property
    def width(self) -> int:
        return sum(self.sizes)

    def flat(self, tensors: Tensors) -> Float[Tensor, "n p"]:
        """Copies named tensors `[n, ...]` into one."""
        parts = [tensors[name] for name in self.names]
        parts = [p if p.is_floating_point() else p.to(torch.float32) for p in parts]
        parts = [p.reshape(len(p), size) for p, size in zip(parts, self.sizes)]
        return torch.cat(parts, 1)

    def split(self, flat: Float[Tensor, "n p"]) -> Tensors:
        """Views of a flat tensor by name (one node in the graph)."""
        parts = flat.split(self.sizes, 1)
        return {
            name: (part if kind.is_floating_point else part.to(kind)).reshape(len(flat), *shape)
            for name, shape, kind, part in zip(self.names, self.shapes, self.types, parts)
        }

    def table(self) -> dict[str, dict]:
        """Name -> offset and shape, for the attributes of the stored array."""
        starts = np.cumsum([0, *self.sizes[:-1]]).tolist()
        return {
            name: {"offset": start, "shape": list(shape)}
            for name, start, shape in zip(self.names, starts, self.shapes)
        }


def _stored(method: Method) -> tuple[Layout, dict[str, str]]:
    """Layout of `params` (network weights of a row) and the latents by parameter name."""
    model = method.field.model
    latents = latent_names(model)
    weights = [name for name in row_names(method) if name not in latents]
    return Layout.of(model, weights), latents


def row_arrays(method: Method) -> tuple[ArraySpec, ...]:
    """The arrays of a store: `params` and `latents/<name>` with rows, then `shared/<name>`."""
    layout, _ = _stored(method)
    arrays = []
    if layout.names:
        arrays.append(
            ArraySpec(
                name="params",
                shape=(layout.width,),
                dims=("param",),
                attributes={"table": layout.table()},
            )
        )
    for latent, module in latents_of(method.field.model).items():
        shape = tuple(module.value.shape)
        dims = module.dims or tuple(f"{latent.replace('.', '_')}_{i}" for i in range(len(shape)))
        arrays.append(
            ArraySpec(
                name=f"latents/{latent}",
                shape=shape,
                dims=dims,
                dtype=str(module.value.dtype).removeprefix("torch."),
                attributes=module.attributes,
            )
        )
    return (*arrays, *shared_arrays(_shared_like(method)))


def _shared_like(method: Method) -> Tensors:
    """Tensors with the names, shapes and types of what `start_shared` gives; drawing the values of
    a large hypernetwork takes many seconds."""
    model = method.field.model
    current = dict(model.named_parameters()) | dict(model.named_buffers())
    like = {name: current[name] for name in shared_names(method)}
    if _has_start(method):
        names = row_names(method)
        like |= {START + name: current[name] for name in names}
        if isinstance(method, MetaLearned) and method.inner.learned != "none":
            for name in names:
                shape = current[name].shape if method.inner.learned == "parameter" else ()
                like[RATE + name] = torch.zeros(()).expand(method.inner.steps, *shape)
    return like


def _has_start(method: Method) -> bool:
    """Whether the store keeps where rows start."""
    common = isinstance(method, PerSample) and method.start == "common"
    return common or isinstance(method, MetaLearned)


def shared_arrays(shared: Tensors) -> tuple[ArraySpec, ...]:
    """The arrays of a store that hold what all rows share."""
    return tuple(
        ArraySpec(
            name=f"shared/{name}",
            shape=tuple(value.shape),
            dims=tuple(f"{name.replace('.', '_')}_{i}" for i in range(value.dim())),
            dtype=str(value.dtype).removeprefix("torch."),
            rows=False,
        )
        for name, value in shared.items()
    )


def pack(method: Method, rows: Tensors) -> dict[str, np.ndarray]:
    """Rows by parameter name -> arrays by store name, each `[n, ...]`."""
    layout, latents = _stored(method)
    arrays = {}
    if layout.names:
        arrays["params"] = layout.flat(rows).detach().cpu().numpy()
    for name, latent in latents.items():
        arrays[f"latents/{latent}"] = rows[name].detach().cpu().numpy()
    return arrays


def unpack(
    method: Method, arrays: dict[str, np.ndarray], device: str | torch.device = "cpu"
) -> Tensors:
    """Arrays by store name -> rows by parameter name; the inverse of `pack`."""
    layout, latents = _stored(method)
    rows = {}
    if layout.names:
        rows = layout.split(torch.tensor(arrays["params"], device=device))
    for name, latent in latents.items():
        rows[name] = torch.tensor(arrays[f"latents/{latent}"], device=device)
    return rows


def pack_shared(shared: Tensors) -> dict[str, np.ndarray]:
    """Shared tensors -> arrays by store name."""
    return {f"shared/{name}": value.detach().cpu().numpy() for name, value in shared.items()}


def unpack_shared(arrays: dict[str, np.ndarray], device: str | torch.device = "cpu") -> Tensors:
    """The inverse of `pack_shared`; names may come with or without `shared/`."""
    return {
        name.removeprefix("shared/"): torch.tensor(np.asarray(value), device=device)
        for name, value in arrays.items()
    }


def lost(value: Tensor) -> Tensor:
    """What stands in a row without a result: NaN, or 0 in integers."""
    return torch.full_like(value, torch.nan if value.is_floating_point() else 0)


def bindable(method: Method, shared: Tensors, rows: Tensors) -> Tensors:
    """Everything the model is bound to: rows, and shared without starts and rates."""
    names = set(shared_names(method))
    return {**{k: v for k, v in shared.items() if k in names}, **rows}


def start_shared(method: Method, seed: int, device: str | torch.device = "cpu") -> Tensors:
    """What all samples share before any training: networks, buffers, common starts, rates."""
    model = method.field.model
    draw = Draw.once(seed=seed, stage="shared")
    shared = start_once(model, shared_names(method), draw)
    if _has_start(method):
        starts = start_once(model, row_names(method), draw)
        shared |= {START + name: value for name, value in starts.items()}
        if isinstance(method, MetaLearned) and method.inner.learned != "none":
            for name, value in starts.items():
                shape = value.shape if method.inner.learned == "parameter" else ()
                rate = torch.full((method.inner.steps, *shape), method.inner.rate)
                shared[RATE + name] = rate
    return {name: value.to(device) for name, value in shared.items()}


def started(method: Method, shared: Tensors, draw: Draw) -> Tensors:
    """Rows where fitting begins, before any inner step or encoder."""
    names = row_names(method)
    common = [name for name in names if START + name in shared]
    own = [name for name in names if START + name not in shared]
    rows = start_rows(method.field.model, own, draw)
    for name in common:
        value = shared[START + name]
        rows[name] = value.expand(len(draw.keys), *value.shape).clone()
    return {name: rows[name] for name in names}
