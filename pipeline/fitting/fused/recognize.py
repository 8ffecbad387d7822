"""Which methods the compiled loop can fit, decided from what a method is made of."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass

from pipeline.fields.activations import Identity, Relu, Sine
from pipeline.fields.mlp import MLP
from pipeline.fitting.method import Method, PerSample, Phase, row_names, shared_names
from pipeline.fitting.optimizers import Adam
from pipeline.fitting.readout import SolvedReadout
from pipeline.objectives.distance import DistanceError
from pipeline.objectives.photometric import ColorError


@dataclass(frozen=True)
class Recognized:
    """A method in the terms of the compiled loop."""

    phase: Phase
    optimizer: Adam
    loss: ColorError | DistanceError
    dims: int
    width: int
    hidden: int
    channels: int
    sine: bool
    scales: tuple[float, ...]
    """Factor of weight and bias of each layer."""
    names: tuple[tuple[str, str], ...]
    """Parameter names of weight and bias of each layer."""


def recognize(method: Method) -> Recognized | str:
    """The method in the loop's terms, or why the loop cannot fit it."""
    if not isinstance(method, PerSample) or shared_names(method):
        return f"{type(method).__name__} shares parameters between rows"
    if len(method.fit) != 1:
        return f"{len(method.fit)} phases"
    (phase,) = method.fit
    if len(phase.updates) != 1 or phase.edits:
        return "several updates or edits"
    if phase.enter is not None and not isinstance(phase.enter, SolvedReadout):
        return "an entry other than a solved output layer"
    (update,) = phase.updates
    optimizer, loss = update.groups.get(""), update.loss
    plain_adam = isinstance(optimizer, Adam) and optimizer.clip is None
    if update.every != 1 or len(update.groups) != 1 or not plain_adam:
        return "an optimizer other than one Adam without clipping"
    if type(loss) not in (ColorError, DistanceError):
        return f"its loss is {getattr(loss, '__name__', type(loss).__name__)}"
    if phase.target is not None and phase.target.term not in (None, loss.term):
        return f"its target watches {phase.target.term!r}"
    if phase.size.surface:
        return "it draws surface points"
    return _network(method.model, phase, optimizer, loss, row_names(method))


def _network(model, phase, optimizer, loss, names) -> Recognized | str:
    if type(model) is not MLP or not all(p.requires_grad for p in model.parameters()):
        return f"its model is {type(model).__name__}"
    table, layers = model.table, list(model.layers)
    kinds = {type(row.activation) for row in table[:-1]}
    if len(table) < 2 or len(kinds) != 1 or not kinds <= {Sine, Relu}:
        return "layers other than sines, or other than positive parts"
    if not isinstance(table[-1].activation, Identity):
        return "its last layer is not linear"
    if any(row.skip or row.weight_norm or row.dropout for row in table):
        return "skips, weight normalization or dropout"
    widths = {row.width for row in table[:-1]}
    dims, channels = layers[0].inputs, table[-1].width
    if len(widths) != 1 or max(widths) > 512 or dims > 3 or channels > 4:
        return f"its size: inputs {dims}, widths {sorted(widths)}, outputs {channels}"
    pairs = tuple((f"layers.{i}.weight", f"layers.{i}.bias") for i in range(len(layers)))
    if {name for pair in pairs for name in pair} != set(names):
        return f"parameters {sorted(names)}"
    return Recognized(
        phase=phase,
        optimizer=optimizer,
        loss=loss,
        dims=dims,
        width=widths.pop(),
        hidden=len(table) - 2,
        channels=channels,
        sine=kinds == {Sine},
        scales=tuple(layer.scale for layer in layers),
        names=pairs,
    )


def available() -> str:
    """Empty if this machine can run the loop, else what is missing."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    from llvmlite import binding

    # Without it each multiply-add would be a call of the C library.
    if platform.machine().lower() in ("x86_64", "amd64"):
        return "" if binding.get_host_cpu_features().get("fma") else "this processor has no FMA"
    return ""
