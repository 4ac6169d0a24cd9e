"""TensorFlow Lite networks as PyTorch modules, so that gradients pass through them: the operations that MediaPipe's face networks use.

A file says which operation reads and writes which tensor; they run in its order. Images stay ``b h w c`` as the file has them, and
convolutions see them as channels-last ``b c h w``, so nothing is copied. The first dimension, 1 in the file, is the batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad, relu

from mggtalk.networks.frozen import Frozen
from mggtalk.networks.weights import WeightsError

DTYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT64": np.int64}


class _Step(NamedTuple):
    """One operation: what it makes of which tensors."""

    run: Callable[..., Tensor]
    inputs: list[int]
    output: int


class _Graph(NamedTuple):
    """Which tensors come in and go out, what happens between, and the weights."""

    wanted: list[int]
    given: list[int]
    steps: list[_Step]
    constants: dict[int, Any]


class TfliteNetwork(Frozen):
    """A network of the bytes of a ``.tflite`` file: takes and returns what its first graph does, in the file's layout, as float32.

    Args:
        data: the file.
        name: of it, for messages.

    Raises:
        WeightsError: it is damaged or no such file, or has an operation that is not known here.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__()
        if data[4:8] != b"TFL3":
            raise WeightsError(f"{name}: no TensorFlow Lite network; fetch it again")
        try:
            graph = _graph(data, name)
        except WeightsError:
            raise
        except Exception as error:  # whatever the format's reader makes of damaged bytes
            raise WeightsError(f"{name}: damaged ({type(error).__name__}); fetch it again") from error
        self.data, self.name, self.graph = data, name, graph
        for index, values in graph.constants.items():
            self.register_buffer(f"constant_{index}", torch.from_numpy(values.copy()), persistent=False)
        self.freeze()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "graph"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.graph = _graph(self.data, self.name)  # of functions, which are not pickled

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the graph."""
        known: dict[int, Tensor] = {index: getattr(self, f"constant_{index}") for index in self.graph.constants}
        known.update(zip(self.graph.wanted, inputs, strict=True))
        for step in self.graph.steps:
            known[step.output] = step.run(*(known[index] for index in step.inputs if index in known))
        return tuple(known[index] for index in self.graph.given)


def _graph(data: bytes, name: str) -> _Graph:
    from mediapipe.tasks.metadata import schema_py_generated as schema  # the format's own reader

    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    constants, types = dict[int, Any](), _names(schema.TensorType)
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        values = model.Buffers(tensor.Buffer()).DataAsNumpy()
        if isinstance(values, np.ndarray) and values.size:
            constants[index] = values.view(DTYPES[types[tensor.Type()]]).reshape(tensor.ShapeAsNumpy() if tensor.ShapeLength() else ())
    steps, codes = list[_Step](), _names(schema.BuiltinOperator)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        kind = codes.get(model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode(), "of its own")
        inputs, output = operator.InputsAsNumpy().tolist(), int(operator.Outputs(0))
        if kind == "DEQUANTIZE" and inputs[0] in constants:
            constants[output] = constants.pop(inputs[0]).astype(np.float32)
        elif kind in _KINDS:
            steps.append(_Step(_KINDS[kind](_Options(operator, schema), [constants.get(one) for one in inputs]), inputs, output))
        else:
            raise WeightsError(f"{name}: has the operation {kind}, which is not known here; give MediaPipe's face landmarker")
    floats = {index: values for index, values in constants.items() if values.dtype == np.float32}
    return _Graph(graph.InputsAsNumpy().tolist(), graph.OutputsAsNumpy().tolist(), steps, floats)


class _Options:
    """What an operation is told besides its tensors."""

    def __init__(self, operator: Any, schema: Any) -> None:
        self.operator, self.schema = operator, schema

    def of(self, kind: str) -> Any:
        table, options = self.operator.BuiltinOptions(), getattr(self.schema, f"{kind}Options")()
        options.Init(table.Bytes, table.Pos)
        return options

    def named(self, family: str, value: int) -> str:
        return _names(getattr(self.schema, family))[value]

    def window(self, kind: str) -> tuple[Any, tuple[int, int], bool]:
        """The options of a convolution or pooling, its stride, and whether it sees beyond the border."""
        options = self.of(kind)
        return options, (options.StrideH(), options.StrideW()), self.named("Padding", options.Padding()) == "SAME"

    def activation(self, options: Any) -> Callable[[Tensor], Tensor]:
        return {"NONE": lambda values: values, "RELU": relu}[self.named("ActivationFunctionType", options.FusedActivationFunction())]


def _names(family: Any) -> dict[int, str]:
    return {value: name for name, value in vars(family).items() if isinstance(value, int)}


def _bordered(image: Tensor, size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Zeros around an image (b c h w), for as many windows as strides; the odd one comes last, as TensorFlow has it."""
    edges: list[int] = []
    for length, window, step in zip(reversed(image.shape[-2:]), reversed(size), reversed(stride), strict=True):
        missing = max((-(-length // step) - 1) * step + window - length, 0)
        edges += [missing // 2, missing - missing // 2]
    return pad(image, edges) if any(edges) else image


def _convolution(told: _Options, constants: list[Any], depthwise: bool = False) -> Callable[..., Tensor]:
    options, stride, same = told.window("DepthwiseConv2D" if depthwise else "Conv2D")
    active, dilation = told.activation(options), (options.DilationHFactor(), options.DilationWFactor())

    def run(image: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        kernel = kernel.permute(3, 0, 1, 2) if depthwise else kernel.permute(0, 3, 1, 2)
        planes, size = image.permute(0, 3, 1, 2), (kernel.shape[2], kernel.shape[3])
        planes = _bordered(planes, size, stride) if same else planes
        groups = planes.shape[1] if depthwise else 1
        return active(conv2d(planes, kernel, bias, stride=stride, dilation=dilation, groups=groups).permute(0, 2, 3, 1))

    return run


def _pooling(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
    options, stride, same = told.window("Pool2D")
    size, active = (options.FilterHeight(), options.FilterWidth()), told.activation(options)
    if same:
        raise ValueError("pooling beyond the border")
    return lambda image: active(max_pool2d(image.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1))


def _padding(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
    edges = [int(edge) for pair in reversed(constants[1].tolist()) for edge in pair]
    return lambda image: pad(image, edges)


def _arithmetic(kind: str, function: Callable[..., Tensor]) -> Callable[[_Options, list[Any]], Callable[..., Tensor]]:
    def made(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
        active = told.activation(told.of(kind))
        return lambda one, other: active(function(one, other))

    return made


def _reduction(function: Callable[..., Tensor]) -> Callable[[_Options, list[Any]], Callable[..., Tensor]]:
    def made(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
        return partial(function, dim=[int(axis) for axis in constants[1].reshape(-1)], keepdim=bool(told.of("Reducer").KeepDims()))

    return made


def _reshaping(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
    shape = [int(length) for length in constants[1]]
    return lambda values: values.reshape(-1, *shape[1:])


def _transposition(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
    order = [int(axis) for axis in constants[1]]
    return lambda values: values.permute(order)


def _joining(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
    options = told.of("Concatenation")
    axis, active = options.Axis(), told.activation(options)

    def run(*parts: Tensor) -> Tensor:
        count = max(len(part) for part in parts)
        return active(torch.cat([part.expand(count, *part.shape[1:]) for part in parts], axis))

    return run


def _slicing(told: _Options, constants: list[Any]) -> Callable[..., Tensor]:
    """Of all dimensions but the batch's, which stays whole."""
    options, (begins, ends, steps) = told.of("StridedSlice"), ([int(one) for one in values] for values in constants[1:])
    places: list[Any] = [slice(None)]
    for axis in range(1, len(begins)):
        begin = None if options.BeginMask() >> axis & 1 else begins[axis]
        end = None if options.EndMask() >> axis & 1 else ends[axis]
        places.append(begins[axis] if options.ShrinkAxisMask() >> axis & 1 else slice(begin, end, steps[axis]))
    return lambda values: values[tuple(places)]


def _plain(function: Callable[..., Tensor]) -> Callable[[_Options, list[Any]], Callable[..., Tensor]]:
    return lambda told, constants: function


_KINDS: dict[str, Callable[[_Options, list[Any]], Callable[..., Tensor]]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": partial(_convolution, depthwise=True),
    "MAX_POOL_2D": _pooling,
    "PAD": _padding,
    "PRELU": _plain(lambda values, slope: torch.where(values < 0, values * slope, values)),
    "LOGISTIC": _plain(torch.sigmoid),
    "NEG": _plain(torch.neg),
    "SQRT": _plain(torch.sqrt),
    "RSQRT": _plain(torch.rsqrt),
    "SQUARED_DIFFERENCE": _plain(lambda one, other: (one - other).square()),
    "ADD": _arithmetic("Add", torch.add),
    "SUB": _arithmetic("Sub", torch.sub),
    "MUL": _arithmetic("Mul", torch.mul),
    "DIV": _arithmetic("Div", torch.div),
    "MEAN": _reduction(torch.mean),
    "SUM": _reduction(torch.sum),
    "RESHAPE": _reshaping,
    "TRANSPOSE": _transposition,
    "CONCATENATION": _joining,
    "STRIDED_SLICE": _slicing,
}
