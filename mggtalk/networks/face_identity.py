"""dlib's face recognition network in PyTorch: who a picture shows, with gradients to the picture.

Its weights are in the public domain (CC0), unlike those of most recognisers, so training may ask a rendering to look like the person. The
file is the one that :class:`datasets_toolkit.annotators.identity_dlib.DlibIdentity` reads with dlib's own code; no compiled part is needed
here. D. King, "High Quality Face Recognition with Deep Metric Learning", 2017; a ResNet (He et al., 2016) of 29 layers.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d, pad

from datasets_toolkit.annotators.identity_dlib import POINTS, SHA256, SIDE, TEMPLATE, packaged_weights
from datasets_toolkit.annotators.weights import fingerprint
from mggtalk.networks.frozen import Frozen
from mggtalk.networks.weights import WeightsError

NUMBERS = 128
STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels and blocks of each stage, and whether its first block halves the picture."""
_MEAN = (122.782, 117.001, 104.298)
_SCALE = 256.0


class FaceIdentity(Frozen):
    """Descriptors of faces whose place is known; gradients pass to the pictures.

    Args:
        path: ``dlib_face_recognition_resnet_model_v1.dat``; by default that of the package ``face_recognition_models``.

    Raises:
        AssetError: no file is given, and that package is not installed.
        WeightsError: no such file, or another one.
    """

    mean: Tensor

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        path = packaged_weights() if path is None else Path(path).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; correct the path")
        if (found := fingerprint(path)) != SHA256:
            raise WeightsError(f"{path}: another file (its SHA-256 is {found[:12]}..., not {SHA256[:12]}...); fetch it again")
        tensors = _Tensors(path.read_bytes())
        self.stem = _Convolution(tensors, 3, 32, 7, 2)
        blocks, channels = [], 32
        for width, count, halves in STAGES:
            for index in range(count):
                blocks.append(_Block(tensors, channels, width, halves and index == 0))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Parameter(tensors.after(b"fc_2", (channels, NUMBERS), settings=2))
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.freeze()

    def forward(self, image: Float[Tensor, "b 3 h w"], near: Float[Tensor, "b n 2"]) -> Float[Tensor, "b 128"]:
        """Descriptors as dlib's own: less than 0.6 of Euclidean distance was trained to mean the same person.

        Args:
            image: RGB in [0, 1].
            near: pixels of the landmarks (MediaPipe's, 468 or 478): how the face lies. Takes no gradients.
        """
        with torch.autocast(image.device.type, enabled=False):
            return self.describe(cut_face(image.float(), near.detach().float()))

    def describe(self, chips: Float[Tensor, "b 3 150 150"]) -> Float[Tensor, "b 128"]:
        """The network itself, of faces that are cut out."""
        values = self.stem((255 * chips - self.mean) / _SCALE).relu()
        return self.blocks(max_pool2d(values, 3, 2)).mean((-2, -1)) @ self.last


def cut_face(image: Float[Tensor, "b 3 h w"], near: Float[Tensor, "b n 2"]) -> Float[Tensor, "b 3 150 150"]:
    """Faces turned upright and scaled so that five points lie on dlib's mean face, averaged where the picture is finer."""
    points = near[:, list(POINTS)]
    template = near.new_tensor(TEMPLATE) + 0.5
    matrix = _similarity(template, points)
    finer = max(math.ceil(float(matrix[:, :, 0].norm(dim=-1).max()) - 0.25), 1)
    steps = (torch.arange(SIDE * finer, device=near.device, dtype=near.dtype) + 0.5) / finer
    places = torch.stack([*torch.meshgrid(steps, steps, indexing="xy"), near.new_ones(len(steps), len(steps))], -1)
    size = near.new_tensor([image.shape[-1], image.shape[-2]])
    grid = 2 * (places.flatten(0, 1) @ matrix.mT).unflatten(1, places.shape[:2]) / size - 1
    cut = grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return avg_pool2d(cut, finer) if finer > 1 else cut


def _similarity(first: Float[Tensor, "n 2"], second: Float[Tensor, "b n 2"]) -> Float[Tensor, "b 2 3"]:
    """Rotation, one scale and shift that take ``first`` to ``second``, least squares (in the plane as complex numbers: a quotient)."""
    middle, centre = first.mean(0), second.mean(1)
    a, b = first - middle, second - centre[:, None]
    size = a.square().sum()
    along = (a * b).sum((1, 2)) / size
    across = (a[:, 0] * b[..., 1] - a[:, 1] * b[..., 0]).sum(1) / size
    turn = torch.stack([torch.stack([along, -across], -1), torch.stack([across, along], -1)], -2)
    return torch.cat([turn, (centre - middle @ turn.mT)[..., None]], -1)


class _Tensors:
    """Reads dlib's file from front to back: each layer is a name, its numbers, then settings that its kind implies here."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def after(self, name: bytes, shape: tuple[int, ...], settings: int = 0) -> Tensor:
        """The next numbers that follow ``name``, a string with its length before it, and so many settings."""
        self.place = self.data.index(bytes([1, len(name)]) + name, self.place) + 2 + len(name)
        version, *sizes = [self._integer() for _ in range(settings + 5)][settings:]
        count = math.prod(sizes)
        assert version == 2 and count == math.prod(shape), "the file is known by its hash"
        values = np.frombuffer(self.data, "<f4", count, self.place)
        self.place += 4 * count
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)

    def _integer(self) -> int:
        size = self.data[self.place]
        self.place += 1 + size
        return int.from_bytes(self.data[self.place - size : self.place], "little")


class _Convolution(nn.Module):
    """A convolution and what dlib makes of batch normalisation after training, one factor and one summand a channel."""

    def __init__(self, tensors: _Tensors, inputs: int, outputs: int, side: int, stride: int) -> None:
        super().__init__()
        numbers = tensors.after(b"con_4", (outputs * (inputs * side * side + 1),))
        factor, summand = tensors.after(b"affine_", (2, outputs))
        weight, bias = numbers[:-outputs].reshape(outputs, inputs, side, side), numbers[-outputs:]
        self.stride, self.padding = stride, 0 if stride > 1 else side // 2
        self.weight = nn.Parameter(weight * factor[:, None, None, None])
        self.bias = nn.Parameter(bias * factor + summand)

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.conv2d(values, self.weight, self.bias, self.stride, self.padding)


class _Block(nn.Module):
    """Two convolutions and what goes past them; where sizes differ, the smaller of the two counts as 0 beyond its edge."""

    def __init__(self, tensors: _Tensors, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        self.first = _Convolution(tensors, inputs, outputs, 3, 2 if halves else 1)
        self.second = _Convolution(tensors, outputs, outputs, 3, 1)
        self.halves = halves

    def forward(self, values: Tensor) -> Tensor:
        changed = self.second(self.first(values).relu())
        past = avg_pool2d(values, 2) if self.halves else values
        shape = [max(sizes) for sizes in zip(changed.shape[1:], past.shape[1:], strict=True)]
        return (_padded(changed, shape) + _padded(past, shape)).relu()


def _padded(values: Tensor, shape: list[int]) -> Tensor:
    channels, height, width = (wanted - present for wanted, present in zip(shape, values.shape[1:], strict=True))
    return pad(values, (0, width, 0, height, 0, channels)) if channels or height or width else values
