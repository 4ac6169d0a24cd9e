"""Slow twins of the pretrained networks, in numpy, one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch_weights as made

Array = npt.NDArray[np.float64]
TAPS = {16: [3, 8, 15, 22, 29], 19: [1, 6, 11, 20, 29]}
"""The layers of relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of VGG-16, and of relu1_1 to relu5_1 of VGG-19."""


def conv(image: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int | tuple[int, int] = 0) -> Array:
    """Cross-correlation of c x h x w."""
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    padded = np.pad(image, ((0, 0), (rows, rows), (columns, columns)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    out = np.tensordot(weight, windows, ([1, 2, 3], [0, 3, 4]))
    return np.asarray(out if bias is None else out + bias[:, None, None])


def pool(image: Array, size: int) -> Array:
    return np.asarray(np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(1, 2))[:, ::2, ::2].max((3, 4)))


def numbers(state: made.State) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in state.items()}


def activations(image: Array, state: dict[str, Array], depth: int) -> dict[int, Array]:
    """Of every ReLU of VGG (16, 19) or AlexNet (8), by the number of its layer."""
    found, index = {}, 0
    layers = [0 if channels == 0 else 1 for channels in made.VGG[depth]] if depth > 8 else [1, 0, 1, 0, 1, 1, 1]
    for convolution in layers:
        if not convolution:
            image, index = pool(image, 2 if depth > 8 else 3), index + 1
            continue
        first = depth == 8 and index == 0
        padding = 2 if depth == 8 and index < 6 else 1
        image = conv(image, state[f"features.{index}.weight"], state[f"features.{index}.bias"], 4 if first else 1, padding)
        found[index + 1] = image = np.maximum(image, 0)
        index += 2
    return found


def lpips_twin(image: Array, target: Array, state: dict[str, Array], weights: dict[str, Array], net: str) -> float:
    total, taps = 0.0, [1, 4, 7, 9, 11] if net == "alex" else TAPS[16]
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    both = [
        activations((2 * x - 1 - shift[:, None, None]) / scale[:, None, None], state, 8 if net == "alex" else 16) for x in (image, target)
    ]
    for layer, tap in enumerate(taps):
        y, z = (found[tap] / (np.sqrt((found[tap] ** 2).sum(0)) + 1e-10) for found in both)
        total += float((weights[f"lin{layer}.model.1.weight"].reshape(-1, 1, 1) * (y - z) ** 2).sum(0).mean())
    return total


def norm(image: Array, state: dict[str, Array], name: str) -> Array:
    mean, variance, gain, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    after = (1,) * (image.ndim - 1)
    return np.asarray((image - mean.reshape(-1, *after)) / np.sqrt(variance + 1e-5).reshape(-1, *after) * gain.reshape(-1, *after)) + (
        bias.reshape(-1, *after)
    )


def prelu(image: Array, state: dict[str, Array], name: str) -> Array:
    return np.where(image > 0, image, image * state[f"{name}.weight"][:, None, None])


def iresnet_twin(image: Array, state: dict[str, Array], units: tuple[int, ...]) -> Array:
    image = prelu(norm(conv(image, state["conv1.weight"], padding=1), state, "bn1"), state, "prelu")
    for name in (f"layer{stage}.{index}" for stage, count in enumerate(units, 1) for index in range(count)):
        first = name.endswith(".0")
        body = norm(conv(norm(image, state, f"{name}.bn1"), state[f"{name}.conv1.weight"], padding=1), state, f"{name}.bn2")
        body = conv(prelu(body, state, f"{name}.prelu"), state[f"{name}.conv2.weight"], stride=2 if first else 1, padding=1)
        if first:
            image = norm(conv(image, state[f"{name}.downsample.0.weight"], stride=2), state, f"{name}.downsample.1")
        image = image + norm(body, state, f"{name}.bn3")
    return norm(state["fc.weight"] @ norm(image, state, "bn2").ravel() + state["fc.bias"], state, "features")


def unit(image: Array, state: dict[str, Array], name: str, stride: int = 1, keep: bool = True) -> Array:
    """A convolution of Inception with what follows it; it keeps the size of its input, or sees whole windows alone."""
    weight = state[f"{name}.conv.weight"]
    padding = (weight.shape[2] // 2, weight.shape[3] // 2) if keep else (0, 0)
    image = conv(image, weight, stride=stride, padding=padding)
    mean, variance, gain, bias = (state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
    return np.maximum((image - mean) / np.sqrt(variance + 1e-3) * gain + bias, 0)


def around(image: Array, reduce: Callable[..., Array]) -> Array:
    """A pooling of the 3 x 3 pixels around each, of those that are inside the image."""
    height, width = image.shape[1:]
    rows = [[reduce(image[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2], axis=(1, 2)) for x in range(width)] for y in range(height)]
    return np.asarray(rows).transpose(2, 0, 1)


def inception_block(image: Array, state: dict[str, Array], name: str, kind: str) -> Array:
    def run(branch: str, values: Array, **how: Any) -> Array:
        return unit(values, state, f"{name}.{branch}", **how)

    def chain(branch: str, count: int, **last: Any) -> Array:
        values = image
        for number in range(1, count + 1):
            values = run(f"{branch}_{number}", values, **(last if number == count else {}))
        return values

    half = {"stride": 2, "keep": False}
    if kind == "b":
        return np.concatenate([run("branch3x3", image, **half), chain("branch3x3dbl", 3, **half), pool(image, 3)])
    if kind == "d":
        return np.concatenate([chain("branch3x3", 2, **half), chain("branch7x7x3", 4, **half), pool(image, 3)])
    pooled = run("branch_pool", around(image, np.max if name == "Mixed_7c" else np.mean))
    first = run("branch1x1", image)
    if kind == "a":
        return np.concatenate([first, chain("branch5x5", 2), chain("branch3x3dbl", 3), pooled])
    if kind == "c":
        return np.concatenate([first, chain("branch7x7", 3), chain("branch7x7dbl", 5), pooled])
    once, twice = chain("branch3x3", 1), chain("branch3x3dbl", 2)
    forked = [run(f"{branch}{end}", values) for branch, values in (("branch3x3_2", once), ("branch3x3dbl_3", twice)) for end in "ab"]
    return np.concatenate([first, *forked, pooled])


def inception_twin(image: Array, state: dict[str, Array]) -> Array:
    """FID's features of a picture (3 x h x w) in [-1, 1], at its own size."""
    image = unit(image, state, "Conv2d_1a_3x3", stride=2, keep=False)
    image = unit(unit(image, state, "Conv2d_2a_3x3", keep=False), state, "Conv2d_2b_3x3")
    image = unit(unit(pool(image, 3), state, "Conv2d_3b_1x1"), state, "Conv2d_4a_3x3", keep=False)
    image = pool(image, 3)
    for name, kind, _, _ in made.INCEPTION_BLOCKS:
        image = inception_block(image, state, name, kind)
    return np.asarray(image.mean((1, 2)))


def resized_twin(image: Array, side: int) -> Array:
    """A picture (c x h x w) at another size: the four pixels around each new centre by their nearness; beyond the border the last one."""
    for axis in (1, 2):
        count = image.shape[axis]
        places = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
        before = np.minimum(places.astype(int), count - 2)
        share = (places - before).reshape(-1, *(1,) * (2 - axis))
        image = np.take(image, before, axis) * (1 - share) + np.take(image, before + 1, axis) * share
    return image
