"""SyncNet: how well lips and sound belong together, and by how much they are apart.

Chung and Zisserman, "Out of time: automated lip sync in the wild", ACCV Workshops 2016: two towers turn 5 frames of a face (0.2 s) and the
sound of the same time into vectors that lie close where they belong together. The offset of a clip is the one with the least mean distance
over all frames, its confidence the median of the mean distances over all offsets less the least one. Layers and preparation of
the input are those of the published network, so that its weights load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators.audio_features import RATE, mfcc
from datasets_toolkit.annotators.base import FaceCrop, SyncAnnotator, SyncScore
from datasets_toolkit.annotators.weights import NetworkAnnotator, Source
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.schema import ByteImage, FloatArray

FPS, FRAMES, SIDE, HOPS = 25, 5, 224, 4
"""Frames a second, frames and pixels a side that the lip tower sees, and columns of cepstra for a frame."""
PADDING = 110
"""Grey beyond the border of an image."""
_STEADY = 13  # frames of the median that steadies the boxes
_BATCH = 16  # windows that are run at once


class SyncNet(NetworkAnnotator, SyncAnnotator):
    """The published network.

    Args:
        weights: its state dict: ``syncnet_v2.model``.
        reach: largest offset that is tried, in frames.
        device: where torch computes.
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the file is missing, damaged, or of another network.
        UserError: the reach is not positive.
    """

    version = 1
    source: ClassVar[Source] = Source(
        "SyncNet's state dict, syncnet_v2.model",
        "https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
        "MIT (of its code, which the weights are published with)",
    )

    def __init__(self, weights: str | Path, *, reach: int = 15, device: str = "cpu", licence: str = "") -> None:
        if reach < 1:
            raise UserError(f"reach {reach}: give a number of frames of at least 1")
        self.reach = reach
        super().__init__(weights, device=device, licence=licence)

    def _look(self) -> None:
        if not self.weights.is_file():
            raise self.refusal("is a folder, not a file")

    def _load(self) -> Any:
        import torch

        state = torch.load(self.weights, map_location="cpu", weights_only=True)
        network = syncnet_layers()
        network.load_state_dict(state)
        return network.eval().to(self.device)

    def __call__(self, crops: Iterable[FaceCrop], audio: npt.NDArray[np.int16]) -> SyncScore:
        """The offset of a clip of at least 10 frames; a shorter one has confidence 0.

        Args:
            crops: of one face, 25 a second.
            audio: mono, 16 kHz, from the time of the first crop on.
        """
        lips = self.lip_vectors(crops)
        count = min(len(lips), max(len(audio) * FPS // RATE - FRAMES, 0))
        if count < FRAMES:
            return SyncScore(offset_frames=0, confidence=0.0, distance=float("nan"))
        return score(lips[:count], self.sound_vectors(audio, count), self.reach)

    def lip_vectors(self, crops: Iterable[FaceCrop]) -> FloatArray:
        """The vectors (n x 1024) of all windows of 5 crops but the last."""
        import torch

        network, found = self.network(), []
        with torch.inference_mode():
            for run in _runs(steady_faces(crops)):
                frames = (
                    torch.from_numpy(np.stack(run)[..., ::-1].copy()).permute(3, 0, 1, 2)[None].float().to(self.device)
                )  # BGR, 0 to 255
                middle = network["netcnnlip"](frames)[0, :, :, 0, 0].T  # one column for each window: only the first layer looks along time
                found.append(network["netfclip"](middle).cpu().double().numpy())
        vectors = np.concatenate(found) if found else np.zeros((0, 1024))
        return np.asarray(vectors[:-1])  # the published code leaves the last window out

    def sound_vectors(self, audio: npt.NDArray[np.int16], count: int) -> FloatArray:
        """The vectors (count x 1024) of 0.2 s of sound from each of the first frames on."""
        import torch

        network, cepstra = self.network(), mfcc(audio).T
        windows = np.stack([cepstra[:, HOPS * i : HOPS * (i + FRAMES)] for i in range(count)])
        found = []
        with torch.inference_mode():
            for first in range(0, count, _BATCH):
                piece = torch.from_numpy(windows[first : first + _BATCH])[:, None].float().to(self.device)
                found.append(network["netfcaud"](network["netcnnaud"](piece).flatten(1)).cpu().double().numpy())
        return np.concatenate(found)


def score(lips: FloatArray, sound: FloatArray, reach: int) -> SyncScore:
    """Offset, confidence and distance of vectors of the lips and of the sound (both n x c), with offsets of up to ``reach`` frames.

    Beyond both ends of the sound its vectors are taken as 0, as in the published code.
    """
    padded = np.pad(sound, ((reach, reach), (0, 0)))
    shifts = range(2 * reach + 1)
    means = np.array([np.linalg.norm(lips - padded[k : k + len(lips)], axis=1).mean() for k in shifts])
    best = int(means.argmin())
    return SyncScore(offset_frames=reach - best, confidence=float(np.median(means) - means[best]), distance=float(means[best]))


def steady_faces(crops: Iterable[FaceCrop]) -> Iterator[ByteImage]:
    """The faces (224 x 224 x 3, RGB) as the network was shown them; 13 crops are held at a time.

    The box of a face is the larger side of its landmarks, a stand-in for that of the detector used then; its centre and size are running
    medians over 13 frames. The face reaches 0.4 of the size beyond both sides and below.
    """
    half = _STEADY // 2
    held: deque[tuple[FaceCrop, FloatArray]] = deque(maxlen=_STEADY)
    boxes = ((crop, np.array([*landmark_bounds(crop.landmarks)[0], landmark_bounds(crop.landmarks)[1]])) for crop in crops)
    ahead, position = 0, 0
    for entry in chain(boxes, [None] * half):
        if entry is not None:
            held.append(entry)
            ahead += 1
            if ahead <= half:
                continue
        if position >= ahead:
            return
        offset = position - (ahead - len(held))
        around = [box for _, box in list(held)[max(offset - half, 0) : offset + half + 1]]
        yield _cut(held[offset][0].image, np.median(around, 0))
        position += 1


def _cut(image: ByteImage, box: FloatArray) -> ByteImage:
    """The square of 1.4 times the size of a box (centre x, y, size) that ends 0.4 of the size below it."""
    centre, size = box[:2], box[2]
    scale = SIDE / (1.4 * size)
    corner = centre - np.array([0.7, 0.5]) * size
    matrix = np.array([[scale, 0, -corner[0] * scale + (scale - 1) / 2], [0, scale, -corner[1] * scale + (scale - 1) / 2]])
    shrunk = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 / scale), np.uint8) if scale < 1 else image
    return np.asarray(cv2.warpAffine(shrunk, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=(PADDING,) * 3), np.uint8)


def _runs(faces: Iterable[ByteImage]) -> Iterator[list[ByteImage]]:
    """Runs of frames that overlap by 4, so that each window of 5 lies in one of them."""
    run: list[ByteImage] = []
    for face in faces:
        run.append(face)
        if len(run) == _BATCH + FRAMES - 1:
            yield run
            run = run[_BATCH:]
    if len(run) >= FRAMES:
        yield run


def syncnet_layers() -> Any:
    """The two towers with random weights: a ``torch.nn.ModuleDict`` whose tensors have the published names and shapes."""
    from torch import nn

    def layer(kind: Any, norm: Any, given: int, made: int, kernel: Any, stride: Any = 1, padding: Any = 0) -> list[Any]:
        return [kind(given, made, kernel, stride, padding), norm(made), nn.ReLU()]

    def sound(given: int, made: int, kernel: Any = (3, 3), padding: Any = (1, 1)) -> list[Any]:
        return layer(nn.Conv2d, nn.BatchNorm2d, given, made, kernel, 1, padding)

    def lips(given: int, made: int, kernel: Any = (1, 3, 3), stride: Any = 1, padding: Any = (0, 1, 1)) -> list[Any]:
        return layer(nn.Conv3d, nn.BatchNorm3d, given, made, kernel, stride, padding)

    def head() -> Any:
        return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))

    halved = (1, 2, 2)
    aud = [
        *sound(1, 64), nn.MaxPool2d(1, 1),
        *sound(64, 192), nn.MaxPool2d(3, (1, 2)),
        *sound(192, 384), *sound(384, 256), *sound(256, 256), nn.MaxPool2d(3, 2),
        *sound(256, 512, (5, 4), 0),
    ]  # fmt: skip
    lip = [
        *lips(3, 96, (5, 7, 7), halved, 0), nn.MaxPool3d((1, 3, 3), halved),
        *lips(96, 256, (1, 5, 5), halved), nn.MaxPool3d((1, 3, 3), halved, (0, 1, 1)),
        *lips(256, 256), *lips(256, 256), *lips(256, 256), nn.MaxPool3d((1, 3, 3), halved),
        *lips(256, 512, (1, 6, 6), 1, 0),
    ]  # fmt: skip
    towers = {"netcnnaud": nn.Sequential(*aud), "netfcaud": head(), "netfclip": head(), "netcnnlip": nn.Sequential(*lip)}
    return nn.ModuleDict(towers)
