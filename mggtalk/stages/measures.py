"""What validation and tests measure. States are synchronised sums, so that no number depends on batches or processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mggtalk.data.packed import PairBatch
from mggtalk.losses import Term, head_mask, total
from mggtalk.metrics.states import AED, AKD, APD, PSNR, SSIM, FoundShare, Mean
from mggtalk.metrics.tracked import FaceReader
from mggtalk.types import Reenactment


class Measures(nn.Module):
    """Metrics by name, and one reader of faces for all of them.

    Args:
        metrics: by the name they are logged with.
    """

    def __init__(self, metrics: dict[str, Metric]) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(metrics)
        self.reader = FaceReader()
        self.used: set[str] = set()

    def add(self, name: str, *values: Any) -> None:
        """Update a metric; only those that were updated are reported."""
        self.used.add(name)
        cast(Metric, self.metrics[name]).update(*values)

    def compute(self) -> dict[str, Tensor]:
        """The metrics that were updated since the last report, in single precision; then they start anew."""
        metrics = {name: cast(Metric, metric) for name, metric in self.metrics.items() if name in self.used}
        values = {name: metric.compute().float() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        self.used.clear()
        return values

    def faces(self, output: Tensor, batch: PairBatch) -> None:
        """Read the faces of pictures and of what they should show, and compare them where both show one; AED over blendshapes."""
        seen, truth = self.reader.read_pair(output, batch.pair.target)
        there = truth.found & batch.valid.cpu()
        both = there & seen.found
        self.add("found", seen.found, there)
        self.add("aed", seen.blendshapes, truth.blendshapes, both)
        self.add("apd", seen.pose, truth.pose, both)
        if "akd" in self.metrics:
            self.add("akd", seen.landmarks, truth.landmarks, both)


class SelfMeasures(Measures):
    """Of pairs of one clip, where the target is the truth: of the picture after densification, full frame and head-masked; the loss."""

    def __init__(self) -> None:
        pictures = {"psnr": PSNR(), "psnr_head": PSNR(), "ssim": SSIM(), "ssim_head": SSIM()}
        super().__init__({"loss": Mean(), **pictures, "akd": AKD(), "aed": AED(), "apd": APD(), "found": FoundShare()})

    @torch.no_grad()
    def update(self, terms: Mapping[str, Term], shown: Reenactment, batch: PairBatch, tracked: bool) -> None:
        """Add a batch; with ``tracked`` the faces of output and truth are read too."""
        target, output = batch.pair.target, shown.dense.image.clamp(0, 1)
        mask = head_mask(target)
        self.add("loss", total(terms), batch.valid)
        for name, term in terms.items():
            if name not in self.metrics:  # every stage has its own; the same on all processes
                self.metrics[name] = Mean().to(term.value.device)
            self.add(name, term.value, batch.valid)
        for name, weights in (("psnr", None), ("psnr_head", mask), ("ssim", None), ("ssim_head", mask)):
            self.add(name, output, target.image, weights, batch.valid)
        if tracked:
            self.faces(output, batch)


class CrossMeasures(Measures):
    """Of pairs across persons: no picture is the truth, but expression and pose of the driver are."""

    def __init__(self) -> None:
        super().__init__({"aed": AED(), "apd": APD(), "found": FoundShare()})

    @torch.no_grad()
    def update(self, shown: Reenactment, batch: PairBatch, tracked: bool) -> None:
        """Add a batch; without ``tracked`` there is nothing to measure."""
        if tracked:
            self.faces(shown.dense.image, batch)
