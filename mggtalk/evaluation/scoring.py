"""What a method's pictures score, with the definition of every number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.identity_dlib import INSTALL as INSTALL_DLIB
from datasets_toolkit.asset_list import ASSETS
from datasets_toolkit.schema import ByteImage
from mggtalk import metrics
from mggtalk.evaluation.cases import Case, Truth
from mggtalk.evaluation.results import Metric, Missing
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.identity import FaceEmbedder, dlib_embedder
from mggtalk.metrics.tracked import FaceReader, ReadFaces
from mggtalk.networks.inception import ADDRESS, LICENCE, Inception
from mggtalk.networks.lpips import Lpips

LIMIT = 60.0
"""PSNR of a frame counts as this at most (eight bits alone cost 58.9 dB), or a frame equal to the source would decide a mean."""
Values = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Faces read in pictures: what tracked metrics compare, neutral faces (k 478 3, cm), and crops for the recogniser."""

    faces: ReadFaces
    neutral: Float[Tensor, "k 478 3"]
    crops: list[FaceCrop | None]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Files of networks: ArcFace for CSIM, dlib's for its CSIM and the distance of its descriptors, AlexNet for LPIPS, one for FID."""

    arcface: Path | None = None
    dlib: Path | None = None
    alexnet: Path | None = None
    inception: Path | None = None


class Scorer:
    """Compares pictures; close it, or use it as a context manager.

    Args:
        weights: of networks that some metrics need.

    Raises:
        UserError: a file is missing or of another network.
    """

    def __init__(self, weights: Weights) -> None:
        self.reader = FaceReader()
        self.face_model: FaceModel = self.reader.face_model
        self.embedder = None if weights.arcface is None else FaceEmbedder(weights.arcface, self.reader)
        self.dlib = None if weights.dlib is None else dlib_embedder(weights.dlib, self.reader)
        self.lpips = None if weights.alexnet is None else Lpips(weights.alexnet)
        self.inception = None if weights.inception is None else Inception(weights.inception)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release tracker and networks."""
        for embedder in (self.embedder, self.dlib):
            if embedder is not None:
                embedder.close()
        self.reader.close()

    def see(self, pictures: Sequence[ByteImage], intrinsics: Tensor, near: Tensor) -> Seen:
        """Read the faces of pictures, searched where they are expected."""
        crops = self.reader.crops(_bytes(pictures), intrinsics, near)
        faces, neutral = self.reader.describe(crops), torch.zeros(len(crops), *self.face_model.mean.shape)
        for row, crop in enumerate(crops):
            if crop is not None:  # what FaceModel.split leaves beside the expression
                neutral[row] = torch.from_numpy(crop.mesh).to(neutral) - self.face_model.displacement(faces.expression[row])
        return Seen(faces=faces, neutral=neutral, crops=crops)

    def pictures(self, output: Sequence[ByteImage], truth: Truth) -> Values:
        """Pixel by pixel against the truth."""
        images, targets = _floats(output), _floats(truth.pictures)
        values = {
            "psnr": metrics.psnr(images, targets).clamp(max=LIMIT),
            "psnr_head": metrics.psnr(images, targets, truth.head).clamp(max=LIMIT),
            "ssim": metrics.ssim(images, targets),
            "ssim_head": metrics.ssim(images, targets, truth.head),
            "psnr_wrapped": wrapped_psnr(_bytes(output), _bytes(truth.pictures)),
        }
        if self.lpips is not None:
            with torch.inference_mode():
                values["lpips"] = self.lpips(images.float(), targets.float())
        return {name: float(value.double().mean()) for name, value in values.items()}

    def motion(self, output: Seen, truth: Seen, landmarks: bool) -> Values:
        """Expression and pose against those of the truth; landmarks too if both show one person in one window."""
        both = output.faces.found & truth.faces.found
        values = {
            "aed": _mean(metrics.aed(output.faces.blendshapes, truth.faces.blendshapes), both),
            "apd": _mean(metrics.apd(output.faces.pose, truth.faces.pose), both),
            "found": float(output.faces.found.double().mean()),
        }
        if landmarks:
            values["akd"] = _mean(metrics.akd(output.faces.landmarks, truth.faces.landmarks), both)
        return values

    def identity(self, output: Seen, person: Seen) -> Values:
        """Against pictures of a person, one for each or one for all: the shape of the neutral face and, with recognisers, what they say."""
        distance, both = (output.neutral - person.neutral).norm(dim=-1).mean(-1), output.faces.found & person.faces.found
        values = {"shape": _mean(10 * distance, both)}
        if self.embedder is not None:
            ours, theirs = self.embedder.embed(output.crops), self.embedder.embed(person.crops).expand(len(output.crops), -1)
            values["csim"] = _mean(metrics.csim(ours, theirs), both)
        if self.dlib is not None:
            ours, theirs = self.dlib.descriptors(output.crops), self.dlib.descriptors(person.crops).expand(len(output.crops), -1)
            values["csim_dlib"] = _mean(metrics.csim(ours, theirs), both)
            values["id_distance"] = _mean(metrics.id_distance(ours, theirs), both)
        return values

    def jitter(self, output: Seen, truth: Seen) -> Values:
        """Shake of the output's landmarks in proportion to that of the truth's."""
        ours, theirs = (metrics.jitter(seen.faces.landmarks, seen.faces.found) for seen in (output, truth))
        return {"jitter": float(ours / theirs) if theirs > 0 else math.nan}

    def described(self, kind: str, jitter: bool) -> tuple[tuple[Metric, ...], tuple[Missing, ...]]:
        """The metrics that are measured, and those that are not."""
        measured = [metric for metric in definitions(self.embedder, self.lpips, self.dlib) if kind in _KINDS[metric.name]]
        return tuple(metric for metric in measured if jitter or metric.name != "jitter"), tuple(self._missing(kind))

    def _missing(self, kind: str) -> list[Missing]:
        absent = []
        if self.embedder is None:
            absent.append(
                Missing(
                    title="CSIM",
                    reason="no weights of a face recogniser were given",
                    remedy="--arcface FILE: an ArcFace network, such as w600k_r50.onnx of InsightFace's buffalo_l pack "
                    "(https://github.com/deepinsight/insightface; non-commercial research only)",
                )
            )
        if self.dlib is None:
            reason = "dlib's face recogniser is not installed, or was left out"
            absent.append(Missing(title="CSIM dlib, ID distance", reason=reason, remedy=INSTALL_DLIB))
        if self.lpips is None and kind == "self":
            absent.append(
                Missing(
                    title="LPIPS",
                    reason="no AlexNet was given",
                    remedy="--alexnet FILE: torchvision's alexnet-owt-7be5be79.pth "
                    "(https://download.pytorch.org/models/alexnet-owt-7be5be79.pth; BSD-3-Clause)",
                )
            )
        if self.inception is None:
            name = ADDRESS.rpartition("/")[2]
            remedy = f"--inception FILE: {name} of pytorch-fid ({ADDRESS}; {LICENCE})"
            absent.append(Missing(title="FID", reason="no Inception-v3 was given", remedy=remedy))
        return absent


def at(case: Case, count: int) -> Float[Tensor, "k 3 3"]:
    """The source's intrinsics, once for each picture."""
    return case.source.camera.intrinsics.double().expand(count, -1, -1)


def wrapped_psnr(images: Tensor, targets: Tensor) -> Float[Tensor, " b"]:
    """PSNR as it comes out where differences and their squares are computed in eight bits, and wrap around at 256."""
    difference = images - targets  # uint8
    error = (difference * difference).double().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=1e-9))


_KINDS = {
    **dict.fromkeys(("psnr", "psnr_head", "ssim", "ssim_head", "lpips", "akd", "jitter", "psnr_wrapped"), ("self",)),
    **dict.fromkeys(("aed", "apd", "csim", "csim_dlib", "id_distance", "shape", "found"), ("self", "cross")),
}


def definitions(embedder: FaceEmbedder | None, lpips: Lpips | None, dlib: FaceEmbedder | None = None) -> list[Metric]:
    """Every metric that can be measured with these networks."""
    tracker = {"name": "MediaPipe Face Landmarker", "sha256": ASSETS[0].sha256, "licence": "Apache-2.0"}
    rows = [
        ("psnr", "PSNR", "dB", "higher", "Mean over frames of -10 log10 of the mean squared error on floats in [0, 1], 60 at most.", {}),
        ("psnr_head", "PSNR head", "dB", "higher", "PSNR over the pixels that the parsing of the truth calls head, hair or neck.", {}),
        (
            "ssim",
            "SSIM",
            "",
            "higher",
            "Structural similarity (Wang et al. 2004), Gaussian window of 11, sigma 1.5.",
            {},
        ),
        ("ssim_head", "SSIM head", "", "higher", "Mean of the SSIM map over the pixels of head, hair and neck.", {}),
        ("akd", "AKD", "px of 512", "lower", "Mean distance of the 478 landmarks read in output and truth.", tracker),
        ("aed", "AED", "", "lower", "Mean absolute difference of the 52 blendshape scores read in output and truth, or driver.", tracker),
        ("apd", "APD", "degrees", "lower", "Mean absolute difference of yaw, pitch and roll, likewise.", tracker),
        (
            "shape",
            "face shape",
            "mm",
            "lower",
            "Mean distance of the neutral faces estimated from output and truth, or source.",
            tracker,
        ),
        ("found", "faces found", "share", "higher", "Share of output pictures in which the tracker finds a face.", tracker),
        ("jitter", "jitter", "ratio", "lower", "Mean second difference of landmarks over consecutive frames, output over truth.", tracker),
    ]
    if embedder is not None:
        rows.append(
            ("csim", "CSIM", "", "higher", "Cosine of the recogniser's embeddings of output and truth, or source.", _about(embedder))
        )
    if dlib is not None:
        cosine = "Cosine of dlib's descriptors of output and truth, or source; not on ArcFace's scale: that of two people is about 0.835."
        distance = "Euclidean distance of the same descriptors, for which they were trained: less than 0.6 is meant to be the same person."
        rows.append(("csim_dlib", "CSIM dlib", "", "higher", cosine, _about(dlib)))
        rows.append(("id_distance", "ID distance", "", "lower", distance, _about(dlib)))
    if lpips is not None:
        rows.append(("lpips", "LPIPS", "", "lower", "LPIPS v0.1, AlexNet.", {"name": lpips.name, "licence": "BSD-3-Clause, BSD-2-Clause"}))
    rows.append(
        (
            "psnr_wrapped",
            "PSNR, wrapped",
            "dB",
            "higher",
            "Not a PSNR: differences and squares of bytes that wrap around at 256. Some published tables lie in its narrow band.",
            {},
        )
    )
    return [
        Metric(name=name, title=title, unit=unit, better="higher" if better == "higher" else "lower", definition=text, model=model)
        for name, title, unit, better, text, model in rows
    ]


def _about(embedder: FaceEmbedder) -> dict[str, str]:
    about = embedder.provenance()
    return {"name": about.get("weights", ""), "sha256": about.get("sha256", ""), "licence": about.get("licence", "")}


def _mean(values: Float[Tensor, " k"], valid: Bool[Tensor, " k"]) -> float:
    chosen = values[valid & values.isfinite()]
    return float(chosen.double().mean()) if len(chosen) else math.nan


def _bytes(pictures: Sequence[ByteImage]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def _floats(pictures: Sequence[ByteImage]) -> Tensor:
    return _bytes(pictures).double() / 255
