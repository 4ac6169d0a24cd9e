"""The codecs that ``codecs.py`` compares: those of the shards and the usual others."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
import zstandard
from PIL import Image

from datasets_toolkit.shards import codecs
from datasets_toolkit.shards.depth_codec import STEP


@dataclass(frozen=True)
class Codec:
    """A way to store one label."""

    label: str
    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def with_pillow(value: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(value).save(file, kind, **options)
    return file.getvalue()


def palette_png(labels: Any) -> bytes:
    picture = Image.fromarray(labels)
    picture.putpalette([37 * value % 256 for value in range(48)])
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def read_pillow(data: bytes) -> Any:
    return np.array(Image.open(io.BytesIO(data)))


def with_opencv(kind: str, value: Any, *options: int) -> bytes:
    value = cv2.cvtColor(value, cv2.COLOR_RGB2BGR) if value.ndim == 3 else value
    return bytes(cv2.imencode(kind, value, options)[1].tobytes())


def read_opencv(data: bytes) -> Any:
    value = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(value, cv2.COLOR_BGR2RGB) if value.ndim == 3 else value


def steps(depth: Any) -> Any:
    return np.rint(depth / STEP).astype(np.uint16)


def half_npz(depth: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, depth=depth.astype(np.float16))
    return file.getvalue()


def running_differences(level: int) -> Callable[[Any], bytes]:
    """Differences along each row, low bytes, high bytes, zstd: the common way."""

    def encode(depth: Any) -> bytes:
        delta = np.diff(steps(depth), axis=1, prepend=np.uint16(0)).view(np.uint8).reshape(*depth.shape, 2)
        planes = np.ascontiguousarray(delta.transpose(2, 0, 1)).tobytes()
        return depth.shape[1].to_bytes(4, "little") + zstandard.compress(planes, level)

    return encode


def running_sum(data: bytes) -> Any:
    planes = np.frombuffer(zstandard.decompress(data[4:]), np.uint8).reshape(2, -1, int.from_bytes(data[:4], "little"))
    delta = cv2.merge([planes[0], planes[1]]).reshape(planes.shape[1], -1).view(np.uint16)
    return np.multiply(np.cumsum(delta, 1, dtype=np.uint16), np.float32(STEP), dtype=np.float32)


def bytes_of_normals(normals: Any) -> Any:
    return np.clip(np.rint(127.5 * (normals + 1)), 0, 255).astype(np.uint8)


def vectors_of(stored: Any) -> Any:
    vectors = stored.astype(np.float32) / np.float32(127.5) - 1
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 0.5, vectors / np.maximum(length, 0.5), 0)


def candidates(size: int) -> list[Codec]:
    """Ours first for each label; ``size`` pixels a side."""
    return [*_images(), *_labels(size), *_mattes(size), *_normals(), *_depths("depth"), *_depths("noisy depth")]


def _jpeg(quality: int, sampling: str) -> Callable[[Any], bytes]:
    return lambda image: bytes(simplejpeg.encode_jpeg(image, quality, "RGB", sampling))


def _raw(size: int, inflate: Callable[[bytes], bytes]) -> Callable[[bytes], Any]:
    return lambda data: np.frombuffer(inflate(data), np.uint8).reshape(size, size).copy()


def _images() -> list[Codec]:
    fast = lambda data: simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True)  # noqa: E731
    return [
        Codec("image", "JPEG q95 4:2:0, OpenCV, read by simplejpeg (ours)", codecs.encode_image, codecs.decode_image),
        Codec("image", "the same, read by simplejpeg's fast modes", codecs.encode_image, fast),
        Codec("image", "the same, read by OpenCV", codecs.encode_image, read_opencv),
        Codec("image", "the same, read by Pillow", codecs.encode_image, read_pillow),
        Codec("image", "JPEG q95 4:2:0, simplejpeg", _jpeg(95, "420"), codecs.decode_image),
        Codec("image", "JPEG q95 4:2:0, Pillow", lambda image: with_pillow(image, "JPEG", quality=95, subsampling=2), codecs.decode_image),
    ]


def _labels(size: int) -> list[Codec]:
    return [
        Codec("parsing", "palette PNG, no filter (ours)", codecs.encode_parsing, codecs.decode_parsing),
        Codec("parsing", "the same, decoded by Pillow", codecs.encode_parsing, read_pillow),
        Codec("parsing", "palette PNG, Pillow", palette_png, read_pillow),
        Codec("parsing", "grey PNG, OpenCV", lambda labels: with_opencv(".png", labels), read_opencv),
        Codec("parsing", "raw + zstd 9", lambda labels: zstandard.compress(labels.tobytes(), 9), _raw(size, zstandard.decompress)),
    ]


def _mattes(size: int) -> list[Codec]:
    grey = lambda quality: lambda matte: simplejpeg.encode_jpeg(matte[..., None], quality, "GRAY", "Gray")  # noqa: E731
    decode = lambda data: simplejpeg.decode_jpeg(data, "GRAY")[..., 0]  # noqa: E731
    return [
        Codec("matte", "grey PNG, no filter (ours)", codecs.encode_matte, codecs.decode_matte),
        Codec("matte", "grey PNG, Pillow", lambda matte: with_pillow(matte, "PNG"), read_pillow),
        Codec("matte", "grey PNG, OpenCV", lambda matte: with_opencv(".png", matte), read_opencv),
        Codec("matte", "raw + zlib 6", lambda matte: zlib.compress(matte.tobytes(), 6), _raw(size, zlib.decompress)),
        Codec("matte", "grey JPEG q90", grey(90), decode),
        Codec("matte", "grey JPEG q95", grey(95), decode),
    ]


def _normals() -> list[Codec]:
    stored = lambda quality, sampling: lambda n: _jpeg(quality, sampling)(bytes_of_normals(n))  # noqa: E731
    png = lambda n: with_opencv(".png", bytes_of_normals(n))  # noqa: E731
    return [
        Codec("normals", "JPEG q95 4:4:4 (ours)", codecs.encode_normals, codecs.decode_normals),
        Codec("normals", "JPEG q95 4:4:4, left as bytes", codecs.encode_normals, codecs.decode_image),
        Codec("normals", "JPEG q95 4:4:4, simplejpeg", stored(95, "444"), codecs.decode_normals),
        Codec("normals", "JPEG q97 4:4:4, simplejpeg", stored(97, "444"), codecs.decode_normals),
        Codec("normals", "JPEG q95 4:2:0, simplejpeg", stored(95, "420"), codecs.decode_normals),
        Codec("normals", "PNG 3 x 8 bits, OpenCV, left as bytes", png, read_opencv),
    ]


def _depths(label: str) -> list[Codec]:
    return [
        Codec(label, "rows from both sides + byte shuffle + zstd 3 (ours)", codecs.encode_depth, codecs.decode_depth),
        Codec(label, "running difference + byte shuffle + zstd 3", running_differences(3), running_sum),
        Codec(label, "running difference + byte shuffle + zstd 9", running_differences(9), running_sum),
        Codec(label, "16-bit PNG, OpenCV", lambda d: with_opencv(".png", steps(d)), lambda data: read_opencv(data) * np.float32(STEP)),
        Codec(label, "float16 npz", half_npz, lambda data: np.load(io.BytesIO(data))["depth"].astype(np.float32)),
    ]
