"""GeoWizard: depth and normals in one diffusion, each attending to the other.

Fu et al., "GeoWizard: unleashing the diffusion priors for 3D geometry estimation from a single image", ECCV 2024, section 3: the latents
of image and geometry are joined along the channels; depth and normals are two samples of one batch, told apart by a geometry switcher and
given a kind of scene by a domain switcher (both class embeddings: sine and cosine of one-hot vectors); in every self-attention the keys
and values of both samples serve both.

What is supported: the folder as its authors publish it, with ``unet``, ``vae``, ``scheduler``, ``image_encoder`` and
``feature_extractor``. Its U-Net has the tensors of the stock ``UNet2DConditionModel`` (8 channels in, 10 class embedding inputs); the joint
attention adds none and is an attention processor here. The second release (``unet_v2`` with a text encoder) is not supported. A data
set with both labels runs the diffusion once for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets_toolkit.annotators.alignment import align_to_mesh, facing_normals
from datasets_toolkit.annotators.base import DepthAnnotator, FaceCrop, Map, NormalAnnotator, Parsing
from datasets_toolkit.annotators.pretrained import load_pretrained
from datasets_toolkit.annotators.weights import NetworkAnnotator, Source
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage

DOMAINS = ("indoor", "outdoor", "object")
_PARTS = ("unet", "vae", "scheduler", "image_encoder", "feature_extractor")


class JointAttention:
    """Self-attention in which the two halves of a batch (depth, normals) share their keys and values: a ``diffusers`` processor."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None, **unused: Any) -> Any:
        """Queries b n c, keys and values of both halves along n; without mask, as in a self-attention of a U-Net."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        def heads(values: Any) -> Any:
            return values.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def shared(values: Any) -> Any:
            return torch.cat(values.chunk(2), dim=1).repeat(2, 1, 1)

        key, value = shared(attn.to_k(hidden_states)), shared(attn.to_v(hidden_states))
        mixed = scaled_dot_product_attention(heads(attn.to_q(hidden_states)), heads(key), heads(value), scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(-2))) / attn.rescale_output_factor


class GeoWizardNetwork(NetworkAnnotator):
    """The folder and what it says of an image.

    Args:
        weights: the local folder; see this module's description.
        domain: "indoor", "outdoor" or "object": which scenes the image is like.
        steps: denoising steps.
        resolution: pixels of the longer side that the network sees.
        seed: of the noise: the same crop gives the same labels.
        device: where torch computes.
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the folder is missing, incomplete, or holds another network.
        UserError: the domain is none of the three.
    """

    source: ClassVar[Source] = Source(
        f"a GeoWizard folder with {', '.join(_PARTS)}",
        "https://huggingface.co/lemonaddie/Geowizard",
        "none is stated by its authors; ask them before use",
    )

    def __init__(
        self, weights: str | Path, *, domain: str = "indoor", steps: int = 10, resolution: int = 768, seed: int = 0, device: str = "cpu",
        licence: str = "",
    ) -> None:  # fmt: skip
        if domain not in DOMAINS:
            raise UserError(f"domain {domain!r}: give {', '.join(DOMAINS[:-1])} or {DOMAINS[-1]}")
        self.domain, self.steps, self.resolution, self.seed = domain, steps, resolution, seed
        super().__init__(weights, device=device, licence=licence)

    def _look(self) -> None:
        missing = [part for part in _PARTS if not (self.weights / part).is_dir()]
        if missing:
            raise self.refusal(f"lacks the folder {missing[0]}")
        config = self.read_json("unet/config.json")
        wanted = {"in_channels": 8, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 10}
        for name, value in wanted.items():
            if config.get(name) != value:
                raise self.refusal(f"its U-Net has {name} {config.get(name)!r} where GeoWizard has {value!r}")

    def _load(self) -> Any:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPVisionModelWithProjection

        unet = load_pretrained(UNet2DConditionModel, self.weights, "unet")
        unet.set_attn_processor(
            {name: JointAttention() if name.endswith("attn1.processor") else old for name, old in unet.attn_processors.items()}
        )
        vae = load_pretrained(AutoencoderKL, self.weights, "vae")
        encoder = load_pretrained(CLIPVisionModelWithProjection, self.weights, "image_encoder")
        scheduler = DDIMScheduler.from_pretrained(str(self.weights), subfolder="scheduler", local_files_only=True)
        return unet.to(self.device), vae.to(self.device), encoder.to(self.device), scheduler

    def predict(self, image: ByteImage) -> tuple[Map, Map]:
        """Affine depth (h x w, 0 near, 1 far) and normals (h x w x 3, camera frame, not yet of unit length) of an image (h w 3)."""
        import torch
        from torch.nn.functional import interpolate

        unet, vae, encoder, scheduler = self.network()
        height, width = image.shape[:2]
        grown = self.resolution / max(height, width)
        multiple = 8 * 2 ** (len(unet.config.block_out_channels) - 1)
        size = [max(round(side * grown / multiple), 1) * multiple for side in (height, width)]
        with torch.inference_mode():
            picture = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(self.device).float() / 127.5 - 1
            context = self._context(picture, encoder)
            picture = interpolate(picture, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
            latents = self._denoise(picture, context, unet, vae, scheduler)
            maps = vae.decode(latents / vae.config.scaling_factor).sample
            maps = interpolate(maps, size=(height, width), mode="bilinear", align_corners=False).cpu()
        depth = (maps[0].mean(0).clamp(-1, 1) + 1) / 2
        return depth.numpy(), maps[1].permute(1, 2, 0).numpy()

    def _context(self, picture: Any, encoder: Any) -> Any:
        """The image embedding (2 1 c) by which both samples are conditioned, of a picture (1 3 h w) in [-1, 1]."""
        import torch
        from torch.nn.functional import interpolate

        told = self.read_json("feature_extractor/preprocessor_config.json")
        crop = told["crop_size"]
        size = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        mean, deviation = (torch.tensor(told[name], device=self.device)[:, None, None] for name in ("image_mean", "image_std"))
        small = interpolate((picture + 1) / 2, size=size, mode="bicubic", align_corners=False, antialias=True)
        return encoder((small - mean) / deviation).image_embeds[:, None].repeat(2, 1, 1)

    def _denoise(self, picture: Any, context: Any, unet: Any, vae: Any, scheduler: Any) -> Any:
        """Latents (2 4 h/8 w/8) of depth and of normals."""
        import torch

        code = vae.encode(picture).latent_dist.mode() * vae.config.scaling_factor
        noise = torch.randn(code.shape, generator=torch.Generator("cpu").manual_seed(self.seed)).to(self.device)
        geometry, code = noise.repeat(2, 1, 1, 1), code.repeat(2, 1, 1, 1)
        switches = class_switches(self.domain).to(self.device)
        scheduler.set_timesteps(self.steps, device=self.device)
        for time in scheduler.timesteps:
            joined = torch.cat([code, geometry], dim=1)
            step = unet(joined, time.repeat(2), encoder_hidden_states=context, class_labels=switches).sample
            geometry = scheduler.step(step, time, geometry).prev_sample
        return geometry


def class_switches(domain: str) -> Any:
    """The class embeddings (2 x 10) of the depth sample and of the normal sample in a domain: sines, then cosines, of one-hot vectors."""
    import torch

    geometry = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    scene = torch.tensor([[float(domain == name) for name in DOMAINS]]).repeat(2, 1)
    return torch.cat([geometry.sin(), geometry.cos(), scene.sin(), scene.cos()], dim=1)


class GeoWizardDepth(GeoWizardNetwork, DepthAnnotator):
    """GeoWizard's affine-invariant depth, fitted to the face mesh; arguments as :class:`GeoWizardNetwork`."""

    version = 1

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm) wherever ``parsing`` shows a part of the head; 0 elsewhere."""
        return align_to_mesh(self.predict(crop.image)[0], crop, parsing, inverse=False)


class GeoWizardNormals(GeoWizardNetwork, NormalAnnotator):
    """GeoWizard's normals, which it decodes in the camera frame; arguments as :class:`GeoWizardNetwork`."""

    version = 1

    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: Map) -> Map:
        """Unit normals (s x s x 3, camera frame, facing the camera) wherever ``depth`` is known; 0 elsewhere."""
        return facing_normals(np.asarray(self.predict(crop.image)[1], np.float32), crop, depth > 0)
