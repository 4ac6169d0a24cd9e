"""CSIM: whether two pictures show the same person, by an ArcFace network (Deng et al., CVPR 2019) on faces that the tracker finds.

The weights are the user's; whose they are and under what terms belongs beside every number: :meth:`FaceEmbedder.provenance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop, IdentityAnnotator
from datasets_toolkit.annotators.identity_insightface import ArcFaceIdentity
from mggtalk.metrics.functional import csim
from mggtalk.metrics.tracked import FaceReader, Pictures

__all__ = ["EMBEDDING", "FaceEmbedder", "csim"]

EMBEDDING = 512
"""Numbers of an embedding."""


class FaceEmbedder:
    """Pictures to identity embeddings, on the CPU; use as a context manager or close it. It serves :class:`mggtalk.metrics.states.CSIM`.

    Args:
        identity: the toolkit's annotator, or the .onnx file of an ArcFace network for it (such as InsightFace's ``w600k_r50.onnx``).
        reader: finds the faces; by default one of its own.

    Raises:
        AssetError: the file is missing, or no .onnx file.
    """

    def __init__(self, identity: IdentityAnnotator | str | Path, reader: FaceReader | None = None) -> None:
        self.identity = identity if isinstance(identity, IdentityAnnotator) else ArcFaceIdentity(identity)
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
        embeddings = torch.zeros(len(crops), EMBEDDING)
        for row, crop in enumerate(crops):
            if crop is not None:
                embeddings[row] = torch.from_numpy(self.identity(crop))
        return embeddings

    def provenance(self) -> dict[str, str]:
        """``weights`` (file name), their ``sha256`` and ``licence``, for the caption of a table."""
        return self.identity.provenance()
