"""Native models and processes: in a forked child there is nobody who could close what it inherits, and nothing waits for that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

INHERITED = """
import gc, os, sys
import numpy as np
from datasets_toolkit.{module} import {name}

model, dropped = {name}(), {name}()
{used}
child = os.fork()
if child == 0:
    model.close()
    del dropped
    gc.collect()
    os._exit(0)
print("left", os.waitpid(child, 0)[1])
model.close()
print("closed")
"""
USED = "model.faces(np.zeros((128, 128, 3), np.uint8)), dropped.faces(np.zeros((128, 128, 3), np.uint8))"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    ("module", "name", "used"),
    [("faces.detection", "FaceTracker", USED), ("annotators.landmark_parsing", "LandmarkParsing", "")],
    ids=["tracker", "parsing"],
)
def test_a_forked_child_does_not_wait_for_the_models_of_its_parent(module: str, name: str, used: str) -> None:
    """They are closed on a thread that only the parent has: by hand, or in whatever garbage collection meets them."""
    code = INHERITED.format(module=module, name=name, used=used)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        try:
            said = run.communicate(timeout=60)[0].decode()
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, 9)
            pytest.fail("the child waits for ever")
    assert said.split() == ["left", "0", "closed"]
