"""Engines: the same outcomes wherever the jobs run, and what becomes of jobs that fail, die or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import worker_jobs

from datasets_toolkit.build.executors import Executor, LocalExecutor, Outcome
from datasets_toolkit.build.executors_cluster import RayExecutor, SlurmExecutor
from datasets_toolkit.errors import UserError

TESTS = Path(__file__).parent


def outcomes(executor: Executor, function: Callable[..., object], jobs: list) -> list[Outcome]:
    """In the order of the jobs; each must come once."""
    found: list[Outcome] = []
    executor.run(function, jobs, on_result=found.append)
    assert sorted(one.index for one in found) == list(range(len(jobs)))
    return sorted(found, key=lambda one: one.index)


@pytest.fixture(scope="module", params=["inline", "local-1", "local-2", "ray", "slurm"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path)
        if request.param == "ray":
            pytest.importorskip("ray")
            made: Executor = RayExecutor(workers=2)
        elif request.param == "slurm":
            pytest.importorskip("submitit")
            made = SlurmExecutor(tmp_path_factory.mktemp("slurm"), workers=2, local=True)
        else:
            made = LocalExecutor({"inline": 0, "local-1": 1, "local-2": 2}[request.param])
        with made:
            yield made


def test_every_engine_gives_the_same_outcomes(engine: Executor) -> None:
    assert [(one.kind, one.value) for one in outcomes(engine, worker_jobs.square, [3, 1, 4, 1, 5])] == [
        ("ok", value) for value in (9, 1, 16, 1, 25)
    ]
    failed = outcomes(engine, worker_jobs.odd, [1, 2, 3, 4])
    assert [one.kind for one in failed] == ["ok", "ok", "failed", "ok"]
    assert failed[2].message == "ValueError: three is bad"
    assert "worker_jobs.py" in failed[2].details
    assert outcomes(engine, worker_jobs.square, []) == []


def test_a_users_mistake_ends_the_run(engine: Executor) -> None:
    with pytest.raises(UserError, match=r"^model\.task: not there$"):
        engine.run(worker_jobs.odd, [1, 5, 2], on_result=lambda outcome: None)
    assert outcomes(engine, worker_jobs.square, [7])[0].value == 49  # the engine can be used again


def test_a_worker_that_dies_costs_its_job_alone(engine: Executor) -> None:
    if isinstance(engine, LocalExecutor) and engine.workers == 0:
        pytest.skip("there is no worker")
    found = outcomes(engine, worker_jobs.fragile, [("", number) for number in range(5)])
    assert [one.kind for one in found] == ["ok", "ok", "crashed", "ok", "ok"]
    assert found[2].message.startswith("crashed: its process ")


def test_a_job_whose_worker_died_once_is_tried_again(engine: Executor, tmp_path: Path) -> None:
    if isinstance(engine, LocalExecutor) and engine.workers == 0:
        pytest.skip("there is no worker")
    found = outcomes(engine, worker_jobs.fragile, [(str(tmp_path / "died"), number) for number in range(4)])
    assert [one.kind for one in found] == ["ok"] * 4
    assert (tmp_path / "died").exists()


def test_workers_work_side_by_side_and_are_kept() -> None:
    with LocalExecutor(2) as executor:
        first = {one.value[1] for one in outcomes(executor, worker_jobs.whoami, list(range(12)))}
        second = {one.value[1] for one in outcomes(executor, worker_jobs.whoami, list(range(12)))}
    assert len(first) == 2
    assert os.getpid() not in first
    assert second == first


def test_a_job_that_hangs_is_given_up() -> None:
    with LocalExecutor(1, timeout=0.5) as executor:
        found = outcomes(executor, worker_jobs.slow, [0.0, 60.0, 0.0])
    assert [one.kind for one in found] == ["ok", "crashed", "ok"]
    assert found[1].message == "crashed: its process took longer than 0.5 s"


def test_a_result_that_cannot_travel_is_a_failure() -> None:
    with LocalExecutor(1) as executor:
        (found,) = outcomes(executor, worker_jobs.unpicklable, [1])
        assert found.kind == "failed"
        assert outcomes(executor, worker_jobs.square, [2])[0].value == 4


def test_an_exception_of_the_caller_stops_the_workers() -> None:
    def stop(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    executor = LocalExecutor(2)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        executor.run(worker_jobs.slow, [0.0, 60.0], on_result=stop)
    assert time.monotonic() - begun < 30
    with executor:
        assert outcomes(executor, worker_jobs.square, [2])[0].value == 4


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        LocalExecutor(-1)


ORPHANS = """
import sys
import worker_jobs
from datasets_toolkit.build.executors import LocalExecutor
if __name__ == "__main__":
    LocalExecutor(2).run(worker_jobs.slow, [0.0, 600.0, 600.0], on_result=lambda one: print("working", flush=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"working\n"
        children = children_of(parent.pid)
        assert len(children) >= 2
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() and state(child) != "Z" for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
