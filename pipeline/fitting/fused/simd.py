"""Vector instructions for compiled loops: sine with cosine, and register-blocked products.

Numba writes scalar code and hopes; here the vectors are spelled out in LLVM's own language, as wide
as this machine's registers. A block is c[r, n] = start[r, n] + sum_k a[r, k] b[k, n] for
a few rows and vectors of columns held in registers, and ends with what the caller wants done to the
sums before they leave the registers. Addresses are integers, strides count elements (float32).
"""

from __future__ import annotations

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

_wide = "+avx512f" in (config.CPU_FEATURES or binding.get_host_cpu_features().flatten())
LANES = 16 if _wide else 8
"""Numbers in a vector register."""
ROWS = 4
"""Rows of a full block: with the vectors of `BLOCKS` the sums fill most of the registers."""
BLOCKS = (4, 2, 1) if LANES == 16 else (3, 2, 1)
"""Vectors of columns in a block, widest first."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_BYTES, _WORD = 4, ir.IntType(64)

TWO_OVER_PI = 0.6366197723675814
HALF_PI = (1.5707963705062866, -4.371139000186243e-08)
"""pi / 2 as the sum of two float32 numbers."""
ROUND = 12582912.0
"""1.5 * 2**23: adding it rounds to an integer, which then sits in the low bits."""
SINE = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
COSINE = (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)
"""Minimax polynomials on [-pi / 4, pi / 4] (Cephes sinf, cosf)."""


def _number(value: float) -> ir.Constant:
    value = float(np.float32(value))
    return ir.Constant(_VECTOR, [ir.Constant(_FLOAT, value)] * LANES)


def _integer(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [ir.Constant(_INT, value)] * LANES)


def _fma(builder: ir.IRBuilder, a, b, c):
    name = f"llvm.fma.v{LANES}f32"
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _pointer(builder: ir.IRBuilder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _at(builder: ir.IRBuilder, address, index):
    return builder.add(address, builder.mul(index, _WORD(_BYTES)))


def _load(builder: ir.IRBuilder, address):
    return builder.load(_pointer(builder, address, _VECTOR), align=_BYTES)


def _store(builder: ir.IRBuilder, value, address) -> None:
    builder.store(value, _pointer(builder, address, _VECTOR), align=_BYTES)


def _spread(builder: ir.IRBuilder, value):
    """One number in all places of a vector."""
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _INT(0))
    zeros = ir.Constant(_INTS, [_INT(0)] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)


def _sincos(builder: ir.IRBuilder, z):
    """Sine and cosine by quadrants; a few units in the last place up to |z| of about 1e5."""
    shifted = _fma(builder, z, _number(TWO_OVER_PI), _number(ROUND))
    quadrant = builder.bitcast(shifted, _INTS)
    turns = builder.fsub(shifted, _number(ROUND))
    minus = builder.fneg(turns)
    r = _fma(builder, minus, _number(HALF_PI[0]), z)
    r = _fma(builder, minus, _number(HALF_PI[1]), r)
    square = builder.fmul(r, r)
    s = _fma(builder, square, _number(SINE[2]), _number(SINE[1]))
    s = _fma(builder, square, s, _number(SINE[0]))
    s = _fma(builder, builder.fmul(square, r), s, r)
    c = _fma(builder, square, _number(COSINE[2]), _number(COSINE[1]))
    c = _fma(builder, square, c, _number(COSINE[0]))
    c = _fma(builder, square, c, _number(-0.5))
    c = _fma(builder, square, c, _number(1.0))
    odd = builder.icmp_signed("!=", builder.and_(quadrant, _integer(1)), _integer(0))
    sine, cosine = builder.select(odd, c, s), builder.select(odd, s, c)
    top = _integer(-(2**31))

    def signed(value, at):
        sign = builder.and_(builder.shl(at, _integer(30)), top)
        return builder.bitcast(builder.xor(builder.bitcast(value, _INTS), sign), _VECTOR)

    return signed(sine, quadrant), signed(cosine, builder.add(quadrant, _integer(1)))


def _finish(builder: ir.IRBuilder, kind: str, value, out, extra) -> None:
    """The end of a block for one vector of sums."""
    if kind == "scaled":  # the chain rule: times the derivative kept by the forward pass
        _store(builder, builder.fmul(value, _load(builder, extra)), out)
    else:
        _store(builder, value, out)


def product(rows: int, vectors: int, kind: str):
    """A block of `rows` x `vectors` registers; `kind`: plain or scaled."""

    @intrinsic
    def block(context, a, a_row, a_k, b, b_row, start, start_row, c, c_row, extra, depth):
        signature = types.void(*[types.intp] * 11)

        def codegen(context, builder, signature, arguments):
            a, a_row, a_k, b, b_row, start, start_row, c, c_row, extra, depth = arguments
            grid = [(r, v) for r in range(rows) for v in range(vectors)]

            def place(base, stride, r, v):
                index = builder.add(builder.mul(stride, _WORD(r)), _WORD(v * LANES))
                return _at(builder, base, index)

            sums = [_load(builder, place(start, start_row, r, v)) for r, v in grid]
            lines = [_at(builder, a, builder.mul(a_row, _WORD(r))) for r in range(rows)]
            before = builder.block
            loop = builder.append_basic_block("products")
            after = builder.append_basic_block("finish")
            builder.branch(loop)
            builder.position_at_end(loop)
            k, at, line = (builder.phi(_WORD) for _ in range(3))
            held = [builder.phi(_VECTOR) for _ in grid]
            columns = [_load(builder, _at(builder, line, _WORD(v * LANES))) for v in range(vectors)]
            new = []
            for r in range(rows):
                factor = builder.load(_pointer(builder, _at(builder, lines[r], at), _FLOAT))
                factor = _spread(builder, factor)
                for v in range(vectors):
                    new.append(_fma(builder, factor, columns[v], held[r * vectors + v]))
            following = builder.add(k, _WORD(1))
            steps = builder.add(at, a_k), _at(builder, line, b_row)
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
            for phi, first, then in [
                (k, _WORD(0), following),
                (at, _WORD(0), steps[0]),
                (line, b, steps[1]),
                *zip(held, sums, new),
            ]:
                phi.add_incoming(first, before)
                phi.add_incoming(then, loop)
            builder.position_at_end(after)
            for (r, v), value in zip(grid, new):
                other = place(extra, c_row, r, v)
                _finish(builder, kind, value, place(c, c_row, r, v), other)
            return context.get_dummy_value()

        return signature, codegen

    return block


@intrinsic
def dot(context, a, b, vectors):
    """Sum of products of two runs of whole vectors."""

    def codegen(context, builder, signature, arguments):
        a, b, vectors = arguments
        total = cgutils.alloca_once_value(builder, _number(0.0))
        with cgutils.for_range(builder, vectors) as loop:
            at = builder.mul(loop.index, _WORD(LANES))
            x, y = _load(builder, _at(builder, a, at)), _load(builder, _at(builder, b, at))
            builder.store(_fma(builder, x, y, builder.load(total)), total)
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        reduce = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [_FLOAT(-0.0), builder.load(total)], fastmath=("reassoc",))

    return types.float32(types.intp, types.intp, types.intp), codegen


@intrinsic
def add_rows(context, matrix, row, rows, total):
    """total[0:LANES] += the sum of the rows of a strip of one vector's width."""

    def codegen(context, builder, signature, arguments):
        matrix, row, rows, total = arguments
        value = cgutils.alloca_once_value(builder, _load(builder, total))
        with cgutils.for_range(builder, rows) as loop:
            line = _load(builder, _at(builder, matrix, builder.mul(loop.index, row)))
            builder.store(builder.fadd(builder.load(value), line), value)
        _store(builder, builder.load(value), total)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), codegen


@intrinsic
def sincos(context, value, slope):
    """One vector in place: the sine, and its derivative beside it."""

    def codegen(context, builder, signature, arguments):
        value, slope = arguments
        sine, cosine = _sincos(builder, _load(builder, value))
        _store(builder, sine, value)
        _store(builder, cosine, slope)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def relu(context, value, slope):
    """One vector in place: the positive part, and its derivative beside it."""

    def codegen(context, builder, signature, arguments):
        value, slope = arguments
        x, zero = _load(builder, value), _number(0.0)
        positive = builder.fcmp_ordered(">", x, zero)
        kept = builder.fcmp_unordered(">", x, zero)  # NaN stays NaN
        _store(builder, builder.select(kept, x, zero), value)
        _store(builder, builder.select(positive, _number(1.0), zero), slope)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen
