"""One Triton program fits one small network from its first step to its last, then takes the next.

`descend` is launched once for many rows. A program takes a row from a counter that all share, and
owns it until its loss meets the target, stops being a number, or its steps are spent; then it
writes steps, reason and losses, and takes the next row. A step loops over tiles of points: forward,
backward, gradients summed in registers; then Adam. So nothing crosses rows, a launch ends when the
queue is empty, and the host is never asked. The lanes (`pipeline.fitting.lanes`) are its oracle:
same draws, same rule of stopping, same operations and order in Adam.

Layout of a row: first layer [4, width] with the bias after the lines of the coordinates (behind an
encoding: [width, features] and a bias [width]), hidden layers [out, in], their biases, the last
layer [4, width] and its bias [4]. Widths are padded to powers of two; what is padded is zero, gets
zero gradients and stays zero.

Precision. MODE names the operands of the products; sums and all that is kept are float32:
    fp32  float32, as three products of tf32 parts: the reference
    tf32  rounded to 10 bits of mantissa
    bf16  rounded to 7 bits; activations of a tile are kept in that form
The first layer of a sine network is never a product: its phase is computed in float32.

What lies where, for width w, h hidden layers (w x w), tiles of t points, 4 bytes a number:
    registers  gradients   h (w w + 16 w) + 32 w + 32 t
               slopes      (h + 1) t w, and two tiles in work
    shared     factors of products: hidden weights, activations of a tile, an error
    L1 and L2  row and both moments: 3 size numbers, read and written once a step; points
A multiprocessor of an H100 or H200 has 256 KB of registers and up to 227 KB of shared memory;
`layout` does the sum, refuses from half as much registers again on (3 x 128 is the largest that
passes, in bf16 alone), knows the modes for which shared memory suffices, and cuts programs. What
the compiler makes of it for sm_90 in bf16 (Triton 3.9; no GPU was needed to see it): registers,
bytes spilled, shared memory, and instructions a warp issues in a step on 1,024 points, beside those
that the units for sines need at least.
    2 x 64, t = 64, 4 warps   36 KB + 32 KB + 32 KB   255,   88 B,  39 KB   21,500 + 2,100 (16,400)
    3 x 64, t = 128, 8 warps  64 KB + 96 KB + 64 KB   255,  352 B,  92 KB   15,600 + 2,200 (12,300)
    3 x 128, t = 64, 8 warps 168 KB + 96 KB + 64 KB   255, 2.7 KB, 129 KB   63,400 + 6,600 (24,600)
A multiprocessor issues for four warps at once and holds two programs of the first kind.
"""

# ruff: noqa: RUF005  (Triton knows no starred expressions)
from __future__ import annotations

import triton
import triton.language as tl

RUNNING: tl.constexpr = tl.constexpr(0)
MET: tl.constexpr = tl.constexpr(1)
DIVERGED: tl.constexpr = tl.constexpr(2)
SPENT: tl.constexpr = tl.constexpr(3)
SQUARED: tl.constexpr = tl.constexpr(0)
ABSOLUTE: tl.constexpr = tl.constexpr(1)
CLAMPED: tl.constexpr = tl.constexpr(2)
FEW: tl.constexpr = tl.constexpr(4)
"""Numbers kept for the coordinates with their constant 1, and for the channels."""
COLUMNS: tl.constexpr = tl.constexpr(16)
"""`FEW`, padded to what a product may be narrow."""

GOLDEN: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
MULTIPLY_1: tl.constexpr = tl.constexpr(0xBF58476D1CE4E5B9 - 2**64)
MULTIPLY_2: tl.constexpr = tl.constexpr(0x94D049BB133111EB - 2**64)

TWO_OVER_PI: tl.constexpr = tl.constexpr(0.6366197723675814)
HALF_PI_HIGH: tl.constexpr = tl.constexpr(1.5707963705062866)
HALF_PI_LOW: tl.constexpr = tl.constexpr(-4.371139000186243e-08)
ROUND: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding it rounds to an integer, which then sits in the low bits."""
PER_TURN: tl.constexpr = tl.constexpr(0.15915494309189535)
TURN_HIGH: tl.constexpr = tl.constexpr(6.2831854820251465)
TURN_LOW: tl.constexpr = tl.constexpr(-1.7484556000744883e-07)

add = tl.standard._sum_combine
"""As `tl.sum`, which the interpreter knows only where the whole process is interpreted."""


@triton.jit
def scramble(x):
    """As `draw.scramble`."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * MULTIPLY_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * MULTIPLY_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def integer(key, step, tag, high):
    """As `Draw.integers` of one number; all are 64-bit."""
    start = scramble(key + step * GOLDEN)
    word = scramble(scramble(start ^ tag) + GOLDEN)
    return (((word >> 32) & 0xFFFFFFFF) * high) >> 32


@triton.jit
def block(key, step, tag, held, size):
    """Where a step's block of a set begins, as `samples.Ragged.block`."""
    held = held.to(tl.int64)
    done = step.to(tl.int64) * size
    return ((integer(key, done // held, tag, held) + done) % held).to(tl.int32)


@triton.jit
def around(place, held, DRAWN: tl.constexpr):
    """A place past the end of a set: from its start on. Remainders are slow."""
    if DRAWN > 1:
        return place % held
    return tl.where(place >= held, place - held, place)


@triton.jit
def sine_and_cosine(z):
    """By quadrants, to a few units in the last place up to |z| of about 1e5 (Cephes)."""
    shifted = tl.fma(z, TWO_OVER_PI, ROUND)
    quadrant = shifted.to(tl.int32, bitcast=True)
    minus = ROUND - shifted
    r = tl.fma(minus, HALF_PI_HIGH, z)
    r = tl.fma(minus, HALF_PI_LOW, r)
    square = r * r
    s = tl.fma(square, -1.9515295891e-4, 8.3321608736e-3)
    s = tl.fma(square, s, -1.6666654611e-1)
    s = tl.fma(square * r, s, r)
    c = tl.fma(square, 2.443315711809948e-5, -1.388731625493765e-3)
    c = tl.fma(square, c, 4.166664568298827e-2)
    c = tl.fma(square, c, -0.5)
    c = tl.fma(square, c, 1.0)
    odd = (quadrant & 1) != 0
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    sine = tl.where((quadrant & 2) != 0, -sine, sine)
    cosine = tl.where(((quadrant + 1) & 2) != 0, -cosine, cosine)
    return sine, cosine


@triton.jit
def fast_sine_and_cosine(z):
    """By the special-function units, to 2^-20 after a reduction to one turn."""
    shifted = tl.fma(z, PER_TURN, ROUND)
    minus = ROUND - shifted
    r = tl.fma(minus, TURN_HIGH, z)
    r = tl.fma(minus, TURN_LOW, r)
    sine = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [r], tl.float32, True, 1)
    cosine = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [r], tl.float32, True, 1)
    return sine, cosine


@triton.jit
def operand(x, MODE: tl.constexpr, EMULATE: tl.constexpr):
    """A factor of a product as the matrix units see it; emulated: rounded, but float32."""
    if EMULATE:
        if MODE == "bf16":
            bits = x.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
            x = bits.to(tl.float32, bitcast=True)
        elif MODE == "tf32":
            bits = x.to(tl.int32, bitcast=True)
            bits = (bits + 0x1000) & -8192
            x = bits.to(tl.float32, bitcast=True)
    elif MODE == "bf16":
        x = x.to(tl.bfloat16)
    return x


@triton.jit
def product(a, b, start, MODE: tl.constexpr):
    """start + a b, summed in float32."""
    if MODE == "fp32":
        return tl.dot(a, b, start, input_precision="tf32x3")
    return tl.dot(a, b, start, input_precision="tf32")


@triton.jit
def activate(z, SINE: tl.constexpr, MODE: tl.constexpr, EMULATE: tl.constexpr):
    """Activation, as a factor of products, and its derivative.

    The derivative stays float32: each one's conversion to bf16 would go through the units of the
    sines, and take no fewer registers.
    """
    if SINE:
        if MODE == "fp32" or EMULATE:
            a, s = sine_and_cosine(z)
        else:
            a, s = fast_sine_and_cosine(z)
    else:
        a = tl.where(z > 0, z, z * 0)  # NaN stays NaN
        s = tl.where(z > 0, 1.0, 0.0)
    return operand(a, MODE, EMULATE), s


@triton.jit
def adam(
    row, moments, SIZE, at, mask, gradient, size, root, fresh, a, b, keep, eps, EXACT: tl.constexpr
):
    """One update; operations and their order as in `optimizers.Adam`, correctly rounded if EXACT
    (five times the instructions)."""
    value = tl.load(row + at, mask=mask, other=0.0)
    first = tl.load(moments + at, mask=mask, other=0.0)
    second = tl.load(moments + SIZE + at, mask=mask, other=0.0)
    first = tl.where(fresh, 0.0, first)
    second = tl.where(fresh, 0.0, second)
    first = first + a * (gradient - first)
    second = second * keep + b * (gradient * gradient)
    if EXACT:
        change = tl.div_rn(first * size, tl.div_rn(tl.sqrt_rn(second), root) + eps)
    else:
        change = first * size / (tl.sqrt(second) / root + eps)
    tl.store(row + at, value - change, mask=mask)
    tl.store(moments + at, first, mask=mask)
    tl.store(moments + SIZE + at, second, mask=mask)


@triton.jit(do_not_specialize=["count", "budget", "settle"])
def descend(
    rows,
    moments,
    scales,
    coords,
    wanted,
    starts,
    sets,
    tags,
    keys,
    sizes,
    roots,
    speeds,
    ends,
    losses,
    counter,
    count,
    budget,
    settle,
    target,
    gain,
    clamp,
    a,
    b,
    keep,
    eps,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SINE: tl.constexpr,
    LOSS: tl.constexpr,
    SMOOTH: tl.constexpr,
    DRAWN: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
    EMULATE: tl.constexpr,
):
    """Fits `count` rows.

    Args:
        rows: [count, SIZE], overwritten.
        moments: [programs, 2, SIZE], scratch.
        scales: [HIDDEN + 2]: factor of weight and bias of each layer.
        coords: [points, FEW]: coordinates, a 1, zeros.
        wanted: [points, FEW]: channels, zeros.
        starts: [count] int64: a row's first point.
        sets: [count, 2, 3] int32, of each set: its first point from there on (0 for the first set),
            points held (at least 1), points a step. DRAWN = 0: every step takes the first ones; 1:
            blocks; 2: blocks, some larger than their set.
        tags: [2] int64: hashed names of the sets.
        keys: [count] int64: the rows' draw keys.
        sizes: [budget]: rate / (1 - beta_1 ** (step + 1)).
        roots: [budget]: sqrt(1 - beta_2 ** (step + 1)).
        speeds: [count]: a factor of each row's rates.
        ends: [count, 2] int32: steps taken, and why it ended.
        losses: [count, 2]: loss at the row (the last finite one if it diverged), watched loss.
        counter: [1] int32, 0: the next row.
        settle: Steps before a smoothed loss may end a row.
        target: A watched loss at or below this ends a row.
        gain: Share of each step in the smoothed loss (SMOOTH).
    """
    FIRST_HIDDEN: tl.constexpr = FEW * WIDTH
    FIRST_BIAS: tl.constexpr = FIRST_HIDDEN + HIDDEN * WIDTH * WIDTH
    LAST: tl.constexpr = FIRST_BIAS + HIDDEN * WIDTH
    LAST_BIAS: tl.constexpr = LAST + FEW * WIDTH
    EXACT: tl.constexpr = MODE == "fp32" or EMULATE
    unit = tl.arange(0, WIDTH)
    column = tl.arange(0, COLUMNS)
    lane = tl.arange(0, TILE)
    square = unit[:, None] * WIDTH + unit[None, :]
    narrow = column[None, :] * WIDTH + unit[:, None]
    is_few = (column < FEW)[None, :] & (unit >= 0)[:, None]
    moment = moments + tl.program_id(0).to(tl.int64) * (2 * SIZE)
    last_scale = tl.load(scales + HIDDEN + 1)

    sample = tl.atomic_add(counter, 1)
    while sample < count:
        row = rows + sample.to(tl.int64) * SIZE
        key = tl.load(keys + sample)
        speed = tl.load(speeds + sample)
        start = tl.load(starts + sample)
        held = tl.load(sets + 6 * sample + 1)
        size = tl.load(sets + 6 * sample + 2)
        other_first = tl.load(sets + 6 * sample + 3)
        other_held = tl.load(sets + 6 * sample + 4)
        other_size = tl.load(sets + 6 * sample + 5)
        points = size + other_size
        share = 1.0 / tl.maximum(points * CHANNELS, 1).to(tl.float32)
        step = 0
        reason = 0
        last = tl.full((), float("nan"), tl.float32)
        watched = tl.full((), 0.0, tl.float32)
        while reason == RUNNING:
            tl.debug_barrier()  # the row as the last update left it
            at = 0
            other_at = 0
            if DRAWN > 0:
                at = block(key, step, tl.load(tags), held, size)
                other_at = block(key, step, tl.load(tags + 1), other_held, other_size)

            scale = tl.load(scales)
            lines = ()
            for d in tl.static_range(DIMS + 1):
                lines = lines + (tl.load(row + d * WIDTH + unit) * scale,)
            weights = ()
            biases = ()
            for h in tl.static_range(HIDDEN):
                scale = tl.load(scales + 1 + h)
                weight = tl.load(row + FIRST_HIDDEN + h * WIDTH * WIDTH + square) * scale
                weights = weights + (operand(weight, MODE, EMULATE),)
                biases = biases + (tl.load(row + FIRST_BIAS + h * WIDTH + unit) * scale,)
            last_weight = tl.load(row + LAST + narrow, mask=is_few, other=0.0) * last_scale
            last_weight = operand(last_weight, MODE, EMULATE)
            last_bias = tl.load(row + LAST_BIAS + column, mask=column < FEW, other=0.0) * last_scale

            of_first = tl.full((WIDTH, COLUMNS), 0.0, tl.float32)
            of_last = tl.full((WIDTH, COLUMNS), 0.0, tl.float32)
            of_weights = ()
            of_biases = ()
            for _ in tl.static_range(HIDDEN):
                of_weights = of_weights + (tl.full((WIDTH, WIDTH), 0.0, tl.float32),)
                of_biases = of_biases + (tl.full((WIDTH, COLUMNS), 0.0, tl.float32),)
            of_outputs = tl.full((TILE, COLUMNS), 0.0, tl.float32)
            total = tl.full((TILE, COLUMNS), 0.0, tl.float32)

            for p in range(0, points, TILE):
                i = p + lane
                there = i < points
                place = i
                if DRAWN > 0:
                    place = around(at + i, held, DRAWN)
                    other = around(other_at + tl.maximum(i - size, 0), other_held, DRAWN)
                    place = tl.where(i < size, place, other_first + other)
                place = (start + tl.where(there, place, 0)) * FEW
                cell = place[:, None] + column[None, :]
                inside = there[:, None] & (column < FEW)[None, :]

                # forward
                z = tl.full((TILE, WIDTH), 0.0, tl.float32) + lines[DIMS][None, :]
                for d in tl.static_range(DIMS):
                    x = tl.load(coords + place + d, mask=there, other=0.0)
                    z += x[:, None] * lines[d][None, :]
                value, slope = activate(z, SINE, MODE, EMULATE)
                values = (value,)
                slopes = (slope,)
                for h in tl.static_range(HIDDEN):
                    z = tl.full((TILE, WIDTH), 0.0, tl.float32) + biases[h][None, :]
                    z = product(values[h], tl.trans(weights[h]), z, MODE)
                    value, slope = activate(z, SINE, MODE, EMULATE)
                    values = values + (value,)
                    slopes = slopes + (slope,)
                out = tl.full((TILE, COLUMNS), 0.0, tl.float32) + last_bias[None, :]
                out = product(values[HIDDEN], last_weight, out, MODE)

                # loss, and its derivative by the outputs
                y = tl.load(wanted + cell, mask=inside, other=0.0)
                known = there[:, None] & (column < CHANNELS)[None, :]
                if LOSS == SQUARED:
                    e = tl.where(known, out - y, 0.0)
                    total += e * e
                    error = 2.0 * share * e
                else:
                    guess = out
                    if LOSS == CLAMPED:
                        guess = tl.minimum(tl.maximum(out, -clamp), clamp)
                        guess = tl.where(out == out, guess, out)
                    e = tl.where(known, guess - y, 0.0)
                    total += tl.abs(e)
                    error = tl.where(e > 0, share, tl.where(e < 0, -share, e * 0))
                    if LOSS == CLAMPED:
                        error = tl.where((out >= -clamp) & (out <= clamp), error, 0.0)
                of_outputs += error

                # backward
                inputs = operand(tl.load(coords + cell, mask=inside, other=0.0), MODE, EMULATE)
                e = operand(error, MODE, EMULATE)
                of_last = product(tl.trans(values[HIDDEN]), e, of_last, MODE)
                back = tl.full((TILE, WIDTH), 0.0, tl.float32)
                back = product(e, tl.trans(last_weight), back, MODE) * slopes[HIDDEN]
                new_weights = ()
                new_biases = ()
                for h in tl.static_range(HIDDEN - 1, -1, -1):
                    e = operand(back, MODE, EMULATE)
                    turned = tl.trans(e)
                    new_weights = (product(turned, values[h], of_weights[h], MODE),) + new_weights
                    new_biases = (product(turned, inputs, of_biases[h], MODE),) + new_biases
                    back = tl.full((TILE, WIDTH), 0.0, tl.float32)
                    back = product(e, weights[h], back, MODE) * slopes[h]
                of_weights = new_weights
                of_biases = new_biases
                e = operand(back, MODE, EMULATE)
                of_first = product(tl.trans(e), inputs, of_first, MODE)

            # judge, as `Lanes._judge`
            loss = tl.reduce(tl.reduce(total, 1, add), 0, add) * share
            finite = tl.abs(loss) < float("inf")
            if SMOOTH:
                mean = tl.where(step == 0, loss, watched + gain * (loss - watched))
            else:
                mean = loss
            met = (mean <= target) & (step >= settle)
            reason = tl.where(met, MET, tl.where(step >= budget, SPENT, RUNNING))
            reason = tl.where(finite, reason, DIVERGED)
            last = tl.where(finite, loss, last)
            watched = tl.where(finite, mean, watched)

            if reason == RUNNING:
                tl.debug_barrier()  # all have read the row
                fresh = step == 0
                rate = tl.load(sizes + step) * speed
                root = tl.load(roots + step)
                everywhere = square >= 0
                g = of_first * tl.load(scales)
                adam(
                    row, moment, SIZE, narrow, is_few, g, rate, root, fresh, a, b, keep, eps, EXACT
                )
                for h in tl.static_range(HIDDEN):
                    scale = tl.load(scales + 1 + h)
                    place = FIRST_HIDDEN + h * WIDTH * WIDTH + square
                    g = of_weights[h] * scale
                    adam(
                        row,
                        moment,
                        SIZE,
                        place,
                        everywhere,
                        g,
                        rate,
                        root,
                        fresh,
                        a,
                        b,
                        keep,
                        eps,
                        EXACT,
                    )
                    # of the product with the inputs, the column of the constant 1 is the bias's
                    place = FIRST_BIAS + h * WIDTH + narrow - DIMS * WIDTH
                    its = (column == DIMS)[None, :] & (unit >= 0)[:, None]
                    g = of_biases[h] * scale
                    adam(
                        row, moment, SIZE, place, its, g, rate, root, fresh, a, b, keep, eps, EXACT
                    )
                g = of_last * last_scale
                adam(
                    row,
                    moment,
                    SIZE,
                    LAST + narrow,
                    is_few,
                    g,
                    rate,
                    root,
                    fresh,
                    a,
                    b,
                    keep,
                    eps,
                    EXACT,
                )
                g = tl.reduce(of_outputs, 0, add) * last_scale
                place = LAST_BIAS + column
                its = column < FEW
                adam(row, moment, SIZE, place, its, g, rate, root, fresh, a, b, keep, eps, EXACT)
                step += 1
        tl.store(ends + 2 * sample, step)
        tl.store(ends + 2 * sample + 1, reason)
        tl.store(losses + 2 * sample, last)
        tl.store(losses + 2 * sample + 1, watched)
        sample = tl.atomic_add(counter, 1)
