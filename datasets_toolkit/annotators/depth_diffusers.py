"""Depth by the Marigold diffusion pipeline of the ``diffusers`` package, brought to the scale of the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets_toolkit.annotators.alignment import align_to_mesh
from datasets_toolkit.annotators.base import DepthAnnotator, FaceCrop, Map, Parsing
from datasets_toolkit.annotators.pretrained import load_pretrained, quiet
from datasets_toolkit.annotators.weights import NetworkAnnotator, Source
from datasets_toolkit.schema import ByteImage


class MarigoldNetwork(NetworkAnnotator):
    """A Marigold pipeline folder (Ke et al., "Marigold: affordable adaptation of diffusion-based image generators", TPAMI 2025).

    Args:
        weights: a local folder with ``model_index.json``, ``unet``, ``vae``, ``scheduler``, ``text_encoder`` and ``tokenizer``.
        steps: denoising steps.
        ensemble: predictions that are averaged.
        resolution: pixels of the longer side that the network sees; 0 takes the crop as it is.
        seed: of the noise: the same crop gives the same labels.
        device: where torch computes.
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the folder is missing or holds another pipeline.
    """

    pipeline: ClassVar[str]

    def __init__(
        self,
        weights: str | Path,
        *,
        steps: int = 4,
        ensemble: int = 1,
        resolution: int = 768,
        seed: int = 0,
        device: str = "cpu",
        licence: str = "",
    ) -> None:
        self.steps, self.ensemble, self.resolution, self.seed = steps, ensemble, resolution, seed
        super().__init__(weights, device=device, licence=licence)

    def _look(self) -> None:
        found = self.read_json("model_index.json").get("_class_name")
        if found != self.pipeline:
            raise self.refusal(f"holds a {found}, not a {self.pipeline}")

    def _load(self) -> Any:
        import diffusers
        from transformers import CLIPTextModel

        kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "text_encoder": CLIPTextModel}
        parts = {name: load_pretrained(kind, self.weights, name) for name, kind in kinds.items()}
        with quiet():
            pipeline = getattr(diffusers, self.pipeline).from_pretrained(str(self.weights), local_files_only=True, **parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device)

    def predict(self, image: ByteImage) -> np.ndarray:
        """The pipeline's first prediction for an image (h w 3): h x w x 1 or h x w x 3."""
        import torch
        from PIL import Image

        answer = self.network()(
            Image.fromarray(image),
            num_inference_steps=self.steps,
            ensemble_size=self.ensemble,
            processing_resolution=self.resolution,
            generator=torch.Generator("cpu").manual_seed(self.seed),
            output_type="np",
        )
        return np.asarray(answer.prediction[0], np.float32)


class MarigoldDepth(MarigoldNetwork, DepthAnnotator):
    """Marigold's affine-invariant depth (0 near, 1 far), fitted to the face mesh; arguments as :class:`MarigoldNetwork`."""

    version = 1
    pipeline = "MarigoldDepthPipeline"
    source = Source(
        "a Marigold depth folder in the layout of diffusers (model_index.json, unet, vae, scheduler, text_encoder, tokenizer)",
        "https://huggingface.co/prs-eth/marigold-depth-v1-0",
        "Apache-2.0 for v1-0, RAIL++-M for v1-1",
    )

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm) wherever ``parsing`` shows a part of the head; 0 elsewhere."""
        return align_to_mesh(self.predict(crop.image)[..., 0], crop, parsing, inverse=False)
