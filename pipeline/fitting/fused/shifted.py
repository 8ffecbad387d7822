"""The latent of one picture found by one call: a few gradient steps through a frozen sine network
that the latent shifts (functa).

Only the latent's gradient is computed: per layer it is the sum over pixels of the error before the
sine, so the backward pass is the forward pass turned around, and no weight's gradient is needed.
Products are taken in the kind of numbers of `net.forth` (see `narrow`); shifts, losses, sums over
pixels, and the latent are float32. A cell of a grid of latents is a picture of its own here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.fitting.fused import narrow, simd
from pipeline.fitting.fused.cache import cached
from pipeline.fitting.fused.narrow import COLUMNS, ROWS
from pipeline.fitting.fused.passes import LANES, address

FEW = 4
"""Columns kept for coordinates and for channels."""
TILE = 57 * ROWS
"""Most points whose activations are alive at a time: two layers of them stay in the cache."""

_first, _wave = narrow.block("wave", few=True), narrow.block("wave")
_top, _pull = narrow.block("pull", few=True), narrow.block("pull")
_out = narrow.block("out")


class Shifted(NamedTuple):
    """A network ready for the loop; widths are padded to `COLUMNS`, what is padded is zero."""

    width: int
    depth: int
    """Sine layers."""
    channels: int
    cells: int
    """Cells an axis; 0: one latent for the whole picture."""
    first: np.ndarray
    """Panels of [4, width] weights of the coordinates, float32."""
    forth: np.ndarray
    """[depth - 1, ...]: panels of [in, out] weights."""
    forth_start: np.ndarray
    forth_scale: np.ndarray
    """[depth - 1, width]: see `narrow.packed`."""
    back: np.ndarray
    """[depth - 1, ...]: panels of [out, in] weights."""
    back_start: np.ndarray
    back_scale: np.ndarray
    last: np.ndarray
    """Panel of [width, channels] weights."""
    last_start: np.ndarray
    last_scale: np.ndarray
    last_bias: np.ndarray
    top: np.ndarray
    """Panels of [channels, width] weights, float32, in units of the slopes."""
    units: np.ndarray
    """[depth]: factor of the errors of a layer where they are stored."""
    shifts: np.ndarray
    """[z, depth, width]: what a latent's entries add before the sines."""
    biases: np.ndarray
    """[depth, width]."""


class Start(NamedTuple):
    """The network at the latent where all begin, on all pixels of one size of pictures."""

    height: int
    width: int
    """0: there is none of them, the first step is computed as all others are."""
    values: np.ndarray
    """[height width, channels]."""
    slopes: np.ndarray
    """[height width, channels, z]: their derivative by the latent of the pixel's cell."""


class Points(NamedTuple):
    """What a step sees, cell by cell, each cell filled up to whole blocks of weight 0."""

    coords: np.ndarray
    wanted: np.ndarray
    """[points, 4]."""
    share: np.ndarray
    """[points]: share of a point in the loss of a channel."""
    firsts: np.ndarray
    """[cells + 1]: where cells begin."""


class Room(NamedTuple):
    """Memory for a tile."""

    values: np.ndarray
    """[2, tile, width] in the kind of the network."""
    slopes: np.ndarray
    """[depth, tile, width]."""
    out: np.ndarray
    error: np.ndarray
    weight: np.ndarray


@njit(nogil=True)
def make_room(net, most):
    tile = min(TILE, -(-most // ROWS) * ROWS)
    like = net.last
    return Room(
        np.zeros((2, tile, net.width), like.dtype),
        np.zeros((net.depth, tile, net.width), like.dtype),
        np.zeros((tile, COLUMNS), np.float32),
        np.zeros((tile, FEW), np.float32),
        np.zeros(tile, np.float32),
    )


@njit(nogil=True)
def arrange(net, coords, wanted, weight):
    """The points of a step by cell, with coordinates as the network takes them."""
    count, dims = coords.shape
    cells = max(net.cells, 1) ** dims
    cell, place = np.zeros(count, np.int64), np.zeros((count, FEW), np.float32)
    sizes, total = np.zeros(cells, np.int64), np.float32(0)
    for p in range(count):
        number = np.int64(0)
        for axis in range(dims):
            x = coords[p, axis]
            if net.cells:
                x = (x + np.float32(1)) / np.float32(2) * np.float32(net.cells)
                x = min(max(x, np.float32(0)), np.float32(net.cells - 1e-4))
                whole = np.float32(math.floor(x))
                number = number * net.cells + np.int64(whole)
                x -= whole
            place[p, axis] = x
        cell[p] = number
        if weight[p] > 0:
            sizes[number] += 1
            total += weight[p]
    firsts = np.zeros(cells + 1, np.int64)
    for c in range(cells):
        firsts[c + 1] = firsts[c] + -(-sizes[c] // ROWS) * ROWS
    size = firsts[cells]
    found = Points(
        np.zeros((size, FEW), np.float32),
        np.zeros((size, FEW), np.float32),
        np.zeros(size, np.float32),
        firsts,
    )
    at = firsts[:cells].copy()
    for p in range(count):
        if weight[p] > 0:
            k = at[cell[p]]
            at[cell[p]] += 1
            found.coords[k] = place[p]
            for c in range(net.channels):
                found.wanted[k, c] = wanted[p, c]
            found.share[k] = weight[p] / (total * np.float32(net.channels))
    return found


@njit(nogil=True)
def begin(net, start, coords, wanted, weight, gradient):
    """The loss where all begin, and its gradient, which is linear in the picture."""
    count, dims = coords.shape
    total = np.float32(0)
    for p in range(count):
        total += weight[p]
    loss = 0.0
    for p in range(count):
        if weight[p] == 0:
            continue
        cell = np.int64(0)
        for axis in range(dims):
            if net.cells:
                x = (coords[p, axis] + np.float32(1)) / np.float32(2) * np.float32(net.cells)
                x = min(max(x, np.float32(0)), np.float32(net.cells - 1e-4))
                cell = cell * net.cells + np.int64(math.floor(x))
        column = np.int64(round((coords[p, 0] + 1) / 2 * start.width - 0.5))
        line = np.int64(round((coords[p, 1] + 1) / 2 * start.height - 0.5))
        k = line * start.width + column
        share = weight[p] / (total * np.float32(net.channels))
        for c in range(net.channels):
            error = start.values[k, c] - wanted[p, c]
            loss += share * error * error
            factor = np.float32(2) * share * error
            for z in range(gradient.shape[1]):
                gradient[cell, z] += factor * start.slopes[k, c, z]
    return loss


@njit(nogil=True)
def tile_forth(net, room, x, shift, points):
    """Outputs of a tile, with the slopes of all layers."""
    like, width, size = net.last, np.int64(net.width), np.int64(net.last.itemsize)
    words = width * size // 4
    row, strip = size * width, size * room.values.shape[1] * width
    values, slopes, none = address(room.values), address(room.slopes), np.int64(0)
    into = values
    for layer in range(net.depth):
        value, slope = values + (layer % 2) * strip, slopes + layer * strip
        add = address(shift) + 4 * layer * width
        if layer > 0:
            weight = address(net.forth) + (layer - 1) * width * row
            start = address(net.forth_start) + 4 * (layer - 1) * width
            scale = address(net.forth_scale) + 4 * (layer - 1) * width
        for n in range(0, width, COLUMNS):
            for p in range(0, points, ROWS):
                o = p * row + size * n
                if layer == 0:
                    _first(
                        like, x + 4 * FEW * p, np.int64(4 * FEW), address(net.first) + 4 * FEW * n,
                        none, none, add + 4 * n, value + o, slope + o, row, none, none,
                        np.int64(FEW),
                    )  # fmt: skip
                else:
                    _wave(
                        like, into + p * row, row, weight + 4 * words * n, start + 4 * n,
                        scale + 4 * n, add + 4 * n, value + o, slope + o, row, none, none, words,
                    )  # fmt: skip
        into = value
    start, scale, bias = address(net.last_start), address(net.last_scale), address(net.last_bias)
    for p in range(0, points, ROWS):
        _out(
            like, into + p * row, row, address(net.last), start, scale, bias,
            address(room.out) + 4 * COLUMNS * p, none, np.int64(4 * COLUMNS), none, none, words,
        )  # fmt: skip


@njit(nogil=True)
def compare(net, room, wanted, share, points):
    """Loss of a tile; its gradient by the outputs, as a direction and a length of each point."""
    loss = 0.0
    for p in range(points):
        square = np.float32(0)
        for c in range(net.channels):
            error = room.out[p, c] - wanted[p, c]
            room.error[p, c] = error
            square += error * error
        length = np.float32(math.sqrt(square))
        for c in range(net.channels):
            room.error[p, c] = room.error[p, c] / length if length > 0 else np.float32(0)
        room.weight[p] = np.float32(2) * share[p] * length
        loss += share[p] * square
    return loss


@njit(nogil=True)
def tile_back(net, room, sums, points):
    """Adds to `sums` [depth, width] the errors before the sines, over the points of a tile.

    Errors run in units of their point's length, so that 8 bits suffice for them.
    """
    like, width, size = net.last, np.int64(net.width), np.int64(net.last.itemsize)
    words = width * size // 4
    row, strip = size * width, size * room.values.shape[1] * width
    values, slopes, none = address(room.values), address(room.slopes), np.int64(0)
    weight = address(room.weight)
    into = values
    for layer in range(net.depth - 1, -1, -1):
        value, slope = values + (layer % 2) * strip, slopes + layer * strip
        unit, total = address(net.units) + 4 * layer, address(sums) + 4 * layer * width
        if layer < net.depth - 1:
            matrix = address(net.back) + layer * width * row
            start = address(net.back_start) + 4 * layer * width
            scale = address(net.back_scale) + 4 * layer * width
        for n in range(0, width, COLUMNS):
            for p in range(0, points, ROWS):
                o = p * row + size * n
                if layer == net.depth - 1:
                    _top(
                        like, address(room.error) + 4 * FEW * p, np.int64(4 * FEW),
                        address(net.top) + 4 * FEW * n, none, none, unit, value + o, slope + o,
                        row, weight + 4 * p, total + 4 * n, np.int64(FEW),
                    )  # fmt: skip
                else:
                    _pull(
                        like, into + p * row, row, matrix + 4 * words * n, start + 4 * n,
                        scale + 4 * n, unit, value + o, slope + o, row, weight + 4 * p,
                        total + 4 * n, words,
                    )  # fmt: skip
        into = value


@njit(nogil=True)
def learn(net, room, shift, sums, code, gradient, points):
    """Loss over the points of a step, and its gradient by the latents of all cells."""
    loss, flat = 0.0, net.depth * net.width
    for cell in range(len(code)):
        first, count = points.firsts[cell], points.firsts[cell + 1] - points.firsts[cell]
        if count == 0:
            continue
        for layer in range(net.depth):
            for n in range(net.width):
                shift[layer, n] = net.biases[layer, n]
                sums[layer, n] = 0
        lines, line, total = net.shifts.reshape(-1, flat), shift.reshape(flat), sums.reshape(flat)
        for z in range(code.shape[1]):
            factor = code[cell, z]
            for n in range(flat):
                line[n] += factor * lines[z, n]
        tiles = -(-count // TILE)
        tile = -(-count // (tiles * ROWS)) * ROWS
        for p in range(first, first + count, tile):
            now = min(tile, first + count - p)
            tile_forth(net, room, address(points.coords) + 4 * FEW * p, shift, now)
            loss += compare(net, room, points.wanted[p:], points.share[p:], now)
            tile_back(net, room, sums, now)
        for z in range(code.shape[1]):
            beside = address(lines) + 4 * z * flat
            gradient[cell, z] += simd.dot(address(total), beside, flat // LANES)
    return loss


@cached(nogil=True)
def encode(net, start, code, rates, coords, wanted, weight):
    """Finds the latents of one picture, in place; returns the loss where the last step began.

    Args:
        code: [cells, z], one cell where there is one latent.
        rates: [steps, cells, z].
        coords, wanted, weight: [1 or steps, points, ...]: what the steps see; 1: the same.
    """
    count, loss = coords.shape[1], math.nan
    room = make_room(net, count)
    shift = np.zeros((net.depth, net.width), np.float32)
    sums = np.zeros((net.depth, net.width), np.float32)
    gradient = np.zeros(code.shape, np.float32)
    points = arrange(net, coords[0], wanted[0], weight[0])
    for step in range(len(rates)):
        seen = min(step, len(coords) - 1)
        gradient[:] = 0
        if step == 0 and start.width > 0:
            loss = begin(net, start, coords[0], wanted[0], weight[0], gradient)
        else:
            if seen > 0:
                points = arrange(net, coords[seen], wanted[seen], weight[seen])
            loss = learn(net, room, shift, sums, code, gradient, points)
        for cell in range(len(code)):
            for z in range(code.shape[1]):
                code[cell, z] -= rates[step, cell, z] * gradient[cell, z]
    return loss
