"""Parsing by a SegFormer of the ``transformers`` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, Parsing, ParsingAnnotator
from datasets_toolkit.annotators.celebamask import check_classes, parsing_from_classes
from datasets_toolkit.annotators.pretrained import load_with_processor
from datasets_toolkit.annotators.weights import NetworkAnnotator, Source


class SegformerParsing(NetworkAnnotator, ParsingAnnotator):
    """SegFormer (Xie et al., NeurIPS 2021) trained on the 19 classes of CelebAMask-HQ; the folder's ``id2label`` names them.

    Args:
        weights: a local folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.
        device: where torch computes.
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the folder is missing or holds another network.
        UserError: its classes are not those of CelebAMask-HQ.
    """

    version = 1
    source: ClassVar[Source] = Source(
        "a SegFormer face parsing folder in the layout of transformers (config.json, preprocessor_config.json, model.safetensors)",
        "https://huggingface.co/jonathandinu/face-parsing",
        "CC0-1.0 as its card declares; CelebAMask-HQ, which it learned from, is for non-commercial research",
    )

    def __init__(self, weights: str | Path, *, device: str = "cpu", licence: str = "") -> None:
        super().__init__(weights, device=device, licence=licence)

    def _look(self) -> None:
        config = self.read_json("config.json")
        self.read_json("preprocessor_config.json")
        if config.get("model_type") != "segformer":
            raise self.refusal(f"holds no SegFormer but {config.get('model_type')}")
        names = {int(number): str(name) for number, name in dict(config.get("id2label") or {}).items()}
        self._classes = check_classes([names[number] for number in sorted(names)], str(self.weights / "config.json"))

    def _load(self) -> Any:
        from transformers import SegformerForSemanticSegmentation

        return load_with_processor(SegformerForSemanticSegmentation, self.weights, self.device)

    def __call__(self, crop: FaceCrop) -> Parsing:
        """Labels and matte of a crop."""
        import torch

        processor, model = self.network()
        inputs = processor(images=crop.image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            logits = model(pixel_values=inputs["pixel_values"]).logits.float()
            logits = torch.nn.functional.interpolate(logits, size=crop.image.shape[:2], mode="bilinear", align_corners=False)
            probabilities = logits[0].softmax(0).cpu().numpy()
        return parsing_from_classes(np.asarray(probabilities, np.float32), self._classes, crop)
