"""Normals by the Marigold diffusion pipeline of the ``diffusers`` package."""

from __future__ import annotations

import numpy as np

from datasets_toolkit.annotators.alignment import facing_normals
from datasets_toolkit.annotators.base import FaceCrop, Map, NormalAnnotator, Parsing
from datasets_toolkit.annotators.depth_diffusers import MarigoldNetwork
from datasets_toolkit.annotators.weights import Source

TO_CAMERA = np.array([1, -1, -1], np.float32)
"""From Marigold's axes (x right, y up, z to the viewer) to those of the camera frame (x right, y down, z forward)."""


class MarigoldNormals(MarigoldNetwork, NormalAnnotator):
    """Marigold's surface normals; arguments as :class:`datasets_toolkit.annotators.depth_diffusers.MarigoldNetwork`."""

    version = 1
    pipeline = "MarigoldNormalsPipeline"
    source = Source(
        "a Marigold normals folder in the layout of diffusers (model_index.json, unet, vae, scheduler, text_encoder, tokenizer)",
        "https://huggingface.co/prs-eth/marigold-normals-v0-1",
        "Apache-2.0 for v0-1, RAIL++-M for v1-1",
    )

    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: Map) -> Map:
        """Unit normals (s x s x 3, camera frame, facing the camera) wherever ``depth`` is known; 0 elsewhere."""
        return facing_normals(self.predict(crop.image) * TO_CAMERA, crop, depth > 0)
