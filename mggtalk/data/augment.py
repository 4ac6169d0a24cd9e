"""What is done to a pair before it is batched: one crop window, random crops, mirroring, and changes of colour.

Random numbers come from a generator that the caller seeds for each pair, so that a pair looks the same whoever prepares it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mggtalk.data.packed import PackedFrame
from mggtalk.data.transforms import about_centre, crop, flip

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Photometric:
    """Random changes of the picture that no label depends on, through albumentations.

    Attributes:
        brightness: largest relative change.
        contrast: largest relative change.
        saturation: largest relative change.
        hue: largest turn of the colour circle, 0.5 is half of it.
        noise: largest standard deviation, of 1.
        blur: largest standard deviation, pixels.
        jpeg: lowest quality; 100 leaves this out.
        probability: of each of the four kinds (colour, noise, blur, JPEG).
        same: whether source and target are changed alike, down to the noise; if not, each on its own.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    noise: float = 0.02
    blur: float = 1.0
    jpeg: int = 60
    probability: float = 0.5
    same: bool = True
    _built: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, source: PackedFrame, target: PackedFrame, generator: np.random.Generator) -> tuple[PackedFrame, PackedFrame]:
        """Both frames with changed pictures."""
        seeds = [int(seed) for seed in generator.integers(2**62, size=2)]
        return self._change(source, seeds[0]), self._change(target, seeds[0] if self.same else seeds[1])

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_built": {}}  # every process builds its own

    def _change(self, frame: PackedFrame, seed: int) -> PackedFrame:
        compose = self._built.get("compose") or self._built.setdefault("compose", self._compose())
        compose.set_random_state(np.random.Generator(np.random.PCG64(seed)), random.Random(seed))
        return replace(frame, image=torch.from_numpy(np.ascontiguousarray(compose(image=frame.image.numpy())["image"])))

    def _compose(self) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for a newer version
        import albumentations

        chance = self.probability
        colour = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        ranges = {name: (1 - change, 1 + change) for name, change in colour.items()}
        changes = [albumentations.ColorJitter(**ranges, hue=(-self.hue, self.hue), p=chance)]
        if self.noise > 0:
            changes.append(albumentations.GaussNoise(std_range=(0, self.noise), p=chance))
        if self.blur > 0:
            changes.append(albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.1, self.blur), p=chance))
        if self.jpeg < 100:
            changes.append(albumentations.ImageCompression(quality_range=(self.jpeg, 100), p=chance))
        return albumentations.Compose(changes)


@dataclass(frozen=True, kw_only=True)
class PairTransform:
    """The steps from two frames as stored to two frames as the model sees them; without arguments only the window is shared.

    Attributes:
        size: pixels a side that the model sees; by default those of the stored crops.
        same_window: whether the target is cut out of its video as the source is. Torso and background lie in the picture's plane, so
            the model needs it; frames of two videos have no window in common and keep their own.
        flip: how often a pair is mirrored; both frames or neither.
        scale: the picture grows or shrinks by a factor in ``[1 / (1 + scale), 1 + scale]``, even in its logarithm.
        shift: the picture moves by at most this share of its side, along both axes.
        same_crop: whether scale and shift are those of the source for the target too.
        photometric: changes of the pictures.
    """

    size: int | None = None
    same_window: bool = True
    flip: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    same_crop: bool = True
    photometric: Photometric | None = None

    @property
    def random(self) -> bool:
        """Whether anything is left to chance."""
        return bool(self.flip or self.scale or self.shift or self.photometric)

    def plain(self) -> PairTransform:
        """Size and window of this one, and nothing random: for validation."""
        return PairTransform(size=self.size, same_window=self.same_window)

    def __call__(
        self, source: PackedFrame, target: PackedFrame, generator: np.random.Generator | None = None, same_video: bool = True
    ) -> tuple[PackedFrame, PackedFrame]:
        """Both frames as the model sees them.

        Args:
            source: as stored.
            target: as stored.
            generator: of this pair's random numbers; not needed where nothing is random.
            same_video: whether both frames are of one source video.

        Raises:
            ValueError: there is no generator where one is needed.
        """
        if generator is None and self.random:
            raise ValueError("this transform needs random numbers")
        size = self.size or len(source.image)
        chances = np.full(7, 0.5) if generator is None else generator.random(7)
        first, other = chances[:3], chances[:3] if self.same_crop else chances[3:6]
        together = self.same_window and same_video and not torch.equal(source.source_to_crop, target.source_to_crop)
        if not (self.random or together) and size == len(source.image) == len(target.image):
            return source, target
        window = self._window(len(source.image if together else target.image), size, other)
        if together:  # from the target's crop back to the video, and from there on as the source
            window = window @ source.source_to_crop.double().numpy() @ np.linalg.inv(target.source_to_crop.double().numpy())
        source, target = crop(source, self._window(len(source.image), size, first), size), crop(target, window, size)
        if chances[6] < self.flip:
            source, target = flip(source), flip(target)
        return self.photometric(source, target, generator) if self.photometric and generator else (source, target)

    def _window(self, size: int, new_size: int, chances: FloatArray) -> FloatArray:
        """The random crop of a picture of ``size`` pixels a side."""
        grow, right, down = 2 * chances - 1
        return about_centre(size, new_size, (1 + self.scale) ** grow, (self.shift * right, self.shift * down))
