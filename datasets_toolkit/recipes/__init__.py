"""Recipes: one for each layout of videos on disk, found by name with :func:`recipe_for`."""

from __future__ import annotations

from importlib import import_module

from datasets_toolkit.recipes.base import (
    BOX,
    YOUTUBE,
    Discovery,
    Recipe,
    RecipeError,
    Source,
    coverage,
    join_people,
)

__all__ = ["BOX", "RECIPES", "YOUTUBE", "Discovery", "Recipe", "RecipeError", "Source", "coverage", "join_people", "recipe_for"]

_CLASSES = {
    "folder": "Folder",
    "hdtf": "HDTF",
    "vfhq": "VFHQ",
    "celebvhq": "CelebVHQ",
    "talkinghead1kh": "TalkingHead1KH",
    "nersemble_mono": "NersembleMono",
    "synthetic": "Synthetic",
}
RECIPES = tuple(_CLASSES)
"""Names that :func:`recipe_for` knows."""


def recipe_for(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in _CLASSES:
        raise RecipeError(f"{name}: no such recipe; the known ones are {', '.join(RECIPES)}")
    recipe: Recipe = getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])()
    return recipe
