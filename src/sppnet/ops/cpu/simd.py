"""Sixteen numbers at a time, for numba: vectors of LLVM as values of their own type, and what the kernels do to them.

LLVM lowers a vector of 16 to one AVX-512 register, two of AVX2 or four of NEON. Memory is addressed by integers.
A `kind` says what lies there: ``float32(0)`` for float32 and, to move them, int32; ``uint16(0)`` for bfloat16, which
is widened when it is loaded and rounded to the nearest even when it is stored.

Numba's cache on disk does not see a change here: touch `_entries.py` after one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

LANES = 16
intrinsic: Callable[..., Any] = _intrinsic  # numba's own annotations do not know that it drops the first argument
_INT = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


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


def _fill(builder: ir.IRBuilder, scalar: ir.Value, vector: ir.VectorType) -> ir.Value:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(
        one, ir.Constant(vector, ir.Undefined), ir.Constant(_INTS, [ir.Constant(_INT, 0)] * LANES)
    )


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
    """Sixteen float32 as bfloat16, rounded to the nearest even."""
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, _constants(16)), _constants(1))
    rounded = builder.add(bits, builder.add(odd, _constants(0x7FFF)))
    quiet = builder.or_(bits, _constants(0x400000))  # rounding up could turn a NaN into something else
    kept = builder.select(_isnan(builder, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, _constants(16)), _SHORTS)


@intrinsic
def load(_context: Any, kind: Any, _address: Any) -> tuple[Any, _Codegen]:
    """Sixteen neighbours in memory."""
    return _f16(kind, types.int64), lambda _c, builder, _s, args: _load(builder, kind, args[1])


@intrinsic
def store(_context: Any, kind: Any, _address: Any, _value: Any) -> tuple[Any, _Codegen]:
    """Write sixteen neighbours."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        _store(builder, kind, args[1], args[2])
        return context.get_dummy_value()

    return types.void(kind, types.int64, _f16), codegen


@intrinsic
def load_ints(_context: Any, _address: Any) -> tuple[Any, _Codegen]:
    """Sixteen int32."""
    return _i16(types.int64), lambda _c, builder, _s, args: builder.load(_pointer(builder, args[0], _INTS), align=4)


@intrinsic
def store_ints(_context: Any, _address: Any, _value: Any) -> tuple[Any, _Codegen]:
    """Write sixteen int32."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _INTS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, _i16), codegen


@intrinsic
def floats(_context: Any, _value: Any) -> tuple[Any, _Codegen]:
    """One float32 in all lanes."""
    return _f16(types.float32), lambda _c, builder, _s, args: _fill(builder, args[0], _FLOATS)


@intrinsic
def ints(_context: Any, _value: Any) -> tuple[Any, _Codegen]:
    """One int32 in all lanes."""
    return _i16(types.int32), lambda _c, builder, _s, args: _fill(builder, args[0], _INTS)


@intrinsic
def add(_context: Any, _a: Any, _b: Any) -> tuple[Any, _Codegen]:
    """Sum of two."""
    return _f16(_f16, _f16), lambda _c, builder, _s, args: builder.fadd(*args)


@intrinsic
def add_ints(_context: Any, _a: Any, _b: Any) -> tuple[Any, _Codegen]:
    """Sum of two."""
    return _i16(_i16, _i16), lambda _c, builder, _s, args: builder.add(*args)


@intrinsic
def divide(_context: Any, _a: Any, _b: Any) -> tuple[Any, _Codegen]:
    """Quotient of two."""
    return _f16(_f16, _f16), lambda _c, builder, _s, args: builder.fdiv(*args)


def _isnan(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fcmp_unordered("uno", value, value)


@intrinsic
def larger(_context: Any, _best: Any, _value: Any) -> tuple[Any, _Codegen]:
    """The larger, where no value is NaN."""

    def codegen(_c: Any, builder: ir.IRBuilder, _s: Any, args: Sequence[ir.Value]) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return _f16(_f16, _f16), codegen


def _wins(builder: ir.IRBuilder, best: ir.Value, cell: ir.Value, value: ir.Value, other: ir.Value) -> ir.Value:
    """Torch's choice in row-major order, for cells met in any order: the first maximum, or the last NaN."""
    before = builder.icmp_signed("<", other, cell)
    tie = builder.and_(builder.fcmp_ordered("==", value, best), before)
    ordinary = builder.or_(builder.fcmp_ordered(">", value, best), tie)
    over_nan = builder.or_(builder.not_(_isnan(builder, best)), builder.not_(before))
    return builder.or_(ordinary, builder.and_(_isnan(builder, value), over_nan))


@intrinsic
def better_value(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> tuple[Any, _Codegen]:
    """The value of the better of (best, cell) and (value, other)."""
    return _f16(_f16, _i16, _f16, _i16), lambda _c, builder, _s, args: builder.select(
        _wins(builder, *args), args[2], args[0]
    )


@intrinsic
def better_cell(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> tuple[Any, _Codegen]:
    """The cell of the better of (best, cell) and (value, other)."""
    return _i16(_f16, _i16, _f16, _i16), lambda _c, builder, _s, args: builder.select(
        _wins(builder, *args), args[3], args[1]
    )


@intrinsic
def larger_cell(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> tuple[Any, _Codegen]:
    """The cell of the `larger`, the first of equal ones, where no value is NaN and `other` comes after `cell`."""
    return _i16(_f16, _i16, _f16, _i16), lambda _c, builder, _s, args: builder.select(
        builder.fcmp_ordered(">", args[2], args[0]), args[3], args[1]
    )


@intrinsic
def first_cell(_context: Any, _best: Any, _cell: Any, _value: Any, _other: Any) -> tuple[Any, _Codegen]:
    """The cell of the `larger`, the first of equal ones, where no value is NaN, for cells met in any order."""

    def codegen(_c: Any, builder: ir.IRBuilder, _s: Any, args: Sequence[ir.Value]) -> Any:
        best, cell, value, other = args
        first = builder.select(builder.icmp_signed("<", other, cell), other, cell)
        kept = builder.select(builder.fcmp_ordered("==", value, best), first, cell)
        return builder.select(builder.fcmp_ordered(">", value, best), other, kept)

    return _i16(_f16, _i16, _f16, _i16), codegen


@intrinsic
def any_nan(_context: Any, _value: Any) -> tuple[Any, _Codegen]:
    """Whether a lane is NaN."""

    def codegen(_c: Any, builder: ir.IRBuilder, _s: Any, args: Sequence[ir.Value]) -> Any:
        bits = builder.bitcast(_isnan(builder, args[0]), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(_f16), codegen


def _shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, _constants(*lanes))


def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Sixteen vectors as columns: neighbours are interleaved within 128 bits, then quarters of vectors change places.

    Each step is one instruction a vector under AVX2 and AVX-512.
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
    # The first two steps leave the two lowest bits of the row exchanged.
    return [rows[(row & 12) | (row & 1) << 1 | (row & 2) >> 1] for row in range(LANES)]


@intrinsic
def transpose(
    _context: Any, kind: Any, _source: Any, _source_step: Any, _target: Any, _target_step: Any
) -> tuple[Any, _Codegen]:
    """Write sixteen rows of sixteen float32 as columns, of `kind`; steps from row to row are in bytes."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        _, source, source_step, target, target_step = args
        rows = []
        for _ in range(LANES):
            rows.append(_load(builder, types.float32, source))
            source = builder.add(source, source_step)
        for row in transposed(builder, rows):
            _store(builder, kind, target, row)
            target = builder.add(target, target_step)
        return context.get_dummy_value()

    return types.void(kind, *[types.int64] * 4), codegen


@intrinsic
def copy(_context: Any, _target: Any, _source: Any, _size: Any) -> tuple[Any, _Codegen]:
    """Copy `size` bytes between places that do not overlap."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        byte = ir.IntType(8)
        pointers = [_pointer(builder, address, byte) for address in args[:2]]
        function = builder.module.declare_intrinsic("llvm.memcpy", [pointers[0].type, pointers[1].type, ir.IntType(64)])
        builder.call(function, [*pointers, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def stream_vector(_context: Any, _target: Any, _source: Any) -> tuple[Any, _Codegen]:
    """Copy 64 bytes to a multiple of 64, past the caches."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        value = builder.load(_pointer(builder, args[1], _INTS), align=4)
        written = builder.store(value, _pointer(builder, args[0], _INTS), align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INT, 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def clear(_context: Any, _target: Any, _size: Any) -> tuple[Any, _Codegen]:
    """Set `size` bytes to zero."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        pointer = _pointer(builder, args[0], ir.IntType(8))
        function = builder.module.declare_intrinsic("llvm.memset", [pointer.type, ir.IntType(64)])
        builder.call(function, [pointer, ir.Constant(ir.IntType(8), 0), args[1], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 2), codegen


def _load_number(builder: ir.IRBuilder, kind: Any, address: ir.Value) -> ir.Value:
    if kind == types.float32:
        return builder.load(_pointer(builder, address, ir.FloatType()), align=4)
    half = builder.load(_pointer(builder, address, ir.IntType(16)), align=2)
    return builder.bitcast(builder.shl(builder.zext(half, _INT), ir.Constant(_INT, 16)), ir.FloatType())


@intrinsic
def number(_context: Any, kind: Any, _address: Any) -> tuple[Any, _Codegen]:
    """One number as float32."""
    return types.float32(kind, types.int64), lambda _c, builder, _s, args: _load_number(builder, kind, args[1])


@intrinsic
def integer(_context: Any, _address: Any) -> tuple[Any, _Codegen]:
    """One int32 as int64."""
    return types.int64(types.int64), lambda _c, builder, _s, args: builder.sext(
        builder.load(_pointer(builder, args[0], _INT), align=4), ir.IntType(64)
    )


@intrinsic
def accumulate(_context: Any, kind: Any, _address: Any, _value: Any) -> tuple[Any, _Codegen]:
    """Add to one number."""

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Sequence[ir.Value]) -> Any:
        _, address, value = args
        total = builder.fadd(_load_number(builder, kind, address), value)
        if kind == types.float32:
            builder.store(total, _pointer(builder, address, ir.FloatType()), align=4)
        else:
            half = builder.extract_element(_narrow(builder, _fill(builder, total, _FLOATS)), ir.Constant(_INT, 0))
            builder.store(half, _pointer(builder, address, half.type), align=2)
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.float32), codegen


@intrinsic
def fetch_add(_context: Any, _address: Any, _value: Any) -> tuple[Any, _Codegen]:
    """Add to one int64 that threads share; what it was before."""

    def codegen(_c: Any, builder: ir.IRBuilder, _s: Any, args: Sequence[ir.Value]) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0], ir.IntType(64)), args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def pointer(_context: Any, _address: Any) -> tuple[Any, _Codegen]:
    """An address as what carray takes."""
    return types.voidptr(types.int64), lambda _c, builder, _s, args: _pointer(builder, args[0], ir.IntType(8))
