"""Damaged and odd videos in any number, and a build of them.

Run as a script for a long session: ``python tests/build_fuzz.py 500``.
"""

from __future__ import annotations

import collections
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from build_scenes import face_picture, small_build, source, talking, write_video

from datasets_toolkit.build.executors import LocalExecutor
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.shard_reader import read_table
from datasets_toolkit.shards.storage import Storage

REJECTED, KEPT, EITHER = "rejected", "ok", ""
"""What must become of a kind of video; damage may or may not leave enough of it."""


class Maker:
    """Makes videos of all kinds from one face; ``seed`` decides all that is drawn."""

    def __init__(self, face: ByteImage, folder: Path, seed: int) -> None:
        self.face, self.folder, self.random = face, folder, random.Random(seed)
        folder.mkdir(parents=True)
        self.plain = write_video(folder / "plain.mp4", talking(face, 5)).read_bytes()
        self.others = [self._encoded(suffix) for suffix in (".mkv", ".avi", ".mpg")]

    def make(self, kind: str, number: int) -> tuple[Path, str]:
        """A video of a kind, and what must become of it."""
        method: Callable[[Path], str] = getattr(self, f"_{kind}")
        path = self.folder / f"{number:04d}_{kind}.mp4"
        return path, method(path)

    def _any(self) -> bytes:
        return self.random.choice([self.plain, self.plain, *self.others])

    def _frames(self, count: int = 4) -> list[ByteImage]:
        return talking(self.face, count, self.random.choice([-3, -2, 2, 3]))

    def _encoded(self, suffix: str) -> bytes:
        path = self.folder / f"base{suffix}"
        mux(path, self._frames(5), codec={".mpg": "mpeg2video", ".avi": "mpeg4"}.get(suffix, "libx264"))
        return path.read_bytes()

    def _truncated(self, path: Path) -> str:
        data = self._any()
        path.write_bytes(data[: self.random.randrange(1, len(data))])
        return EITHER

    def _flipped(self, path: Path) -> str:
        data = bytearray(self._any())
        for _ in range(self.random.choice([1, 3, 10, 100, 1000])):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        path.write_bytes(bytes(data))
        return EITHER

    def _header(self, path: Path) -> str:
        """Damage where it hurts most: in the first and the last 600 bytes, where the headers are."""
        data = bytearray(self._any())
        for _ in range(self.random.choice([1, 5, 25])):
            place = self.random.randrange(600)
            data[place if self.random.random() < 0.5 else -1 - place] = self.random.randrange(256)
        path.write_bytes(bytes(data))
        return EITHER

    def _spliced(self, path: Path) -> str:
        first, second = self._any(), self._any()
        path.write_bytes(first[: self.random.randrange(len(first))] + second[self.random.randrange(len(second)) :])
        return EITHER

    def _wrong_extension(self, path: Path) -> str:
        picture = cv2.imencode(self.random.choice([".png", ".jpg"]), self.face)[1].tobytes()
        path.write_bytes(self.random.choice([picture, b"only text\n" * self.random.randrange(1, 99), b"PK\3\4" + self.plain, b"\0" * 4096]))
        return REJECTED

    def _empty(self, path: Path) -> str:
        path.write_bytes(b"")
        return REJECTED

    def _noise(self, path: Path) -> str:
        path.write_bytes(self.plain[: self.random.choice([0, 32, 200])] + self.random.randbytes(self.random.randrange(10, 9999)))
        return REJECTED

    def _zero_frames(self, path: Path) -> str:
        mux(path, [], sound=0.4)
        return REJECTED

    def _one_frame(self, path: Path) -> str:
        write_video(path, self._frames(1))
        return REJECTED

    def _still(self, path: Path) -> str:
        write_video(path, [self.face] * 4)
        return REJECTED

    def _no_face(self, path: Path) -> str:
        write_video(path, [np.full((96, 128, 3), 30 + 20 * level, np.uint8) for level in range(4)])
        return REJECTED

    def _variable_rate(self, path: Path) -> str:
        stamps = np.cumsum([0, *(self.random.choice([5, 20, 40, 170]) for _ in range(4))])
        mux(path, self._frames(5), stamps=[int(stamp) for stamp in stamps])
        return KEPT

    def _rotated(self, path: Path) -> str:
        turns = self.random.choice([1, 2, 3])
        frames = [np.ascontiguousarray(np.rot90(frame, -turns)) for frame in self._frames()]
        data = write_video(path, frames).read_bytes()
        path.write_bytes(turned(data, turns))
        return KEPT

    def _odd_size(self, path: Path) -> str:
        width, height = self.random.choice([(207, 211), (209, 208), (333, 207), (208, 215)])
        frames = [np.asarray(cv2.copyMakeBorder(f, 0, 8, 0, 126, cv2.BORDER_REPLICATE)[:height, :width], np.uint8) for f in self._frames()]
        mux(path, frames, codec="ffv1", pixels="bgr0", container="matroska")
        return KEPT

    def _sound(self, path: Path) -> str:
        mux(path, self._frames(), sound=self.random.choice([0.05, 0.16, 2.0]), late=self.random.choice([0.0, 0.0, 0.3]))
        return KEPT

    def _two_people(self, path: Path) -> str:
        write_video(path, [np.concatenate([frame, frame[:, ::-1]], 1) for frame in self._frames(3)])
        return KEPT

    def _huge(self, path: Path) -> str:
        """A header that asks for gigabytes."""
        mux(path, self._frames(3), codec="mjpeg", pixels="yuvj420p", container="avi")
        data = path.read_bytes()
        side = self.random.choice([20000, 30000, 65500])
        jpeg = struct.pack(">HH", *self.face.shape[:2])
        data = data.replace(b"\xff\xc0\x00\x11\x08" + jpeg, b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", side, side))
        path.write_bytes(data.replace(struct.pack("<II", *self.face.shape[1::-1]), struct.pack("<II", side, side)))
        return REJECTED

    def _folder(self, path: Path) -> str:
        path.mkdir()
        return REJECTED

    def _missing(self, path: Path) -> str:
        return REJECTED


_HELPERS = ("_any", "_frames", "_encoded")
KINDS = tuple(name[1:] for name in vars(Maker) if name.startswith("_") and not name.startswith("__") and name not in _HELPERS)
HARD = ("truncated", "flipped", "header", "spliced")
"""Kinds that differ each time."""


def mux(
    path: Path,
    frames: list[ByteImage],
    *,
    stamps: list[int] | None = None,
    sound: float = 0.0,
    late: float = 0.0,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    container: str | None = None,
) -> None:
    """Write frames at times of so many milliseconds (by default 25 a second), and seconds of a tone that begins late."""
    import av

    stamps = stamps or [40 * number for number in range(len(frames))]
    with av.open(str(path), "w", format=container) as out:
        video = out.add_stream(codec, rate=25) if frames else None
        tone = out.add_stream("aac" if container is None else "mp2", rate=16000 if container is None else 32000) if sound else None
        if video is not None:
            video.width, video.height, video.pix_fmt = frames[0].shape[1], frames[0].shape[0], pixels
            base = Fraction(1, 25) if codec in ("mpeg2video", "mpeg4", "mjpeg") else Fraction(1, 1000)
            video.codec_context.time_base = base
            for stamp, image in zip(stamps, frames, strict=True):
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                frame.pts, frame.time_base = round(Fraction(stamp, 1000) / base), base
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
        if tone is not None:
            rate = tone.codec_context.sample_rate
            samples = (9000 * np.sin(np.arange(int(sound * rate)) * 0.2)).astype(np.int16)[None]
            wave = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            wave.sample_rate, wave.pts = rate, round(late * rate)
            out.mux(tone.encode(wave))
            out.mux(tone.encode(None))


def turned(data: bytes, turns: int) -> bytes:
    """An mp4 whose display matrix turns the picture back by so many quarters."""
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}[turns]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    head, tail = data[: data.index(b"tkhd")], data[data.index(b"tkhd") :]
    assert straight in tail
    return head + tail.replace(straight, matrix, 1)


def fuzz(face: ByteImage, folder: Path, count: int, seed: int, workers: int = 0) -> collections.Counter[str]:
    """Build ``count`` odd videos, every kind among them, and check what the manifest says of each; counts of kinds and outcomes."""
    maker = Maker(face, folder / "in", seed)
    kinds = [*KINDS, *(maker.random.choice([*KINDS, *HARD * 4]) for _ in range(count - len(KINDS)))]
    wanted = dict(maker.make(kind, number) for number, kind in enumerate(kinds))
    out = folder / "out"
    with LocalExecutor(workers, timeout=300.0) as executor:
        try:
            small_build([source(path) for path in wanted], out, executor=executor)
        except UserError as error:
            assert "none of the" in str(error) or "no clip" in str(error)
    rows = {Path(row["path"]): row for row in read_table(Storage(out), "sources.parquet").to_pylist()}
    clips = read_table(Storage(out), "clips.parquet").to_pylist()
    shown = {clip["source"] for clip in clips}
    assert rows.keys() == wanted.keys()
    tally: collections.Counter[str] = collections.Counter()
    for path, expected in wanted.items():
        row = rows[path]
        copied = any("same content" in problem for problem in row["problems"])
        assert copied or expected in (EITHER, row["status"]), (path.name, row)
        assert row["problems"] or row["status"] == "ok", row
        assert (row["source"] in shown) == (row["status"] == "ok"), row
        assert all(problem and "\n" not in problem and "Traceback" not in problem for problem in row["problems"]), row
        tally[f"{path.stem[5:]} {row['status']}"] += 1
        tally["internal error"] += any("Error:" in problem or "crashed" in problem for problem in row["problems"])
    assert all(clip["kept"] or clip["reasons"] for clip in clips)
    return tally


if __name__ == "__main__":
    from skimage.data import astronaut

    with tempfile.TemporaryDirectory() as place:
        found = fuzz(face_picture(astronaut()), Path(place), int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0, workers=1)
        print("\n".join(f"{count:4d} {what}" for what, count in sorted(found.items())))
