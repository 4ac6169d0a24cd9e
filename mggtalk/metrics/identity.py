"""CSIM: whether two pictures show the same person, by a network for faces that the tracker finds, usually ArcFace (Deng et al., CVPR 2019).

The weights are the user's; whose they are and under what terms belongs beside every number: :meth:`FaceEmbedder.provenance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop, IdentityAnnotator
from datasets_toolkit.annotators.base import Map
from datasets_toolkit.annotators.identity_dlib import DlibIdentity
from datasets_toolkit.annotators.identity_insightface import ArcFaceIdentity, align_face
from mggtalk.metrics.functional import csim
from mggtalk.metrics.tracked import FaceReader, Pictures
from mggtalk.networks.iresnet import IResNet
from mggtalk.networks.weights import file_hash

__all__ = ["FaceEmbedder", "IResNetIdentity", "csim", "dlib_embedder"]


class IResNetIdentity(IdentityAnnotator):
    """As the toolkit's :class:`ArcFaceIdentity`, with the backbone of a released ArcFace model in plain torch, with no need of onnxruntime.

    Args:
        weights: state dict of the backbone; see :mod:`mggtalk.networks.iresnet`.
        device: where it runs.
        licence: of these weights.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    version = 1
    locations = frozenset({"weights"})

    def __init__(
        self, weights: str | Path, *, device: str = "cpu", licence: str = "InsightFace recognition models: non-commercial research only"
    ) -> None:
        self.weights, self.device, self.licence = Path(weights).expanduser(), device, licence
        self._network = IResNet(self.weights).to(device)

    @torch.inference_mode()
    def __call__(self, crop: FaceCrop) -> Map:
        """A unit vector (512)."""
        face = torch.from_numpy(align_face(crop)).to(self.device).permute(2, 0, 1)[None]
        with torch.autocast(face.device.type, enabled=False):
            return np.asarray(self._network.embed(face / 127.5 - 1)[0].cpu().numpy(), np.float32)

    def provenance(self) -> dict[str, str]:
        """Name, SHA-256 and licence of the weights."""
        return {"weights": self.weights.name, "sha256": file_hash(self.weights), "licence": self.licence}


class FaceEmbedder:
    """Pictures to identity embeddings, on the CPU; use as a context manager or close it. It serves :class:`mggtalk.metrics.states.CSIM`.

    Args:
        identity: an annotator, or the file of one: .onnx (such as InsightFace's ``w600k_r50.onnx``) for the toolkit's, else the state dict
            of an IResNet.
        reader: finds the faces; by default one of its own.

    Raises:
        UserError: the file is missing, or of another network.
    """

    def __init__(self, identity: IdentityAnnotator | str | Path, reader: FaceReader | None = None) -> None:
        self.identity = identity if isinstance(identity, IdentityAnnotator) else _identity(Path(identity))
        self.reader = FaceReader() if reader is None else reader
        self._owned = reader is None

    def __enter__(self) -> FaceEmbedder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the network, and the reader if it is its own; the next picture loads them again."""
        self.identity.close()
        if self._owned:
            self.reader.close()

    def __call__(self, images: Pictures, near: Float[Tensor, "b n 2"] | None = None) -> Float[Tensor, "b k"]:
        """Unit embeddings of the faces in pictures, 0 where there is none; arguments as :meth:`FaceReader.crops`.

        Raises:
            AssetError: the network cannot be loaded or makes no usable embedding, or a file of the tracker cannot be had.
        """
        return self.embed(self.reader.crops(images, near=near))

    def embed(self, crops: Sequence[FaceCrop | None]) -> Float[Tensor, "b k"]:
        """As calling it, of faces that were found before."""
        return self._rows(crops, self.identity)

    def descriptors(self, crops: Sequence[FaceCrop | None]) -> Float[Tensor, "b k"]:
        """As :meth:`embed`, with the lengths that the network gives: :meth:`IdentityAnnotator.descriptor`."""
        return self._rows(crops, self.identity.descriptor)

    def _rows(self, crops: Sequence[FaceCrop | None], read: Callable[[FaceCrop], Map]) -> Float[Tensor, "b k"]:
        rows = torch.zeros(len(crops), self.identity.numbers)
        for row, crop in enumerate(crops):
            if crop is not None:
                rows[row] = torch.from_numpy(read(crop))
        return rows

    def provenance(self) -> dict[str, str]:
        """``weights`` (file name), their ``sha256`` and ``licence``, for the caption of a table."""
        return self.identity.provenance()


def dlib_embedder(weights: str | Path, reader: FaceReader) -> FaceEmbedder:
    """A recogniser by dlib, loaded now: what cannot be used is told before any picture is read.

    Raises:
        AssetError: the file is missing or another one, or dlib is not installed.
    """
    identity = DlibIdentity(weights)
    identity.network()
    return FaceEmbedder(identity, reader)


def _identity(weights: Path) -> IdentityAnnotator:
    return ArcFaceIdentity(weights) if weights.suffix.lower() == ".onnx" else IResNetIdentity(weights)
