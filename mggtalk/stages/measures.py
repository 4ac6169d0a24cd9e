"""What validation and tests measure. States are synchronised sums, so that no number depends on batches or processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mggtalk.data.packed import PairBatch
from mggtalk.losses import Term, head_mask, total
from mggtalk.metrics.identity import FaceEmbedder
from mggtalk.metrics.states import AED, AKD, APD, CSIM, LPIPS, PSNR, SSIM, FoundShare, Mean
from mggtalk.metrics.tracked import FaceReader
from mggtalk.networks.lpips import Lpips
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
        if "csim" in self.metrics:
            self.add("csim", output, batch.pair.source.image, batch.valid)


def identity(embedder: FaceEmbedder | None) -> dict[str, Metric]:
    """CSIM, where there is a recogniser."""
    return {} if embedder is None else {"csim": CSIM(embedder)}


class SelfMeasures(Measures):
    """Of pairs of one clip, where the target is the truth: of the picture after densification, full frame and head-masked; the loss.

    Args:
        lpips: measures LPIPS.
        embedder: measures CSIM against the source.
    """

    def __init__(self, lpips: Lpips | None = None, embedder: FaceEmbedder | None = None) -> None:
        pictures: dict[str, Metric] = {"psnr": PSNR(), "psnr_head": PSNR(), "ssim": SSIM(), "ssim_head": SSIM()}
        if lpips is not None:
            pictures["lpips"] = LPIPS(lpips)
        super().__init__(
            {"loss": Mean(), **pictures, "akd": AKD(), "aed": AED(), "apd": APD(), "found": FoundShare(), **identity(embedder)}
        )

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
        if "lpips" in self.metrics:
            self.add("lpips", output, target.image, batch.valid)
        if tracked:
            self.faces(output, batch)


class CrossMeasures(Measures):
    """Of pairs across persons: no picture is the truth, but expression and pose of the driver are, and the source's identity."""

    def __init__(self, embedder: FaceEmbedder | None = None) -> None:
        super().__init__({"aed": AED(), "apd": APD(), "found": FoundShare(), **identity(embedder)})

    @torch.no_grad()
    def update(self, shown: Reenactment, batch: PairBatch, tracked: bool) -> None:
        """Add a batch; without ``tracked`` there is nothing to measure."""
        if tracked:
            self.faces(shown.dense.image, batch)
