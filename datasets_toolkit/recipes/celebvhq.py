"""CelebV-HQ (Zhu et al., "CelebV-HQ: a large-scale video facial attributes dataset", ECCV 2022).

Metadata: ``celebvhq_info.json`` (or ``celebvhq_35666.json``) with ``clips``: name -> ``ytb_id``, ``duration`` (``start_sec``,
``end_sec`` in the original video), ``bbox`` (``top``, ``bottom``, ``left``, ``right`` as shares of height and width).
Videos: ``raw/<ytb_id>.mp4`` and ``processed/<name>.mp4``, cut and cropped from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets_toolkit.recipes.base import (
    BOX,
    REGION,
    SPAN,
    YOUTUBE,
    About,
    Discovery,
    Recipe,
    RecipeError,
    Source,
    drop_duplicates,
    join_people,
    sort_out,
)
from datasets_toolkit.recipes.files import Probes, VideoIndex, check_root, pixel_box, read_text, too_short, walk

LICENCE = "non-commercial research only (CelebV-HQ agreement)"
HOUR = 3600.0
"""Clips that begin later were cut at a wrong time by the first version of the data set's own tool, which counted hours as minutes too."""


class CelebVHQ(Recipe):
    """Stretches of the downloaded videos, or the processed clips.

    The metadata name no people. Clips of one YouTube video are kept together; one person in two videos is not known here.

    Args:
        prefer_clips: take processed clips where both are there.
    """

    name = "celebvhq"
    about = About(
        title="CelebV-HQ: 35,666 clips with attributes (Zhu et al., ECCV 2022)",
        layout=("ROOT/**/celebvhq_info.json", "ROOT/**/<YouTube id>.mp4  downloads (raw)", "ROOT/**/<name>.mp4  clips (processed)"),
        defects=("Clips that begin after the first hour may have been cut at a wrong time by an early downloader: a note counts them.",),
        page="https://github.com/CelebV-HQ/CelebV-HQ",
        licence=LICENCE,
    )

    def __init__(self, prefer_clips: bool = False) -> None:
        self.prefer_clips = prefer_clips

    def discover(self, root: Path) -> Discovery:
        """List the clips below ``root``, which holds the JSON file and the videos.

        Raises:
            RecipeError: ``root`` is no folder, or the JSON file is missing or damaged.
        """
        root = check_root(root, "CelebV-HQ")
        clips, index, probes = _clips(root), VideoIndex(root), Probes()
        sources, broken = sort_out((name, self._checked(name, entry, index, probes)) for name, entry in clips.items())
        sources, doubles = drop_duplicates(join_people(sources))
        late = sum(source.start is None and float(source.meta[SPAN].split()[0]) >= HOUR for source in sources)
        notes = [f"{late} processed clips begin after the first hour, where an early downloader cut at a wrong time"] if late else []
        return Discovery(sources=sources, expected=len(clips), broken=[*broken, *doubles], notes=notes, dataset=self.name)

    def _checked(self, name: str, entry: Any, index: VideoIndex, probes: Probes) -> Source | str:
        try:
            return self._source(name, entry, index, probes)
        except (KeyError, TypeError, ValueError) as error:
            return f"metadata: {error} is missing or not what it should be"

    def _source(self, name: str, entry: Any, index: VideoIndex, probes: Probes) -> Source | str:
        start, end = float(entry["duration"]["start_sec"]), float(entry["duration"]["end_sec"])
        shares = [float(entry["bbox"][side]) for side in ("left", "top", "right", "bottom")]
        meta = {YOUTUBE: str(entry["ytb_id"]), SPAN: f"{start} {end}", REGION: " ".join(f"{share:.4f}" for share in shares)}
        raw, reason = index.find(meta[YOUTUBE])
        cut, missing = index.find(name)
        info = probes(raw) if raw else reason
        if cut and (self.prefer_clips or isinstance(info, str)):
            cut_info = probes(cut)
            short = cut_info if isinstance(cut_info, str) else too_short(cut_info, end - start)
            return short or Source(path=str(cut), source_hint=name, dataset=self.name, licence=LICENCE, meta=meta)
        if raw is None or isinstance(info, str):
            return str(info) if raw or missing.startswith("missing") else missing
        box = pixel_box((shares[0] * info.width, shares[1] * info.height, shares[2] * info.width, shares[3] * info.height), info)
        meta.update({BOX: box} if box else {})
        return too_short(info, end) or Source(
            path=str(raw), source_hint=name, dataset=self.name, start=start, end=end, licence=LICENCE, meta=meta
        )


def _clips(root: Path) -> dict[str, Any]:
    path = next((path for path in walk(root) if path.name.startswith("celebvhq_") and path.suffix == ".json"), None)
    if path is None:
        raise RecipeError(f"{root}: no celebvhq_info.json here; put the data set's JSON file into this folder")
    try:
        clips = json.loads(read_text(path))["clips"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: not CelebV-HQ's metadata ({error}); download it again") from error
    if not isinstance(clips, dict):
        raise RecipeError(f"{path}: not CelebV-HQ's metadata (clips is no table); download it again")
    return clips
