"""Which sine does a network draw? DWSNets' first task (Navon et al. 2023, sec. 6), by readers of
weights: a permutation-equivariant network, the same with probes, a plain one.

    python -m benchmarks.sine_waves [--seeds 3] [--write]     # results/sine_waves.md
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.weight_space import Rows, chain
from pipeline.downstream.classify import perceptron, standardizer
from pipeline.downstream.course import ALONE
from pipeline.downstream.equivariant import WeightNetwork, layer_statistics
from pipeline.draw import Draw
from pipeline.fitting.rows import Layout

WIDTH = 16
COUNT = 2400
TEST = 300
"""Rows at the end that measure."""
OMEGA = 10.0
"""Frequency factor of both layers: the highest at which the reader without probes is at its best;
see results/sine_waves.md."""
RESULTS = Path(__file__).parent / "results" / "sine_waves.md"


def waves(
    count: int, seed: int, *, steps: int = 200, start: str = "own", omega: float = OMEGA
) -> Rows:
    """SIRENs 1-16-16-1 fitted to sin(b x) on [-pi, pi] with b in [0.5, 10], all at once; the
    interval is scaled to [-1, 1]."""
    from pipeline.draw import sample_keys
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


def r2(guessed: Tensor, wanted: Tensor) -> float:
    """Share of the variance that is explained."""
    return 1 - float((guessed - wanted).square().mean() / wanted.var(correction=0))


def regressed(rows: Rows, inputs: Tensor, network: torch.nn.Module, steps: int) -> float:
    """Held-out R2 of a network that is trained to the targets of all but the last rows."""
    known = rows.targets[:-TEST]
    wanted = (rows.targets - known.mean()) / known.std()

    def loss(index: Tensor, draw: Draw) -> Tensor:
        return (network(inputs[index])[:, 0] - wanted[index]).square().mean()

    ALONE.learn(
        network, loss, len(known), name="wave", steps=steps, batch=64, rate=5e-3, weight_decay=1e-3
    )
    with torch.no_grad():
        return r2(network(inputs[-TEST:])[:, 0], wanted[-TEST:])


def equivariant_r2(rows: Rows, *, probes: int = 0, steps: int = 200) -> tuple[float, WeightNetwork]:
    """R2 of the equivariant network (3 layers of 16 channels), and the network."""
    torch.manual_seed(0)
    statistics = layer_statistics(rows.chain, rows.values[:-TEST])
    network = WeightNetwork(rows.chain, 1, statistics=statistics, channels=16, probes=probes)
    return regressed(rows, rows.values, network, steps), network


def flat_r2(rows: Rows, *, steps: int = 200) -> float:
    """R2 of a plain network on the same rows."""
    torch.manual_seed(0)
    network = perceptron(rows.values.shape[1], 256, 1)
    return regressed(rows, standardizer(rows.values[:-TEST])(rows.values), network, steps)


def reordered_error(rows: Rows, network: WeightNetwork) -> float:
    """Greatest change of an output when the hidden units of test rows come in another order."""
    values = rows.values[-TEST:]
    orders = rows.chain.random_orders(len(values), torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((network(rows.chain.reorder(values, orders)) - network(values)).abs().max())


# --- the table ------------------------------------------------------------------------------

HEAD = """\
# Which sine does a network draw?

{count} SIRENs 1-16-16-1 (321 weights), each from a start of its own, fitted to sin(b x) on
[-pi, pi], b uniform in [0.5, 10], in 200 steps; readers learn b from {known} of them (200 steps of
64) and are measured on {test}. R2, worst of {seeds} seeds (mean). Made by
`python -m benchmarks.sine_waves --write`.

- *equivariant*: NFN's NP layers, 3 of 16 channels, weights alone
- *with probes*: the same, and every unit's values at 16 learned coordinates
- *plain*: two hidden layers of 256 on standardized weights
- *moved*: root mean square change of the first layer's weights by fitting, over their root mean
  square at the start

| omega | error of the fits | moved | equivariant | with probes | plain | reordered |
| --- | --- | --- | --- | --- | --- | --- |
"""
NOTES = """
- The frequency factor decides how much weights say. The waves have up to 31 radians on the unit
  interval. At omega 30, the usual one for SIREN, a random start has all of these frequencies
  already: fitting moves the first layer half as far as at 10 (*moved*), b is in sums over many
  units, and a reader of weights alone finds part of it. Longer fits and readers help less: 0.69
  with 300 steps of both, 0.81 with 1,200 of the reader and units turned at random (seed 0).
- Values of units at learned coordinates do help: they are the same for weights that differ by
  signs or by whole turns of a phase, which weights alone do not show.
- A plain network on weights from own starts reads next to nothing at any factor.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/sine_waves.md")
    arguments = parser.parse_args()
    text = HEAD.format(count=COUNT, known=COUNT - TEST, test=TEST, seeds=arguments.seeds)
    for omega in (OMEGA, 30.0):
        found = [_figures(omega, seed) for seed in range(arguments.seeds)]
        columns = {k: [f[k] for f in found] for k in found[0]}
        shown = [
            f"{omega:g}",
            f"{max(columns['error']):.1e}",
            f"{max(columns['moved']):.2f}",
        ]
        for name in ("equivariant", "probes"):
            shown.append(f"{min(columns[name]):.3f} ({_mean(columns[name]):.3f})")
        shown.append(f"{max(columns['plain']):.3f} ({_mean(columns['plain']):.3f})")
        shown.append(f"{max(columns['reordered']):.0e}")
        text += f"| {' | '.join(shown)} |\n"
        print(text.splitlines()[-1], flush=True)
    text += NOTES
    if arguments.write:
        RESULTS.write_text(text)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _figures(omega: float, seed: int) -> dict[str, float]:
    started = time.process_time()
    rows = waves(COUNT, seed, omega=omega)
    before = waves(COUNT, seed, omega=omega, steps=1)  # one step of Adam moves each entry by 2e-3
    first = slice(rows.chain.weights[0], rows.chain.weights[0] + WIDTH)
    moved = (rows.values - before.values)[:, first].square().mean().sqrt()
    found = {
        "error": rows.error,
        "moved": float(moved / before.values[:, first].square().mean().sqrt()),
    }
    found["equivariant"], network = equivariant_r2(rows)
    found["reordered"] = reordered_error(rows, network)
    found["probes"], _ = equivariant_r2(rows, probes=16)
    found["plain"] = flat_r2(rows)
    print(omega, seed, found, f"{time.process_time() - started:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    main()
