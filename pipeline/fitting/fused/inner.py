"""Inner loops by the compiled loop: which methods can take it, and networks as it reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.fields.bind import RATE, START, Tensors
from pipeline.fields.modulation import ShiftedSirens
from pipeline.fitting.method import Inner, MetaLearned, Method, row_names
from pipeline.objectives.photometric import ColorError
from pipeline.samples import pixel_coords

NAME = "code.value"
CHUNK = 1024
"""Points whose activations are alive at a time."""
CALIBRATION = 16
"""Points an axis on which the units of stored errors are measured."""


@dataclass(frozen=True)
class RecognizedInner:
    """A method whose rows are latents that shift a sine network, in the terms of the loop."""

    inner: Inner
    model: ShiftedSirens


def recognize_inner(method: Method) -> RecognizedInner | str:
    """The method in the loop's terms, or why the loop cannot fit it."""
    model = method.field.model
    if not isinstance(method, MetaLearned) or type(model) is not ShiftedSirens:
        return f"{type(method).__name__} of {type(model).__name__}"
    if method.fit or row_names(method) != [NAME]:
        return f"{len(method.fit)} phases of {row_names(method)}"
    inner = method.inner
    if type(inner.loss) is not ColorError:
        return f"its loss is {getattr(inner.loss, '__name__', type(inner.loss).__name__)}"
    if inner.size.picture or not inner.size.pixels:
        return "its steps see whole pictures"
    dims, channels = model.layers[0].inputs, model.last.outputs
    if dims != 2 or channels > 4:
        return f"its size: inputs {dims}, outputs {channels}"
    if model.cells and model.lookup != "nearest":
        return f"its points take vectors from more than one cell (lookup: {model.lookup})"
    return RecognizedInner(inner, model)


@dataclass(frozen=True)
class _Layers:
    """Weights in use, the frequency multiplied in."""

    weights: list[Tensor]
    biases: list[Tensor]
    shifts: list[Tensor]
    """[width, z] of each layer."""
    last: Tensor
    last_bias: Tensor


def _layers(model: ShiftedSirens, shared: Tensors) -> _Layers:
    omega, width = model.omega, model.width
    shared = {name: value.detach().cpu().float() for name, value in shared.items()}
    names = [f"layers.{i}." for i in range(model.depth)]
    shift, more = shared["shift.weight"] * omega, shared["shift.bias"] * omega
    return _Layers(
        [shared[n + "weight"] * omega for n in names],
        [shared[n + "bias"] * omega + b for n, b in zip(names, more.split(width))],
        list(shift.split(width)),
        shared["last.weight"],
        shared["last.bias"],
    )


def network(method: RecognizedInner, shared: Tensors, mode: str):
    """The network as `shifted.encode` reads it, for products in this kind of numbers."""
    from pipeline.fitting.fused import narrow
    from pipeline.fitting.fused.shifted import FEW, Shifted

    model, layers = method.model, _layers(method.model, shared)
    width, depth = -(-model.width // narrow.COLUMNS) * narrow.COLUMNS, model.depth

    def padded(matrix: Tensor, rows: int, columns: int) -> np.ndarray:
        found = np.zeros((rows, columns), np.float32)
        found[: matrix.shape[0], : matrix.shape[1]] = matrix.numpy()
        return found

    def packed(matrices: list[Tensor], columns: int = width) -> list[np.ndarray]:
        parts = [narrow.packed(padded(m, width, columns), mode) for m in matrices]
        if not parts:
            none = np.zeros((0, width), np.float32)
            return [none.astype(narrow.STORED[mode]), none.astype(np.int32), none]
        return [np.stack(part) for part in zip(*parts)]

    whole = np.float32(narrow.TOP if mode == "int8" else 1)
    units = np.ones(depth, np.float32)
    if mode == "int8":
        units = error_units(method, shared)
    forth, forth_start, forth_scale = packed([w.T for w in layers.weights[1:]])
    back, back_start, back_scale = packed(layers.weights[1:])
    last, last_start, last_scale = packed([layers.last.T], narrow.COLUMNS)
    top, _, _ = narrow.packed(padded(layers.last, FEW, width) / whole, "float32")
    first, _, _ = narrow.packed(padded(layers.weights[0].T, FEW, width), "float32")
    shifts = np.stack([padded(s.T, s.shape[1], width) for s in layers.shifts], 1)
    return Shifted(
        width=width,
        depth=depth,
        channels=model.last.outputs,
        cells=model.cells,
        first=first,
        forth=forth,
        forth_start=forth_start,
        forth_scale=forth_scale / whole,
        back=back,
        back_start=back_start,
        # Stored errors are in units of the layer above, slopes in units of 8 bits.
        back_scale=back_scale / (units[1:, None] * whole),
        last=last[0],
        last_start=last_start[0],
        last_scale=last_scale[0] / whole,
        last_bias=padded(layers.last_bias[None], 1, narrow.COLUMNS)[0],
        top=top,
        units=units,
        shifts=np.ascontiguousarray(shifts),
        biases=padded(torch.stack(layers.biases), depth, width),
    )


def _start(method: RecognizedInner, shared: Tensors) -> Float[Tensor, "cells z"]:
    code = shared[START + NAME].detach().cpu().float()
    return code.reshape(-1, code.shape[-1]) if method.model.cells else code[None]


def start_and_rates(method: RecognizedInner, shared: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """The latents where all begin [cells, z], and the rates of the steps [steps, cells, z]."""
    code, steps = _start(method, shared), method.inner.steps
    rates = shared.get(RATE + NAME)
    if rates is None:
        rates = torch.full((steps,), method.inner.rate)
    rates = rates.detach().cpu().float()
    rates = rates.reshape(steps, 1, 1) if rates.dim() == 1 else rates.reshape(steps, *code.shape)
    return code.numpy(), np.ascontiguousarray(rates.expand(steps, *code.shape).numpy())


def _tangent(layers: _Layers, coords: Tensor, shifts: list[Tensor]):
    """Values at points, and of each channel the errors before the sines, last layer first."""
    h, slopes = coords, []
    for weight, bias, shift in zip(layers.weights, layers.biases, shifts):
        z = torch.addmm(bias, h, weight.T) + shift
        h = z.sin()
        slopes.append(z.cos())
    values = torch.addmm(layers.last_bias, h, layers.last.T)

    def errors(channel: int):
        error = layers.last[channel] * slopes[-1]
        yield error
        for weight, slope in zip(reversed(layers.weights[1:]), reversed(slopes[:-1])):
            error = (error @ weight) * slope
            yield error

    return values, errors


@torch.no_grad()
def linear_start(method: RecognizedInner, shared: Tensors, height: int, width: int):
    """The network at the latent where all begin, and its derivative, at pixels of this size.

    The first step is then linear in the picture: two evaluations of three are left.
    """
    from pipeline.fitting.fused.shifted import Start

    model, layers, code = method.model, _layers(method.model, shared), _start(method, shared)
    values, slopes = [], []
    for coords in pixel_coords(height, width).split(CHUNK):
        cell = torch.zeros(len(coords), dtype=torch.int64)
        if model.cells:
            coords, number = model.places(coords)
            cell = number
        own = [code[cell] @ s.T if model.cells else code @ s.T for s in layers.shifts]
        value, errors = _tangent(layers, coords, own)
        values.append(value)
        parts = []
        for channel in range(model.last.outputs):
            ways = zip(errors(channel), reversed(layers.shifts))
            parts.append(sum(error @ shift for error, shift in ways))
        slopes.append(torch.stack(parts, 1))
    return Start(height, width, torch.cat(values).numpy(), torch.cat(slopes).numpy())


def no_start(method: RecognizedInner):
    """Of no size: the first step is computed as all others are."""
    from pipeline.fitting.fused.shifted import Start

    z = method.model.code.value.shape[-1]
    return Start(0, 0, np.zeros((0, 1), np.float32), np.zeros((0, 1, z), np.float32))


@torch.no_grad()
def error_units(method: RecognizedInner, shared: Tensors) -> Float[np.ndarray, "depth"]:
    """Factors by which errors of unit length at the output are stored in 8 bits, layer by layer.

    Where the tails are cut is chosen for the least mean squared error at the start.
    """
    from pipeline.fitting.fused.narrow import TOP

    layers, code = _layers(method.model, shared), _start(method, shared).mean(0, keepdim=True)
    coords = pixel_coords(CALIBRATION, CALIBRATION)
    if method.model.cells:
        coords = (coords + 1) / 2
    _, errors = _tangent(layers, coords, [code @ s.T for s in layers.shifts])
    channels = [list(errors(c)) for c in range(method.model.last.outputs)]
    units = []
    for parts in zip(*channels):
        error = torch.cat(parts)
        rms = float(error.square().mean().sqrt().clamp(min=1e-20))
        tried = [TOP / (rms * cut) for cut in (3.0, 4.0, 5.0, 6.0, 8.0, 11.0, 16.0, 23.0, 32.0)]
        lost = [
            float(((error * u).round().clamp(-TOP, TOP) / u - error).square().sum()) for u in tried
        ]
        units.append(tried[int(np.argmin(lost))])
    return np.array(units[::-1], np.float32)
