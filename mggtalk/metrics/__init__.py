"""Metrics: pure functions, one value for each image or frame (here), and their means over a data set (:mod:`mggtalk.metrics.states`)."""

from __future__ import annotations

from mggtalk.metrics.functional import aed, akd, apd, csim, id_distance, jitter, psnr, ssim

__all__ = ["aed", "akd", "apd", "csim", "id_distance", "jitter", "psnr", "ssim"]
