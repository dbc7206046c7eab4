"""Provides vector instructions for loops of kernels that the compiler leaves scalar.

An intrinsic handles sixteen floats at a time. It is written in LLVM's intermediate language, and
LLVM fits it to the processor: one register of AVX-512 holds sixteen floats, two of AVX2 do.
Addresses are int64 and need no alignment; strides count floats. The kernels of
`deltas.kernels.compiled.row_attention` and `deltas.kernels.compiled.epilogue` use them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from deltas.kernels.compiled import BF16, HADAMARD_SIZE, MAX_TILE_ROWS, WIDTH

# Rows of a tile: as many running sums as there are registers.
TILE_ROWS = MAX_TILE_ROWS if binding.get_host_cpu_features().get("avx512f") else 4

_I16, _I32, _I64, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_HALVES, _WORDS = ir.VectorType(_I16, WIDTH), ir.VectorType(_I32, WIDTH)
_FLOATS = ir.VectorType(_FLOAT, WIDTH)
_FAST = ("contract",)  # multiply and add may be fused
_FLOAT_BYTES, _HALF_BYTES = 4, 2


def _all(number: int | float, vector: ir.VectorType = _WORDS) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, number)] * WIDTH)


def _spread(builder: Any, number: Any) -> Any:
    """Copy a float into all sixteen lanes."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, _all(0))


def _load(builder: Any, address: Any, of_type: Any, align: int) -> Any:
    value = builder.load(builder.inttoptr(address, of_type.as_pointer()))
    value.align = align
    return value


def _store(builder: Any, value: Any, address: Any, align: int) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = align


def _times(builder: Any, number: Any, factor: int) -> Any:
    return builder.mul(number, ir.Constant(_I64, factor))


def _is_bf16(builder: Any, dtype_code: Any) -> Any:
    return builder.icmp_signed("==", dtype_code, ir.Constant(_I64, BF16))


def _read(_context: Any, dtype_code: Any, source: Any, into: Any, factor: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        dtype_code, source, into, factor = arguments
        with builder.if_else(_is_bf16(builder, dtype_code)) as (halves, floats):
            with halves:
                bits = builder.zext(_load(builder, source, _HALVES, _HALF_BYTES), _WORDS)
                wide = builder.bitcast(builder.shl(bits, _all(16)), _FLOATS)
                from_halves = builder.block
            with floats:
                plain = _load(builder, source, _FLOATS, _FLOAT_BYTES)
                from_floats = builder.block
        value = builder.phi(_FLOATS)
        value.add_incoming(wide, from_halves)
        value.add_incoming(plain, from_floats)
        scaled = builder.fmul(value, _spread(builder, factor))
        _store(builder, scaled, into, _FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


def _write(_context: Any, dtype_code: Any, source: Any, into: Any, factor: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        dtype_code, source, into, factor = arguments
        plain = _load(builder, source, _FLOATS, _FLOAT_BYTES)
        value = builder.fmul(plain, _spread(builder, factor))
        with builder.if_else(_is_bf16(builder, dtype_code)) as (halves, floats):
            with halves:
                _store(builder, _rounded(builder, value), into, _HALF_BYTES)
            with floats:
                _store(builder, value, into, _FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


def _rounded(builder: Any, value: Any) -> Any:
    """Round floats to bfloat16: to nearest, ties to even; NaN stays NaN."""
    bits = builder.bitcast(value, _WORDS)
    odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    up = builder.add(builder.add(bits, _all(0x7FFF)), odd)
    is_nan = builder.fcmp_unordered("uno", value, value)
    bits = builder.select(is_nan, _all(0x7FC00000), up)
    return builder.trunc(builder.lshr(bits, _all(16)), _HALVES)


def _tile(
    _context: Any, out: Any, out_stride: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, k: Any
) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, out_stride, a, a_stride, b, b_stride, depth = arguments
        before, loop = builder.block, builder.append_basic_block("tile")
        after = builder.append_basic_block("tile_done")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_I64)
        k.add_incoming(ir.Constant(_I64, 0), before)
        sums = [builder.phi(_FLOATS) for _ in range(TILE_ROWS)]
        to_row = _times(builder, builder.mul(k, b_stride), _FLOAT_BYTES)
        row = _load(builder, builder.add(b, to_row), _FLOATS, _FLOAT_BYTES)
        column = builder.add(a, _times(builder, k, _FLOAT_BYTES))
        new = []
        for number, total in enumerate(sums):
            address = builder.add(column, _times(builder, a_stride, _FLOAT_BYTES * number))
            factor = _spread(builder, _load(builder, address, _FLOAT, _FLOAT_BYTES))
            product = builder.fmul(factor, row, flags=_FAST)
            new.append(builder.fadd(total, product, flags=_FAST))
            total.add_incoming(_all(0.0, _FLOATS), before)
            total.add_incoming(new[-1], loop)
        next_k = builder.add(k, ir.Constant(_I64, 1))
        k.add_incoming(next_k, loop)
        builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, after)
        builder.position_at_end(after)
        for number, total in enumerate(new):
            address = builder.add(out, _times(builder, out_stride, _FLOAT_BYTES * number))
            _store(builder, total, address, _FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


def _hadamard(_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        addresses = [
            builder.add(arguments[0], ir.Constant(_I64, _FLOAT_BYTES * WIDTH * number))
            for number in range(HADAMARD_SIZE // WIDTH)
        ]
        parts = [_load(builder, address, _FLOATS, _FLOAT_BYTES) for address in addresses]
        apart = 1
        while apart < len(parts):
            parts = [
                builder.fsub(parts[number - apart], part)
                if number & apart
                else builder.fadd(part, parts[number + apart])
                for number, part in enumerate(parts)
            ]
            apart *= 2
        for address, part in zip(addresses, parts, strict=True):
            _store(builder, _hadamard_lanes(builder, part), address, _FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _hadamard_lanes(builder: Any, value: Any) -> Any:
    """Replace lanes that are 1, 2, 4 and 8 apart by their sums and differences."""
    apart = 1
    while apart < WIDTH:
        signs = [-1.0 if lane & apart else 1.0 for lane in range(WIDTH)]
        order = ir.Constant(_WORDS, [lane ^ apart for lane in range(WIDTH)])
        partners = builder.shuffle_vector(value, value, order)
        signed = builder.fmul(value, ir.Constant(_FLOATS, signs), flags=_FAST)
        value = builder.fadd(signed, partners, flags=_FAST)
        apart *= 2
    return value


# Callable from kernels only.
read_floats: Any = intrinsic(_read)
"""(dtype_code, source, into, factor): reads 16 float32 or bfloat16 as float32, times a factor."""
write_floats: Any = intrinsic(_write)
"""(dtype_code, source, into, factor): writes 16 float32, times a factor, in either dtype."""
multiply_tile: Any = intrinsic(_tile)
"""(out, stride, a, stride, b, stride, k): out [TILE_ROWS, 16] = a [TILE_ROWS, k] b [k, 16]."""
hadamard_floats: Any = intrinsic(_hadamard)
"""(address): multiplies `HADAMARD_SIZE` floats by the Hadamard matrix H_64, in place."""
