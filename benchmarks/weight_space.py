"""What can be read off weights and latents, and how fitting decides it.

`digit_weights` fits a small SIREN to every digit, from one common start or each from its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.downstream.classify import accuracy, perceptron, standardizer, train_network
from pipeline.downstream.equivariant import Chain
from pipeline.fitting.rows import Layout

WIDTH = 16


@dataclass(frozen=True)
class Rows:
    """Weights of networks with what is to be read off them."""

    chain: Chain
    values: Tensor
    targets: Tensor
    error: float
    """Mean squared error of the fits."""


def chain(model, layout) -> Chain:
    table, n = layout.table(), len(model.layers)
    return Chain(
        widths=(model.layers[0].inputs, *(layer.outputs for layer in model.layers)),
        weights=tuple(table[f"layers.{k}.weight"]["offset"] for k in range(n)),
        biases=tuple(table[f"layers.{k}.bias"]["offset"] for k in range(n)),
        odd=(True,) * (n - 1),
        size=layout.width,
        activations=tuple(layer.activation for layer in model.table),
    )


def digit_weights(
    count: int, seed: int, *, start: str = "own", test: int = 300, **settings: object
) -> Rows:
    """Weights of SIRENs 2-16-16-1 of digits, fitted by the method `siren`; the last `test` are for
    measuring. Targets are the digits."""
    from benchmarks.acceptance._digits import digits
    from pipeline import fitting, methods
    from pipeline.samples import load_samples

    table = digits(count + test, 14, seed, held_out=0.1)
    samples = load_samples(table, "images")
    options = {"width": WIDTH, "depth": 2, "steps": 200, "target_psnr": None, "omega_first": 6.0,
               "omega_hidden": 6.0, "rate": 5e-3, "start": start, **settings}  # fmt: skip
    method = methods.build("siren", methods.configure("siren", settings=options), samples.form)
    fused, _ = fitting.choose_path(method)
    shared = fitting.start_shared(method, seed)
    found = fitting.fit_rows(method, shared, samples, seed=seed, fused=fused)
    layout = Layout.of(method.model, [name for name, _ in method.model.named_parameters()])
    labels = torch.tensor([int(v) for v in table["label"].to_pylist()])
    return Rows(chain(method.model, layout), layout.flat(found.rows), labels, float("nan"))


TEST = 300
"""Rows at the end that measure."""


def flat_accuracy(rows: Rows) -> float:
    """Accuracy of a plain network on weights."""
    standard = standardizer(rows.values[:-TEST])
    x, size = standard(rows.values), rows.values.shape[1]
    scores = train_network(lambda: perceptron(size, 256, 10), x[:-TEST], rows.targets[:-TEST],
                           steps=600, batch=128, rate=2e-3, weight_decay=1e-2)  # fmt: skip
    return accuracy(scores(x[-TEST:]), rows.targets[-TEST:])
