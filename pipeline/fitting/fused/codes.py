"""Codes of frozen networks by the compiled loop: what can take it, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.fields.activations import Identity, Relu, Tanh
from pipeline.fields.bind import Tensors
from pipeline.fields.conditioning import CodedField
from pipeline.fields.mlp import MLP
from pipeline.fitting.method import Autodecoded, Method, Phase, row_names
from pipeline.fitting.optimizers import Adam
from pipeline.objectives.distance import CodedDistanceError

NAME = "code.value"
WIDEST = 256
"""Beyond it the weights leave the cache, and PyTorch's products are as fast."""


@dataclass(frozen=True)
class RecognizedCodes:
    """A method whose rows are codes, in the terms of the compiled loop."""

    phase: Phase
    optimizer: Adam
    loss: CodedDistanceError
    model: CodedField


def recognize_codes(method: Method) -> RecognizedCodes | str:
    """The method in the loop's terms, or why the loop cannot fit it."""
    model = method.field.model
    if not isinstance(method, Autodecoded) or type(model) is not CodedField:
        return f"{type(method).__name__} of {type(model).__name__}"
    if row_names(method) != [NAME] or type(model.net) is not MLP:
        return f"its rows are {row_names(method)}"
    if len(method.fit) != 1:
        return f"{len(method.fit)} phases"
    (phase,) = method.fit
    if len(phase.updates) != 1 or phase.edits or phase.size.surface:
        return "several updates, edits or surface points"
    (update,) = phase.updates
    optimizers = list(update.groups.values())
    if len(optimizers) != 1 or type(optimizers[0]) is not Adam or optimizers[0].clip is not None:
        return "an optimizer other than one Adam without clipping"
    if not NAME.startswith(next(iter(update.groups))) or update.every != 1:
        return "another parameter moves"
    if type(update.loss) is not CodedDistanceError:
        return f"its loss is {getattr(update.loss, '__name__', type(update.loss).__name__)}"
    if phase.target is not None and phase.target.term not in (None, "sdf"):
        return f"its target watches {phase.target.term!r}"
    table = model.net.table
    if any(type(row.activation) is not Relu for row in table[:-1]) or table[0].skip:
        return "hidden layers other than positive parts"
    if type(table[-1].activation) not in (Tanh, Identity) or table[-1].width != 1:
        return "its last layer"
    widths = [row.width for row in table[:-1]]
    if max(widths) > WIDEST or model.net.layers[0].inputs - model.code.value.numel() != 3:
        return f"its size: widths {sorted(set(widths))}"
    if table[-1].skip or any(layer.scale != 1 for layer in model.net.layers):
        return "a skip to its last layer"
    return RecognizedCodes(phase, optimizers[0], update.loss, model)


def frozen(method: RecognizedCodes, shared: Tensors, lanes: int):
    """The network as `frozen.infer` reads it."""
    from pipeline.fitting.fused.frozen import FEW, Frozen
    from pipeline.fitting.fused.network import aligned

    table, size = method.model.net.table, method.model.code.value.numel()
    depth = len(table) - 1
    width = -(-max(row.width for row in table[:-1]) // lanes) * lanes

    def zeros(*shape: int) -> np.ndarray:
        return aligned(int(np.prod(shape))).reshape(shape)

    entries = [i for i, row in enumerate(table[:-1]) if i == 0 or row.skip]
    points, codes = zeros(len(entries), FEW, width), zeros(len(entries), size, width)
    weights, turned, biases = (
        zeros(depth, width, width),
        zeros(depth, width, width),
        zeros(depth, width),
    )
    for i in range(depth):
        weight, bias = layer_of(method.model.net.layers[i], shared, f"net.layers.{i}.")
        out = len(weight)
        below = 0 if i == 0 else table[i - 1].width
        weights[i, :out, :below] = weight[:, :below]
        turned[i] = weights[i].T
        biases[i, :out] = bias
        if i in entries:
            e = entries.index(i)
            codes[e, :, :out] = weight[:, below : below + size].T
            points[e, : FEW - 1, :out] = weight[:, below + size :].T
            points[e, FEW - 1, :out] = bias
    weight, bias = layer_of(method.model.net.layers[depth], shared, f"net.layers.{depth}.")
    last = zeros(FEW, width)
    last[0, : weight.shape[1]] = weight[0]
    loss, limit = method.loss, method.model.code.max_norm
    return Frozen(
        width=width,
        depth=depth,
        entry=np.array([entries.index(i) if i in entries else -1 for i in range(depth)]),
        points=points,
        codes=codes,
        weights=weights,
        turned=turned,
        biases=biases,
        last=last,
        last_bias=float(bias[0]),
        bounded=type(table[-1].activation) is Tanh,
        clamp=float(loss.clamp),
        both=loss.both,
        prior=float(loss.prior),
        limit=float(limit or 0.0),
        tile=64 if width <= 128 else 32,
    )


def layer_of(layer, shared: Tensors, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias in effect, a weight normalization worked out."""
    weight, bias = shared[prefix + "weight"], shared[prefix + "bias"]
    if layer.magnitude is not None:
        norm = weight.square().sum(-1, keepdim=True).sqrt()
        weight = weight * (shared[prefix + "magnitude"].unsqueeze(-1) / norm)
    return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()
