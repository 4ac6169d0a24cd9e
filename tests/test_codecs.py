"""The codecs: values through a member and back, against Pillow, OpenCV and NumPy, and what damaged members say."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, JpegImagePlugin
from shard_scenes import frame_meta, frame_sample

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.video import VideoWriter
from datasets_toolkit.sample import FrameMeta, FrameSample
from datasets_toolkit.schema import ByteImage, Region
from datasets_toolkit.shards.codecs import (
    COLUMNS,
    MAX_SIDE,
    CodecError,
    decode_array,
    decode_depth,
    decode_image,
    decode_matte,
    decode_meta,
    decode_normals,
    decode_parsing,
    encode_array,
    encode_depth,
    encode_image,
    encode_matte,
    encode_meta,
    encode_normals,
    encode_parsing,
    encode_sample,
)
from datasets_toolkit.shards.depth_codec import STEP

SIZE = 64
labels = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, max(Region)))
bytes_maps = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))
depths = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 70), st.integers(1, 20)), elements=st.floats(0, 600, width=32) | st.just(0.0)
)  # fmt: skip
SAMPLE = frame_sample("ball", 3, SIZE)
MEMBERS = {name: COLUMNS[name].encode(getattr(SAMPLE, name)) for name in COLUMNS}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def psnr(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2)))


def test_columns_are_the_fields_of_a_sample_and_fit_json() -> None:
    assert set(COLUMNS) == {field.name for field in fields(FrameSample)}
    assert [suffix for suffix, _ in encode_sample(SAMPLE)] == [column.member for column in COLUMNS.values()]
    described = [column.describe() for column in COLUMNS.values()]
    assert json.loads(json.dumps(described)) == described
    assert [suffix for suffix, _ in encode_sample(replace(SAMPLE, depth=None, mel=None))] == [
        column.member for column in COLUMNS.values() if column.name not in ("depth", "mel")
    ]


def test_every_column_comes_back_with_its_dtype_and_shape() -> None:
    for name, column in COLUMNS.items():
        if name != "meta":
            value, original = column.decode(MEMBERS[name], SIZE), getattr(SAMPLE, name)
            assert (value.dtype, value.shape) == (original.dtype, original.shape)
            assert value.flags.writeable
            assert column.encode(original) == MEMBERS[name]


def test_an_image_is_a_jpeg_that_others_decode_to_the_same_pixels(astronaut: ByteImage) -> None:
    data = encode_image(astronaut)
    decoded = decode_image(data)
    assert psnr(decoded, astronaut) > 38
    assert JpegImagePlugin.get_sampling(opened(data)) == 2  # 4:2:0
    assert np.abs(decoded.astype(int) - np.asarray(opened(data))).max() <= 2
    assert np.abs(decoded.astype(int) - cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]).max() <= 2


@settings(max_examples=40, deadline=None)
@given(labels)
def test_parsing_is_lossless_also_for_pillow(values: npt.NDArray[np.uint8]) -> None:
    data = encode_parsing(values)
    np.testing.assert_array_equal(decode_parsing(data), values)
    assert opened(data).mode == "P"
    np.testing.assert_array_equal(np.asarray(opened(data)), values)


def test_a_viewer_shows_each_region_in_its_own_colour() -> None:
    values = np.arange(len(Region), dtype=np.uint8)[None]
    colours = np.asarray(opened(encode_parsing(values)).convert("RGB"))[0]
    distances = np.abs(colours[:, None].astype(int) - colours[None]).max(-1)
    assert distances[~np.eye(len(Region), dtype=bool)].min() > 15
    assert colours[Region.BACKGROUND].max() == 0


@settings(max_examples=40, deadline=None)
@given(bytes_maps)
def test_a_matte_is_lossless_also_for_pillow_and_opencv(values: npt.NDArray[np.uint8]) -> None:
    data = encode_matte(values)
    np.testing.assert_array_equal(decode_matte(data), values)
    assert opened(data).mode == "L"
    np.testing.assert_array_equal(np.asarray(opened(data)), values)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), values)


@settings(max_examples=20, deadline=None)
@given(bytes_maps)
def test_pngs_of_other_writers_are_read(values: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(decode_matte(cv2.imencode(".png", values)[1].tobytes()), values)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", optimize=True)
    np.testing.assert_array_equal(decode_matte(file.getvalue()), values)


def slow_depth(data: bytes) -> npt.NDArray[np.float64]:
    """The layout of ``docs/shards.md``, read number by number."""
    height, width, step, checksum = struct.unpack_from("<IIfI", data, 4)
    assert checksum == zlib.crc32(data[:16])
    raw = zstandard.ZstdDecompressor().decompress(data[20:])
    count = height * width
    stored = [[(raw[width * y + x] + 256 * raw[count + width * y + x] - 128) % 65536 for x in range(width)] for y in range(height)]
    known, stride = {0}, 1
    while stride * 2 < height:
        stride *= 2
    while stride:
        for y in range(stride, height, 2 * stride):
            assert y - stride in known
            for x in range(width):
                above = stored[y - stride][x]
                predicted = above // 2 + stored[y + stride][x] // 2 if y + stride < height else above
                stored[y][x] = (stored[y][x] + predicted) % 65536
        known |= set(range(stride, height, 2 * stride))
        stride //= 2
    return np.array(stored) * float(step)


@settings(max_examples=60, deadline=None)
@given(depths)
def test_depth_is_within_half_a_step_and_unknown_stays_unknown(depth: npt.NDArray[np.float32]) -> None:
    data = encode_depth(depth)
    decoded = decode_depth(data)
    np.testing.assert_allclose(decoded, slow_depth(data), rtol=1e-6)
    np.testing.assert_array_equal(decoded == 0, depth == 0)
    known = depth >= STEP / 2
    assert np.abs(decoded - depth)[known].max(initial=0) <= STEP / 2 + 6e-5  # float32 at 600 cm
    assert np.abs(decoded - depth)[~known].max(initial=0) <= STEP


@pytest.mark.parametrize("farthest", [655.0, 656.0, 5000.0, 1e6])
def test_far_depth_takes_larger_steps(farthest: float) -> None:
    depth = np.linspace(0, farthest, 300, dtype=np.float32).reshape(15, 20)
    step = max(STEP, farthest / 65535)
    assert np.abs(decode_depth(encode_depth(depth)) - depth).max() <= 0.5 * step * (1 + 1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_impossible_depth_is_a_mistake_of_the_caller(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        encode_depth(np.array([[1, bad]], np.float32))


def test_smooth_depth_is_small() -> None:
    """A tilted plane costs next to nothing, a quarter of a 16-bit PNG at most."""
    y, x = np.mgrid[:256, :256]
    depth = (100 + 0.03 * x + 0.05 * y).astype(np.float32)
    png = cv2.imencode(".png", np.rint(depth / STEP).astype(np.uint16))[1]
    assert len(encode_depth(depth)) < len(png) / 4


def angles(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    cosine = np.sum(first.astype(float) * second, -1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def test_normals_are_unit_and_near() -> None:
    sample = frame_sample("ball", 0, 256)
    assert sample.normals is not None and sample.depth is not None
    data, known = encode_normals(sample.normals), sample.depth > 0
    for decoded in (decode_normals(data), decode_normals(data, known)):
        both = known & (np.abs(decoded).max(-1) > 0)
        assert both.sum() > 0.999 * known.sum()
        np.testing.assert_allclose(np.linalg.norm(decoded[both], axis=-1), 1, atol=1e-5)
        error = angles(decoded[both], sample.normals[both])
        assert error.mean() < 0.8 and np.percentile(error, 99) < 6
    np.testing.assert_array_equal(np.abs(decode_normals(data, known)).max(-1) > 0, known)
    wrong = (np.abs(decode_normals(data)).max(-1) > 0) != known
    assert wrong.mean() < 2e-3
    assert JpegImagePlugin.get_sampling(opened(data)) == 0  # 4:4:4


def test_normals_beside_labels_of_another_size() -> None:
    with pytest.raises(CodecError, match="another size"):
        decode_normals(MEMBERS["normals"], np.ones((SIZE, SIZE + 1), bool))


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.dtype(name) for name in ("<f4", "<f2", "<i2", "<f8", "<u4", "|u1", "|i1", "|b1")]),
        arrays.array_shapes(min_dims=0, min_side=0),
    )
)
def test_arrays_are_numpy_files(array: npt.NDArray[np.generic]) -> None:
    data = encode_array(array)
    decoded = decode_array(data)
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(decoded, array)
    np.testing.assert_array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f4', 'shape': (1,), 'fortran_order': False, }\n", b"1234"),
        npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }\n", b"1234"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", b"12345678"),
        npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }\n", b"1234"),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False}", b"1234"),
        npy("__import__('os')", b"1234"),
        npy("(" * 5000, b""),
        b"\x93NUMPY\x02\x00",
        b"",
    ],
)
def test_other_numpy_files_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_array(data)


def test_arrays_of_the_other_byte_order_are_turned() -> None:
    array = np.arange(5, dtype=">f4")
    assert encode_array(array) == encode_array(array.astype("<f4"))
    np.testing.assert_array_equal(decode_array(encode_array(array)), array)


def test_objects_are_not_stored() -> None:
    with pytest.raises(ValueError, match="numbers"):
        encode_array(np.array([{}], object))


def same_meta(first: FrameMeta, second: FrameMeta) -> bool:
    return all(np.array_equal(getattr(first, one.name), getattr(second, one.name)) for one in fields(FrameMeta) if one.name != "scores")


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-1e6, 1e6), st.integers(0, 10**9), st.fractions(min_value=1, max_value=240), st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.floats(allow_infinity=False), max_size=3),
)  # fmt: skip
def test_the_record_comes_back_exactly(time: float, index: int, fps: object, person: str, scores: dict[str, float]) -> None:
    meta = replace(frame_meta("a-b_00", 7, SIZE), time=time, index=index, fps=fps, person=person, scores=scores)
    decoded = decode_meta(encode_meta(meta))
    assert same_meta(meta, decoded)
    assert decoded.scores.keys() == scores.keys()
    np.testing.assert_array_equal([decoded.scores[name] for name in scores], list(scores.values()))


def test_the_record_is_strict_json() -> None:
    record = json.loads(encode_meta(replace(SAMPLE.meta, scores={"snr": float("nan")})), parse_constant=lambda name: pytest.fail(name))
    assert record["scores"] == {"snr": None}
    assert record["fps"] == "25/1"
    with pytest.raises(ValueError):
        encode_meta(replace(SAMPLE.meta, time=float("inf")))
    with pytest.raises(ValueError, match="intrinsics"):
        encode_meta(replace(SAMPLE.meta, intrinsics=np.eye(4)))


RECORD = json.loads(MEMBERS["meta"])


@pytest.mark.parametrize(
    "change",
    [
        {"fps": "25/0"}, {"fps": "-25/1"}, {"fps": 25}, {"index": 1.5}, {"index": True}, {"key": None}, {"scores": []},
        {"scores": {"a": "b"}},
        {"intrinsics": [[1, 2], [3, 4]]}, {"intrinsics": [[1, 2, 3], [1, 2, 3], [1, 2]]}, {"blendshapes": "none"}, {"more": 1},
        {"head_to_camera": [[1e999] * 4] * 4}, {"time": float("nan")},
    ],
)  # fmt: skip
def test_a_record_with_other_content_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CodecError, match="not the record of a frame"):
        decode_meta(json.dumps(RECORD | change).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, MEMBERS["meta"][:-1]])
def test_other_json_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match="not the record of a frame"):
        decode_meta(data)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_member_cut_short_anywhere_is_found(name: str) -> None:
    data = MEMBERS[name]
    for length in sorted({*range(0, len(data), max(len(data) // 60, 1)), len(data) - 1}):
        with pytest.raises(CodecError) as caught:
            COLUMNS[name].decode(data[:length], SIZE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["parsing", "matte", "depth"])
def test_flipped_bits_are_found(name: str) -> None:
    """By the checksums of PNG and zstd; a JPEG has none."""
    data = bytearray(MEMBERS[name])
    random = np.random.default_rng(0)
    for position in random.choice(len(data), min(len(data), 300), replace=False):
        data[position] ^= 1 << int(random.integers(8))
        try:
            value = COLUMNS[name].decode(bytes(data), SIZE)
        except CodecError:
            value = None
        if value is not None:  # a bit that means nothing, such as in the flags of zlib
            np.testing.assert_array_equal(value, COLUMNS[name].decode(MEMBERS[name]))
        data[position] = MEMBERS[name][position]


@pytest.mark.parametrize("name", COLUMNS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_never_raises_anything_else(name: str, data: st.DataObject) -> None:
    member = bytearray(MEMBERS[name])
    for _ in range(data.draw(st.integers(1, 6))):
        member[data.draw(st.integers(0, len(member) - 1))] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        try:
            value = COLUMNS[name].decode(bytes(member), SIZE)
        except UserError:
            return
    if name != "meta":
        assert value.shape == getattr(SAMPLE, name).shape


def jpeg_of_size(side: int) -> bytes:
    data = bytearray(MEMBERS["image"])
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def png_of_size(side: int) -> bytes:
    header = struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def depth_of_size(side: int) -> bytes:
    header = b"DSZ1" + struct.pack("<IIf", side, side, 0.01)
    return header + struct.pack("<I", zlib.crc32(header)) + MEMBERS["depth"][20:]


@pytest.mark.parametrize("side", [MAX_SIDE + 1, 65500])
def test_a_header_that_asks_for_too_much_is_refused(side: int) -> None:
    bombs = {"image": jpeg_of_size(side), "normals": jpeg_of_size(side), "parsing": png_of_size(side), "matte": png_of_size(side)}
    for name, data in (bombs | {"depth": depth_of_size(side)}).items():
        with pytest.raises(CodecError, match=str(MAX_SIDE)):
            COLUMNS[name].decode(data)


def test_streams_that_unpack_to_too_much_are_refused() -> None:
    header = b"DSZ1" + struct.pack("<IIf", 4, 4, 0.01)
    zeros = bytes(1 << 24)
    with pytest.raises(CodecError, match="bytes where"):
        decode_depth(header + struct.pack("<I", zlib.crc32(header)) + zstandard.compress(zeros))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    with pytest.raises(CodecError):
        decode_depth(header + struct.pack("<I", zlib.crc32(header)) + unsized)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = struct.pack(">II5B", 4, 4, 8, 0, 0, 0, 0)
    with pytest.raises(CodecError, match="do not fill"):
        decode_matte(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(zeros)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("name", [name for name, column in COLUMNS.items() if "size" in column.shape])
def test_a_map_of_another_size_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match="shape"):
        COLUMNS[name].decode(MEMBERS[name], SIZE + 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_a_png_of_other_pixels_is_refused(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG")
    with pytest.raises(CodecError, match="8-bit"):
        decode_matte(file.getvalue())


def test_labels_that_are_no_region_are_refused() -> None:
    stray = np.full((4, 4), max(Region) + 1, np.uint8)
    with pytest.raises(ValueError, match="no region"):
        encode_parsing(stray)
    with pytest.raises(CodecError, match="no region"):
        decode_parsing(encode_matte(stray))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", np.zeros((8, 8, 3), np.float32)), ("image", np.zeros((8, 8), np.uint8)), ("matte", np.zeros((8, 8), bool)),
        ("depth", np.zeros((8, 8))), ("normals", np.zeros((8, 8), np.float32)), ("landmarks", np.zeros((68, 3), np.float32)),
        ("audio", np.zeros((2, 640), np.int16)), ("mel", np.zeros((4, 80), np.float32)),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_a_mistake_of_the_caller(name: str, value: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="expected"):
        COLUMNS[name].encode(value)


def test_silence_and_strided_maps_are_stored() -> None:
    empty = np.zeros(0, np.int16)
    assert COLUMNS["audio"].decode(COLUMNS["audio"].encode(empty)).shape == (0,)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (SIZE, 2 * SIZE, 3), dtype=np.uint8)
    assert encode_image(image[:, ::2]) == encode_image(np.ascontiguousarray(image[:, ::2]))
    assert encode_matte(image[:, ::2, 0]) == encode_matte(np.ascontiguousarray(image[:, ::2, 0]))
    depth = random.uniform(0, 200, (SIZE, SIZE)).astype(np.float32)
    assert encode_depth(depth.T) == encode_depth(np.ascontiguousarray(depth.T))


def test_the_page_describes_every_member() -> None:
    page = (Path(__file__).parents[1] / "docs" / "shards.md").read_text(encoding="utf-8")
    for column in COLUMNS.values():
        assert f"`<key>.{column.member}`" in page
        assert column.codec in page


def test_the_benchmark_measures_every_codec(tmp_path: Path, astronaut: ByteImage) -> None:
    """On a small video of a photograph; nothing here is timed. A process of its own: the script shares its name with a standard module."""
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), (512, 512)) as writer:
        for _ in range(3):
            writer.write(astronaut)
    script = Path(__file__).parents[1] / "benchmarks" / "codecs.py"
    command = [sys.executable, str(script), "--quick", "--size", "128", "--json", str(tmp_path / "rows.json"), str(tmp_path / "a.mp4")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "rows.json").read_text())
    errors = {(row["label"], row["codec"]): row["error"] for row in rows}
    assert len(errors) == len(rows) and done.stdout.count("\n| ") == len(rows) + 1
    assert {error for (label, codec), error in errors.items() if label in ("parsing", "matte") and "JPEG" not in codec} == {"none"}
    assert all(row["decode_ms"] > 0 and row["encode_ms"] > 0 and row["kib"] > 0 for row in rows)
    ours = {label: error for (label, codec), error in errors.items() if "(ours)" in codec}
    assert ours["depth"] == "at most 0.0050 cm" and float(ours["image"].split()[0]) > 38 and float(ours["normals"].split()[0]) < 2


@pytest.mark.parametrize("name", ["parsing", "matte", "depth"])
def test_maps_are_decoded_into_memory_that_is_there(name: str) -> None:
    values = np.random.default_rng(3).integers(0, 15, (24, 40), np.uint8)
    column = COLUMNS[name]
    data = column.encoder(values.astype(column.dtype))
    wanted = column.decoder(data)
    for wrap in (bytes, memoryview):
        stack = np.full((3, 24, 40), 77, column.dtype)
        made = column.decoder(wrap(data), stack[1])  # type: ignore[call-arg]
        assert np.shares_memory(made, stack)
        np.testing.assert_array_equal(stack[1], wanted)
        assert (stack[[0, 2]] == 77).all()
        small = np.full((24, 39), 77, column.dtype)
        other = column.decoder(wrap(data), small)  # type: ignore[call-arg]
        np.testing.assert_array_equal(other, wanted)
        assert (small == 77).all()
