"""LPIPS v0.1: Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018.

Letters: y_l, z_l the activations of layer l (c_l x h_l x w_l) of two images, each divided by its length over the channels at every pixel;
w_l >= 0 the learned weights of the channels. Equation 1: d = sum_l mean_hw sum_c w_lc (y_lc - z_lc)^2.

Two files are needed, neither part of this package:
the network, torchvision's AlexNet or VGG-16: see :mod:`mggtalk.networks.alexnet` and :mod:`mggtalk.networks.vgg` (BSD-3-Clause);
the weights w, ``lpips/weights/v0.1/alex.pth`` or ``vgg.pth`` of https://github.com/richzhang/PerceptualSimilarity (BSD-2-Clause).
torchmetrics carries a copy of the second, which is taken where none is given.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.networks import alexnet, vgg
from mggtalk.networks.frozen import Frozen
from mggtalk.networks.trunk import Trunk
from mggtalk.networks.weights import WeightsError, file_hash, load_into, load_state

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the published scaling layer, for images in [-1, 1]."""
_TINY = 1e-10  # added to lengths, as published
Net = Literal["alex", "vgg"]


class Lpips(Frozen):
    """LPIPS, one value for each image; 0 for equal images. Computed in the dtype of its weights, under autocast too.

    Args:
        backbone_path: torchvision's AlexNet ("alex") or VGG-16 ("vgg").
        linear_path: the published weights of the channels (``lin0.model.1.weight`` ...); ``None`` takes the copy in torchmetrics.
        net: "alex" is the one that papers report, "vgg" the one the authors recommend for losses.

    Attributes:
        name: the network and the first digits of both files' SHA-256.

    Raises:
        WeightsError: a file is missing, damaged, or of another network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone_path: str | Path, linear_path: str | Path | None = None, net: Net = "alex") -> None:
        super().__init__()
        if net not in ("alex", "vgg"):
            raise WeightsError(f"LPIPS: no network {net!r}; take 'alex' or 'vgg'")
        heads = published_heads(net) if linear_path is None else Path(linear_path)
        self.trunk = _trunk(backbone_path, net)
        self.heads = _Heads(alexnet.CHANNELS if net == "alex" else vgg.CHANNELS)
        load_into(self.heads, load_state(heads), heads)
        self.name = f"LPIPS v0.1 {net} {file_hash(backbone_path)[:8]} {file_hash(heads)[:8]}"
        self.register_buffer("shift", torch.tensor(SHIFT).reshape(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).reshape(3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of each image; differentiable in both.

        Args:
            image: RGB in [0, 1], at least 31 x 31 ("alex") or 16 x 16 ("vgg").
            target: the same.

        Raises:
            ValueError: shapes differ, or images are too small.
        """
        if image.shape != target.shape:
            raise ValueError(f"images are {tuple(image.shape)} and {tuple(target.shape)}, expected one shape")
        with torch.autocast(image.device.type, enabled=False):
            features, wanted = self._features(image), self._features(target)
            return self.heads([(a - b).square() for a, b in zip(features, wanted, strict=True)])

    def _features(self, image: Tensor) -> list[Tensor]:
        scaled = (2 * image.to(self.working_dtype(image)) - 1 - self.shift) / self.scale
        return [unit(features) for features in self.trunk(scaled)]


class _Heads(nn.Module):
    """Weighted sums over the channels, under their published names: the second layer of each follows a dropout, which does nothing here."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        for index, count in enumerate(channels):
            model = nn.Sequential(nn.Dropout(), nn.Conv2d(count, 1, 1, bias=False))
            self.add_module(f"lin{index}", nn.ModuleDict({"model": model}))

    def forward(self, differences: list[Tensor]) -> Float[Tensor, " b"]:
        heads = [getattr(self, f"lin{index}")["model"] for index in range(len(differences))]
        return torch.stack([head(difference).mean((1, 2, 3)) for head, difference in zip(heads, differences, strict=True)]).sum(0)


def unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Features of length 1 over the channels at every pixel; 0 where they are 0, with finite gradients."""
    tiny = max(_TINY, torch.finfo(features.dtype).tiny ** 0.5)
    length = features.square().sum(1, keepdim=True).clamp(min=tiny**2).sqrt()
    return features / (length + _TINY)


def published_heads(net: Net) -> Path:
    """The published weights of the channels in the installed torchmetrics, which is not imported for that.

    Raises:
        WeightsError: torchmetrics is not installed, or holds no such file.
    """
    found = find_spec("torchmetrics")
    path = Path(found.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth" if found and found.origin else None
    if path is None or not path.is_file():
        raise WeightsError(f"LPIPS: no weights of the channels; give the file {net}.pth, or get its copy with: pip install torchmetrics")
    return path


def _trunk(path: str | Path, net: Net) -> Trunk:
    if net == "alex":
        return alexnet.alexnet_trunk(path)
    trunk, depth = vgg.vgg_trunk(path)
    if depth != 16:
        raise WeightsError(f"{path}: holds VGG-{depth}, LPIPS needs VGG-16; give those weights")
    return trunk
