"""Engines that run many jobs: processes of this machine, a Ray cluster, a Slurm queue. The results do not depend on the engine.

Jobs carry paths and numbers, never pixels. A worker that dies costs its job one more try in a fresh process; if that one dies too, the
job is told as crashed and the run goes on. The cluster engines are in :mod:`datasets_toolkit.build.executors_cluster`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Literal, TypeVar

from datasets_toolkit.errors import UserError

Function = Callable[[Any], Any]
Self_ = TypeVar("Self_", bound="Executor")
TRIES = 2
"""How often a job is begun before a worker that dies is held against it: memory may have been short just then."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job.

    Attributes:
        index: of the job.
        kind: "ok"; "failed": the function raised; "crashed": its process died; "refused": a user's mistake that every job would meet.
        value: what the function returned, None unless ok.
        message: one line, '' if ok.
        details: the traceback of a failure, '' otherwise.
    """

    index: int
    kind: Literal["ok", "failed", "crashed", "refused"]
    value: Any = None
    message: str = ""
    details: str = ""


class Executor(ABC):
    """Runs a function on many jobs. Use as a context manager: workers are kept from one run to the next."""

    @abstractmethod
    def run(self, function: Function, jobs: Sequence[Any], *, on_result: Callable[[Outcome], None]) -> None:
        """Call ``function`` once for each job and hand over each outcome as it comes, in any order.

        Args:
            function: of a module (workers import it by name).
            jobs: small picklable values.
            on_result: called in this process.

        Raises:
            UserError: a job raised one: a mistake that concerns the whole run, such as a missing model file.
        """

    def close(self) -> None:  # noqa: B027 (an engine may hold nothing)
        """Stop the workers."""

    def __enter__(self: Self_) -> Self_:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def call(function: Function, index: int, job: Any) -> Outcome:
    """Run one job here; whatever it raises becomes its outcome."""
    try:
        return Outcome(index=index, kind="ok", value=function(job))
    except UserError as error:
        return Outcome(index=index, kind="refused", message=str(error))
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(index=index, kind="failed", message=line, details=traceback.format_exc())


def deliver(outcome: Outcome, on_result: Callable[[Outcome], None]) -> None:
    """Hand an outcome over; what was refused ends the run.

    Raises:
        UserError: the outcome is "refused".
    """
    if outcome.kind == "refused":
        raise UserError(outcome.message)
    on_result(outcome)


class LocalExecutor(Executor):
    """Spawned processes of this machine.

    Args:
        workers: how many; 0 runs the jobs in this process, one after the other.
        timeout: seconds after which a job counts as hung and its process is ended; None waits for ever.

    Raises:
        ValueError: ``workers`` is negative.
    """

    def __init__(self, workers: int = 1, timeout: float | None = None) -> None:
        if workers < 0:
            raise ValueError(f"the number of workers cannot be negative, got {workers}")
        self.workers, self.timeout = workers, timeout
        self._pool: list[_Worker] = []

    def run(self, function: Function, jobs: Sequence[Any], *, on_result: Callable[[Outcome], None]) -> None:
        """See :meth:`Executor.run`; an exception of ``on_result`` and Ctrl-C end the workers at once."""
        if self.workers == 0:
            for index, job in enumerate(jobs):
                deliver(call(function, index, job), on_result)
            return
        try:
            self._run(function, jobs, on_result)
        except BaseException:
            self.kill()
            raise

    def close(self) -> None:
        """Let idle workers end."""
        for worker in self._pool:
            worker.stop()
        self._pool.clear()

    def kill(self) -> None:
        """End all workers now; what they were doing is lost."""
        for worker in self._pool:
            worker.kill()
        self._pool.clear()

    def _run(self, function: Function, jobs: Sequence[Any], on_result: Callable[[Outcome], None]) -> None:
        waiting, tries = deque(range(len(jobs))), [0] * len(jobs)
        while waiting or any(worker.job is not None for worker in self._pool):
            self._fill(function, jobs, waiting, tries)
            busy = [worker for worker in self._pool if worker.job is not None]
            wait([worker.connection for worker in busy], self._patience(busy))
            for worker in busy:
                outcome = worker.outcome(self.timeout)
                if outcome is None:
                    continue
                if outcome.kind == "crashed":
                    self._pool.remove(worker)
                    if tries[outcome.index] < TRIES:
                        waiting.append(outcome.index)
                        continue
                deliver(outcome, on_result)

    def _fill(self, function: Function, jobs: Sequence[Any], waiting: deque[int], tries: list[int]) -> None:
        while len(self._pool) < min(self.workers, len(waiting) + sum(worker.job is not None for worker in self._pool)):
            self._pool.append(_Worker())
        for worker in self._pool:
            if worker.job is None and waiting:
                index = waiting.popleft()
                tries[index] += 1
                worker.give(function, index, jobs[index])

    def _patience(self, busy: list[_Worker]) -> float | None:
        if self.timeout is None or not busy:
            return None
        return max(min(worker.begun + self.timeout for worker in busy) - time.monotonic(), 0.05)


class _Worker:
    """A spawned process, and the job it has."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the process ends the pipe
        self.job: int | None = None
        self.begun = 0.0

    def give(self, function: Function, index: int, job: Any) -> None:
        self.job, self.begun = index, time.monotonic()
        with suppress(OSError):  # where it died while idle, reading from it tells
            self.connection.send((function, index, job))

    def outcome(self, timeout: float | None) -> Outcome | None:
        """What has become of the job, None while it runs; the process is gone after "crashed"."""
        assert self.job is not None
        try:
            if self.connection.poll():
                outcome: Outcome = self.connection.recv()
                self.job = None
                return outcome
        except (EOFError, OSError):
            self.process.join(10)
            return self._crashed(_death(self.process.exitcode))
        if timeout is not None and time.monotonic() - self.begun > timeout:
            return self._crashed(f"took longer than {timeout:g} s")
        return None

    def stop(self) -> None:
        with suppress(OSError):
            self.connection.send(None)
        self.process.join(10)
        self.kill()

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()

    def _crashed(self, reason: str) -> Outcome:
        index, self.job = self.job, None
        self.kill()
        assert index is not None
        return Outcome(index=index, kind="crashed", message=f"crashed: its process {reason}")


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _serve(connection: Connection) -> None:
    """The life of a worker: jobs from the pipe, outcomes into it, until the parent says so or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            task = None
        if task is None:
            os._exit(0)  # native models cannot be closed while the interpreter ends, and the system frees them as well
        function, index, job = task
        outcome = call(function, index, job)
        try:
            connection.send(outcome)
        except Exception as error:  # pickle raises what it likes
            line = " ".join(f"its result cannot be sent ({type(error).__name__}: {error})".split())
            connection.send(Outcome(index=index, kind="failed", message=line, details=traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # nobody waits for the result any more; files appear whole or not at all
