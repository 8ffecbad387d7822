"""The code of one shape found by one call, through a network that stays as it is.

As `kernel`, but what moves is a code that enters some layers beside the coordinates: a step needs
no gradient of a weight, which saves a third of the products, and what a code adds to a layer is one
vector for all points. Points, draws, verdicts and Adam are those of `kernel`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.fitting.fused import simd
from pipeline.fitting.fused.cache import cached
from pipeline.fitting.fused.kernel import DIVERGED, MET, SPENT, draw
from pipeline.fitting.fused.passes import (
    FEW,
    LANES,
    ROWS,
    _plain,
    activate,
    adam,
    address,
    pull_back,
)


class Frozen(NamedTuple):
    """A network with a code among its inputs, ready for the loop; widths are padded."""

    width: int
    depth: int
    """Hidden layers."""
    entry: np.ndarray
    """[depth]: which part of `points` and `codes` enters a layer, -1: none."""
    points: np.ndarray
    """[entries, 4, width]: weights of the coordinates, the last row is the bias."""
    codes: np.ndarray
    """[entries, z, width]: weights of the code."""
    weights: np.ndarray
    """[depth, width, width]: [out, in] of what comes from the layer below."""
    turned: np.ndarray
    """The same as [in, out]."""
    biases: np.ndarray
    """[depth, width]; of layers that nothing enters."""
    last: np.ndarray
    """[4, width] weights of the only channel, and zeros."""
    last_bias: float
    bounded: bool
    """The output is a hyperbolic tangent."""
    clamp: float
    both: bool
    """The prediction is clamped too."""
    prior: float
    """Weight of the mean square of the code."""
    limit: float
    """Longer codes are scaled back to this length when they are used; 0: none."""
    tile: int


@njit(nogil=True)
def add_product(a, depth, weight, value, width, points):
    """value += a weight."""
    for p in range(0, points, ROWS):
        at = value + 4 * p * width
        _plain(a + 4 * p * depth, depth, np.int64(1), weight, at, width, at, at, depth, width)


@njit(nogil=True)
def rectify(value, slope, count):
    """Positive part in place, and its derivative."""
    for i in range(0, 4 * count, 4 * LANES):
        simd.relu(value + i, slope + i)


@njit(nogil=True)
def judge(net, out, wanted, share, error, count):
    """Sum of the losses of a tile times `share`; `error` becomes the gradient by what `last` gives.

    `out` holds what it gives, one number a point at every fourth place.
    """
    clamp, total = np.float32(net.clamp), np.float32(0)
    for i in range(0, FEW * count, FEW):
        y, slope = out[i], np.float32(1)
        if net.bounded:
            y = np.float32(math.tanh(y))
            slope -= y * y
        if net.both:
            slope = slope if -clamp <= y <= clamp else np.float32(0)
            y = min(max(y, -clamp), clamp)
        e = y - wanted[i]
        total += abs(e)
        sign = np.float32(1) if e > 0 else (np.float32(-1) if e < 0 else np.float32(0))
        error[i] = share * sign * slope
    return total * share


@njit(nogil=True)
def learn_code(net, room, code, gradient, x, wanted, points, share):
    """Loss over all points, and its gradient by the code that is used."""
    width, depth, tile, size = net.width, net.depth, net.tile, code.size
    entering, arriving, tiles, out, error = room
    few = np.int64(FEW)
    for e in range(len(net.points)):
        for o in range(width):
            entering[e, FEW - 1, o] = net.points[e, FEW - 1, o]
        for k in range(size):
            factor = code[k]
            for o in range(width):
                entering[e, FEW - 1, o] += factor * net.codes[e, k, o]
        for o in range(width):
            arriving[e, o] = 0
    strip, square = 4 * tile * width, 4 * width * width
    zeros = address(tiles)
    values = zeros + 4 * width
    slopes = values + strip * depth
    errors = slopes + strip * depth
    other = errors + strip
    top, slope = values + strip * (depth - 1), slopes + strip * (depth - 1)
    enter, back, forth = address(entering), address(net.weights), address(net.turned)
    biases, last, arrive = address(net.biases), address(net.last), address(arriving)
    wrong = address(error)
    total = 0.0
    for p in range(0, points, tile):
        count = min(tile, points - p)
        here = address(x) + 4 * p * FEW
        for layer in range(depth):
            value, beside = values + layer * strip, slopes + layer * strip
            below, turned = value - strip, forth + layer * square
            first = enter + 4 * net.entry[layer] * FEW * width
            if layer == 0:
                activate(here, few, first, zeros, value, beside, width, count, False)
            elif net.entry[layer] < 0:
                bias = biases + 4 * layer * width
                activate(below, width, turned, bias, value, beside, width, count, False)
            else:
                for r in range(0, count, ROWS):
                    at = value + 4 * r * width
                    none = np.int64(0)
                    _plain(
                        here + 4 * r * FEW, few, np.int64(1), first, zeros, none, at, at, few, width
                    )
                add_product(below, width, turned, value, width, count)
                whole = -(-count // ROWS) * ROWS
                rectify(value, beside, whole * width)
        for i in range(count):
            sum_ = simd.dot(top + 4 * i * width, last, width // LANES)
            out[i * FEW] = np.float32(net.last_bias) + sum_
        total += judge(net, out, wanted[p * FEW :], share, error, count)
        pull_back(wrong, few, np.int64(1), last, zeros, slope, errors, width, count)
        for layer in range(depth - 1, -1, -1):
            if net.entry[layer] >= 0:
                place = arrive + 4 * net.entry[layer] * width
                for n in range(0, width, LANES):
                    simd.add_rows(errors + 4 * n, width, count, place + 4 * n)
            if layer > 0:
                beside = slopes + (layer - 1) * strip
                from_ = back + layer * square
                pull_back(errors, width, width, from_, zeros, beside, other, width, count)
                errors, other = other, errors
    for k in range(size):
        part = np.float32(0)
        for e in range(len(net.points)):
            line = address(net.codes) + 4 * (e * size + k) * width
            part += simd.dot(line, arrive + 4 * e * width, width // LANES)
        gradient[k] = part
    return total


@cached(nogil=True)
def infer(net, code, coords, wanted, sets, tags, key, rates, betas, eps, target, smooth, watch_all):
    """Finds one code; `code` is overwritten. Arguments and results as in `kernel.descend`.

    `watch_all`: the target watches the sum of the terms, not the distances alone.
    """
    z, width = code.size, net.width
    room = (
        net.points.copy(),
        np.zeros((len(net.points), width), np.float32),
        np.zeros(width + net.tile * width * (2 * net.depth + 2), np.float32),
        np.zeros(net.tile * FEW, np.float32),
        np.zeros(net.tile * FEW, np.float32),
    )
    used, gradient = np.zeros(z, np.float32), np.zeros(z, np.float32)
    first, second = np.zeros(z, np.float32), np.zeros(z, np.float32)
    x, y, points = coords, wanted, wanted.size // FEW
    if len(tags):
        points = 0
        for s in range(len(tags)):
            points += sets[s, 2] if sets[s, 1] else 0
        x = np.zeros(FEW * (points + net.tile), np.float32)
        y = np.zeros(FEW * (points + net.tile), np.float32)
    share = np.float32(1 / max(points, 1))
    settle = int(2 / (1 - smooth)) if smooth else 0
    last, watched = math.nan, 0.0
    power_1, power_2 = 1.0, 1.0
    step = np.int64(0)
    while True:
        if len(tags):
            draw(step, key, sets, tags, coords, wanted, x, y)
        square = np.float32(0)
        for k in range(z):
            square += code[k] * code[k]
        norm = np.float32(math.sqrt(max(square, np.float32(1e-24))))
        factor = np.float32(1)
        if net.limit > 0 and norm > np.float32(net.limit):
            factor = np.float32(net.limit) / norm
        for k in range(z):
            used[k] = code[k] * factor
        distance = learn_code(net, room, used, gradient, x, y, points, share)
        loss = distance + net.prior * (square / z)
        if not math.isfinite(loss):
            return step, DIVERGED, last, watched
        last = loss
        seen = loss if watch_all else distance
        watched = seen if step == 0 or not smooth else watched + (1 - smooth) * (seen - watched)
        if watched <= target and step >= settle:
            return step, MET, loss, watched
        if step >= rates.size:
            return step, SPENT, loss, watched
        along = np.float32(0)
        if factor < 1:
            for k in range(z):
                along += gradient[k] * code[k]
            along /= square
        pull = np.float32(2 * net.prior / z)
        for k in range(z):
            gradient[k] = factor * (gradient[k] - along * code[k]) + pull * code[k]
        power_1 *= betas[0]
        power_2 *= betas[1]
        size = np.float32(rates[step] / (1 - power_1))
        root = np.float32(math.sqrt(1 - power_2))
        adam(
            code, gradient, first, second, betas[0], betas[1], np.float32(eps), size, root
        )  # fmt: skip
        step += 1
