"""Engines for more than one machine: Ray and Slurm. Their packages are extras, imported when an engine is opened.

The working folder must lie on a disk that all machines share.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets_toolkit.build.executors import TRIES, Executor, Function, Outcome, call, deliver
from datasets_toolkit.errors import UserError

_POLL = 0.2  # seconds between two looks at a queue


class RayExecutor(Executor):
    """Tasks of Ray, one CPU each, with its usage reports switched off.

    Args:
        address: of a running cluster ("auto", "ray://host:10001"); None starts one on this machine, and ends it on :meth:`close`.
        workers: CPUs to use on this machine; None takes all. A cluster knows its own.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError as error:
            raise UserError(f"--engine ray: the package ray cannot be imported ({error}); install it with: pip install ray") from error
        options: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"--engine ray: {address or 'a cluster on this machine'} cannot be used ({error}); check the address"
            ) from error
        self._ray = ray

    def run(self, function: Function, jobs: Sequence[Any], *, on_result: Callable[[Outcome], None]) -> None:
        """See :meth:`Executor.run`."""
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(call)
        room = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)  # enough to keep every CPU busy, few enough to stop quickly
        running: dict[Any, int] = {}
        waiting = list(enumerate(jobs))[::-1]
        try:
            while waiting or running:
                while waiting and len(running) < room:
                    index, job = waiting.pop()
                    running[task.remote(function, index, job)] = index
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    deliver(self._outcome(reference, running.pop(reference)), on_result)
        except BaseException:
            for reference in running:
                ray.cancel(reference, force=True)
            raise

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()

    def _outcome(self, reference: Any, index: int) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Outcome(index=index, kind="crashed", message=f"crashed: its process died ({type(error).__name__})")
        return outcome


class SlurmExecutor(Executor):
    """A job array of Slurm through submitit; each task of the array works through a share of the jobs.

    Args:
        folder: for scripts and logs, on a disk that the nodes see.
        partition: of the cluster; None takes its default.
        workers: tasks of the array.
        local: run the tasks as processes of this machine instead, as submitit does for tests.
        minutes: time limit of a task.

    Raises:
        UserError: submitit is not installed, or there is no Slurm here.
    """

    def __init__(self, folder: Path, partition: str | None = None, workers: int = 1, local: bool = False, minutes: int = 24 * 60) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(f"--engine slurm: submitit cannot be imported ({error}); install it with: pip install submitit") from error
        try:
            self._executor = submitit.AutoExecutor(folder, cluster="local" if local else "slurm")
        except RuntimeError as error:
            raise UserError(f"--engine slurm: no Slurm on this machine ({error}); run this where sbatch is known") from error
        extra = {"slurm_partition": partition} if partition else {}
        self._executor.update_parameters(
            timeout_min=minutes, cpus_per_task=1, name="mggdata", slurm_array_parallelism=max(workers, 1), **extra
        )
        self._workers, self._local = max(workers, 1), local

    def run(self, function: Function, jobs: Sequence[Any], *, on_result: Callable[[Outcome], None]) -> None:
        """See :meth:`Executor.run`; the jobs of a task that died are tried again, each in a task of its own."""
        indexed = list(enumerate(jobs))
        shares = [indexed[start :: self._workers] for start in range(min(self._workers, len(indexed)))]
        alone = self._submit(function, shares, on_result, last=False)
        self._submit(function, [[one] for one in alone], on_result, last=True)

    def _submit(
        self, function: Function, shares: list[list[tuple[int, Any]]], on_result: Callable[[Outcome], None], *, last: bool
    ) -> list[tuple[int, Any]]:
        """Run shares of the jobs; returns the jobs of tasks that died, unless this was their last try."""
        if not shares:
            return []
        tasks = dict(zip(self._executor.map_array(_call_all, [function] * len(shares), shares), shares, strict=True))
        died = []
        for task in tasks if self._local else ():
            task._results_timeout_s = 1  # submitit waits 15 s for the result of a task that is gone, in case the disk is a slow shared one
        try:
            while tasks:
                for task in [task for task in tasks if task.done()]:
                    share = tasks.pop(task)
                    if task.exception() is None:
                        for outcome in task.result():
                            deliver(outcome, on_result)
                    elif last:
                        for index, _ in share:
                            deliver(Outcome(index=index, kind="crashed", message="crashed: its process died"), on_result)
                    else:
                        died += share
                time.sleep(_POLL if tasks else 0)
        except BaseException:
            for task in tasks:
                task.cancel(check=False)
            raise
        return died


def _call_all(function: Function, share: list[tuple[int, Any]]) -> list[Outcome]:
    return [call(function, index, job) for index, job in share]
