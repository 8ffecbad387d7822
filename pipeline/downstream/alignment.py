"""Weights of per-sample networks brought to a common order and sign of their hidden units.

Reordering hidden units, and turning the sign of units of odd activations, leaves a function as it
is. `align` undoes both as far as a reference tells (weight matching: Ainsworth et al. 2023, "Git
Re-Basin", algorithm 1; with signs). It helps rows whose starts were related; of networks that
started apart most differences stay, as no order of units brings them to one solution.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.downstream.equivariant import Chain


def align(
    chain: Chain,
    rows: Float[Tensor, "n p"],
    reference: Float[Tensor, "p"],
    *,
    rounds: int = 10,
) -> Float[Tensor, "n p"]:
    """The same functions, with hidden units in the order and signs that a reference suggests.

    Layer after layer, the units are matched that have the greatest inner products of their incoming
    weights, then of incoming and outgoing ones until nothing changes, at most `rounds` times.
    """
    return torch.cat([_aligned(chain, row[None], reference[None], rounds) for row in rows])


def _aligned(
    chain: Chain, row: Float[Tensor, "1 p"], reference: Float[Tensor, "1 p"], rounds: int
) -> Float[Tensor, "1 p"]:
    hidden = chain.widths[1:-1]
    wanted = chain.split(reference)
    for turn in range(rounds):
        before = row
        for layer, width in enumerate(hidden):
            likeness = _likeness(chain.split(row), wanted, layer, outgoing=turn > 0)
            gain = likeness.abs() if chain.odd[layer] else likeness
            _, order = linear_sum_assignment(gain.numpy(), maximize=True)
            chosen = torch.from_numpy(order)
            signs = [torch.ones(1, w) for w in hidden]
            orders = [torch.arange(w)[None] for w in hidden]
            orders[layer] = chosen[None]
            if chain.odd[layer]:
                signs[layer] = torch.where(likeness[torch.arange(width), chosen] < 0, -1.0, 1.0)[
                    None
                ]
            row = chain.turn(chain.reorder(row, orders), signs)
        if turn and torch.equal(row, before):
            break
    return row


def _likeness(
    found: tuple[list[Tensor], list[Tensor]],
    wanted: tuple[list[Tensor], list[Tensor]],
    layer: int,
    *,
    outgoing: bool,
) -> Float[Tensor, "h h"]:
    """Inner products of all units of the reference with all of a row."""
    (weights, biases), (to_weights, to_biases) = found, wanted

    def of(w: list[Tensor], b: list[Tensor]) -> Float[Tensor, "h k"]:
        after = [w[layer + 1][0, :, :, 0].T] if outgoing else []
        return torch.cat([w[layer][0, :, :, 0], b[layer][0], *after], 1)

    return (of(to_weights, to_biases) @ of(weights, biases).T).double()
