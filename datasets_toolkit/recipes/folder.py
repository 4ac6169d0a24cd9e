"""A plain folder of videos."""

from __future__ import annotations

from pathlib import Path

from datasets_toolkit.recipes.base import About, Discovery, Recipe, RecipeError, Source, drop_duplicates
from datasets_toolkit.recipes.files import check_root, file_problem, is_video, walk


class Folder(Recipe):
    """Every video below a folder, at any depth.

    Args:
        dataset: name under which the videos go.
        person_from_folder: whether the first subfolder names the person; otherwise nobody is known, and each video counts for itself.
        licence: terms of the videos, in a few words.
    """

    name = "folder"
    about = About(
        title="any folder of videos",
        layout=("ROOT/**/*.mp4  (mov, mkv, webm, avi, m4v, mpg, mpeg, ts)", "ROOT/<person>/...  with person_from_folder=true"),
        defects=("Empty files and downloads that were cut off are told, and left out.",),
        page="your own videos",
        licence="that of the videos; licence=... records it",
    )

    def __init__(self, dataset: str = "folder", person_from_folder: bool = False, licence: str = "") -> None:
        self.dataset, self.person_from_folder, self.licence = dataset, person_from_folder, licence

    def discover(self, root: Path) -> Discovery:
        """List the videos below ``root``.

        Raises:
            RecipeError: ``root`` is no folder or holds no video.
        """
        root = check_root(root, "the videos")
        sources: list[Source] = []
        broken: list[tuple[str, str]] = []
        for path in filter(is_video, walk(root)):
            name = path.relative_to(root).as_posix()
            problem = file_problem(path)
            if problem:
                broken.append((name, problem))
            else:
                sources.append(
                    Source(path=str(path), source_hint=name, dataset=self.dataset, person=self._person(name), licence=self.licence)
                )
        if not sources and not broken:
            raise RecipeError(f"{root}: no video in this folder or below; give the folder that holds the videos")
        return Discovery(sources=drop_duplicates(sources)[0], expected=None, broken=broken, dataset=self.dataset)

    def _person(self, name: str) -> str:
        first, *rest = name.split("/")
        return f"{self.dataset}-{first}" if self.person_from_folder and rest else ""
