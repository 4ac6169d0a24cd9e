"""Means of per-image metrics over a data set, as torchmetrics classes: a sum and a count around the functions of this room.

Nothing is pooled over a batch, so a value depends on neither batches nor processes. Inputs may lie on any device and may be of any float
type: pictures are compared in double precision, one by one, whatever autocast or TF32 would make of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mggtalk.metrics import functional
from mggtalk.metrics.functional import WINDOW
from mggtalk.metrics.per_image import PerImageMetric

PSNR_LIMIT = 100.0
"""dB that a PSNR counts as at most: equal images have an infinite one, which would decide any mean. Eight bits alone cost 58.9 dB."""
Distances = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images (b 3 h w) to one distance for each pair (b)."""
Embedder = Callable[[Tensor], Tensor]
"""Images (b 3 h w) to embeddings (b k)."""


class Mean(PerImageMetric):
    """The mean of values that are computed elsewhere, such as a loss; whether more is better is not known."""

    def update(self, values: Float[Tensor, " b"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add one value for each image."""
        self._add(chosen(values, valid))


class PSNR(PerImageMetric):
    """Peak signal-to-noise ratio, dB for a peak of 1; see :func:`mggtalk.metrics.functional.psnr`.

    Args:
        limit: an image counts as this many dB at most.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = True

    def __init__(self, limit: float = PSNR_LIMIT, **options: Any) -> None:
        super().__init__(**options)
        self.limit = limit

    def update(
        self,
        image: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "b 1 h w"] | None = None,
        valid: Bool[Tensor, " b"] | None = None,
    ) -> None:
        """Add images in [0, 1]; with ``mask`` (weights) of the masked pixels alone. Images without any are dropped."""
        values = _each(functional.psnr, chosen(image, valid), chosen(target, valid), None if mask is None else chosen(mask, valid))
        self._add(values.clamp(max=self.limit))


class SSIM(PerImageMetric):
    """Structural similarity; see :func:`mggtalk.metrics.functional.ssim`."""

    higher_is_better = True

    def update(
        self,
        image: Float[Tensor, "b c h w"],
        target: Float[Tensor, "b c h w"],
        mask: Float[Tensor, "b 1 h w"] | None = None,
        valid: Bool[Tensor, " b"] | None = None,
    ) -> None:
        """As :meth:`PSNR.update`; the mask counts 5 pixels from the border on, where whole windows lie inside the image."""
        masks = None if mask is None else chosen(mask, valid)
        self._add(_each(functional.ssim, chosen(image, valid), chosen(target, valid), masks, border=WINDOW // 2))


class LPIPS(PerImageMetric):
    """Learned perceptual distance (Zhang et al., CVPR 2018), by a network of the caller's.

    Args:
        network: images and targets in [0, 1] (b 3 h w) to one distance for each pair. A module is put into evaluation mode and follows the
            images from device to device; it is no part of the module tree, so of no checkpoint and no optimiser.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(self, network: Distances, **options: Any) -> None:
        super().__init__(**options)
        self.network = Aside(network)

    def update(self, image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add images in [0, 1]."""
        self._add(self.network(chosen(image, valid), chosen(target, valid)))


class CSIM(PerImageMetric):
    """Cosine similarity of identity embeddings; see :func:`mggtalk.metrics.functional.csim`.

    Args:
        embedder: images (b 3 h w) to embeddings (b k), all zero where there is no face; treated as the network of :class:`LPIPS`. Without
            it ``update`` takes embeddings.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = True

    def __init__(self, embedder: Embedder | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.embedder = None if embedder is None else Aside(embedder)

    def update(self, image: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add pairs of embeddings, or of images if there is an embedder; pairs with an embedding that is 0 are dropped."""
        pair = (chosen(image, valid), chosen(target, valid))
        first, second = pair if self.embedder is None else (self.embedder(images) for images in pair)
        self._add(functional.csim(_exact(first), _exact(second).to(first.device)) if len(first) else first.new_zeros(0))


class AKD(PerImageMetric):
    """Average keypoint distance, pixels; see :func:`mggtalk.metrics.functional.akd`."""

    higher_is_better = False

    def update(self, landmarks: Float[Tensor, "b n 2"], target: Float[Tensor, "b n 2"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add landmarks in pixels, by protocol of a 512 frame (as :class:`mggtalk.metrics.tracked.ReadFaces` has them)."""
        self._add(functional.akd(_exact(chosen(landmarks, valid)), _exact(chosen(target, valid))))


class AED(PerImageMetric):
    """Average expression distance: of expression coefficients, not of identities; see :func:`mggtalk.metrics.functional.aed`."""

    higher_is_better = False

    def update(self, expression: Float[Tensor, "b e"], target: Float[Tensor, "b e"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add expressions."""
        self._add(functional.aed(_exact(chosen(expression, valid)), _exact(chosen(target, valid))))


class APD(PerImageMetric):
    """Average pose distance, degrees; see :func:`mggtalk.metrics.functional.apd`."""

    higher_is_better = False

    def update(self, pose: Float[Tensor, "b 3"], target: Float[Tensor, "b 3"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add yaw, pitch and roll, degrees."""
        self._add(functional.apd(_exact(chosen(pose, valid)), _exact(chosen(target, valid))))


class FoundShare(PerImageMetric):
    """The share of images in which a face is found. AKD, AED, APD and CSIM are means over these alone, so report it beside them."""

    higher_is_better = True

    def update(self, found: Bool[Tensor, " b"], valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add images; give as ``valid`` those in whose ground truth a face is found."""
        self._add(chosen(found, valid).double())


class Jitter(PerImageMetric):
    """Jitter of landmarks over time, pixels, one value for each clip; see :func:`mggtalk.metrics.functional.jitter`."""

    higher_is_better = False

    def update(self, landmarks: Float[Tensor, "t n 2"], found: Bool[Tensor, " t"] | None = None) -> None:
        """Add one clip: consecutive frames, and which of them show the face. It is dropped if no three in a row do."""
        if len(landmarks) < 3:
            self._add(landmarks.new_full((1,), torch.nan))
        else:
            self._add(functional.jitter(_exact(landmarks), None if found is None else found.to(landmarks.device))[None])


class Aside:
    """A function that a metric uses but does not own: no submodule, and copies of the metric share it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function.requires_grad_(False).eval() if isinstance(function, nn.Module) else function

    def __call__(self, *images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b ..."]:
        """The function of images in single precision; without images, nothing."""
        if not len(images[0]):
            return images[0].new_zeros(0)
        device = images[0].device
        if isinstance(self.function, nn.Module):
            self.function.to(device)
        with torch.autocast(device.type, enabled=False):
            values = self.function(*(image.to(device, torch.float32) for image in images))
        if len(values) != len(images[0]):
            raise ValueError(f"{type(self.function).__name__} makes {tuple(values.shape)} of {len(images[0])} images, not a row for each")
        return values

    def __deepcopy__(self, memo: dict[int, Any]) -> Aside:
        return self


def chosen(values: Tensor, valid: Bool[Tensor, " b"] | None) -> Tensor:
    """The valid entries: what lies in the others may be anything, so it is not even computed with."""
    return values if valid is None else values[valid.to(values.device)]


def _exact(values: Tensor) -> Tensor:
    """In double precision, which neither autocast nor TF32 touches; integers stay, for the functions to refuse."""
    return values.double() if values.is_floating_point() else values


def _each(function: Callable[..., Tensor], image: Tensor, target: Tensor, mask: Tensor | None, border: int = 0) -> Float[Tensor, " b"]:
    """A metric of every image alone; NaN where the mask, without its ``border``, has no weight."""
    values = [image.new_zeros(0, dtype=torch.float64)]
    masks = [None] * len(image) if mask is None else mask.double().unbind()
    for one, other, weights in zip(image.unbind(), target.unbind(), masks, strict=True):
        pair = _exact(one)[None], _exact(other)[None]
        if weights is None:
            values.append(function(*pair))
        elif bool((weights[:, border : weights.shape[1] - border, border : weights.shape[2] - border] > 0).any()):
            values.append(function(*pair, weights[None]))
        else:
            values.append(values[0].new_full((1,), torch.nan))
    return torch.cat(values)
