"""FID: how far the pictures of a set are from real ones as a whole, by the features of a network.

Letters (Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs trained by a two time-scale update rule converge to a local Nash
equilibrium", NeurIPS 2017): m, C mean and covariance of the features of one set, m', C' those of the other. Equation 6, the squared Frechet
distance of two Gaussians (Dowson and Landau, Journal of Multivariate Analysis 12, 1982):
    d^2 = |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).
With C = A A^T and C' = B B^T, the trace of (C C')^(1/2) is the sum of the singular values of A^T B, which needs no root of a matrix that is
not symmetric and is exact where there are fewer pictures than features.

An estimate from few pictures is too large, and by how much depends on the pictures (Chong and Forsyth, "Effectively unbiased FID and
Inception score and where to find them", CVPR 2020): compare FIDs of equal numbers of pictures only, best of :data:`ENOUGH` or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mggtalk.metrics.per_image import Sums, tell_dropped
from mggtalk.metrics.states import Aside, Embedder, chosen
from mggtalk.types import TensorRecord

ENOUGH = 10_000
"""Pictures below which Heusel et al. advise against an FID."""


@dataclass(frozen=True, kw_only=True)
class Moments(TensorRecord):
    """Sums over the features of a set of pictures, doubles: sets are joined by adding them."""

    count: Int[Tensor, ""]
    total: Float[Tensor, " d"]
    outer: Float[Tensor, "d d"]

    def __add__(self, other: Moments) -> Moments:
        return Moments(count=self.count + other.count, total=self.total + other.total, outer=self.outer + other.outer)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Of the features."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the features, with ``count - 1`` below.

        Raises:
            ValueError: fewer than two pictures.
        """
        if int(self.count) < 2:
            raise ValueError(f"FID needs at least 2 pictures in each set, got {int(self.count)}")
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)

    @property
    def gaussian(self) -> Gaussian:
        """The one that is fitted to the features; errors as :attr:`covariance`."""
        return gaussian(self.mean, self.covariance)


@dataclass(frozen=True, kw_only=True)
class Gaussian(TensorRecord):
    """Mean m, and A with A A^T the covariance, in doubles."""

    mean: Float[Tensor, " d"]
    root: Float[Tensor, "d r"]


def moments(features: Float[Tensor, "b d"]) -> Moments:
    """The sums over the rows of features."""
    rows = features.detach().double()
    return Moments(count=torch.tensor(len(rows), device=rows.device), total=rows.sum(0), outer=rows.mT @ rows)


def fid(first: Moments, second: Moments) -> Float[Tensor, ""]:
    """FID of two sets of pictures, 0 for equal ones.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    return frechet_distance(first.gaussian, second.gaussian)


def gaussian(mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> Gaussian:
    """A Gaussian by its mean and covariance (symmetric, without negative eigenvalues but for rounding; of any rank)."""
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = values > values.abs().max() * len(values) * torch.finfo(values.dtype).eps  # elsewhere nothing but rounding is left
    return Gaussian(mean=mean.double(), root=vectors[:, kept] * values[kept].sqrt())


def frechet_distance(first: Gaussian, second: Gaussian) -> Float[Tensor, ""]:
    """The squared Frechet distance of two Gaussians (see above), in the square of the features' unit."""
    apart, traces = (first.mean - second.mean).square().sum(), first.root.square().sum() + second.root.square().sum()
    return (apart + traces - 2 * torch.linalg.svdvals(first.root.mT @ second.root).sum()).clamp(min=0)


class FID(Sums):
    """FID over a data set, whatever its batches and processes: pictures are told apart by ``real``.

    Pictures whose features are not finite are left out, counted in ``missing``, and told in the log by ``compute``.

    Args:
        network: images in [0, 1] (b 3 h w) to features (b d), such as :class:`mggtalk.networks.inception.Inception`; treated as the network
            of :class:`mggtalk.metrics.states.LPIPS`. Without it ``update`` takes features.
        features: how many there are, d.
        options: of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    real_count: Tensor
    real_total: Tensor
    real_outer: Tensor
    made_count: Tensor
    made_total: Tensor
    made_outer: Tensor
    missing: Tensor

    def __init__(self, network: Embedder | None = None, features: int = 2048, **options: Any) -> None:
        super().__init__(**options)
        self.network = None if network is None else Aside(network)
        for side in ("real", "made"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_total", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(features, features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("missing", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Float[Tensor, "b ..."], real: bool, valid: Bool[Tensor, " b"] | None = None) -> None:
        """Add images of one set, or their features if there is no network; ``valid`` leaves out what fills up a last batch."""
        images, side = chosen(images, valid), "real" if real else "made"
        if not len(images):
            return
        features = (images if self.network is None else self.network(images)).to(self.missing.device)
        known = features.isfinite().all(1)
        self.missing = self.missing + (~known).sum()
        for name, value in vars(self.moments(real) + moments(features[known])).items():
            setattr(self, f"{side}_{name}", value)

    def moments(self, real: bool) -> Moments:
        """Of one of the two sets."""
        return Moments(**{name: getattr(self, f"{'real' if real else 'made'}_{name}") for name in ("count", "total", "outer")})

    def compute(self) -> Float[Tensor, ""]:
        """FID of the images of all processes, a double.

        Raises:
            ValueError: one of the sets has fewer than two.
        """
        real, made = self.moments(True), self.moments(False)
        if missing := int(self.missing):
            tell_dropped(type(self).__name__, missing, missing + int(real.count) + int(made.count), "FID")
        return fid(real, made)
