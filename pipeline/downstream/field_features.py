"""What the last hidden layer of a field computes at coordinates: features of every point."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluate.opened import OpenedStore
from pipeline.fields.bind import Bound, bind
from pipeline.fitting.method import Method
from pipeline.fitting.rows import bindable, start_shared

CHUNK = 2**13


def last_layer(method: Method) -> str:
    """Name of the module of the last linear layer, by the layer table of the field."""
    for layer in reversed(method.field.layers):
        name = layer.get("weight")
        if layer.get("kind") == "linear" and isinstance(name, str):
            return name.rpartition(".")[0]
    kinds = sorted({str(layer.get("kind")) for layer in method.field.layers})
    raise ValueError(
        f"fields of '{method.field.method}' have no linear layer at their end, only "
        f"{', '.join(kinds)}: there are no features to read"
    )


def features(
    method: Method, bound: Bound, coords: Float[Tensor, "n p d"]
) -> Float[Tensor, "n p f"]:
    """What the last linear layer gets at coordinates: the activations of the last hidden layer."""
    seen: list[Tensor] = []

    def keep(module: object, inputs: tuple[Tensor, ...]) -> None:
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in inputs))
        seen.append(torch.cat([part.expand(*shape, part.shape[-1]) for part in inputs], -1))

    layer = method.field.model.get_submodule(last_layer(method))
    handle = layer.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            method.field.read(bound, coords)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].shape[:2] != coords.shape[:2]:
        shapes = ", ".join(str(list(part.shape)) for part in seen) or "nothing"
        raise ValueError(
            f"the last layer of '{method.field.method}' saw {shapes} for coordinates "
            f"{list(coords.shape)}: its features do not belong to single points"
        )
    return seen[0]


def directions(dims: int) -> Float[Tensor, "k d"]:
    """Unit vectors: 2 on a line, the 8 neighbors of a pixel in a plane, faces and corners of a cube
    in space (14), axes in more."""
    if dims > 3:
        return torch.cat([torch.eye(dims), -torch.eye(dims)])
    wanted = (1, dims) if dims == 3 else range(1, dims + 1)
    found = [v for v in itertools.product((-1.0, 0.0, 1.0), repeat=dims)
             if sum(map(abs, v)) in wanted]  # fmt: skip
    return F.normalize(torch.tensor(found), dim=1)


def surroundings(
    opened: OpenedStore, bound: Bound, coords: Float[Tensor, "p d"], distances: Sequence[float]
) -> Float[Tensor, "p f"]:
    """What the field says at points and around them: unlike hidden units, values mean the same in
    every field.

    At each distance: values in all directions, their mean and deviation, and the values up and down
    the field's gradient (of the mean channel), which say how thick a solid is and do not depend on
    how it is turned. Outside of [-1, 1] the nearest point inside counts.
    """
    around = directions(coords.shape[1]).to(coords)
    count, far = len(around), torch.tensor(tuple(distances)).to(coords)
    here = _values(opened, bound, coords[:, None])
    offsets = (far[:, None, None] * around).flatten(0, 1)
    shell = _values(opened, bound, coords[:, None] + offsets)
    shell = shell.unflatten(1, (len(far), count))
    slope = shell[:, 0].mean(-1) @ around  # by differences over the nearest distance
    steps = torch.cat([far, -far])[:, None] * F.normalize(slope, dim=1)[:, None]
    along = _values(opened, bound, coords[:, None] + steps)
    spread = shell.std(2) if count > 1 else torch.zeros_like(shell[:, :, 0])
    parts = (here, shell, shell.mean(2), spread, along)
    return torch.cat([part.flatten(1) for part in parts], 1)


def _values(
    opened: OpenedStore, bound: Bound, places: Float[Tensor, "p k d"]
) -> Float[Tensor, "p k c"]:
    """The field's quantity, some places at a time."""
    flat = places.clamp(-1, 1).flatten(0, 1)
    with torch.no_grad():
        found = [
            opened.method.field.read(bound, part[None])[opened.quantity][0].reshape(len(part), -1)
            for part in flat.split(CHUNK)
        ]
    return torch.cat(found).unflatten(0, places.shape[:2])


def bound_features(
    method: Method, bound: Bound, coords: Float[Tensor, "p d"]
) -> Float[Tensor, "p f"]:
    """Features of one field, some points at a time."""
    return torch.cat([features(method, bound, x[None])[0] for x in coords.split(CHUNK)])


def row_features(
    opened: OpenedStore, row: int, coords: Float[Tensor, "p d"]
) -> Float[Tensor, "p f"]:
    """Features of one row of a store."""
    return bound_features(opened.method, opened.bound(row), coords)


def untrained_bound(opened: OpenedStore, row: int, seed: int) -> Bound:
    """The field of a row with the shared network as it starts: what training brought is gone."""
    shared = start_shared(opened.method, seed, opened.device)
    tensors = bindable(opened.method, shared, opened.row_tensors(row))
    return bind(opened.method.field.model, tensors)


def row_latent(opened: OpenedStore, row: int) -> Float[Tensor, "z"]:
    """All latents of a row in one vector; empty where it has none."""
    names = [spec.name for spec in opened.plan.arrays if spec.name.startswith("latents/")
             and spec.dtype.startswith("float")]  # fmt: skip
    parts = [torch.from_numpy(opened.reader.array(name, [row])[0]).flatten() for name in names]
    return torch.cat(parts).float() if parts else torch.zeros(0)
