"""The exponential moving average of the weights, with a warm-up."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Ema(WeightAveraging):
    """Lightning's averaging of weights: validation and the checkpoints' ``state_dict`` have the averages, training goes on with its own.

    After n updates the decay is at most (1 + n) / (10 + n), so that a short run is not held back at the weights it began with (the warm-up
    of TensorFlow's ``ExponentialMovingAverage``). Buffers are copied, not averaged: among ours are indices.

    Args:
        decay: of the average, for each step, in the end.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected a number from 0 to below 1")
        self.decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._average)

    def _average(self, averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
        share = 1 - (1 + updates) / (10 + updates)
        # A tensor stays one, so that a GPU is not waited for.
        share = share.clamp(min=1 - self.decay) if isinstance(share, Tensor) else max(share, 1 - self.decay)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share.to(average) if isinstance(share, Tensor) else share)
