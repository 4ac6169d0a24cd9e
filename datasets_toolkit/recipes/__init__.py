"""Recipes: one for each layout of videos on disk, found by name with :func:`recipe_for`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from datasets_toolkit.recipes.base import (
    BOX,
    YOUTUBE,
    About,
    Discovery,
    Recipe,
    RecipeError,
    Source,
    coverage,
    join_people,
)
from datasets_toolkit.recipes.options import typed_options

__all__ = [
    "BOX", "RECIPES", "YOUTUBE", "About", "Discovery", "Recipe", "RecipeError", "Source", "coverage", "join_people", "recipe_class",
    "recipe_for",
]  # fmt: skip

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


def recipe_class(name: str) -> type[Recipe]:
    """The class of the recipe of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in _CLASSES:
        raise RecipeError(f"{name}: no such recipe; the known ones are {', '.join(RECIPES)}")
    found: type[Recipe] = getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])
    return found


def recipe_for(name: str, options: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of that name.

    Args:
        name: one of :data:`RECIPES`.
        options: arguments of its constructor as text, such as ``{"prefer_clips": "true"}``.

    Raises:
        RecipeError: there is no such recipe, it has no such option, or a value is not of the option's type.
    """
    recipe = recipe_class(name)
    return recipe(**typed_options(recipe, options or {}))
