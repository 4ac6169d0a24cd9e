"""Slow twins of the pretrained networks, in numpy, one image at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch_weights as made

Array = npt.NDArray[np.float64]
TAPS = {16: [3, 8, 15, 22, 29], 19: [1, 6, 11, 20, 29]}
"""The layers of relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of VGG-16, and of relu1_1 to relu5_1 of VGG-19."""


def conv(image: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of c x h x w."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
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
