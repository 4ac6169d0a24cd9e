"""Loops over pixels that are compiled when they are first called."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any


def compiled(*, fastmath: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: Numba compiles the function at its first call and keeps the result on disk where a folder can be written.

    Division by zero gives infinity. With ``fastmath`` sums may be taken in another order, and values must be finite.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        import numba

        bare = inspect.unwrap(function)  # of checks of shapes and types, which cannot be compiled
        options: dict[str, Any] = {"error_model": "numpy", "fastmath": fastmath, "nogil": True}
        try:
            return numba.njit(cache=True, **options)(bare)
        except RuntimeError as error:  # no folder can be written
            logging.getLogger(__name__).info("%s is compiled anew in every process: %s", bare.__name__, error)
            return numba.njit(**options)(bare)

    return decorate
