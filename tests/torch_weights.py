"""Random weights of torch networks, under the names and with the shapes of the published files, written from their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
VGG = {
    16: [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512],
    19: [64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512],
}
"""Channels of the convolutions; 0 is a pooling."""
ALEXNET: dict[int, tuple[int, ...]] = {
    0: (64, 3, 11, 11),
    3: (192, 64, 5, 5),
    6: (384, 192, 3, 3),
    8: (256, 384, 3, 3),
    10: (256, 256, 3, 3),
}
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}


def vgg_convolutions(depth: int) -> dict[int, tuple[int, ...]]:
    """Number of the layer and shape of the kernel."""
    found: dict[int, tuple[int, ...]] = {}
    index, inputs = 0, 3
    for channels in VGG[depth]:
        if channels:
            found[index], inputs = (channels, inputs, 3, 3), channels
        index += 2 if channels else 1  # a ReLU follows each convolution
    return found


def iresnet_shapes(units: Sequence[int]) -> Shapes:
    found: Shapes = {"conv1.weight": (64, 3, 3, 3), **_norm("bn1", 64), "prelu.weight": (64,)}
    inputs = 64
    for stage, (count, channels) in enumerate(zip(units, (64, 128, 256, 512), strict=True), 1):
        for index in range(count):
            unit = f"layer{stage}.{index}"
            found |= {**_norm(f"{unit}.bn1", inputs), f"{unit}.conv1.weight": (channels, inputs, 3, 3), **_norm(f"{unit}.bn2", channels)}
            found |= {f"{unit}.prelu.weight": (channels,), f"{unit}.conv2.weight": (channels, channels, 3, 3)}
            found |= _norm(f"{unit}.bn3", channels)
            if index == 0:
                found |= {f"{unit}.downsample.0.weight": (channels, inputs, 1, 1), **_norm(f"{unit}.downsample.1", channels)}
            inputs = channels
    return found | {**_norm("bn2", 512), "fc.weight": (512, 512 * 49), "fc.bias": (512,), **_norm("features", 512)}


def _norm(name: str, channels: int) -> Shapes:
    values = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**values, f"{name}.num_batches_tracked": ()}


def convolutions(kernels: dict[int, tuple[int, ...]], seed: int = 0) -> State:
    """``features.N.weight`` and ``features.N.bias``; activations keep about their size from layer to layer."""
    shapes: Shapes = {}
    for index, shape in kernels.items():
        shapes |= {f"features.{index}.weight": shape, f"features.{index}.bias": shape[:1]}
    return dict(_draw(shapes, seed))


def iresnet(units: Sequence[int], seed: int = 0) -> State:
    return dict(_draw(iresnet_shapes(units), seed))


def heads(net: str, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {f"lin{i}.model.1.weight": torch.rand(1, count, 1, 1, generator=generator) for i, count in enumerate(HEADS[net])}


def _draw(shapes: Shapes, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            yield name, torch.tensor(7)
        elif len(shape) > 1:
            fan = torch.Size(shape[1:]).numel()
            yield name, torch.empty(shape).normal_(0, (2 / fan) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "weight")):
            yield name, 0.5 + torch.rand(shape, generator=generator)
        else:
            yield name, torch.empty(shape).normal_(0, 0.1, generator=generator)


def write(path: Path, state: State) -> Path:
    """Save as the ending of the path says."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path
