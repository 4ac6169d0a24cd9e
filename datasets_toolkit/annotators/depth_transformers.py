"""Depth by a network of the ``transformers`` package, such as Depth Anything, brought to the scale of the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets_toolkit.annotators.alignment import align_to_mesh
from datasets_toolkit.annotators.base import DepthAnnotator, FaceCrop, Map, Parsing
from datasets_toolkit.annotators.pretrained import load_with_processor
from datasets_toolkit.annotators.weights import NetworkAnnotator, Source
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage

_KINDS = {"dpt": "inverse", "glpn": "depth", "zoedepth": "depth", "depth_pro": "depth"}
"""What the networks of a ``model_type`` were trained to give; Depth Anything says so in its configuration."""


class TransformersDepth(NetworkAnnotator, DepthAnnotator):
    """Depth Anything (Yang et al., "Depth Anything V2", NeurIPS 2024) and other ``AutoModelForDepthEstimation``.

    The network's map is brought to centimetres on the face mesh: :func:`datasets_toolkit.annotators.alignment.align_to_mesh`.

    Args:
        weights: a local folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.
        kind: "inverse" (the map is affine in 1/depth), "depth" (affine in depth), or "auto": as the configuration says.
        device: where torch computes.
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the folder is missing or holds no depth network.
        UserError: ``kind`` is none of the three.
    """

    version = 1
    source: ClassVar[Source] = Source(
        "a depth model folder in the layout of transformers (config.json, preprocessor_config.json, model.safetensors)",
        "https://huggingface.co/depth-anything/Depth-Anything-V2-Small-hf",
        "Apache-2.0 for Depth Anything V2 Small, CC-BY-NC-4.0 for Base and Large",
    )

    def __init__(self, weights: str | Path, *, kind: str = "auto", device: str = "cpu", licence: str = "") -> None:
        if kind not in ("auto", "inverse", "depth"):
            raise UserError(f"kind {kind!r}: give auto, inverse or depth")
        self.kind = kind
        super().__init__(weights, device=device, licence=licence)

    def _look(self) -> None:
        config = self.read_json("config.json")
        self.read_json("preprocessor_config.json")
        if not any("DepthEstimation" in str(name) for name in config.get("architectures") or []):
            raise self.refusal(f"holds no depth network but {config.get('architectures')}")
        self._inverse = self._gives(config) == "inverse"

    def _gives(self, config: dict[str, Any]) -> str:
        kind = self.kind
        if kind == "auto" and config.get("model_type") == "depth_anything":
            kind = "depth" if config.get("depth_estimation_type") == "metric" else "inverse"
        elif kind == "auto":
            kind = _KINDS.get(str(config.get("model_type")), "auto")
        if kind == "auto":
            raise UserError(f"{self.weights}: {config.get('model_type')} may give depth or inverse depth; set kind to depth or inverse")
        return kind

    def _load(self) -> Any:
        from transformers import AutoModelForDepthEstimation

        return load_with_processor(AutoModelForDepthEstimation, self.weights, self.device)

    def relative(self, image: ByteImage) -> Map:
        """What the network says of an image (h w 3): h x w."""
        import torch

        processor, model = self.network()
        inputs = processor(images=image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            depth = model(**inputs).predicted_depth[:, None].float()
            depth = torch.nn.functional.interpolate(depth, size=image.shape[:2], mode="bilinear", align_corners=False)
        return np.asarray(depth[0, 0].cpu().numpy(), np.float32)

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm) wherever ``parsing`` shows a part of the head; 0 elsewhere."""
        return align_to_mesh(self.relative(crop.image), crop, parsing, inverse=self._inverse)
