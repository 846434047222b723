"""Where work runs: in this process or on local worker processes."""

import os
import re
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from loky.process_executor import (
    BrokenProcessPool,
    ProcessPoolExecutor,
    TerminatedWorkerError,
)

from trautoml.device import resolve_device
from trautoml.errors import EngineError, InputError
from trautoml.spec import Builder, adopt_architectures, custom_architectures
from trautoml.task import Task

Result = TypeVar("Result")
ResultT = TypeVar("ResultT", covariant=True)  # noqa: PLC0105 - a second name, for the protocol


class Job(Protocol[ResultT]):
    """One piece of work. It can be pickled, and `key` names what it computes."""

    @property
    def key(self) -> str:
        """Equal keys mean equal results."""

    def run(self) -> ResultT:
        """Do the work."""


@dataclass(frozen=True)
class SharedTask:
    """A task as a job carries it: by reference, so that images are not copied per job.

    Made by `Engine.share`; `load` gives the task back in whichever process the job runs.
    """

    fingerprint: str
    folder: Path | None = None
    task: Task | None = None

    def load(self) -> Task:
        """Return the task; a folder is read once per process and mapped, not copied."""
        if self.task is not None:
            return self.task
        if self.folder is None:
            raise EngineError("expected a shared task with its folder; share it by Engine.share")
        return _load_mapped(self.folder, self.fingerprint)


@lru_cache(maxsize=1)
def _load_mapped(folder: Path, fingerprint: str) -> Task:
    return Task.load(folder, mmap=True, fingerprint=fingerprint)


class Engine(ABC):
    """Runs jobs. Owned by one thread of one process; close it, or use it as a context manager.

    Parameters
    ----------
    workspace : Path, optional
        Folder for shared tasks and checkpoints. Default: a temporary one, removed by `close`.
    device : str
        What its jobs compute on: ``"auto"`` (CUDA if present), ``"cpu"``, ``"cuda"``, ``"cuda:1"``
        and so on.

    Raises
    ------
    InputError
        If the device is unknown or not present.
    """

    n_workers: int = 1

    def __init__(self, workspace: Path | None = None, device: str = "auto") -> None:
        resolve_device(device)
        self.device = device
        self._temporary = None if workspace else tempfile.TemporaryDirectory(prefix="trautoml-")
        self.workspace = workspace or Path(self._temporary.name if self._temporary else "")

    @abstractmethod
    def share(self, task: Task) -> SharedTask:
        """Make a task reachable from every worker."""

    def release(self, task: Task | SharedTask) -> None:  # noqa: B027 - it may leave nothing
        """Remove what `share` left of a task; it can be shared again.

        ``SharedTask(fingerprint)`` stands for a task that isn't at hand.
        """

    @abstractmethod
    def run(self, jobs: Sequence[Job[Result]]) -> Iterator[tuple[int, Result]]:
        """Run jobs and yield ``(index, result)`` as they finish, in any order.

        Raises
        ------
        EngineError
            If the place where the work runs fails; results already yielded are good.
        """

    def remembers(self, job: Job[Result]) -> bool:  # noqa: ARG002 - a plain engine remembers none
        """Whether `run` yields the job's result without working, before those that take work."""
        return False

    def close(self) -> None:
        """Stop the workers and remove a temporary workspace."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LocalEngine(Engine):
    """Runs jobs one after another in this process: for a single GPU, and for debugging."""

    def share(self, task: Task) -> SharedTask:
        """Hand the task itself over."""
        return SharedTask(task.fingerprint, task=task)

    def run(self, jobs: Sequence[Job[Result]]) -> Iterator[tuple[int, Result]]:
        """Run jobs in order."""
        for index, job in enumerate(jobs):
            yield index, job.run()


class WorkerEngine(Engine):
    """Runs jobs on local worker processes with one torch thread each, kept alive between calls.

    Two single-threaded workers use two cores far better than one process with two threads does on
    networks of this size. The workers do not import the caller's ``__main__``, so a script needs
    no guard around its top level; architectures that it has registered go along with each job.

    Parameters
    ----------
    n_workers : int, optional
        Default: the number of processors this process may use.
    workspace, device
        See `Engine`.

    Raises
    ------
    InputError
        If `n_workers` is below 1, or the device unknown or not present.
    """

    def __init__(
        self, n_workers: int | None = None, workspace: Path | None = None, device: str = "auto"
    ) -> None:
        if n_workers is not None and n_workers < 1:
            raise InputError(f"expected at least 1 worker, got {n_workers}")
        super().__init__(workspace, device)
        self.n_workers = n_workers or _usable_processors()
        self._pool: ProcessPoolExecutor | None = None

    def share(self, task: Task) -> SharedTask:
        """Write the task below the workspace, unless it is there or was loaded from a folder.

        Raises
        ------
        OSError
            If it can't be written.
        """
        if task.folder is not None:
            return SharedTask(task.fingerprint, folder=task.folder)
        folder = self._folder(task)
        _remove_left_overs(folder)
        if not _is_whole(folder):
            self.release(task)
            # Written beside and renamed, so that a killed run leaves no half a task in its place.
            partial = _beside(folder)
            try:
                task.save(partial)
                partial.rename(folder)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                if not _is_whole(folder):  # else another process was faster: its copy is the same
                    raise
        return SharedTask(task.fingerprint, folder=folder)

    def release(self, task: Task | SharedTask) -> None:
        """Remove the copy; workers that still map it keep it until they take up another task.

        A copy that the system keeps in its place, because it is in use, stays whole. The folder
        that a task was loaded from is never touched.
        """
        folder = self._folder(task)
        loaded_from = task.folder if isinstance(task, Task) else None
        if loaded_from is not None and folder.exists() and folder.samefile(loaded_from):
            return
        _remove_left_overs(folder)
        with suppress(OSError):
            # Renamed first, so that a kill leaves no half a task in its place.
            shutil.rmtree(folder.rename(_beside(folder)), ignore_errors=True)

    def _folder(self, task: Task | SharedTask) -> Path:
        return self.workspace / "tasks" / task.fingerprint

    def run(self, jobs: Sequence[Job[Result]]) -> Iterator[tuple[int, Result]]:
        """Run jobs on the workers; the first of the list start first."""
        futures: dict[Future[Result], int] = {}
        try:
            for index, job in enumerate(jobs):
                futures[self._submit(job, first=index == 0)] = index
            for future in as_completed(futures):
                yield futures[future], future.result()
        except TerminatedWorkerError as error:
            self._stop()
            raise EngineError(
                "a worker process died, most often because memory ran out; run again with fewer "
                "workers to go on from the last finished training"
            ) from error
        except BrokenProcessPool as error:
            self._stop()
            raise EngineError(
                "a job, its result or its exception did not survive the way between processes: "
                f"expected them to be unpickled as they were pickled. {error}"
            ) from error
        except BaseException:
            # An error or an interrupt: nobody waits for the other jobs any more.
            self._stop()
            raise
        finally:
            for future in futures:
                future.cancel()

    def _submit(self, job: Job[Result], *, first: bool) -> Future[Result]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.n_workers, initializer=_start_worker, initargs=(os.getpid(),)
            )
        try:
            future: Future[Result] = self._pool.submit(_run, job, custom_architectures())
        except BrokenProcessPool:
            if not first:
                raise
            self._stop()  # a worker died while there was nothing to do: no work is lost
            return self._submit(job, first=False)
        return future

    def close(self) -> None:
        """Stop the workers."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, kill_workers=True)
            self._pool = None


def make_engine(
    workers: int | None = None, device: str = "auto", workspace: Path | None = None
) -> Engine:
    """Choose an engine: this process for one GPU, else a worker per processor.

    Parameters
    ----------
    workers : int, optional
        0 runs in this process. Default: 0 on CUDA, else the number of processors.
    device, workspace
        See `Engine`.

    Raises
    ------
    InputError
        If `workers` is below 0, or the device unknown or not present.
    """
    found = resolve_device(device)
    if workers is None:
        workers = 0 if found.type == "cuda" else _usable_processors()
    if workers:
        return WorkerEngine(workers, workspace, device)
    return LocalEngine(workspace, device)


def _is_whole(folder: Path) -> bool:
    return (folder / "task.json").is_file()  # what `Task.save` writes last


def _beside(folder: Path) -> Path:
    """Where this process writes and removes a shared task."""
    return folder.with_name(f"{folder.name}.{os.getpid()}.partial")


def _remove_left_overs(folder: Path) -> None:
    """Remove what processes that have ended left half written or half removed."""
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        process = re.fullmatch(r"\.(\d+)\.partial", left.name.removeprefix(folder.name))
        if process and not _is_other_process(int(process[1])):
            shutil.rmtree(left, ignore_errors=True)


def _is_other_process(process: int) -> bool:
    """Whether another process of that number runs on this machine, or may run."""
    if process == os.getpid():
        return False
    if os.name == "nt":  # there, asking would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, and is another user's
        pass
    return True


def _usable_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(job: Job[Result], architectures: Mapping[str, Builder]) -> Result:
    adopt_architectures(architectures)
    return job.run()


def _start_worker(parent: int) -> None:
    """Prepare a worker: one torch thread, and an end when its parent has gone."""
    import signal

    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means

    def watch() -> None:
        while os.getppid() == parent or os.name == "nt":
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
