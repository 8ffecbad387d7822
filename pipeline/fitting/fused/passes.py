"""Forward, backward and update of one small network, tile of points by tile of points.

Layout of a flat row, widths padded to whole vectors (the padding has zero weights and zero
gradients, and stays zero): layer 0 as [4, width] with the bias after the rows of the coordinates,
hidden layers as [out, in], the last one as [4, width], then biases of the hidden layers and, as 4
numbers, of the last one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.fitting.fused import simd

SQUARED, ABSOLUTE, CLAMPED = 0, 1, 2
"""Losses: squared error; absolute error to a clamped distance; both sides clamped."""
FEW = 4
"""Columns kept for coordinates (at most three, and the constant 1) and for channels."""
ROWS, LANES = simd.ROWS, simd.LANES
WIDEST = simd.BLOCKS[0]


class Net(NamedTuple):
    """A network as the compiled loop sees it."""

    width: int
    """A multiple of `LANES`."""
    hidden: int
    """Layers from `width` to `width`."""
    channels: int
    sine: bool
    """Sine, or positive part."""
    factors: np.ndarray
    """What each parameter is multiplied with where it is used (a sine layer's frequency)."""
    loss: int
    """`SQUARED`, `ABSOLUTE` or `CLAMPED`."""
    clamp: float
    tile: int
    """Points whose activations are alive at a time, a multiple of `ROWS`."""


class Room(NamedTuple):
    """Memory for one network's steps."""

    scaled: np.ndarray
    """Weights times their layer's factor."""
    turned: np.ndarray
    """The hidden ones, transposed."""
    gradient: np.ndarray
    tiles: np.ndarray
    """A zero vector of one width, then values, slopes and two errors of a tile."""
    out: np.ndarray
    error: np.ndarray


@njit(nogil=True)
def address(array):
    """Where an array's numbers lie. Signed, as all integers here: mixed types compile twice."""
    return np.int64(array.ctypes.data)


@njit(nogil=True)
def make_room(net, size):
    strip = net.tile * net.width
    return Room(
        np.zeros(size, np.float32),
        np.zeros(max(net.hidden, 1) * net.width * net.width, np.float32),
        np.zeros(size, np.float32),
        np.zeros(net.width + strip * (2 * net.hidden + 4), np.float32),
        np.zeros(net.tile * FEW, np.float32),
        np.zeros(net.tile * FEW, np.float32),
    )


def _strip(kind: str):
    """`ROWS` rows of a product over all its columns, in blocks as wide as still fit."""
    wide = simd.product(ROWS, WIDEST, kind)
    two = simd.product(ROWS, 2, kind)
    one = simd.product(ROWS, 1, kind)

    @njit(nogil=True)
    def strip(a, a_row, a_k, b, start, start_row, c, extra, depth, width):
        n = 0
        while n + WIDEST * LANES <= width:
            o = 4 * n
            wide(a, a_row, a_k, b + o, width, start + o, start_row, c + o, width, extra + o, depth)
            n += WIDEST * LANES
        while n + 2 * LANES <= width:
            o = 4 * n
            two(a, a_row, a_k, b + o, width, start + o, start_row, c + o, width, extra + o, depth)
            n += 2 * LANES
        while n < width:
            o = 4 * n
            one(a, a_row, a_k, b + o, width, start + o, start_row, c + o, width, extra + o, depth)
            n += LANES

    return strip


_plain, _scaled = _strip("plain"), _strip("scaled")


@njit(nogil=True)
def activate(a, depth, weight, bias, value, slope, width, points, sine):
    """value = act(a W^T + b), slope = act' there; `a` [points, depth], `weight` [depth, width]."""
    one, none = np.int64(1), np.int64(0)
    for p in range(0, points, ROWS):
        at = value + 4 * p * width
        _plain(a + 4 * p * depth, depth, one, weight, bias, none, at, at, depth, width)
    if sine:
        for i in range(0, 4 * points * width, 4 * LANES):
            simd.sincos(value + i, slope + i)
    else:
        for i in range(0, 4 * points * width, 4 * LANES):
            simd.relu(value + i, slope + i)


@njit(nogil=True)
def pull_back(error, row, depth, weight, zeros, slope, out, width, points):
    """out = (error W) slope: the error of the layer below, before its activation."""
    one, none = np.int64(1), np.int64(0)
    for p in range(0, points, ROWS):
        at, e = 4 * p * width, error + 4 * p * row
        _scaled(e, row, one, weight, zeros, none, out + at, slope + at, depth, width)


@njit(nogil=True)
def accumulate(error, rows, a, gradient, width, points):
    """gradient += error^T a; `error` [points, rows], `a` [points, width]."""
    one = np.int64(1)
    for r in range(0, rows, ROWS):
        g = gradient + 4 * r * width
        _plain(error + 4 * r, one, rows, a, g, width, g, g, points, width)


@njit(nogil=True)
def compare(net, out, wanted, share, error, count):
    """Sum of the points' losses times `share`; `error` becomes its gradient.

    As in PyTorch, the derivative of a clamp is 1 at its bounds, that of the absolute value 0 at 0.
    Wanted distances come clamped. One sum a column, in a fixed order: were the compiler free to
    choose it, code just compiled and code from the cache would differ in the last bit.
    """
    sum_0 = sum_1 = sum_2 = sum_3 = np.float32(0)
    if net.loss == SQUARED:
        twice = np.float32(2) * share
        for i in range(0, count, FEW):
            e_0, e_1 = out[i] - wanted[i], out[i + 1] - wanted[i + 1]
            e_2, e_3 = out[i + 2] - wanted[i + 2], out[i + 3] - wanted[i + 3]
            sum_0 += e_0 * e_0
            sum_1 += e_1 * e_1
            sum_2 += e_2 * e_2
            sum_3 += e_3 * e_3
            error[i], error[i + 1] = twice * e_0, twice * e_1
            error[i + 2], error[i + 3] = twice * e_2, twice * e_3
        return ((sum_0 + sum_1) + (sum_2 + sum_3)) * share
    clamp = np.float32(net.clamp)
    for i in range(0, count, FEW):  # distances have one channel
        y = out[i]
        inside = np.float32(1)
        if net.loss == CLAMPED:
            inside = np.float32(1) if -clamp <= y <= clamp else np.float32(0)
            y = min(max(y, -clamp), clamp)
        e = y - wanted[i]
        sum_0 += abs(e)
        sign = np.float32(1) if e > 0 else (np.float32(-1) if e < 0 else np.float32(0))
        error[i] = share * sign * inside
    return sum_0 * share


@njit(nogil=True)
def learn(net, room, coords, wanted, points, share):
    """Loss over all points, and its gradient by the scaled weights in `room.gradient`."""
    width, hidden, tile, channels = net.width, net.hidden, net.tile, net.channels
    gradient, out, error = room.gradient, room.out, room.error
    for i in range(gradient.size):
        gradient[i] = 0
    few = np.int64(FEW)
    first = FEW * width
    last = first + hidden * width * width
    biases = last + FEW * width
    last_bias = biases + hidden * width
    g, w, t = address(gradient), address(room.scaled), address(room.turned)
    strip = 4 * tile * width
    zeros, data, e = address(room.tiles), address(coords), address(error)
    values = zeros + 4 * width
    slopes = values + strip * (hidden + 1)
    errors = slopes + strip * (hidden + 1)
    other = errors + strip
    top, slope = values + hidden * strip, slopes + hidden * strip
    total = 0.0
    for p in range(0, points, tile):
        count = min(tile, points - p)
        x = data + 4 * p * FEW
        activate(x, few, w, zeros, values, slopes, width, count, net.sine)
        for h in range(hidden):
            below = values + h * strip
            bias = w + 4 * (biases + h * width)
            turned = t + 4 * h * width * width
            above = slopes + (h + 1) * strip
            activate(below, width, turned, bias, below + strip, above, width, count, net.sine)
        for i in range(count):
            a = top + 4 * i * width
            for c in range(channels):
                sum_ = simd.dot(a, w + 4 * (last + c * width), width // LANES)
                out[i * FEW + c] = room.scaled[last_bias + c] + sum_
        total += compare(net, out, wanted[p * FEW :], share, error, count * FEW)
        for c in range(channels):
            part = np.float32(0)
            for i in range(count):
                part += error[i * FEW + c]
            gradient[last_bias + c] += part
        accumulate(e, few, top, g + 4 * last, width, count)
        pull_back(e, few, channels, w + 4 * last, zeros, slope, errors, width, count)
        for h in range(hidden - 1, -1, -1):
            place = 4 * (first + h * width * width)
            below = slopes + h * strip
            accumulate(errors, width, values + h * strip, g + place, width, count)
            for n in range(0, width, LANES):
                simd.add_rows(errors + 4 * n, width, count, g + 4 * (biases + h * width + n))
            pull_back(errors, width, width, w + place, zeros, below, other, width, count)
            errors, other = other, errors
        accumulate(x, few, errors, g, width, count)
    return total


@njit(nogil=True)
def times(values, factors, out):
    """Elementwise product; `out` may be `values`."""
    for i in range(values.size):
        out[i] = values[i] * factors[i]


@njit(nogil=True)
def prepare(net, row, room):
    """What the passes read of a row: scaled weights, and the hidden ones also transposed."""
    times(row, net.factors, room.scaled)
    width = net.width
    for h in range(net.hidden):
        place, turn = FEW * width + h * width * width, h * width * width
        for o in range(width):
            for i in range(width):
                room.turned[turn + i * width + o] = room.scaled[place + o * width + i]


@njit(nogil=True, error_model="numpy")
def adam(row, gradient, first, second, beta_1, beta_2, eps, size, root):
    """One update; operations and their order as in `optimizers.Adam`."""
    a, b = np.float32(1 - beta_1), np.float32(1 - beta_2)
    keep = np.float32(beta_2)
    for i in range(row.size):
        g = gradient[i]
        m = first[i] + a * (g - first[i])
        v = second[i] * keep + b * (g * g)
        first[i] = m
        second[i] = v
        row[i] -= m * size / (np.sqrt(v) / root + eps)
