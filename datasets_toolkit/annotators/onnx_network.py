"""Networks in ONNX files, run by ``onnxruntime``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators.base import Map
from datasets_toolkit.annotators.weights import NetworkAnnotator
from datasets_toolkit.schema import ByteImage


class OnnxNetwork(NetworkAnnotator):
    """A network of one image input (1 3 h w) in an ONNX file.

    Args:
        weights: the .onnx file.
        threads: of onnxruntime for one network; as many processes run beside each other, 1.
        device: "cpu", or "cuda" where the GPU build of onnxruntime is installed.
        licence: of these weights; see :class:`NetworkAnnotator`.
    """

    def __init__(self, weights: str | Path, *, threads: int = 1, device: str = "cpu", licence: str = "") -> None:
        self.threads = threads
        super().__init__(weights, device=device, licence=licence)

    def _look(self) -> None:
        if not self.weights.is_file() or self.weights.suffix.lower() != ".onnx":
            raise self.refusal("is not an .onnx file")

    def _load(self) -> Any:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.24 on it reports usage unless told not to
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        kind, _, number = self.device.partition(":")
        providers: list[Any] = ["CPUExecutionProvider"]
        if kind == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": number or "0"}))
        session = onnxruntime.InferenceSession(str(self.weights), options, providers=providers)
        self._check(session)
        return session

    def _check(self, session: Any) -> None:
        """Raise ValueError unless the network takes one image."""
        shapes = [entry.shape for entry in session.get_inputs()]
        if len(shapes) != 1 or len(shapes[0]) != 4 or (isinstance(shapes[0][1], int) and shapes[0][1] != 3):
            raise ValueError(f"its inputs are {shapes}, not one image")

    def input_size(self, default: int) -> tuple[int, int]:
        """Height and width that the network takes; ``default`` where it takes any."""
        height, width = self.network().get_inputs()[0].shape[2:]
        return (height if isinstance(height, int) else default, width if isinstance(width, int) else default)

    def run(self, image: Map) -> Map:
        """The network's first output for an image (h w 3, as it wants it)."""
        session = self.network()
        tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
        return np.asarray(session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: tensor})[0], np.float32)


def normalised(image: ByteImage, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Map:
    """``(image - mean) / deviation`` for each channel; all in units of 0 to 255."""
    shifted: npt.NDArray[np.float32] = image.astype(np.float32) - np.asarray(mean, np.float32)
    return np.asarray(shifted / np.asarray(deviation, np.float32), np.float32)
