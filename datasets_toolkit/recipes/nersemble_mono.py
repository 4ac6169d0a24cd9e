"""NeRSemble, seen by one camera (Kirschstein et al., "NeRSemble: multi-view radiance field reconstruction of human heads", 2023).

Version 2 and its benchmarks: ``<participant:03d>/sequences/<sequence>/images/cam_<serial>.mp4``, beside them ``alpha_maps`` of the same
names, ``<participant:03d>/calibration/camera_params.json``, and a sequence ``BACKGROUND`` without anybody. Version 1:
``<participant:03d>/<sequence>/images/cam_<serial>_<frame:06d>.jpg``, pictures without times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from datasets_toolkit.recipes.base import About, Discovery, Recipe, RecipeError, Source, sort_out
from datasets_toolkit.recipes.files import VIDEO_SUFFIXES, Probes, check_root, file_problem

FRONTAL_CAMERA = "222200037"
"""The camera in the middle; the one that the data set's monocular benchmark gives for training."""
LICENCE = "research only, on request (NeRSemble terms of use)"
HELD_OUT = ("FREE", "EMO-1-shout+laugh", "SEN-09-frown_events_bad", "SEN-10-port_strong_smokey")
"""Sequences that the monocular benchmark keeps for testing."""
_PARTICIPANT = re.compile(r"^\d{3}$")


class NersembleMono(Recipe):
    """Every sequence of every participant, from one camera; a participant is a person.

    Args:
        camera: serial number of the camera.
    """

    name = "nersemble_mono"
    about = About(
        title="NeRSemble, one camera (Kirschstein et al., 2023)",
        layout=("ROOT/[*/]<participant:03d>/sequences/<sequence>/images/cam_<serial>.mp4",),
        defects=(
            "Alpha maps and the sequence BACKGROUND are passed over.",
            "Version 1 of the data set, single pictures without times, is told as broken.",
        ),
        page="https://github.com/tobias-kirschstein/nersemble-data",
        licence=LICENCE,
    )

    def __init__(self, camera: str = FRONTAL_CAMERA) -> None:
        self.camera = camera

    def discover(self, root: Path) -> Discovery:
        """List the sequences below ``root``; the folders of the participants lie in it or one folder deeper (``mono_flame_avatar``).

        Raises:
            RecipeError: ``root`` is no folder or holds no participant.
        """
        root = check_root(root, "NeRSemble")
        people = sorted(path for depth in ("*", "*/*") for path in root.glob(depth) if path.is_dir() and _PARTICIPANT.match(path.name))
        if not people:
            raise RecipeError(f"{root}: no folder of a participant (such as 018) here; give the folder that NeRSemble was downloaded to")
        sources, broken = sort_out(self._sequences(root, people))
        sources.sort(key=lambda source: source.path)
        return Discovery(sources=sources, expected=len(sources) + len(broken), broken=broken, notes=[_EXPECTED], dataset=self.name)

    def _sequences(self, root: Path, people: list[Path]) -> Iterator[tuple[str, Source | str]]:
        probes = Probes()
        for person in people:
            for images in sorted([*person.glob("sequences/*/images"), *person.glob("*/images")]):
                if images.parent.name != "BACKGROUND":
                    name = f"{person.relative_to(root).as_posix()}/{images.parent.name}"
                    yield name, self._source(person.name, name, images, probes)

    def _source(self, person: str, name: str, images: Path, probes: Probes) -> Source | str:
        files = sorted(path for path in images.glob(f"cam_{self.camera}*") if not path.name.startswith("."))
        path = next((path for path in files if path.stem == f"cam_{self.camera}" and path.suffix in VIDEO_SUFFIXES), None)
        if path is None:
            unfinished = next((problem for problem in map(file_problem, files) if problem), None)
            pictures = any(path.suffix in (".jpg", ".png") for path in files)
            if pictures:
                return "pictures: version 1 of the data set holds single frames without times; download version 2"
            return unfinished or f"missing: no video of camera {self.camera}"
        problem = file_problem(path) or probes(path)
        if isinstance(problem, str):
            return problem
        meta = {"camera": self.camera, "sequence": images.parent.name, "benchmark": "test" if images.parent.name in HELD_OUT else "train"}
        return Source(path=str(path), source_hint=name, dataset=self.name, person=f"nersemble-{person}", licence=LICENCE, meta=meta)


_EXPECTED = "the list of all sequences is kept online: expected counts the sequences whose folders are here"
