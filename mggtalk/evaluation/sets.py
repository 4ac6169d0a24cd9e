"""FID of a suite: the features of every method's pictures and of the real ones, kept as sums while pairs come and go."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch

from datasets_toolkit.schema import ByteImage
from mggtalk.evaluation.results import Metric, SetDistance
from mggtalk.metrics.fid import ENOUGH, Gaussian, Moments, frechet_distance, moments
from mggtalk.networks.inception import LICENCE, PUBLISHED, Inception

BATCH = 16
"""Pictures that are looked at together."""
REAL = {
    "self": "the frames that the outputs are compared with.",
    "cross": "the compared frames of the drivers, in their own crops, and as many frames of each source's own clip, in the source's crop; "
    "none of them counts twice.",
}
"""By kind of suite, which pictures are the real ones."""
_NO_INTERVAL = "It has no interval: resamples repeat people, and that alone makes an FID larger."


class Gallery:
    """All pictures of a suite.

    Args:
        network: makes the features; without it nothing is kept.
    """

    def __init__(self, network: Inception | None) -> None:
        self.network = network
        self._made: dict[str, Moments] = {}
        self._real: Moments | None = None
        self._known: set[Hashable] = set()

    def add(self, made: Mapping[str, Sequence[ByteImage]], real: Mapping[Hashable, ByteImage]) -> None:
        """Pictures of a pair.

        Args:
            made: by method.
            real: by what tells them apart; those that are there already are not added again.
        """
        if self.network is None:
            return
        for method, pictures in made.items():
            self._made[method] = _joined(self._made.get(method), self._moments(self.network, pictures))
        if fresh := {name: picture for name, picture in real.items() if name not in self._known}:
            self._real = _joined(self._real, self._moments(self.network, list(fresh.values())))
            self._known |= fresh.keys()

    def distances(self, kind: str) -> tuple[SetDistance, ...]:
        """FID of every method's pictures against the real ones; nothing without a network or without pictures.

        Args:
            kind: of the suite, a key of :data:`REAL`.
        """
        if self.network is None or self._real is None:
            return ()
        counts, real = {method: int(one.count) for method, one in self._made.items()}, int(self._real.count)
        truth = self._real.gaussian if real > 1 else None
        values = {method: _value(one, truth) for method, one in self._made.items()}
        text = " ".join([f"These are {REAL[kind]}", *_cautions(min(real, *counts.values()), self.network.published), _NO_INTERVAL])
        return (SetDistance(metric=definition(self.network), values=values, pictures=counts, real=real, text=text),)

    @torch.inference_mode()
    def _moments(self, network: Inception, pictures: Sequence[ByteImage]) -> Moments:
        found = None
        for start in range(0, len(pictures), BATCH):
            images = torch.from_numpy(np.stack(pictures[start : start + BATCH])).permute(0, 3, 1, 2)
            found = _joined(found, moments(network(images.float() / 255)))
        if found is None:
            raise ValueError("a method made no picture")
        return found


def _value(made: Moments, truth: Gaussian | None) -> float:
    return math.nan if truth is None or int(made.count) < 2 else float(frechet_distance(made.gaussian, truth))


def definition(network: Inception) -> Metric:
    """What FID is, with the network that reads the pictures."""
    licence = LICENCE if network.published else "not known"
    return Metric(
        name="fid",
        title="FID",
        unit="",
        better="lower",
        definition="Frechet distance between Gaussians fitted to the 2048 features of the method's pictures and of real ones "
        "(Heusel et al. 2017), in double precision; pictures resized as pytorch-fid does",
        model={"name": "Inception-v3 of FID", "sha256": network.sha256, "licence": licence},
    )


def _cautions(fewest: int, published: bool) -> list[str]:
    told = []
    if fewest < ENOUGH:
        told.append(
            f"From fewer than {ENOUGH:,} pictures FID is too large, by an amount that depends on the pictures (Chong and Forsyth 2020): "
            "compare it within this table, with no other."
        )
    if not published:
        told.append(f"The weights are not the published ones (SHA-256 {PUBLISHED[:8]}...): no FID of elsewhere compares with these.")
    return told


def _joined(first: Moments | None, second: Moments) -> Moments:
    return second if first is None else first + second
