"""Loads, stores, sums over lanes and bit tricks that go with :mod:`mggtalk.rendering.simd`; arrays are flat and contiguous."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mggtalk.rendering.simd import _BITS, _FLOATS, _INT, _LONG, _SHORT, LANES, MASK, VECTOR, _call, _pick, intrinsic

_POINTER_ALIGNMENT = 4  # of float32 arrays; no more is known


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, value=array).data, [index])


def _vector_address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.bitcast(_address(context, builder, kind, array, index), _FLOATS.as_pointer())


def _load(builder: Any, address: Any) -> Any:
    loaded = builder.load(address)
    loaded.align = _POINTER_ALIGNMENT
    return loaded


@intrinsic
def peek(typing: Any, array: Any, index: Any) -> Any:
    """``array[index]`` for an index that is not negative. Numba's own indexing tests that at every access: as much work as the blending."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *arguments))

    return array.dtype(array, types.int64), emit


@intrinsic
def poke(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index] = value`` for an index that is not negative."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.cast(builder, arguments[2], signature.args[2], signature.args[0].dtype)
        builder.store(number, _address(context, builder, signature.args[0], *arguments[:2]))
        return context.get_dummy_value()

    return types.none(array, types.int64, value), emit


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """``array[index : index + 16]`` of float32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, _vector_address(context, builder, signature.args[0], *arguments))

    return VECTOR(array, types.int64), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """``array[index : index + 16] = vector``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = builder.store(arguments[2], _vector_address(context, builder, signature.args[0], *arguments[:2]))
        stored.align = _POINTER_ALIGNMENT
        return context.get_dummy_value()

    return types.none(array, types.int64, VECTOR), emit


@intrinsic
def load_rows(typing: Any, array: Any, first: Any, width: Any) -> Any:
    """The columns of the 16 rows ``first ...`` of a flat ``rows x width`` float32 array, as a tuple of ``width`` (a literal) vectors."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    count = width.literal_value
    answer = types.UniTuple(VECTOR, count)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = builder.mul(arguments[1], _LONG(count))
        parts = [
            _load(builder, _vector_address(context, builder, signature.args[0], arguments[0], builder.add(start, _LONG(LANES * part))))
            for part in range(count)
        ]
        return context.make_tuple(builder, answer, [_column(builder, parts, column) for column in range(count)])

    return answer(array, types.int64, width), emit


def _column(builder: Any, parts: list[Any], column: int) -> Any:
    """Lane i is element ``i * len(parts) + column`` of the parts put end to end."""
    gathered = parts[0]
    for part, vector in enumerate(parts):
        places = [lane * len(parts) + column - LANES * part for lane in range(LANES)]
        lanes = [LANES + place if 0 <= place < LANES else (lane if part else 0) for lane, place in enumerate(places)]
        gathered = _pick(builder, gathered, vector, lanes)
    return gathered


@intrinsic
def store_rows(typing: Any, array: Any, first: Any, columns: Any) -> Any:
    """The inverse of :func:`load_rows`: a tuple of vectors becomes the columns of 16 rows."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        width = signature.args[2].count
        vectors = [builder.extract_value(arguments[2], index) for index in range(width)]
        start = builder.mul(arguments[1], _LONG(width))
        for part in range(width):
            address = _vector_address(context, builder, signature.args[0], arguments[0], builder.add(start, _LONG(LANES * part)))
            builder.store(_row_part(builder, vectors, part), address).align = _POINTER_ALIGNMENT
        return context.get_dummy_value()

    return types.none(array, types.int64, columns), emit


def _row_part(builder: Any, vectors: list[Any], part: int) -> Any:
    """Lane i is what stands at place ``16 part + i`` when the rows are put end to end."""
    width, gathered = len(vectors), vectors[0]
    places = [LANES * part + lane for lane in range(LANES)]
    for column, vector in enumerate(vectors):
        lanes = [LANES + place // width if place % width == column else lane for lane, place in enumerate(places)]
        gathered = _pick(builder, gathered, vector, lanes)
    return gathered


@intrinsic
def sums(typing: Any, vectors: Any) -> Any:
    """The sum over the lanes of each of up to 16 vectors (a tuple): that of the k-th in lane k, 0 in lanes beyond."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_FLOATS, [0.0] * LANES)
        level: list[Any] = [builder.extract_value(arguments[0], index) for index in range(signature.args[0].count)]
        level += [None] * (LANES - len(level))
        for step in (1, 2, 4, 8):  # neighbours that differ in this bit of their index share a vector, told apart by this bit of the lane
            level = [_fold(builder, zero, level[at], level[at + 1], step) for at in range(0, len(level), 2)]
        return level[0]

    return VECTOR(vectors), emit


def _fold(builder: Any, zero: Any, first: Any, second: Any, step: int) -> Any:
    """Half the lanes of the answer hold sums of ``first``, those with bit ``step`` of their number set sums of ``second``."""
    if first is None and second is None:
        return None
    first, second = (zero if each is None else each for each in (first, second))
    kept = [lane if not lane & step else LANES + lane for lane in range(LANES)]
    crossed = [lane ^ step if not lane & step else LANES + (lane ^ step) for lane in range(LANES)]
    return builder.fadd(_pick(builder, first, second, kept), _pick(builder, first, second, crossed))


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum over the lanes, a float32; halves are added to halves."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        for half in (8, 4, 2, 1):
            low, high = (_pick(builder, value, value, list(range(start, start + half))) for start in (0, half))
            value = builder.fadd(low, high)
        return builder.extract_element(value, _INT(0))

    return types.float32(VECTOR), emit


@intrinsic
def bit_of_each(typing: Any, words: Any, first: Any, bit: Any) -> Any:
    """Of 64 uint16 numbers ``words[first ...]``, the given bit of each: a uint64."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_SHORT, 64)
        address = builder.bitcast(_address(context, builder, signature.args[0], *arguments[:2]), kind.as_pointer())
        loaded = builder.load(address)
        loaded.align = 2
        power = builder.shl(_SHORT(1), builder.trunc(arguments[2], _SHORT))
        single = builder.insert_element(ir.Constant(kind, ir.Undefined), power, _INT(0))
        chosen = builder.and_(loaded, _pick(builder, single, single, [0] * 64))
        return builder.bitcast(builder.icmp_unsigned("!=", chosen, ir.Constant(kind, [0] * 64)), _LONG)

    return types.uint64(words, types.int64, types.int64), emit


@intrinsic
def lowest_bit(typing: Any, word: Any) -> Any:
    """The number of the lowest bit that is set in a uint64 (which is not 0)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.cttz.i64", _LONG, [arguments[0], ir.IntType(1)(1)])

    return types.int64(types.uint64), emit


@intrinsic
def float_bits(typing: Any, number: Any) -> Any:
    """The bits of a float32; for positive numbers they sort as the numbers do."""
    return types.uint32(types.float32), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], _INT)


@intrinsic
def mask_from_bits(typing: Any, bits: Any) -> Any:
    """The inverse of ``mask_bits``."""
    return MASK(types.uint32), lambda context, builder, signature, arguments: builder.bitcast(builder.trunc(arguments[0], _SHORT), _BITS)


@intrinsic
def take_next(typing: Any, counters: Any, index: Any) -> Any:
    """Add 1 to ``counters[index]`` (int64) and return what it was, atomically: how threads share out tiles."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        return builder.atomic_rmw("add", address, _LONG(1), "monotonic")

    return types.int64(counters, types.int64), emit


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``; the index may lie outside the array."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.bitcast(_address(context, builder, signature.args[0], *arguments), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT, _INT, _INT])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [address, _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.none(array, types.int64), emit


@intrinsic
def load_block(typing: Any, array: Any, index: Any, pitch: Any) -> Any:
    """Four times four float32 from ``array[index + r * pitch]``, r = 0 ... 3, as one vector."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        quads = []
        for row in range(4):
            at = builder.add(arguments[1], builder.mul(arguments[2], _LONG(row)))
            address = _address(context, builder, signature.args[0], arguments[0], at)
            quads.append(_load(builder, builder.bitcast(address, ir.VectorType(ir.FloatType(), 4).as_pointer())))
        halves = [_pick(builder, quads[pair], quads[pair + 1], list(range(8))) for pair in (0, 2)]
        return _pick(builder, halves[0], halves[1], list(range(LANES)))

    return VECTOR(array, types.int64, types.int64), emit


@intrinsic
def store_block(typing: Any, array: Any, index: Any, pitch: Any, vector: Any) -> Any:
    """The inverse of :func:`load_block`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for row in range(4):
            at = builder.add(arguments[1], builder.mul(arguments[2], _LONG(row)))
            address = _address(context, builder, signature.args[0], arguments[0], at)
            quad = _pick(builder, arguments[3], arguments[3], list(range(4 * row, 4 * row + 4)))
            stored = builder.store(quad, builder.bitcast(address, quad.type.as_pointer()))
            stored.align = _POINTER_ALIGNMENT
        return context.get_dummy_value()

    return types.none(array, types.int64, types.int64, VECTOR), emit


@intrinsic
def turn_blocks(typing: Any, blocks: Any) -> Any:
    """Four vectors, blocks of 4 x 4 that lie side by side, to their four rows of 16; and back."""
    answer = types.UniTuple(VECTOR, 4)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = [builder.extract_value(arguments[0], index) for index in range(4)]
        rows = []
        for row in range(4):
            quads = [4 * row + lane for lane in range(4)] + [LANES + 4 * row + lane for lane in range(4)]
            halves = [_pick(builder, vectors[pair], vectors[pair + 1], quads) for pair in (0, 2)]
            rows.append(_pick(builder, halves[0], halves[1], list(range(LANES))))
        return context.make_tuple(builder, answer, rows)

    return answer(blocks), emit
