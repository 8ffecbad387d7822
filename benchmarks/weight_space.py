"""What can be read off weights and latents, and how fitting decides it.

`waves` is DWSNets' first task (Navon et al. 2023, sec. 6): which sine does a network draw?
`digit_weights` fits a small SIREN to every digit, from one common start or each from its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.downstream.classify import accuracy, learn, perceptron, standardizer, train_network
from pipeline.downstream.equivariant import Chain, WeightNetwork, layer_statistics
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


def waves(
    count: int,
    seed: int,
    *,
    steps: int = 300,
    start: str = "own",
    omega: float = 30.0,
    span: float = 1.0,
) -> Rows:
    """SIRENs 1-16-16-1 fitted to sin(b x) on [-pi, pi] with b in [0.5, 10], all at once."""
    from pipeline.draw import Draw, sample_keys
    from pipeline.fields.bind import bind
    from pipeline.fields.initializers import start_rows
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers

    layers = sine_layers(1, WIDTH, 2, 1, omega_first=omega, omega_hidden=omega)
    model = MLP(1, layers)
    names = [name for name, _ in model.named_parameters()]
    ids = [f"wave{0 if start == 'common' else i}" for i in range(count)]
    draw = Draw.of(sample_keys(ids), seed=seed, stage="fit")
    rows = {k: v.detach().requires_grad_() for k, v in start_rows(model, names, draw).items()}
    b = torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 9.5 + 0.5
    x = torch.linspace(-1, 1, 64)[None, :, None].expand(count, -1, -1)
    wanted = torch.sin(b[:, None, None] * x * torch.pi)
    adam = torch.optim.Adam(list(rows.values()), lr=2e-3)
    for _ in range(steps):
        error = (bind(model, rows)(x) - wanted).square().mean((1, 2))
        adam.zero_grad()
        error.sum().backward()
        adam.step()
    layout = Layout.of(model, names)
    flat = layout.flat({k: v.detach() for k, v in rows.items()})
    return Rows(chain(model, layout), flat, b, float(error.detach().mean()))


def chain(model, layout) -> Chain:
    table, n = layout.table(), len(model.layers)
    return Chain(
        widths=(model.layers[0].inputs, *(layer.outputs for layer in model.layers)),
        weights=tuple(table[f"layers.{k}.weight"]["offset"] for k in range(n)),
        biases=tuple(table[f"layers.{k}.bias"]["offset"] for k in range(n)),
        odd=(True,) * (n - 1),
        size=layout.width,
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


def r2(guessed: Tensor, wanted: Tensor) -> float:
    """Share of the variance that is explained."""
    return 1 - float((guessed - wanted).square().mean() / wanted.var(correction=0))


def regressed(rows: Rows, inputs: Tensor, network: torch.nn.Module) -> float:
    """Held-out R2 of a network that is trained to the targets of all but the last rows."""
    known = rows.targets[:-TEST]
    wanted = (rows.targets - known.mean()) / known.std()

    def loss(index: Tensor) -> Tensor:
        return (network(inputs[index])[:, 0] - wanted[index]).square().mean()

    learn(network, loss, len(known), steps=400, batch=64, rate=5e-3, weight_decay=1e-3)
    with torch.no_grad():
        return r2(network(inputs[-TEST:])[:, 0], wanted[-TEST:])


def equivariant_r2(rows: Rows) -> tuple[float, WeightNetwork]:
    """R2 of the equivariant network (3 layers of 16 channels), and the network."""
    torch.manual_seed(0)
    statistics = layer_statistics(rows.chain, rows.values[:-TEST])
    network = WeightNetwork(rows.chain, 1, statistics=statistics, channels=16)
    return regressed(rows, rows.values, network), network


def flat_r2(rows: Rows) -> float:
    """R2 of a plain network on the same rows."""
    torch.manual_seed(0)
    network = perceptron(rows.values.shape[1], 256, 1)
    return regressed(rows, standardizer(rows.values[:-TEST])(rows.values), network)
