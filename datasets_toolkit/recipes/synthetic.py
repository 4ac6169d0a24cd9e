"""The analytic talking heads of :mod:`datasets_toolkit.synthetic`, once their videos are written."""

from __future__ import annotations

import json
from pathlib import Path

from datasets_toolkit.recipes.base import About, Discovery, Recipe, RecipeError, Source
from datasets_toolkit.recipes.files import check_root, file_problem, read_text

MANIFEST = "synthetic.json"
LICENCE = "CC0: made by a program"


class Synthetic(Recipe):
    """Videos that :func:`datasets_toolkit.synthetic.write_videos` has made."""

    name = "synthetic"
    about = About(
        title="analytic talking heads",
        layout=(f"ROOT/{MANIFEST}", "ROOT/*.mp4"),
        defects=(),
        page="mggdata synthesize --videos --out ROOT",
        licence=LICENCE,
    )

    def discover(self, root: Path) -> Discovery:
        """List the videos that the folder's ``synthetic.json`` promises.

        Raises:
            RecipeError: ``root`` is no folder, or has no such list.
        """
        root = check_root(root, "the synthetic videos")
        path = root / MANIFEST
        if not path.is_file():
            raise RecipeError(f"{path}: no such list; make the videos with datasets_toolkit.synthetic.write_videos first")
        try:
            clips = [(str(entry["file"]), str(entry["person"])) for entry in json.loads(read_text(path))["clips"]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RecipeError(f"{path}: not a list of synthetic videos ({error}); make them again") from error
        sources: list[Source] = []
        broken: list[tuple[str, str]] = []
        for file, person in clips:
            if Path(file).name != file:
                raise RecipeError(f"{path}: {file} points out of the folder; make the videos again")
            problem = file_problem(root / file)
            if problem:
                broken.append((file, problem))
            else:
                sources.append(Source(path=str(root / file), source_hint=file, dataset=self.name, person=person, licence=LICENCE))
        return Discovery(sources=sources, expected=len(clips), broken=broken, dataset=self.name)
