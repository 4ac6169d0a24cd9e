"""The source videos that a command line names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from datasets_toolkit.build.source_files import is_address
from datasets_toolkit.errors import UserError
from datasets_toolkit.recipes import RECIPES, Discovery, Source, coverage, join_people, recipe_for

Options = dict[str, dict[str, str]]


def find_sources(words: Sequence[str], recipes: Sequence[Sequence[str]], options: Sequence[str] = ()) -> list[Source]:
    """The source videos that the command line names; what a recipe found and missed is told on stderr.

    Args:
        words: videos, addresses of videos, and folders for the recipe ``folder``.
        recipes: names of recipes with the folders that they read.
        options: of the recipes, ``OPTION=VALUE`` or ``RECIPE.OPTION=VALUE``.

    Raises:
        UserError: nothing is named, a path is not there, or a recipe has no such option.
    """
    roots = [(str(name), str(root)) for name, root in recipes] + [("folder", word) for word in words if Path(word).is_dir()]
    found = []
    for name, discovery in _discovered(roots, _assigned(options, [name for name, _ in roots])):
        if name != "folder" or discovery.broken or discovery.notes:
            print(coverage(discovery), file=sys.stderr)
        found += discovery.sources
    found += [_single(word) for word in words if not Path(word).is_dir()]
    if not found:
        raise UserError("no source videos; name videos or folders, or give --recipe NAME ROOT")
    unique = {(source.path, source.start, source.end, source.meta.get("box")): source for source in found[::-1]}
    return sorted(join_people(unique.values()), key=lambda one: (one.path, one.start or 0.0, one.source_hint))


def _discovered(roots: Sequence[tuple[str, str]], options: Options) -> list[tuple[str, Discovery]]:
    made = [(name, recipe_for(name, options.get(name)), root) for name, root in roots]  # a wrong option is told before a search begins
    return [(name, recipe.discover(Path(root))) for name, recipe, root in made]


def _assigned(words: Sequence[str], used: Sequence[str]) -> Options:
    """Options by recipe; one without a recipe's name belongs to the only recipe that is used."""
    options: Options = {}
    for word in words:
        key, equals, value = word.partition("=")
        recipe, dot, name = key.rpartition(".")
        if not equals or not name or (dot and recipe not in RECIPES):
            raise UserError(f"--recipe-option {word}: write OPTION=VALUE, or RECIPE.OPTION=VALUE with one of {', '.join(RECIPES)}")
        if not dot and len(set(used)) != 1:
            names = f"the recipes {', '.join(dict.fromkeys(used))} are used" if used else "no recipe is used"
            raise UserError(f"--recipe-option {word}: {names}; name the one that is meant, such as hdtf.prefer_clips=true")
        recipe = recipe or used[0]
        if recipe not in used:
            raise UserError(f"--recipe-option {word}: the recipe {recipe} is not used; add --recipe {recipe} ROOT")
        options.setdefault(recipe, {})[name] = value
    return options


def _single(word: str) -> Source:
    if not is_address(word) and not Path(word).is_file():
        raise UserError(f"{word}: no such video or folder; check the path")
    path = word if is_address(word) else str(Path(word).absolute())
    return Source(path=path, source_hint=Path(word).name, dataset="folder")
