"""Register-blocked products of 32, 16 or 8 bits a number, finished while the sums are in registers.

As `simd.product`, for a code in a frozen network of sines. A word of 32 bits holds one, two or four
numbers along k; a block multiplies words of `ROWS` rows with words of columns and adds what they
give to sums of 32 bits:

- float32: one number a word, by multiply-add;
- bfloat16: two, by the instruction of AVX512-BF16, sums in float32;
- int8: four, by that of AVX512-VNNI, sums in int32. The left operand has no sign there: it is
  stored plus 128, and the sums start from -128 times the column's sum.

Ends of a block: `wave`, sine and cosine of what a layer gives; `pull`, the error of the layer
below, times the kept cosine, added up over rows as well; `out`, plain float32.
"""

from __future__ import annotations

import platform

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from pipeline.fitting.fused import simd
from pipeline.fitting.fused.simd import LANES

ROWS = 6
"""Rows of a block: with `VECTORS` of columns the sums fill most of the registers."""
VECTORS = 4 if LANES == 16 else 2
COLUMNS = VECTORS * LANES
"""Columns of a block; widths are padded to a multiple."""
PACKED = {"float32": 1, "bfloat16": 2, "int8": 4}
"""Numbers in a word."""
STORED = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
KINDS = {np.dtype(kind).name: name for name, kind in STORED.items()}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
TOP = 127.0
"""The largest number of 8 bits in use."""
OFFSET = 128

_FLOAT, _INT, _BYTE, _WORD = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_HALVES, _OCTETS = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(_BYTE, LANES)
binding.initialize_native_asmparser()  # instructions are spelled out
_INSTRUCTION = {"bfloat16": "vdpbf16ps", "int8": "vpdpbusd"}


def modes() -> tuple[str, ...]:
    """The kinds of numbers that this processor multiplies, fastest first."""
    found = binding.get_host_cpu_features()
    wide = LANES == 16 and platform.machine().lower() in ("x86_64", "amd64")
    narrow = {"int8": "avx512vnni", "bfloat16": "avx512bf16"}
    return (*(mode for mode, name in narrow.items() if wide and found.get(name)), "float32")


def _at(builder, address, index, size):
    return builder.add(address, builder.mul(index, _WORD(size)))


def _load(builder, address, kind):
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _splat(builder, value, kind):
    """One number in all places of a vector."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT(0))
    zeros = ir.Constant(_INTS, [_INT(0)] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _multiply_add(builder, kind, factor, columns, sums):
    """sums + factor * columns, words by words."""
    if kind == "float32":
        return simd._fma(builder, factor, columns, sums)
    whole = _INTS if kind == "int8" else _FLOATS
    form = ir.FunctionType(whole, [_INTS, _INTS, whole])
    code = ir.InlineAsm(form, f"{_INSTRUCTION[kind]} $2, $1, $0", "=v,v,v,0", side_effect=False)
    return builder.call(code, [factor, columns, sums])


def _rounded(builder, value, offset):
    """To the nearest of 8 bits, plus `offset`."""
    shifted = builder.fadd(value, simd._number(simd.ROUND + offset))
    return builder.trunc(builder.bitcast(shifted, _INTS), _OCTETS)


def _narrowed(builder, kind, value, offset):
    """As it is stored; 8 bits come in units of one."""
    if kind == "float32":
        return value
    if kind == "bfloat16":
        form = ir.FunctionType(_HALVES, [_FLOATS])
        code = ir.InlineAsm(form, "vcvtneps2bf16 $1, $0", "=v,v", side_effect=False)
        return builder.call(code, [value])
    return _rounded(builder, value, offset)


def _widened(builder, kind, address):
    """What was stored, as float32; 8 bits in units of one."""
    if kind == "float32":
        return _load(builder, address, _FLOATS)
    if kind == "bfloat16":
        bits = builder.zext(_load(builder, address, _HALVES), _INTS)
        return builder.bitcast(builder.shl(bits, simd._integer(16)), _FLOATS)
    signed = builder.sext(_load(builder, address, _OCTETS), _INTS)
    return builder.sitofp(signed, _FLOATS)


def block(end: str, *, few: bool = False):
    """A block of `ROWS` x `VECTORS` registers that ends in `wave`, `pull` or `out`.

    `few`: what is multiplied is float32 whatever is stored: coordinates and errors of channels.
    """

    @intrinsic
    def product(
        context, like, a, a_row, b, start, scale, shift, value, slope, row, weight, total, depth
    ):
        """Addresses; `a_row` and `row` (of `value` and `slope`) in bytes, `depth` in words.

        `like`: an array of the kind of numbers (`STORED`). `shift`: added before the sine, or a
        factor of what `pull` stores. `weight`: of each row in the sums that `pull` adds to `total`.
        """
        signature = types.void(like, *[types.intp] * 12)
        own = KINDS[str(like.dtype)]
        into, kind = "float32" if few else own, "float32" if end == "out" else own

        def codegen(context, builder, signature, arguments):
            _, a, a_row, b, start, scale, shift, value, slope, row, weight, total, depth = arguments
            whole = _INTS if into == "int8" else _FLOATS
            words = _FLOATS if into == "float32" else _INTS
            word = _FLOAT if into == "float32" else _INT
            grid = [(r, v) for r in range(ROWS) for v in range(VECTORS)]
            strip = 4 * LANES

            def column(base, v):
                return builder.add(base, _WORD(strip * v))

            if into == "int8":
                firsts = [_load(builder, column(start, v), whole) for v in range(VECTORS)]
            else:
                firsts = [simd._number(0.0)] * VECTORS
            lines = [builder.add(a, builder.mul(a_row, _WORD(r))) for r in range(ROWS)]
            before = builder.block
            loop = builder.append_basic_block("products")
            after = builder.append_basic_block("finish")
            builder.branch(loop)
            builder.position_at_end(loop)
            k, at, line = (builder.phi(_WORD) for _ in range(3))
            held = [builder.phi(whole) for _ in grid]
            columns = [_load(builder, column(line, v), words) for v in range(VECTORS)]
            new = []
            for r in range(ROWS):
                one = _load(builder, builder.add(lines[r], at), word)
                factor = _splat(builder, one, words)
                for v in range(VECTORS):
                    sums = held[r * VECTORS + v]
                    new.append(_multiply_add(builder, into, factor, columns[v], sums))
            following = builder.add(k, _WORD(1))
            steps = builder.add(at, _WORD(4)), builder.add(line, _WORD(strip * VECTORS))
            builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
            for phi, first, then in [
                (k, _WORD(0), following),
                (at, _WORD(0), steps[0]),
                (line, b, steps[1]),
                *zip(held, [firsts[v] for _, v in grid], new),
            ]:
                phi.add_incoming(first, before)
                phi.add_incoming(then, loop)
            builder.position_at_end(after)
            for v in range(VECTORS):
                own = [new[r * VECTORS + v] for r in range(ROWS)]
                if into == "int8":
                    factor = _load(builder, column(scale, v), _FLOATS)
                    own = [builder.fmul(builder.sitofp(s, _FLOATS), factor) for s in own]
                places = []
                for r in range(ROWS):
                    line = builder.mul(row, _WORD(r))
                    places.append(builder.add(line, _WORD(BYTES[kind] * LANES * v)))
                if end == "pull":
                    _pull(builder, kind, own, value, slope, places, shift, weight, column(total, v))
                    continue
                added = _load(builder, column(shift, v), _FLOATS)
                for r in range(ROWS):
                    z = builder.fadd(own[r], added)
                    if end == "wave":
                        _wave(builder, kind, z, value, slope, places[r])
                    else:
                        _store(builder, z, builder.add(value, places[r]))
            return context.get_dummy_value()

        return signature, codegen

    return product


def _wave(builder, kind, z, value, slope, place):
    sine, cosine = simd._sincos(builder, z)
    if kind == "int8":
        sine, cosine = (builder.fmul(x, simd._number(TOP)) for x in (sine, cosine))
    _store(builder, _narrowed(builder, kind, sine, OFFSET), builder.add(value, place))
    _store(builder, _narrowed(builder, kind, cosine, 0), builder.add(slope, place))


def _pull(builder, kind, sums, value, slope, places, shift, weight, total):
    """Values of a column, one a row: times the slope, added up, stored in units of the layer."""
    added = _load(builder, total, _FLOATS)
    unit = _splat(builder, _load(builder, shift, _FLOAT), _FLOATS) if kind == "int8" else None
    for r, place in enumerate(places):
        error = builder.fmul(sums[r], _widened(builder, kind, builder.add(slope, place)))
        share = _load(builder, builder.add(weight, _WORD(4 * r)), _FLOAT)
        added = simd._fma(builder, error, _splat(builder, share, _FLOATS), added)
        if kind == "int8":
            error = builder.fmul(error, unit)
            for bound, order in ((TOP, "<"), (-TOP, ">")):
                limit = simd._number(bound)
                error = builder.select(builder.fcmp_ordered(order, error, limit), error, limit)
        _store(builder, _narrowed(builder, kind, error, OFFSET), builder.add(value, place))
    _store(builder, added, total)


def packed(weight: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Panels of a matrix [k, n], starts and scales of its columns.

    Panels are [n / COLUMNS, k / numbers a word, COLUMNS] words, flat; k and n must be padded.
    """
    depth, width = weight.shape
    count = PACKED[kind]
    start, scale = np.zeros(width, np.int32), np.ones(width, np.float32)
    if kind == "int8":
        scale = (np.abs(weight).max(0) / TOP).astype(np.float32)
        scale[scale == 0] = 1
        stored = np.rint(weight / scale).astype(np.int8)
        start = (-OFFSET * stored.astype(np.int64).sum(0)).astype(np.int32)
    elif kind == "bfloat16":
        bits = weight.astype(np.float32).view(np.uint32)
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    else:
        stored = weight.astype(np.float32)
    words = stored.reshape(depth // count, count, width // COLUMNS, COLUMNS).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(words).reshape(-1), start, scale
