"""The options of a recipe: the arguments of its constructor, set from text and told to a reader."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from datasets_toolkit.recipes.base import Recipe, RecipeError
from datasets_toolkit.text_tables import text_table

_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option. Attributes: its name, type (bool, int, float or str), default, and what it does."""

    name: str
    kind: type[Any]
    default: Any
    help: str


def options_of(recipe: type[Recipe]) -> list[Option]:
    """The options of a recipe, in the order of its constructor."""
    hints = get_type_hints(recipe.__init__)
    told = {name: " ".join(text.split()) for name, text in _ARGUMENT.findall((inspect.getdoc(recipe) or "").partition("Args:")[2])}
    found = [one for one in inspect.signature(recipe).parameters.values() if one.name in hints]
    return [Option(name=one.name, kind=hints[one.name], default=one.default, help=told.get(one.name, "")) for one in found]


def typed_options(recipe: type[Recipe], texts: Mapping[str, str]) -> dict[str, Any]:
    """Options given as text, each of its own type.

    Raises:
        RecipeError: there is no such option, or a value is not of its type.
    """
    known = {option.name: option for option in options_of(recipe)}
    for name in texts:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise RecipeError(f"{recipe.name}: no option {name!r}; {have}")
    return {name: _typed(recipe.name, known[name], text) for name, text in texts.items()}


def _typed(recipe: str, option: Option, text: str) -> Any:
    if option.kind is bool:
        if text.lower() not in _TRUTH:
            raise RecipeError(f"{recipe}: {option.name}={text}: must be true or false")
        return _TRUTH[text.lower()]
    try:
        return option.kind(text)
    except ValueError as error:
        kind = {int: "a whole number", float: "a number"}[option.kind]
        raise RecipeError(f"{recipe}: {option.name}={text}: must be {kind}") from error


def describe_recipe(recipe: type[Recipe]) -> str:
    """All that is known of a recipe, as plain text: layout, options, defects that it handles, source and licence of the data."""
    about = recipe.about
    parts = [f"{recipe.name}: {about.title}", *_listed("layout", about.layout)]
    rows = [(one.name, one.kind.__name__, _shown(one.default), one.help) for one in options_of(recipe)]
    parts += _listed("options (--recipe-option NAME=VALUE)", _columns(rows) or ("none",))
    parts += _listed("known defects that it handles", about.defects or ("none",))
    parts += _listed("data", (about.page, f"licence: {about.licence}"))
    return "\n".join(parts)


def recipes_table(recipes: list[type[Recipe]]) -> str:
    """Name, data set and options of each recipe, as a table of plain text."""
    rows = [(one.name, one.about.title, ", ".join(option.name for option in options_of(one))) for one in recipes]
    return str(text_table(("recipe", "data set", "options"), rows))


def _listed(head: str, lines: tuple[str, ...]) -> list[str]:
    return [f"  {head}:", *(f"    {line}" for line in lines)]


def _columns(rows: list[tuple[str, str, str, str]]) -> tuple[str, ...]:
    widths = [max(len(row[place]) for row in rows) for place in range(3)] if rows else []
    return tuple("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows)


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else repr(default) if default == "" else str(default)
