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


INCEPTION_STEM: list[tuple[str, tuple[int, int, int, int]]] = [
    ("Conv2d_1a_3x3", (32, 3, 3, 3)),
    ("Conv2d_2a_3x3", (32, 32, 3, 3)),
    ("Conv2d_2b_3x3", (64, 32, 3, 3)),
    ("Conv2d_3b_1x1", (80, 64, 1, 1)),
    ("Conv2d_4a_3x3", (192, 80, 3, 3)),
]


def inception_branches(block: str, inputs: int, inner: int = 0) -> dict[str, tuple[int, int, int, int]]:
    """Kernels of a block of FID's Inception-v3: a with ``inner`` channels after the pool, c with as many inside, and b, d and e."""
    if block == "a":
        return {
            "branch1x1": (64, inputs, 1, 1), "branch5x5_1": (48, inputs, 1, 1), "branch5x5_2": (64, 48, 5, 5),
            "branch3x3dbl_1": (64, inputs, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
            "branch_pool": (inner, inputs, 1, 1),
        }  # fmt: skip
    if block == "b":
        return {
            "branch3x3": (384, inputs, 3, 3), "branch3x3dbl_1": (64, inputs, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3),
            "branch3x3dbl_3": (96, 96, 3, 3),
        }  # fmt: skip
    if block == "c":
        return {
            "branch1x1": (192, inputs, 1, 1), "branch7x7_1": (inner, inputs, 1, 1), "branch7x7_2": (inner, inner, 1, 7),
            "branch7x7_3": (192, inner, 7, 1), "branch7x7dbl_1": (inner, inputs, 1, 1), "branch7x7dbl_2": (inner, inner, 7, 1),
            "branch7x7dbl_3": (inner, inner, 1, 7), "branch7x7dbl_4": (inner, inner, 7, 1), "branch7x7dbl_5": (192, inner, 1, 7),
            "branch_pool": (192, inputs, 1, 1),
        }  # fmt: skip
    if block == "d":
        return {
            "branch3x3_1": (192, inputs, 1, 1), "branch3x3_2": (320, 192, 3, 3), "branch7x7x3_1": (192, inputs, 1, 1),
            "branch7x7x3_2": (192, 192, 1, 7), "branch7x7x3_3": (192, 192, 7, 1), "branch7x7x3_4": (192, 192, 3, 3),
        }  # fmt: skip
    return {
        "branch1x1": (320, inputs, 1, 1), "branch3x3_1": (384, inputs, 1, 1), "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1), "branch3x3dbl_1": (448, inputs, 1, 1), "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1), "branch_pool": (192, inputs, 1, 1),
    }  # fmt: skip


INCEPTION_BLOCKS: list[tuple[str, str, int, int]] = [
    ("Mixed_5b", "a", 192, 32), ("Mixed_5c", "a", 256, 64), ("Mixed_5d", "a", 288, 64), ("Mixed_6a", "b", 288, 0),
    ("Mixed_6b", "c", 768, 128), ("Mixed_6c", "c", 768, 160), ("Mixed_6d", "c", 768, 160), ("Mixed_6e", "c", 768, 192),
    ("Mixed_7a", "d", 768, 0), ("Mixed_7b", "e", 1280, 0), ("Mixed_7c", "e", 2048, 0),
]  # fmt: skip


def inception_shapes(counters: bool = False) -> Shapes:
    """Of FID's Inception-v3, classifier included; old files have no counters of batches."""
    kernels = dict(INCEPTION_STEM)
    for name, block, inputs, inner in INCEPTION_BLOCKS:
        kernels |= {f"{name}.{branch}": kernel for branch, kernel in inception_branches(block, inputs, inner).items()}
    found: Shapes = {}
    for name, kernel in kernels.items():
        found |= {f"{name}.conv.weight": kernel, **_norm(f"{name}.bn", kernel[0])}
    found = {name: shape for name, shape in found.items() if counters or not name.endswith("num_batches_tracked")}
    return found | {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


def inception(seed: int = 0) -> State:
    return dict(_draw(inception_shapes(), seed))


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
