"""Inception-v3 as FID uses it: pictures to 2048 features.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception architecture for computer vision", CVPR 2016; the network of December
2015 with 1008 classes that Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs trained by a two time-scale update rule converge to a
local Nash equilibrium", NeurIPS 2017, define FID by. It differs from torchvision's: average pools do not count what lies beyond the border,
the last block pools by maximum, and the weights are others.

Pictures are resized to 299 x 299 and scaled as pytorch-fid does: bilinear, without antialiasing, corners not aligned; values in [-1, 1].

The weights are not part of this package: ``pt_inception-2015-12-05-6726825d.pth`` of
https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights, the same bytes as torch-fidelity's
``weights-inception-2015-12-05-6726825d.pth`` (Apache-2.0, converted from TensorFlow's; trained on ImageNet, whose terms are research use).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

from mggtalk.networks.frozen import Frozen
from mggtalk.networks.weights import WeightsError, file_hash, load_into, load_state

SIDE, FEATURES, CLASSES = 299, 2048, 1008
"""Pixels a side that pictures are resized to; numbers made of a picture; outputs of the classifier, which is not used."""
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the published file. FIDs by other weights compare with none."""
ADDRESS = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
LICENCE = "Apache-2.0"
Pool = Literal["average", "largest", "halved"]


class Inception(Frozen):
    """The network, with the names of pytorch-fid's file. Computed in the dtype of its weights, under autocast too.

    Args:
        path: its state dict, .pth, .pt or .safetensors.

    Attributes:
        sha256: of the file.
        published: whether it is the published file.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.layers = _Layers()
        load_into(self.layers, _convolutions(load_state(path), self.layers, path), path)
        self.sha256 = file_hash(path)
        self.published = self.sha256 == PUBLISHED
        self.freeze()

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """The features of pictures of any size, RGB in [0, 1]; differentiable in them."""
        with torch.autocast(image.device.type, enabled=False):
            values = image.to(self.working_dtype(image))
            return self.layers(2 * interpolate(values, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1)


class _Step(NamedTuple):
    """A convolution: its published name, output channels, kernel and stride. A stride of 1 keeps the size."""

    name: str
    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1


class _Plan(NamedTuple):
    """A block: chains of convolutions beside a pooling, and the channels that follow the pooling (0: as many as come in).

    Where it forks, the last two convolutions of each chain of three or more see the same input.
    """

    chains: tuple[tuple[_Step, ...], ...]
    pool: Pool
    pooled: int = 0
    forks: bool = False


def _plan_a(pooled: int) -> _Plan:
    fives = (_Step("branch5x5_1", 48, 1), _Step("branch5x5_2", 64, 5))
    threes = (_Step("branch3x3dbl_1", 64, 1), _Step("branch3x3dbl_2", 96, 3), _Step("branch3x3dbl_3", 96, 3))
    return _Plan(((_Step("branch1x1", 64, 1),), fives, threes), "average", pooled)


def _plan_c(inner: int) -> _Plan:
    row, column = (1, 7), (7, 1)
    once = (_Step("branch7x7_1", inner, 1), _Step("branch7x7_2", inner, row), _Step("branch7x7_3", 192, column))
    twice = (
        _Step("branch7x7dbl_1", inner, 1),
        _Step("branch7x7dbl_2", inner, column),
        _Step("branch7x7dbl_3", inner, row),
        _Step("branch7x7dbl_4", inner, column),
        _Step("branch7x7dbl_5", 192, row),
    )
    return _Plan(((_Step("branch1x1", 192, 1),), once, twice), "average", 192)


def _plan_e(pool: Pool) -> _Plan:
    once = (_Step("branch3x3_1", 384, 1), _Step("branch3x3_2a", 384, (1, 3)), _Step("branch3x3_2b", 384, (3, 1)))
    start = (_Step("branch3x3dbl_1", 448, 1), _Step("branch3x3dbl_2", 384, 3))
    twice = (*start, _Step("branch3x3dbl_3a", 384, (1, 3)), _Step("branch3x3dbl_3b", 384, (3, 1)))
    return _Plan(((_Step("branch1x1", 320, 1),), once, twice), pool, 192, forks=True)


_PLAN_B = _Plan(
    (
        (_Step("branch3x3", 384, 3, 2),),
        (_Step("branch3x3dbl_1", 64, 1), _Step("branch3x3dbl_2", 96, 3), _Step("branch3x3dbl_3", 96, 3, 2)),
    ),
    "halved",
)
_PLAN_D = _Plan(
    (
        (_Step("branch3x3_1", 192, 1), _Step("branch3x3_2", 320, 3, 2)),
        (
            _Step("branch7x7x3_1", 192, 1),
            _Step("branch7x7x3_2", 192, (1, 7)),
            _Step("branch7x7x3_3", 192, (7, 1)),
            _Step("branch7x7x3_4", 192, 3, 2),
        ),
    ),
    "halved",
)
BLOCKS: dict[str, _Plan] = {
    "Mixed_5b": _plan_a(32),
    "Mixed_5c": _plan_a(64),
    "Mixed_5d": _plan_a(64),
    "Mixed_6a": _PLAN_B,
    "Mixed_6b": _plan_c(128),
    "Mixed_6c": _plan_c(160),
    "Mixed_6d": _plan_c(160),
    "Mixed_6e": _plan_c(192),
    "Mixed_7a": _PLAN_D,
    "Mixed_7b": _plan_e("average"),
    "Mixed_7c": _plan_e("largest"),
}
"""Blocks after the stem, by their published names."""


class _Layers(nn.Module):
    """The layers under their published names: normalised pictures, at least 75 x 75, to means over the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        channels = 192
        for name, plan in BLOCKS.items():
            block = _Block(channels, plan)
            self.add_module(name, block)
            channels = block.channels

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        values = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image)))
        values = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(values, 3, 2)))
        values = max_pool2d(values, 3, 2)
        for name in BLOCKS:
            values = getattr(self, name)(values)
        return values.mean((2, 3))


class _Block(nn.Module):
    """Chains of convolutions beside a pooling, their outputs one behind the other."""

    def __init__(self, inputs: int, plan: _Plan) -> None:
        super().__init__()
        self.plan, self.channels = plan, plan.pooled or inputs
        for chain in plan.chains:
            given = inputs
            for position, step in enumerate(chain):
                padding = 0 if step.stride > 1 else _half(step.kernel)
                self.add_module(step.name, _Convolution(given, step.channels, step.kernel, step.stride, padding))
                given = given if self._forks(chain, position) else step.channels
            self.channels += sum(step.channels for step in chain[-2 if self._forks(chain, len(chain) - 2) else -1 :])
        if plan.pooled:
            self.branch_pool = _Convolution(inputs, plan.pooled, 1)

    def _forks(self, chain: Sequence[_Step], position: int) -> bool:
        """Whether the convolution at ``position`` is the first of the last two, which see the same input."""
        return self.plan.forks and len(chain) > 2 and position == len(chain) - 2

    def forward(self, values: Tensor) -> Tensor:
        found = []
        for chain in self.plan.chains:
            inside = values
            for position, step in enumerate(chain):
                made = getattr(self, step.name)(inside)
                if self._forks(chain, position):
                    found.append(made)
                else:
                    inside = made
            found.append(inside)
        pooled = _POOLS[self.plan.pool](values)
        return torch.cat([*found, self.branch_pool(pooled) if self.plan.pooled else pooled], 1)


class _Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, values: Tensor) -> Tensor:
        return relu(self.bn(self.conv(values)))


_POOLS = {
    "average": lambda values: avg_pool2d(values, 3, 1, 1, count_include_pad=False),
    "largest": lambda values: max_pool2d(values, 3, 1, 1),
    "halved": lambda values: max_pool2d(values, 3, 2),
}


def _half(kernel: int | tuple[int, int]) -> int | tuple[int, int]:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _convolutions(state: Mapping[str, Tensor], layers: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """The entries below the classifier; counters of batches, which old files lack and nothing here reads, are made up."""
    classifier = state.get("fc.weight")
    if classifier is None or tuple(classifier.shape) != (CLASSES, FEATURES):
        told = "has no entry fc.weight" if classifier is None else f"has a classifier of {len(classifier)} classes, FID's has {CLASSES}"
        raise WeightsError(f"{path}: {told}; give pt_inception-2015-12-05-6726825d.pth, from {ADDRESS} (licence: {LICENCE})")
    counters = {name: value for name, value in layers.state_dict().items() if name.endswith(".num_batches_tracked")}
    return {**counters, **{name: value for name, value in state.items() if not name.startswith("fc.")}}
