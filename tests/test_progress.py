"""Progress of a build where stderr is a file."""

from __future__ import annotations

import time

import pytest

from datasets_toolkit.build import progress
from datasets_toolkit.build.progress import Progress


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.2)
    with Progress().step("track", 8) as bar:
        for _ in range(8):
            time.sleep(0.1)
            bar.advance(30)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 8
    assert all(line.startswith("track:") and "frames/s" in line for line in lines)
    assert "8/8" in lines[-1]


@pytest.mark.parametrize("shown", [True, False])
def test_short_or_hidden_work_leaves_none(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(shown).step("pack", 2) as bar:
        bar.advance(0)
        bar.advance(0)
    assert capsys.readouterr().err == ""
