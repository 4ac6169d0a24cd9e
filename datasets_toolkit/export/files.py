"""Labels of a data set as files that other programs read: pictures, sound and motions, a folder for each clip."""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.checks.tables import clip_rows, safe_clip
from datasets_toolkit.errors import UserError
from datasets_toolkit.export.motion import write_motion
from datasets_toolkit.local_files import part_name
from datasets_toolkit.media.sound import RATE
from datasets_toolkit.sample import FrameSample
from datasets_toolkit.shards.depth_codec import STEP
from datasets_toolkit.shards.shard_reader import ShardReader

NEEDS = {
    "depth": ("depth",),
    "frames": ("image",),
    "parsing": ("parsing",),
    "normals": ("normals", "depth"),
    "motion": (),
    "audio": ("audio",),
}
"""What can be exported, and the columns it needs."""


@dataclass(frozen=True)
class ClipSamples:
    """Attributes: the data set, a clip's id, the rows of the index that are its samples."""

    reader: ShardReader
    clip: str
    rows: Sequence[int]

    def samples(self, *columns: str) -> Iterator[FrameSample]:
        """The clip's samples in order, with these columns."""
        return (self.reader.sample(int(row), columns) for row in self.rows)


def export(
    reader: ShardReader,
    what: str,
    target: Path,
    *,
    clips: Sequence[str] | None = None,
    png: bool = False,
    progress: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> list[Path]:
    """Write one kind of label as files: ``target/<clip>/<what>/...``; each of these folders appears when it is whole.

    Args:
        reader: of the data set.
        what: one of :data:`NEEDS`.
        target: a folder, created where it does not exist.
        clips: ids of packed clips; None takes all.
        png: frames as PNG instead of the JPEG that the data set holds.
        progress: told which clip is being written.

    Returns:
        The folders written.

    Raises:
        UserError: no such label or clip, a folder that is there already, or one that cannot be written.
    """
    if what not in NEEDS:
        raise UserError(f"--what {what}: must be one of {', '.join(NEEDS)}")
    missing = [column for column in NEEDS[what] if column not in reader.columns]
    if missing:
        raise UserError(f"{reader.storage.root}: has no column {missing[0]!r}; build it with an annotator for it")
    rows = clip_rows(reader.index)
    chosen = sorted(rows) if clips is None else list(dict.fromkeys(clips))
    folders = [_folder(reader, rows, clip, what, target) for clip in chosen]
    for number, (clip, folder) in enumerate(zip(chosen, folders, strict=True)):
        progress("exporting clips", number, len(chosen))
        _write_whole(folder, ClipSamples(reader, clip, rows[clip].tolist()), _png_frames if what == "frames" and png else WRITERS[what])
    progress("exporting clips", len(chosen), len(chosen))
    return folders


def _folder(reader: ShardReader, rows: dict[str, Any], clip: str, what: str, target: Path) -> Path:
    if clip not in rows:
        raise UserError(f"{reader.storage.root}: has no samples of a clip {clip!r}; clips.parquet tells which were kept")
    folder = target / safe_clip(clip) / what
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it, or export to another folder")
    return folder


def _write_whole(folder: Path, clip: ClipSamples, write: Callable[[ClipSamples, Path], None]) -> None:
    part = folder.parent / part_name(folder.name)
    try:
        part.mkdir(parents=True)
        write(clip, part)
        part.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); check its permissions and the free space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _frames(clip: ClipSamples, folder: Path) -> None:
    """The JPEG files as the data set holds them: nothing is lost."""
    _copy(clip, folder, "image", ".jpg")


def _png_frames(clip: ClipSamples, folder: Path) -> None:
    for sample in clip.samples("image"):
        assert sample.image is not None
        _write_png(folder / f"{sample.meta.index:06d}.png", sample.image[:, :, ::-1])


def _parsing(clip: ClipSamples, folder: Path) -> None:
    """Palette PNG files as the data set holds them, and the names of their values."""
    from datasets_toolkit.schema import Region

    _copy(clip, folder, "parsing", ".png")
    values = {str(int(region)): region.name.lower() for region in Region}
    _write_json(folder / "parsing.json", {"values": values, "sides": "the person's own"})


def _copy(clip: ClipSamples, folder: Path, column: str, suffix: str) -> None:
    indices = clip.reader.index.column("index")
    for row in clip.rows:
        (folder / f"{indices[row].as_py():06d}{suffix}").write_bytes(clip.reader.members(row, [column])[column])


def _depth(clip: ClipSamples, folder: Path) -> None:
    """16-bit PNG files; the scale of each stands in ``depth.json``."""
    scales = {}
    for sample in clip.samples("depth"):
        assert sample.depth is not None
        name = f"{sample.meta.index:06d}.png"
        scales[name] = max(STEP, float(sample.depth.max()) / 65535)
        levels = np.minimum(np.rint(sample.depth / scales[name]), 65535).astype(np.uint16)
        levels[(levels == 0) & (sample.depth > 0)] = 1  # 0 says unknown
        _write_png(folder / name, levels)
    facts = {"unit": "cm", "depth": "along the optical axis (OpenCV z), level x scale", "unknown": 0, "scale": scales}
    _write_json(folder / "depth.json", facts)


def _normals(clip: ClipSamples, folder: Path) -> None:
    """8-bit RGB PNG files of 127.5 (n + 1)."""
    for sample in clip.samples("normals", "depth"):
        assert sample.normals is not None
        levels = np.rint(127.5 * (sample.normals.astype(np.float64) + 1)).clip(0, 255).astype(np.uint8)
        _write_png(folder / f"{sample.meta.index:06d}.png", levels[:, :, ::-1])
    facts = {
        "normal": "level / 127.5 - 1",
        "frame": "OpenCV camera: x right, y down, z forward",
        "unknown": "128 in all channels",
    }
    _write_json(folder / "normals.json", facts)


def _audio(clip: ClipSamples, folder: Path) -> None:
    """One WAV file that begins with the clip's first frame; where a frame is missing there is silence."""
    pieces = [(sample.meta.time, sample.audio) for sample in clip.samples("audio")]
    sound = joined([(time, audio) for time, audio in pieces if audio is not None])
    with wave.open(str(folder / "audio.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(sound.astype("<i2").tobytes())
    _write_json(folder / "audio.json", {"start": pieces[0][0], "unit": "s on the clock of the source", "rate": RATE})


def joined(pieces: Sequence[tuple[float, npt.NDArray[np.int16]]]) -> npt.NDArray[np.int16]:
    """Pieces of sound (time in seconds, samples at 16 kHz) where their times put them, from the first piece's time on."""
    begin = pieces[0][0]
    places = [(round((time - begin) * RATE), audio) for time, audio in pieces]
    sound = np.zeros(max(place + len(audio) for place, audio in places), np.int16)
    for place, audio in places:
        sound[place : place + len(audio)] = audio
    return sound


def _motion(clip: ClipSamples, folder: Path) -> None:
    write_motion([sample.meta for sample in clip.samples()], folder)


def _write_png(path: Path, image: npt.NDArray[Any]) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


WRITERS: dict[str, Callable[[ClipSamples, Path], None]] = {
    "depth": _depth,
    "frames": _frames,
    "parsing": _parsing,
    "normals": _normals,
    "motion": _motion,
    "audio": _audio,
}
