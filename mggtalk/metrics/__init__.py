"""Metrics: pure functions, one value for each image or frame; means over frames and clips are the caller's."""

from __future__ import annotations

from mggtalk.metrics.functional import aed, akd, apd, jitter, psnr, ssim

__all__ = ["aed", "akd", "apd", "jitter", "psnr", "ssim"]
