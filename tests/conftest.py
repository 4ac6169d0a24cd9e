"""What is slow to make, made once: the models of the toolkit and the portrait they look at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from datasets_toolkit.faces.detection import FaceTracker
from datasets_toolkit.schema import ByteImage, Face


@pytest.fixture(scope="session")
def tracker() -> Iterator[FaceTracker]:
    with FaceTracker() as opened:
        yield opened


@pytest.fixture(scope="session")
def astronaut() -> ByteImage:
    """A photograph (512 x 512) of one person who looks into the camera, hair to the ears, in a space suit."""
    from skimage.data import astronaut

    image: ByteImage = np.ascontiguousarray(astronaut())
    image.setflags(write=False)
    return image


@pytest.fixture(scope="session")
def astronaut_face(tracker: FaceTracker, astronaut: ByteImage) -> Face:
    (face,) = tracker.faces(astronaut)
    return face
