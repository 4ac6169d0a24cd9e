"""Perceptual distances that train the model, behind one interface: of networks whose weights the user has, and one that needs none."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mggtalk.networks.frozen import Frozen
from mggtalk.networks.iresnet import SIDE, IResNet
from mggtalk.networks.lpips import unit
from mggtalk.networks.pyramid import PyramidDistance
from mggtalk.networks.vgg import Vgg16Features
from mggtalk.networks.weights import file_hash

log = logging.getLogger(__name__)

VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Of the five blocks, shallow to deep: those of pix2pixHD's published code."""
FACE = (0.22, 0.215, 0.54)
"""Where ArcFace's aligned face lies in a crop of the data sets: left, top and side as fractions of the crop, the mean over portraits."""


class Perceptual(Frozen, ABC):
    """A distance of images that no weight is trained for: 0 for equal images, one value for each image, gradients to the image only.

    It is computed in the dtype of its weights (float32 unless they are moved), under autocast too.

    Attributes:
        name: what it is: the network and the first digits of its file's SHA-256.
    """

    name: str

    def forward(self, image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of each image from its target.

        Args:
            image: RGB in [0, 1].
            target: the same; takes no gradients.

        Raises:
            ValueError: shapes differ, or images are too small for the network.
        """
        if image.shape != target.shape:
            raise ValueError(f"images are {tuple(image.shape)} and {tuple(target.shape)}, expected one shape")
        dtype = self.working_dtype(image)
        with torch.autocast(image.device.type, enabled=False):
            return self._distance(image.to(dtype), target.detach().to(dtype))

    @abstractmethod
    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        """The distances (b), of images in the working dtype."""


class VggPerceptual(Perceptual):
    """Absolute differences of VGG features, the mean over each layer, a weighted sum over the layers.

    Johnson, Alahi, Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution", ECCV 2016, equation 2, with the absolute
    instead of the squared difference and the weights of Wang et al., "High-resolution image synthesis and semantic manipulation with
    conditional GANs" (pix2pixHD), CVPR 2018. VGG-16 gives relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3; VGG-19 gives
    relu1_1 to relu5_1, as in pix2pixHD. Images are normalised as ImageNet's, which pix2pixHD leaves out.

    Args:
        path: weights as :class:`Vgg16Features` takes them.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.network = Vgg16Features(path)
        self.name = f"VGG-{self.network.depth} {file_hash(path)[:8]}"
        self.freeze()

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network(target)
        layers = zip(VGG_WEIGHTS, self.network(image), wanted, strict=True)
        return torch.stack([weight * (one - other).abs().mean((1, 2, 3)) for weight, one, other in layers]).sum(0)


class FacePerceptual(Perceptual):
    """Cosine distance of ArcFace embeddings, plus that of the features at each pixel of the network's four stages, mean over both.

    The first part is the identity loss of Richardson et al., "Encoding in style: a StyleGAN encoder for image-to-image translation" (pSp),
    CVPR 2021; the second compares features divided by their length over the channels as LPIPS does, all channels alike.
    The face is cut out at one place of the image, not aligned: image and target show one pose, and the same cut serves both.

    Args:
        path: weights as :class:`IResNet` takes them.
        face: left, top and side of the square with the face, as fractions of the image; (0, 0, 1) where the image is the aligned face.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
        ValueError: the square reaches out of the image.
    """

    def __init__(self, path: str | Path, face: tuple[float, float, float] = FACE) -> None:
        super().__init__()
        left, top, side = face
        if min(left, top) < 0 or side <= 0 or max(left, top) + side > 1:
            raise ValueError(f"face {face}: expected left, top and side of a square within the image, as fractions of it")
        self.network, self.face = IResNet(path), (left, top, side)
        self.name = f"IResNet-{self.network.depth} {file_hash(path)[:8]}"
        self.freeze()

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted, other = self.network.features(self._cut(target))
        stages, embedding = self.network.features(self._cut(image))
        # Half the squared distance of unit vectors is their cosine distance, and exactly 0 for equal ones.
        pixels = [(unit(a) - unit(b)).square().sum(1).mean((1, 2)) / 2 for a, b in zip(stages, wanted, strict=True)]
        return (embedding - other).square().sum(1) / 2 + torch.stack(pixels).mean(0)

    def _cut(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        left, top, side = self.face
        rows = slice(int(top * height), max(round((top + side) * height), int(top * height) + 1))
        columns = slice(int(left * width), max(round((left + side) * width), int(left * width) + 1))
        cut = interpolate(image[..., rows, columns], (SIDE, SIDE), mode="bilinear", antialias=True)
        return 2 * cut - 1


class PyramidPerceptual(Perceptual):
    """What stands in where no network is given: :class:`PyramidDistance`. It sees edges and texture at every scale, but knows no faces."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = PyramidDistance()
        self.name = "Laplacian pyramid (no network)"

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        return self.pyramid(image, target)


class PerceptualSum(Perceptual):
    """A weighted sum of perceptual distances.

    Args:
        members: at least one.
        weights: as many.

    Raises:
        ValueError: there are none, or not as many weights.
    """

    def __init__(self, members: Sequence[Perceptual], weights: Sequence[float]) -> None:
        super().__init__()
        if not members or len(members) != len(weights):
            raise ValueError(f"{len(members)} distances and {len(weights)} weights: expected as many, at least one")
        self.members, self.weights = nn.ModuleList(members), tuple(weights)
        self.name = " + ".join(f"{weight:g} {member.name}" for weight, member in zip(weights, members, strict=True))
        self.freeze()

    def _distance(self, image: Tensor, target: Tensor) -> Tensor:
        values = [weight * member(image, target) for weight, member in zip(self.weights, self.members, strict=True)]
        return torch.stack([value.to(image.dtype) for value in values]).sum(0)


def make_perceptual(vgg: str | Path | None = None, face: str | Path | None = None, face_weight: float = 1.0) -> Perceptual:
    """The perceptual distance of a training run, from the files that there are.

    Args:
        vgg: weights of VGG-16 or VGG-19; ``None`` takes :class:`PyramidPerceptual` instead, and a warning says so.
        face: weights of an ArcFace IResNet, whose distance is added; ``None`` adds nothing.
        face_weight: of that distance.

    Raises:
        WeightsError: a file is missing, damaged, or of another network.
    """
    general: Perceptual = VggPerceptual(vgg) if vgg else PyramidPerceptual()
    if not vgg:
        _say("no perceptual network was given (vgg): a Laplacian pyramid loss stands in; it knows edges and texture, but no faces")
    return PerceptualSum([general, FacePerceptual(face)], [1.0, face_weight]) if face else general


@lru_cache(maxsize=8)
def _say(message: str) -> None:
    """Warn once in a process."""
    log.warning(message)
