"""Pictures of what a data set holds: a contact sheet of every label for each clip, and a page to look through them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from datasets_toolkit.annotators.pictures import COLOURS, contact_sheet, spread, write_png
from datasets_toolkit.checks.tables import clip_rows, safe_clip
from datasets_toolkit.curation.pages import curve, page, table
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import part_name
from datasets_toolkit.sample import FrameSample
from datasets_toolkit.schema import ByteImage, Region
from datasets_toolkit.shards.shard_reader import ShardReader

AXES = ((255, 70, 70), (70, 220, 70), (90, 140, 255))
"""Colours of the head's axes: to the person's left, up, out of the face."""
AXIS = 8.0
"""Length of the axes drawn, cm."""
PANEL = 200
"""Height of a picture in a contact sheet, pixels."""


def sample_panels(sample: FrameSample) -> dict[str, ByteImage]:
    """Pictures (s s 3) of a frame and of each label it has, by name."""
    image = sample.image if sample.image is not None else np.full((sample.meta.size, sample.meta.size, 3), 128, np.uint8)
    panels = {"image": image, "landmarks and head axes": _marks(sample, image)}
    if sample.parsing is not None:
        palette = np.array([COLOURS[region] for region in Region], np.uint8)
        panels["parsing"] = np.asarray(cv2.addWeighted(palette[sample.parsing.clip(0, max(Region))], 0.6, image, 0.4, 0), np.uint8)
    if sample.matte is not None:
        alpha = sample.matte[..., None] / 255
        panels["matte"] = np.rint(alpha * image + (1 - alpha) * np.array([255, 0, 255])).astype(np.uint8)
    if sample.depth is not None:
        panels["depth"] = _depth_colours(sample.depth)
    if sample.normals is not None:
        known = np.linalg.norm(sample.normals, axis=-1, keepdims=True) > 0.5
        panels["normals"] = np.asarray((sample.normals * [1, -1, -1] * 0.5 + 0.5) * 255 * known, np.uint8)
    return panels


def _marks(sample: FrameSample, image: ByteImage) -> ByteImage:
    marked = np.array(image)
    if sample.landmarks is not None:
        for x, y in np.round(sample.landmarks[:, :2] * 16).astype(int):
            cv2.circle(marked, (int(x), int(y)), 14, (0, 255, 120), -1, cv2.LINE_AA, shift=4)
    meta = sample.meta
    ends = np.vstack([np.zeros(3), AXIS * np.eye(3)]) @ meta.head_to_camera[:3, :3].T + meta.head_to_camera[:3, 3]
    points = ends @ meta.intrinsics.T
    if (points[:, 2] <= 0).any() or not np.isfinite(points).all():
        return marked
    pixels = [(int(x), int(y)) for x, y in np.round(points[:, :2] / points[:, 2:]).clip(-1e4, 1e4).astype(int)]
    for end, colour in zip(pixels[1:], AXES, strict=True):
        cv2.arrowedLine(marked, pixels[0], end, colour, max(len(image) // 128, 1), cv2.LINE_AA)
    return marked


def _depth_colours(depth: np.ndarray) -> ByteImage:
    """Near is bright; contour lines every centimetre show steps that a ramp hides."""
    known = depth > 0
    if not known.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    near, far = np.percentile(depth[known], [1, 99])
    ramp = (np.clip((far - depth) / max(far - near, 1e-6), 0, 1) * 255).astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    whole = np.floor(depth)
    lines = np.zeros_like(known)
    lines[1:] |= whole[1:] != whole[:-1]
    lines[:, 1:] |= whole[:, 1:] != whole[:, :-1]
    coloured[lines & known] = coloured[lines & known] // 2
    coloured[~known] = 0
    return np.asarray(coloured, np.uint8)


def clip_sheet(samples: Sequence[FrameSample]) -> ByteImage:
    """A contact sheet: a row for each frame, a column for each label, their names on top."""
    panels = [sample_panels(sample) for sample in samples]
    names = list(panels[0])
    sheet = contact_sheet([[row[name] for name in names] for row in panels], PANEL)
    header = np.full((22, sheet.shape[1], 3), 255, np.uint8)
    for column, name in enumerate(names):
        cv2.putText(header, name, (column * PANEL + 4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
    return np.vstack([header, sheet])


def preview(
    reader: ShardReader,
    folder: Path,
    *,
    frames: int = 4,
    clips: int | None = None,
    progress: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> Path:
    """Write contact sheets and ``index.html`` into a new folder, which appears when it is whole; returns the page.

    Args:
        reader: of the data set.
        folder: to be created.
        frames: of each clip, evenly spread.
        clips: how many, evenly spread over the data set; None takes all.
        progress: told which clip is being drawn.

    Raises:
        UserError: the folder is there already or cannot be written, or a sample is damaged.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it, or give another folder")
    rows = clip_rows(reader.index)
    names = list(rows)
    shown = [names[place] for place in spread(len(names), len(names) if clips is None else clips)] if names else []
    part = folder.with_name(part_name(folder.name))
    try:
        (part / "sheets").mkdir(parents=True)
        for number, clip in enumerate(shown):
            progress("drawing clips", number, len(shown))
            samples = [reader.sample(int(rows[clip][place])) for place in spread(len(rows[clip]), frames)]
            write_png(part / "sheets" / f"{safe_clip(clip)}.png", clip_sheet(samples))
        progress("drawing clips", len(shown), len(shown))
        (part / "index.html").write_text(_page(reader, shown, rows), encoding="utf-8")
        part.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder or free some space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder / "index.html"


def _page(reader: ShardReader, shown: Sequence[str], rows: dict[str, np.ndarray]) -> str:
    title = f"Preview of {reader.storage.root}"
    kept = int(np.asarray(reader.clips.column("kept").to_pylist(), bool).sum())
    told = f"{len(shown)} of {len(rows)} packed clips; {kept} of {reader.clips.num_rows} clips were kept."
    key = "Axes: red to the person's left, green up, blue out of the face. Depth: near is bright, a line each cm."
    body = [f"<h1>{escape(title)}</h1>", f"<p>{told}</p>", f'<p class="soft">{key}</p>']
    facts = {row["clip"]: row for row in reader.clips.to_pylist()}
    for clip in shown:
        body.append(_clip(reader, clip, rows[clip], facts.get(clip, {})))
    rejected = [(str(row["clip"]), "; ".join(row["reasons"] or ())) for row in facts.values() if not row["kept"]]
    if rejected:
        body += [f"<section><h2>{len(rejected)} rejected clips</h2>{table(('clip', 'reasons'), rejected)}</section>"]
    problems = [
        (str(row["source"]), str(row["status"]), "; ".join(row["problems"] or ())) for row in reader.sources.to_pylist() if row["problems"]
    ]
    if problems:
        body += [f"<section><h2>Sources with problems</h2>{table(('source', 'status', 'problems'), problems)}</section>"]
    return page(title, body)


def _clip(reader: ShardReader, clip: str, rows: np.ndarray, facts: dict[str, object]) -> str:
    index = reader.index.take(rows)
    times = np.asarray(index.column("time").to_numpy(), np.float64)
    who = [f"split {facts.get('split', '?')}", f"person {facts.get('person') or 'unknown'}"]
    told = [f"{len(rows)} frames", f"{times[-1] - times[0]:.2f} s", *who]
    scores = [f"{name} {facts[name]:.3g}" for name in ("face_size", "sharpness", "jitter") if isinstance(facts.get(name), float)]
    curves = "".join(
        curve(name, unit, times, np.asarray(index.column(name).to_numpy(), np.float64))
        for name, unit in (("yaw", "degrees"), ("pitch", "degrees"), ("mouth", "face sizes"))
    )
    picture = f'<img class="sheet" loading="lazy" alt="labels of {escape(clip)}" src="sheets/{escape(clip)}.png">'
    text = escape(", ".join([*told, *scores]))
    return f'<section><h2>{escape(clip)}</h2><p class="soft">{text}</p>{picture}<div class="grid">{curves}</div></section>'
