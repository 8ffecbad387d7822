"""One small network fitted from start to end by one call that never goes back to Python.

`descend` owns a network for all its steps: it draws points as `samples.Ragged` does, goes forward
and back tile by tile while the activations stay in the core's first caches, moves the weights by
Adam, and goes on until the loss meets the target, stops being a number, or the steps are spent. So
every network has steps, moments and schedule of its own, and shares nothing with others: its bits
do not depend on what else is fitted, in which order or beside how many.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pipeline.fitting.fused.cache import cached
from pipeline.fitting.fused.passes import FEW, adam, learn, make_room, prepare, times

RUNNING, MET, DIVERGED, SPENT = 0, 1, 2, 3
"""Why a row stops, numbered as in `lanes`."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


@njit(nogil=True)
def scramble(x):
    """As `draw.scramble`."""
    x = (x ^ (x >> np.uint64(30))) * MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * MULTIPLY_2
    return x ^ (x >> np.uint64(31))


@njit(nogil=True)
def integer(key, step, tag, high):
    """As `Draw.integers` of one number."""
    start = scramble(key + np.uint64(step) * GOLDEN)
    word = scramble(scramble(start ^ tag) + GOLDEN)
    return np.int64(((word >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32))


@njit(nogil=True)
def draw(step, key, sets, tags, coords, wanted, x, y):
    """Copies a step's block of every set to `x` and `y`, as `samples.Ragged.block`.

    `sets`: one line a set of [start in `coords`, points held, points a step].
    """
    to = 0
    for s in range(len(tags)):
        start, held, size = sets[s]
        if held == 0:
            continue
        at = (integer(key, (step * size) // held, tags[s], held) + step * size) % held
        left = size
        while left:
            run = min(left, held - at)
            source = FEW * (start + at)
            for i in range(FEW * run):
                x[FEW * to + i] = coords[source + i]
                y[FEW * to + i] = wanted[source + i]
            to, at, left = to + run, 0, left - run


@cached(nogil=True)
def descend(net, row, coords, wanted, sets, tags, key, rates, betas, eps, target, smooth):
    """Fits one network; `row` is overwritten.

    Args:
        net: A `passes.Net`.
        row: Its parameters, flat (`passes`).
        coords: [points * 4]: coordinates, a 1, zeros; room for a whole block of rows at the end.
        wanted: [points * 4]: channels, zeros.
        sets: What each step draws (`draw`); no line: all points, every step.
        tags: Hashed names of the sets.
        key: The row's draw key.
        rates: Adam's rate at each step; as many as there are steps.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
        target: A loss at or below this ends the fit.
        smooth: Share of the running mean of losses that each step keeps.

    Returns:
        Steps taken, the reason of the end, the loss at the returned row (the last finite one if it
        diverged), and the watched (smoothed) loss.
    """
    room = make_room(net, row.size)
    first, second = np.zeros_like(row), np.zeros_like(row)
    x, y, points = coords, wanted, wanted.size // FEW
    if len(tags):
        points = 0
        for s in range(len(tags)):
            points += sets[s, 2] if sets[s, 1] else 0
        x = np.zeros(FEW * (points + net.tile), np.float32)
        y = np.zeros(FEW * (points + net.tile), np.float32)
    share = np.float32(1 / max(points * net.channels, 1))
    settle = int(2 / (1 - smooth)) if smooth else 0
    last, watched = math.nan, 0.0
    power_1, power_2 = 1.0, 1.0
    step = np.int64(0)
    while True:
        if len(tags):
            draw(step, key, sets, tags, coords, wanted, x, y)
        prepare(net, row, room)
        loss = learn(net, room, x, y, points, share)
        if not math.isfinite(loss):
            return step, DIVERGED, last, watched
        last = loss
        watched = loss if step == 0 or not smooth else watched + (1 - smooth) * (loss - watched)
        if watched <= target and step >= settle:
            return step, MET, loss, watched
        if step >= rates.size:
            return step, SPENT, loss, watched
        times(room.gradient, net.factors, room.gradient)
        power_1 *= betas[0]
        power_2 *= betas[1]
        size = np.float32(rates[step] / (1 - power_1))
        root = np.float32(math.sqrt(1 - power_2))
        adam(
            row, room.gradient, first, second, betas[0], betas[1], np.float32(eps), size, root
        )  # fmt: skip
        step += 1
