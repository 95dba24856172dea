"""Vectors of 16 values as numba types, and the operations on them that the kernels need.

LLVM lowers a vector to one AVX-512, two AVX2 or four NEON registers. Addresses are integers. `kind` gives the type in
memory: ``float32(0)`` for float32, or for int32 that is only moved; ``uint16(0)`` for bfloat16, which is widened to
float32 on load and rounded to nearest even on store.

Numba's disk cache does not notice changes in this file: touch `entries.py` after each change.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

LANES = 16
intrinsic: Callable[..., Any] = _intrinsic  # numba's annotations keep the first argument, which callers do not pass
_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)
_SHORTS = ir.VectorType(_SHORT, LANES)


class _Vector(types.Type):
    def __init__(self, name: str, llvm: ir.Type) -> None:
        super().__init__(name=name)
        self.llvm = llvm


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, be_type=vector.llvm)  # type: ignore[no-untyped-call]


_f16 = _Vector("float32x16", _FLOATS)
_i16 = _Vector("int32x16", _INTS)
_Codegen = Callable[[Any, Any, Any, Any], Any]
_Typed = tuple[Any, _Codegen]  # a signature and its code


def _void(emit: Callable[[ir.IRBuilder, Sequence[ir.Value]], Any]) -> _Codegen:
    """Wrap the code of an operation without a result."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        emit(builder, args)
        return context.get_dummy_value()

    return codegen


def _fill(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    first_lane = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first_lane, undefined, _constants(0))


def _constants(*values: int) -> ir.Constant:
    values = values * LANES if len(values) == 1 else values
    return ir.Constant(_INTS, [ir.Constant(_INT, value) for value in values])


def _pointer(builder: ir.IRBuilder, address: ir.Value, pointee: ir.Type) -> ir.Value:
    return builder.inttoptr(address, ir.PointerType(pointee))


def _load(builder: ir.IRBuilder, kind: Any, address: ir.Value) -> ir.Value:
    if kind == types.float32:
        return builder.load(_pointer(builder, address, _FLOATS), align=4)
    halves = builder.load(_pointer(builder, address, _SHORTS), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, _INTS), _constants(16)), _FLOATS)


def _store(builder: ir.IRBuilder, kind: Any, address: ir.Value, value: ir.Value) -> None:
    if kind == types.float32:
        builder.store(value, _pointer(builder, address, _FLOATS), align=4)
    else:
        builder.store(_narrow(builder, value), _pointer(builder, address, _SHORTS), align=2)


def _narrow(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Convert float32 to bfloat16, rounded to nearest even."""
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, _constants(16)), _constants(1))
    rounded = builder.add(bits, builder.add(odd, _constants(0x7FFF)))
    quiet = builder.or_(bits, _constants(0x400000))  # rounding could turn a NaN into infinity or zero
    kept = builder.select(_isnan(builder, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, _constants(16)), _SHORTS)


@intrinsic
def load(_context: Any, kind: Any, _address: Any) -> _Typed:
    """Load 16 consecutive values as float32."""
    return _f16(kind, types.int64), lambda _c, builder, _s, args: _load(builder, kind, args[1])


@intrinsic
def store(_context: Any, kind: Any, _address: Any, _value: Any) -> _Typed:
    """Store 16 consecutive float32 as `kind`."""
    return types.void(kind, types.int64, _f16), _void(lambda builder, args: _store(builder, kind, args[1], args[2]))


@intrinsic
def load_ints(_context: Any, _address: Any) -> _Typed:
    """Load 16 consecutive int32."""
    return _i16(types.int64), lambda _c, builder, _s, args: builder.load(_pointer(builder, args[0], _INTS), align=4)


@intrinsic
def store_ints(_context: Any, _address: Any, _value: Any) -> _Typed:
    """Store 16 consecutive int32."""
    return types.void(types.int64, _i16), _void(
        lambda builder, args: builder.store(args[1], _pointer(builder, args[0], _INTS), align=4)
    )


@intrinsic
def floats(_context: Any, _value: Any) -> _Typed:
    """Broadcast a float32 to all lanes."""
    return _f16(types.float32), lambda _c, builder, _s, args: _fill(builder, args[0], _FLOATS)


@intrinsic
def ints(_context: Any, _value: Any) -> _Typed:
    """Broadcast an int32 to all lanes."""
    return _i16(types.int32), lambda _c, builder, _s, args: _fill(builder, args[0], _INTS)


@intrinsic
def add(_context: Any, _a: Any, _b: Any) -> _Typed:
    """Add float32."""
    return _f16(_f16, _f16), lambda _c, builder, _s, args: builder.fadd(*args)


@intrinsic
def add_ints(_context: Any, _a: Any, _b: Any) -> _Typed:
    """Add int32."""
    return _i16(_i16, _i16), lambda _c, builder, _s, args: builder.add(*args)


@intrinsic
def divide(_context: Any, _a: Any, _b: Any) -> _Typed:
    """Divide float32."""
    return _f16(_f16, _f16), lambda _c, builder, _s, args: builder.fdiv(*args)


def _isnan(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fcmp_unordered("uno", value, value)


@intrinsic
def larger(_context: Any, _best: Any, _value: Any) -> _Typed:
    """Return the maximum; NaN is not supported."""
    return _f16(_f16, _f16), lambda _c, builder, _s, args: builder.select(
        builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0]
    )


def _wins(builder: ir.IRBuilder, best: ir.Value, cell: ir.Value, value: ir.Value, other: ir.Value) -> ir.Value:
    """Return whether (value, other) beats (best, cell): the first maximum in row-major order wins, or the last NaN."""
    before = builder.icmp_signed("<", other, cell)
    tie = builder.and_(builder.fcmp_ordered("==", value, best), before)
    ordinary = builder.or_(builder.fcmp_ordered(">", value, best), tie)
    over_nan = builder.or_(builder.not_(_isnan(builder, best)), builder.not_(before))
    return builder.or_(ordinary, builder.and_(_isnan(builder, value), over_nan))


@intrinsic
def better_value(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> _Typed:
    """Return the value of the winner of (best, cell) and (value, other), NaN included."""
    return _f16(_f16, _i16, _f16, _i16), lambda _c, builder, _s, args: builder.select(
        _wins(builder, *args), args[2], args[0]
    )


@intrinsic
def better_cell(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> _Typed:
    """Return the cell of the winner of (best, cell) and (value, other), NaN included."""
    return _i16(_f16, _i16, _f16, _i16), lambda _c, builder, _s, args: builder.select(
        _wins(builder, *args), args[3], args[1]
    )


@intrinsic
def larger_cell(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> _Typed:
    """Return the cell of the maximum, the first of ties; requires `other` > `cell` and no NaN."""
    return _i16(_f16, _i16, _f16, _i16), lambda _c, builder, _s, args: builder.select(
        builder.fcmp_ordered(">", args[2], args[0]), args[3], args[1]
    )


@intrinsic
def first_cell(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> _Typed:
    """Return the cell of the maximum, the first of ties; requires no NaN, but cells in any order."""

    def codegen(_c: Any, builder: ir.IRBuilder, _s: Any, args: Sequence[ir.Value]) -> Any:
        best, cell, value, other = args
        first = builder.select(builder.icmp_signed("<", other, cell), other, cell)
        kept = builder.select(builder.fcmp_ordered("==", value, best), first, cell)
        return builder.select(builder.fcmp_ordered(">", value, best), other, kept)

    return _i16(_f16, _i16, _f16, _i16), codegen


@intrinsic
def any_nan(_context: Any, _value: Any) -> _Typed:
    """Return whether any lane is NaN."""

    def codegen(_c: Any, builder: ir.IRBuilder, _s: Any, args: Sequence[ir.Value]) -> Any:
        bits = builder.bitcast(_isnan(builder, args[0]), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(_f16), codegen


def _shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, _constants(*lanes))


def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Transpose 16 x 16 values: interleave within 128-bit blocks, then exchange blocks.

    Each step is one instruction per vector with AVX2 and AVX-512.
    """
    low_pairs = [lane for q in range(0, LANES, 4) for lane in (q, q + LANES, q + 1, q + 1 + LANES)]
    low_halves = [lane for q in range(0, LANES, 4) for lane in (q, q + 1, q + LANES, q + 1 + LANES)]
    steps = [(1, low_pairs, [lane + 2 for lane in low_pairs]), (2, low_halves, [lane + 2 for lane in low_halves])]
    for bit in (4, 8):
        low = [lane if not lane & bit else lane - bit + LANES for lane in range(LANES)]
        high = [lane + bit if not lane & bit else lane + LANES for lane in range(LANES)]
        steps.append((bit, low, high))
    for bit, low, high in steps:
        for row in range(LANES):
            if not row & bit:
                a, b = rows[row], rows[row + bit]
                rows[row], rows[row + bit] = _shuffle(builder, a, b, low), _shuffle(builder, a, b, high)
    # The first two steps swap the two lowest bits of the row index.
    return [rows[(row & 12) | (row & 1) << 1 | (row & 2) >> 1] for row in range(LANES)]


@intrinsic
def transpose(_context: Any, kind: Any, _source: Any, _source_step: Any, _target: Any, _target_step: Any) -> _Typed:
    """Transpose 16 x 16 float32 and store them as `kind`; row steps are in bytes."""

    def emit(builder: ir.IRBuilder, args: Sequence[ir.Value]) -> None:
        _, source, source_step, target, target_step = args
        rows = []
        for _ in range(LANES):
            rows.append(_load(builder, types.float32, source))
            source = builder.add(source, source_step)
        for row in transposed(builder, rows):
            _store(builder, kind, target, row)
            target = builder.add(target, target_step)

    return types.void(kind, *[types.int64] * 4), _void(emit)


@intrinsic
def copy(_context: Any, _target: Any, _source: Any, _size: Any) -> _Typed:
    """Copy `size` bytes between buffers that do not overlap."""

    def emit(builder: ir.IRBuilder, args: Sequence[ir.Value]) -> None:
        pointers = [_pointer(builder, address, _BYTE) for address in args[:2]]
        function = builder.module.declare_intrinsic("llvm.memcpy", [pointers[0].type, pointers[1].type, _LONG])
        builder.call(function, [*pointers, args[2], ir.Constant(ir.IntType(1), 0)])

    return types.void(*[types.int64] * 3), _void(emit)


@intrinsic
def stream_vector(_context: Any, _target: Any, _source: Any) -> _Typed:
    """Copy 64 bytes to an address aligned to 64 bytes, bypassing the caches."""

    def emit(builder: ir.IRBuilder, args: Sequence[ir.Value]) -> None:
        value = builder.load(_pointer(builder, args[1], _INTS), align=4)
        stored = builder.store(value, _pointer(builder, args[0], _INTS), align=64)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INT, 1)]))

    return types.void(types.int64, types.int64), _void(emit)


@intrinsic
def clear(_context: Any, _target: Any, _size: Any) -> _Typed:
    """Set `size` bytes to zero."""

    def emit(builder: ir.IRBuilder, args: Sequence[ir.Value]) -> None:
        pointer = _pointer(builder, args[0], _BYTE)
        function = builder.module.declare_intrinsic("llvm.memset", [pointer.type, _LONG])
        builder.call(function, [pointer, ir.Constant(_BYTE, 0), args[1], ir.Constant(ir.IntType(1), 0)])

    return types.void(*[types.int64] * 2), _void(emit)


def _load_number(builder: ir.IRBuilder, kind: Any, address: ir.Value) -> ir.Value:
    if kind == types.float32:
        return builder.load(_pointer(builder, address, ir.FloatType()), align=4)
    half = builder.load(_pointer(builder, address, _SHORT), align=2)
    return builder.bitcast(builder.shl(builder.zext(half, _INT), ir.Constant(_INT, 16)), ir.FloatType())


@intrinsic
def number(_context: Any, kind: Any, _address: Any) -> _Typed:
    """Load one value as float32."""
    return types.float32(kind, types.int64), lambda _c, builder, _s, args: _load_number(builder, kind, args[1])


@intrinsic
def integer(_context: Any, _address: Any) -> _Typed:
    """Load one int32 as int64."""
    return types.int64(types.int64), lambda _c, builder, _s, args: builder.sext(
        builder.load(_pointer(builder, args[0], _INT), align=4), _LONG
    )


@intrinsic
def accumulate(_context: Any, kind: Any, _address: Any, _value: Any) -> _Typed:
    """Add a float32 to one value in memory."""

    def emit(builder: ir.IRBuilder, args: Sequence[ir.Value]) -> None:
        _, address, value = args
        total = builder.fadd(_load_number(builder, kind, address), value)
        if kind == types.float32:
            builder.store(total, _pointer(builder, address, ir.FloatType()), align=4)
        else:
            half = builder.extract_element(_narrow(builder, _fill(builder, total, _FLOATS)), ir.Constant(_INT, 0))
            builder.store(half, _pointer(builder, address, half.type), align=2)

    return types.void(kind, types.int64, types.float32), _void(emit)


@intrinsic
def fetch_add(_context: Any, _address: Any, _value: Any) -> _Typed:
    """Add atomically to one int64 in memory and return its previous value."""
    return types.int64(types.int64, types.int64), lambda _c, builder, _s, args: builder.atomic_rmw(
        "add", _pointer(builder, args[0], _LONG), args[1], "monotonic"
    )


@intrinsic
def pointer(_context: Any, _address: Any) -> _Typed:
    """Convert an address to a pointer for `numba.carray`."""
    return types.voidptr(types.int64), lambda _c, builder, _s, args: _pointer(builder, args[0], _BYTE)
