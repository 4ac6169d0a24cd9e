"""PNG (ISO/IEC 15948) for maps of 8-bit labels, written so that it decodes fast.

Rows are stored without filters and as one zlib stream: a decoder inflates it in one call and copies. The compressor looks for runs only,
which is what label maps are made of: as small as a full search, in a quarter of the time. Any reader of PNG reads these files, and any
8-bit grey or palette PNG is read here (Pillow decodes those that are laid out otherwise).
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets_toolkit.shards.codec_checks import Buffer, CodecError, check_size, require

Labels = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER, _LENGTH = struct.Struct(">II5B"), struct.Struct(">I")
_GREY, _PALETTE = 0, 3  # colour types


def encode_png(values: Labels, palette: bytes = b"") -> bytes:
    """Values (h x w) as an 8-bit PNG, grey or with a palette (3 bytes RGB for each value)."""
    require(values, "uint8", (None, None))
    check_size(*values.shape)
    height, width = values.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = values
    header = _HEADER.pack(width, height, 8, _PALETTE if palette else _GREY, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", _deflate(rows.tobytes())), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks if data or kind == b"IEND")


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + kind + data + _LENGTH.pack(zlib.crc32(kind + data))


def decode_png(data: Buffer, out: Labels | None = None) -> Labels:
    """Values (h x w) of an 8-bit grey or palette PNG; in ``out`` if that has this size.

    Raises:
        CodecError: something else, damaged, cut short, or larger than is allowed.
    """
    chunks = _chunks(data)
    if len(chunks.get(b"IHDR", b"")) != _HEADER.size:
        raise CodecError("a PNG without a sound header; copy or build it again")
    width, height, depth, colour, *methods = _HEADER.unpack(chunks[b"IHDR"])
    check_size(height, width)
    if depth != 8 or colour not in (_GREY, _PALETTE):
        raise CodecError(f"a PNG of {depth} bits and colour type {colour}, not of 8-bit labels; build it again")
    rows = None if any(methods) else _inflate(chunks.get(b"IDAT", b""), height, width + 1)
    values = _with_pillow(data) if rows is None or rows[:, 0].any() else rows[:, 1:]
    place = out if out is not None and out.shape == values.shape else np.empty(values.shape, np.uint8)
    np.copyto(place, values)
    return place


def _chunks(data: Buffer) -> dict[bytes, bytes]:
    """Content by kind, up to IEND; chunks of one kind are joined, as IDAT needs it."""
    if data[:8] != _SIGNATURE:
        raise CodecError("not a PNG; copy or build it again")
    chunks: dict[bytes, bytes] = {}
    position = len(_SIGNATURE)
    while b"IEND" not in chunks:
        start = position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            raise CodecError("a PNG that is cut short; copy or build it again")
        kind = bytes(data[position + 4 : start])
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise CodecError("a damaged PNG (a checksum is wrong); copy or build it again")
        chunks[kind] = chunks.get(kind, b"") + data[start:end]
        position = end + 4
    return chunks


def _inflate(stream: bytes, height: int, length: int) -> Labels:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(stream, height * length + 1)  # no more, whatever the stream holds
    except zlib.error as error:
        raise CodecError(f"a damaged PNG ({error}); copy or build it again") from error
    if len(raw) != height * length or not inflater.eof:
        raise CodecError(f"a PNG whose data do not fill {length - 1} x {height} pixels; copy or build it again")
    return np.frombuffer(raw, np.uint8).reshape(height, length)


def _with_pillow(data: Buffer) -> Labels:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            return np.array(picture)
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them meet
        raise CodecError(f"not a sound PNG ({error}); copy or build it again") from error
