"""The columns of a data set: which tar member holds each, how it is encoded, in which units and frame.

``docs/shards.md`` describes the formats and the measurements behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from datasets_toolkit.sample import FrameSample
from datasets_toolkit.shards.codec_checks import MAX_SIDE, Buffer, CodecError, require
from datasets_toolkit.shards.depth_codec import decode_depth, encode_depth
from datasets_toolkit.shards.picture_codecs import (
    decode_image,
    decode_matte,
    decode_normals,
    decode_parsing,
    encode_image,
    encode_matte,
    encode_normals,
    encode_parsing,
)
from datasets_toolkit.shards.record_codecs import decode_array, decode_meta, encode_array, encode_meta

__all__ = [
    "COLUMNS", "MAX_SIDE", "CodecError", "Column", "decode_array", "decode_depth", "decode_image", "decode_matte", "decode_meta",
    "decode_normals", "decode_parsing", "encode_array", "encode_depth", "encode_image", "encode_matte", "encode_meta", "encode_normals",
    "encode_parsing", "encode_sample",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Column:
    """One kind of label.

    Attributes:
        name: the field of :class:`FrameSample`.
        member: what follows ``<key>.`` in the tar.
        codec: the format in words.
        dtype: of the decoded array; "record" for the frame's record.
        shape: of the decoded array: "size" stands for the crop's side, "any" for any length.
        units: of its values.
        frame: the coordinate frame they are in, "" where they are in none.
    """

    name: str
    member: str
    codec: str
    dtype: str
    shape: tuple[int | str, ...]
    units: str
    frame: str
    encoder: Callable[[Any], bytes]
    decoder: Callable[[Buffer], Any]

    def encode(self, value: Any) -> bytes:
        """The member's bytes; the same for the same value.

        Raises:
            ValueError: the value is not of this column's dtype and shape.
        """
        if self.dtype != "record":
            require(value, self.dtype, [length if isinstance(length, int) else None for length in self.shape])
        return self.encoder(value)

    def decode(self, data: Buffer, size: int | None = None) -> Any:
        """The value of a member.

        Args:
            data: the member's bytes.
            size: pixels a side that a map must have; None allows any.

        Raises:
            CodecError: damaged, cut short, or of another size or type.
        """
        return self.check(self.decoder(data), size)

    def check(self, value: Any, size: int | None) -> Any:
        """The decoded value, if it has this column's dtype and shape.

        Raises:
            CodecError: it has not.
        """
        if self.dtype == "record":
            return value
        wanted = [size if length == "size" else None if length == "any" else length for length in self.shape]
        try:
            require(value, self.dtype, wanted)  # type: ignore[arg-type]
        except ValueError as error:
            raise CodecError(f"{error}; build it again") from error
        return value

    def describe(self) -> dict[str, Any]:
        """What ``dataset.json`` says of this column."""
        names = ("name", "member", "codec", "dtype", "units", "frame")
        return {**{name: getattr(self, name) for name in names}, "shape": list(self.shape)}


def _column(
    name: str, member: str, codec: str, dtype: str, shape: tuple[int | str, ...], units: str, frame: str, encoder: Any, decoder: Any
) -> Column:
    return Column(
        name=name, member=member, codec=codec, dtype=dtype, shape=shape, units=units, frame=frame, encoder=encoder, decoder=decoder
    )


_ALL = (
    _column("image", "jpg", "JPEG quality 95 4:2:0", "uint8", ("size", "size", 3), "sRGB", "crop", encode_image, decode_image),
    _column("parsing", "parsing.png", "8-bit palette PNG", "uint8", ("size", "size"), "Region", "crop", encode_parsing, decode_parsing),
    _column("matte", "matte.png", "8-bit grey PNG", "uint8", ("size", "size"), "alpha x 255", "crop", encode_matte, decode_matte),
    _column("depth", "depth.dsz", "DSZ1", "float32", ("size", "size"), "cm, 0 = unknown", "OpenCV camera, z", encode_depth, decode_depth),
    _column(
        "normals", "normals.jpg", "JPEG quality 95 4:4:4 of 127.5 (n + 1)", "float32", ("size", "size", 3), "unit vector, 0 = unknown",
        "OpenCV camera", encode_normals, decode_normals,
    ),
    _column("landmarks", "landmarks.npy", "NumPy 1.0", "float32", (478, 3), "pixels", "crop", encode_array, decode_array),
    _column("audio", "audio.npy", "NumPy 1.0", "int16", ("any",), "mono PCM, 16 kHz", "", encode_array, decode_array),
    _column("mel", "mel.npy", "NumPy 1.0", "float16", (4, 80), "log energy, 10 ms hops", "", encode_array, decode_array),
    _column("meta", "json", "JSON", "record", (), "", "", encode_meta, decode_meta),
)  # fmt: skip

COLUMNS: Mapping[str, Column] = MappingProxyType({column.name: column for column in _ALL})
"""All columns by name, in the order of their members in a tar."""


def encode_sample(sample: FrameSample) -> list[tuple[str, bytes]]:
    """The members (suffix, bytes) of a sample, in tar order; columns that are None have none."""
    values = ((column, getattr(sample, column.name)) for column in COLUMNS.values())
    return [(column.member, column.encode(value)) for column, value in values if value is not None]
