"""Jobs for the tests of the engines; workers import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from datasets_toolkit.errors import UserError


def square(number: int) -> int:
    return number * number


def whoami(number: int) -> tuple[int, int]:
    time.sleep(0.05)
    return number, os.getpid()


def odd(number: int) -> int:
    """Fails for 3, is refused for 5."""
    if number == 3:
        raise ValueError("three\nis bad")
    if number == 5:
        raise UserError("model.task: not there")
    return number


def fragile(order: tuple[str, int]) -> int:
    """Dies at the job 2: always, or where a path is given only as long as nothing is there."""
    marker, number = order
    if number == 2 and not (marker and Path(marker).exists()):
        if marker:
            Path(marker).touch()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return number


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def unpicklable(number: int) -> object:
    return lambda: number
