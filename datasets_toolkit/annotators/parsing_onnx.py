"""Parsing by a BiSeNet-like face parsing network in an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, Parsing, ParsingAnnotator
from datasets_toolkit.annotators.celebamask import BISENET_CLASSES, check_classes, parsing_from_classes
from datasets_toolkit.annotators.onnx_network import OnnxNetwork, normalised
from datasets_toolkit.annotators.weights import Source

_MEAN, _DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet
_SIZE = 512


class OnnxParsing(OnnxNetwork, ParsingAnnotator):
    """BiSeNet (Yu et al., ECCV 2018) or another network with one logit for each class of CelebAMask-HQ: 1 x 19 x h x w, its first output.

    Args:
        weights: the .onnx file.
        classes: the names of its classes in order, if it is another order than that of the BiSeNet networks.
        threads: of onnxruntime.
        device: "cpu" or "cuda".
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the file is missing, no ONNX network, or one with other inputs or outputs.
        UserError: the classes are not those of CelebAMask-HQ.
    """

    version = 1
    source: ClassVar[Source] = Source(
        "a BiSeNet face parsing network as an .onnx file (RGB by ImageNet's mean in, 19 logits out)",
        "https://github.com/yakhyo/face-parsing",
        "MIT for the code and weights; CelebAMask-HQ, which they learned from, is for non-commercial research",
    )

    def __init__(
        self, weights: str | Path, *, classes: Sequence[str] = BISENET_CLASSES, threads: int = 1, device: str = "cpu", licence: str = ""
    ) -> None:
        self.classes = check_classes(classes, "classes")
        super().__init__(weights, threads=threads, device=device, licence=licence)

    def _check(self, session: Any) -> None:
        super()._check(session)
        shape = session.get_outputs()[0].shape
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != len(self.classes)):
            raise ValueError(f"its output is {shape}, not {len(self.classes)} maps")

    def __call__(self, crop: FaceCrop) -> Parsing:
        """Labels and matte of a crop."""
        import torch

        height, width = self.input_size(_SIZE)
        shrinks = min(height, width) < len(crop.image)
        image = cv2.resize(crop.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        logits = torch.from_numpy(self.run(normalised(np.asarray(image, np.uint8), _MEAN, _DEVIATION)))
        if logits.shape[1] != len(self.classes):
            raise self.refusal(f"gives {logits.shape[1]} maps, not {len(self.classes)}")
        logits = torch.nn.functional.interpolate(logits, size=crop.image.shape[:2], mode="bilinear", align_corners=False)
        return parsing_from_classes(logits[0].softmax(0).numpy(), self.classes, crop)
