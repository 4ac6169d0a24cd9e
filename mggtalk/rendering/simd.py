"""Sixteen floats as one value for Numba: LLVM's ``<16 x float>``, which it lowers to AVX-512, 2 x AVX, 4 x SSE or 4 x NEON registers.

Inside functions compiled with :func:`compiled`, values of type ``Vector`` take ``+ - * /`` and comparisons with each other and with
numbers, and ``Mask`` (16 bits) takes ``& | ~``. No operation is fused, reordered or approximated by the compiler; :func:`fma` asks for the
fused one where the machine has it. So two kernels that do the same operations get the same bits, with any number of threads.
"""

from __future__ import annotations

import inspect
import logging
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numba
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

Vector: TypeAlias = Any
Mask: TypeAlias = Any
Array: TypeAlias = Any
LANES = 16
TO_WHOLE = 1.5 * 2.0**23
"""Added to a number of less than 2^22 it leaves the nearest whole number in the low bits; cheaper than rounding."""
intrinsic: Any = extending.intrinsic  # its own annotation is that of the function that writes code, not of the one that is called
_INT, _LONG, _SHORT, _BIT = (ir.IntType(bits) for bits in (32, 64, 16, 1))
_FLOATS, _INTS, _BITS = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), _INT, _BIT))


def compiled(*, parallel: bool = False, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: compile at the first call, keep the result on disk (beside the source, or in ``NUMBA_CACHE_DIR``, or per user)."""

    def decorate(function: Callable[..., Any]) -> Any:
        bare = inspect.unwrap(function)  # of checks of shapes and types, which cannot be compiled
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "parallel": parallel, "forceinline": inline}
        options["_nrt"] = parallel  # without Numba's memory manager no reference is counted, and no kernel may make an array
        try:
            return _watching_all_sources(numba.njit(cache=not inline, **options)(bare))
        except RuntimeError as error:  # no folder can be written
            logging.getLogger(__name__).info("%s is compiled anew in every process: %s", bare.__name__, error)
            return numba.njit(**options)(bare)

    return decorate


def _watching_all_sources(dispatcher: Any) -> Any:
    """Discard what is on disk when any file of this folder changes: by itself Numba looks at the file of the function alone."""
    on_disk = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if on_disk is not None:
        states = [(path.name, path.stat()) for path in sorted(Path(__file__).parent.glob("*.py"))]
        on_disk._source_stamp = on_disk._source_stamp, tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)
    return dispatcher


class VectorType(types.Type):
    """Numba's type of 16 floats."""

    def __init__(self) -> None:
        super().__init__(name="vector16")


class MaskType(types.Type):
    """Numba's type of 16 bits."""

    def __init__(self) -> None:
        super().__init__(name="mask16")


VECTOR, MASK = VectorType(), MaskType()


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """16 floats in registers."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(MaskType)
class MaskModel(models.PrimitiveModel):
    """16 bits in a register."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _BITS)


def _constant(kind: ir.VectorType, value: float | int) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _pick(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _widen(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """A number in every lane; a vector as it is."""
    if isinstance(kind, VectorType):
        return value
    number = context.cast(builder, value, kind, types.float32)
    alone = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, _INT(0))
    return _pick(builder, alone, alone, [0] * LANES)


def _widen_all(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    return [_widen(context, builder, kind, value) for kind, value in zip(signature.args, arguments, strict=True)]


def _is_number(kind: Any) -> bool:
    return isinstance(kind, (types.Float, types.Integer))


def _call(builder: Any, name: str, kind: Any, arguments: list[Any]) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [each.type for each in arguments]), name)
    return builder.call(function, arguments)


def _define_operator(symbol: Any, answer: Any, emit: Callable[[Any, Any, Any], Any]) -> None:
    @type_callable(symbol)
    def type_operator(context: Any) -> Any:
        def typer(x: Any, y: Any) -> Any:
            vectors = [isinstance(kind, VectorType) for kind in (x, y)]
            return answer if any(vectors) and all(a or _is_number(kind) for a, kind in zip(vectors, (x, y), strict=True)) else None

        return typer

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return emit(builder, *_widen_all(context, builder, signature, arguments))

    for kinds in ((VectorType, VectorType), (VectorType, types.Number), (types.Number, VectorType)):
        lower_builtin(symbol, *kinds)(lower)


def _define_mask_operator(symbol: Any, count: int, emit: Callable[..., Any]) -> None:
    @type_callable(symbol)
    def type_operator(context: Any) -> Any:
        def one(x: Any) -> Any:
            return MASK if isinstance(x, MaskType) else None

        def two(x: Any, y: Any) -> Any:
            return MASK if isinstance(x, MaskType) and isinstance(y, MaskType) else None

        return one if count == 1 else two

    lower_builtin(symbol, *[MaskType] * count)(lambda context, builder, signature, arguments: emit(builder, *arguments))


for _symbol, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _define_operator(_symbol, VECTOR, lambda builder, x, y, name=_name: getattr(builder, name)(x, y))  # type: ignore[misc]
for _symbol, _name in ((operator.ge, ">="), (operator.gt, ">"), (operator.le, "<="), (operator.lt, "<")):
    _define_operator(_symbol, MASK, lambda builder, x, y, name=_name: builder.fcmp_ordered(name, x, y))  # type: ignore[misc]
_define_mask_operator(operator.and_, 2, lambda builder, x, y: builder.and_(x, y))
_define_mask_operator(operator.or_, 2, lambda builder, x, y: builder.or_(x, y))
_define_mask_operator(operator.xor, 2, lambda builder, x, y: builder.xor(x, y))
_define_mask_operator(operator.invert, 1, lambda builder, x: builder.xor(x, _constant(_BITS, 1)))


@intrinsic
def splat(typing: Any, x: Any) -> Any:
    """A number in every lane."""
    return VECTOR(x), lambda context, builder, signature, arguments: _widen_all(context, builder, signature, arguments)[0]


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """``x * y + z``, fused where the machine can."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.fmuladd.v16f32", _FLOATS, _widen_all(context, builder, signature, arguments))

    return VECTOR(x, y, z), emit


@intrinsic
def fnma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """``z - x * y``, fused where the machine can."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, *others = _widen_all(context, builder, signature, arguments)
        return _call(builder, "llvm.fmuladd.v16f32", _FLOATS, [builder.fneg(first), *others])

    return VECTOR(x, y, z), emit


@intrinsic
def reciprocal(typing: Any, x: Any) -> Any:
    """``1 / x``, or the machine's estimate of it after one step of Newton's method."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fdiv(_constant(_FLOATS, 1.0), arguments[0], flags=("arcp",))

    return VECTOR(VECTOR), emit


@intrinsic
def sqrt(typing: Any, x: Any) -> Any:
    """Square roots."""
    return VECTOR(VECTOR), lambda context, builder, signature, arguments: _call(builder, "llvm.sqrt.v16f32", _FLOATS, list(arguments))


def _extreme(sign: str) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y = _widen_all(context, builder, signature, arguments)
        return builder.select(builder.fcmp_ordered(sign, x, y), x, y)

    return emit


@intrinsic
def minimum(typing: Any, x: Any, y: Any) -> Any:
    """The smaller of each pair; ``y`` where one is NaN."""
    return VECTOR(x, y), _extreme("<")


@intrinsic
def maximum(typing: Any, x: Any, y: Any) -> Any:
    """The larger of each pair; ``y`` where one is NaN."""
    return VECTOR(x, y), _extreme(">")


@intrinsic
def select(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    """``x`` where the mask is set, else ``y``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pairs = zip(signature.args[1:], arguments[1:], strict=True)
        return builder.select(arguments[0], *[_widen(context, builder, kind, value) for kind, value in pairs])

    return VECTOR(mask, x, y), emit


@intrinsic
def mask_bits(typing: Any, mask: Any) -> Any:
    """The mask as a uint32 whose lowest bit is lane 0."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.bitcast(arguments[0], _SHORT), _INT)

    return types.uint32(MASK), emit


@intrinsic
def columns(typing: Any) -> Any:
    """0 1 2 3, four times: x of the lanes of a 4 x 4 block."""
    return VECTOR(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [float(lane % 4) for lane in range(LANES)])


@intrinsic
def rows(typing: Any) -> Any:
    """0 0 0 0 1 1 1 1 ...: y of the lanes of a 4 x 4 block."""
    return VECTOR(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [float(lane // 4) for lane in range(LANES)])


@intrinsic
def times_power_of_two(typing: Any, x: Any, n: Any) -> Any:
    """``x * 2^n`` where n is the whole number in the low bits of :data:`TO_WHOLE` + n, by adding to the exponent.

    Right where both ``x`` and the product are normal numbers.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shift = builder.shl(builder.bitcast(arguments[1], _INTS), _constant(_INTS, 23))
        return builder.bitcast(builder.add(builder.bitcast(arguments[0], _INTS), shift), _FLOATS)

    return VECTOR(VECTOR, VECTOR), emit


@intrinsic
def split_exponent(typing: Any, x: Any) -> Any:
    """(e, m) with ``x = 2^e m`` and m in [sqrt(1/2), sqrt(2)), for positive normal x."""
    answer = types.UniTuple(VECTOR, 2)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, root_of_half, width = builder.bitcast(arguments[0], _INTS), _constant(_INTS, 0x3F3504F3), _constant(_INTS, 23)
        exponent = builder.ashr(builder.sub(bits, root_of_half), width)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, width)), _FLOATS)
        return context.make_tuple(builder, answer, [builder.sitofp(exponent, _FLOATS), mantissa])

    return answer(VECTOR), emit
