"""Features of a task: computed once by a frozen backbone, kept on disk, trained on as a task."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from trautoml.backbones import BATCH, FrozenBackbone
from trautoml.engine import Engine, SharedTask
from trautoml.errors import EngineError, InputError, StoreError, TaskError
from trautoml.task import SPLITS, FeatureTask, Task
from trautoml.tensor_files import write_tensors

_BLOCK = 8 * BATCH
"""Images of one job: what a kill costs at most. Whole batches, so that all blocks are alike."""

_SECONDS_FILE = "seconds.json"


@dataclass(frozen=True)
class Features:
    """The features of a task and their price.

    Attributes
    ----------
    task : FeatureTask
        Mapped from the disk, not held in memory.
    seconds : float
        Worker seconds that computing them took, in however many runs.
    """

    task: FeatureTask
    seconds: float


@dataclass(frozen=True)
class FeatureJob:
    """The features of some images of a split, as an engine computes them.

    Parameters
    ----------
    task : SharedTask
        The images.
    frozen : FrozenBackbone
        What is made of them.
    split : str
        ``"train"``, ``"val"`` or ``"test"``.
    start, stop : int
        The images of the split.
    folder : Path
        Gets the features, in a file of the job's own.
    device : str
        See `resolve_device`.
    """

    task: SharedTask
    frozen: FrozenBackbone
    split: str
    start: int
    stop: int
    folder: Path
    device: str = "auto"

    @property
    def key(self) -> str:
        """Name of the result: a hash of everything that determines it."""
        content = [self.task.fingerprint, self.frozen.digest, self.split, self.start, self.stop]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def file(self) -> Path:
        """Where the features are left, with the seconds that they took."""
        return self.folder / f"{self.key}.safetensors"

    @property
    def seconds(self) -> float | None:
        """Seconds that the features took; None if they are not there, or damaged."""
        try:
            with safe_open(self.file, framework="np") as stored:
                return float(stored.metadata()["seconds"])
        except (FileNotFoundError, SafetensorError):
            return None

    def run(self) -> float:
        """Compute the features and return the seconds that it took.

        Raises
        ------
        InputError
            If the device is not there.
        OSError
            If the file can't be written.
        """
        started = time.perf_counter()
        images = getattr(self.task.load(), f"{self.split}_images")[self.start : self.stop]
        features = torch.from_numpy(self.frozen.features(images, self.device))
        seconds = time.perf_counter() - started
        write_tensors(self.file, {"features": features}, {"seconds": repr(seconds)})
        return seconds


def compute_features(
    task: Task,
    frozen: FrozenBackbone,
    engine: Engine,
    folder: Path | str,
    callback: Callable[[int, int], None] | None = None,
) -> Features:
    """Compute the features of all images of a task, or load them where they are there already.

    A run that is killed goes on with the blocks of images that it had not finished.

    Parameters
    ----------
    task : Task
        The images. What the engine holds of them is released in the end.
    frozen : FrozenBackbone
        The network.
    engine : Engine
        Where to compute, on its device.
    folder : Path or str
        Of this task and backbone alone: gets the features as a saved task.
    callback : callable, optional
        Called with (images done, images in all) after each block.

    Returns
    -------
    Features
        Of the same labels and classes; its fingerprint is of the task's and the backbone's.

    Raises
    ------
    InputError
        If the folder has the features of something else.
    StoreError
        If the features in the folder are damaged.
    EngineError
        If the work could not be run; call again to go on.
    OSError
        If the features can't be written.
    """
    folder = Path(folder).expanduser().absolute()
    parts = folder / "parts"
    origin = _origin(task, frozen)
    if not (folder / "task.json").is_file():
        jobs = _compute(task, frozen, engine, parts, callback)
        _assemble(task, jobs, frozen.feature_shape, origin, folder)
    shutil.rmtree(parts, ignore_errors=True)
    engine.release(task)
    return _load(folder, origin)


def fingerprint_of_features(task: Task, frozen: FrozenBackbone) -> str:
    """Give the fingerprint of what `compute_features` makes of a task, without computing it."""
    return FeatureTask.fingerprint_of(_origin(task, frozen))


def _origin(task: Task, frozen: FrozenBackbone) -> str:
    return f"{task.fingerprint} {frozen.digest}"


def _compute(
    task: Task,
    frozen: FrozenBackbone,
    engine: Engine,
    parts: Path,
    callback: Callable[[int, int], None] | None,
) -> list[FeatureJob]:
    """Leave the features of each block of images in a file of its own."""
    shared = engine.share(task)
    jobs = [
        FeatureJob(shared, frozen, split, start, min(start + _BLOCK, n), parts, engine.device)
        for split in SPLITS
        for n in [len(getattr(task, f"{split}_labels"))]
        for start in range(0, n, _BLOCK)
    ]
    waiting = [job for job in jobs if job.seconds is None]
    in_all = _n_images(jobs)
    done = in_all - _n_images(waiting)
    for index, _ in engine.run(waiting):
        done += _n_images([waiting[index]])
        if callback is not None:
            callback(done, in_all)
    return jobs


def _n_images(jobs: Sequence[FeatureJob]) -> int:
    return sum(job.stop - job.start for job in jobs)


def _assemble(
    task: Task,
    jobs: Sequence[FeatureJob],
    shape: tuple[int, int, int],
    origin: str,
    folder: Path,
) -> None:
    """Put the blocks together as a saved task, one in memory at a time."""
    seconds = [spent for job in jobs if (spent := job.seconds) is not None]
    if len(seconds) < len(jobs):
        raise EngineError("expected the features of all images: an engine must run every job")
    (folder / _SECONDS_FILE).write_text(json.dumps(sum(seconds)), encoding="utf-8")
    images = {}
    for split in SPLITS:
        labels = getattr(task, f"{split}_labels")
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(labels), *shape)}
        file, draft = (folder / f"{split}_images{end}" for end in (".npy", ".draft.npy"))
        with draft.open("wb") as whole:
            np.lib.format.write_array_header_1_0(whole, header)
            for job in jobs:
                if job.split == split:
                    whole.write(load_file(job.file)["features"].data)
        draft.replace(file)
        images[split] = np.load(file, mmap_mode="r")
    FeatureTask(
        name=task.name,
        train_images=images["train"],
        train_labels=task.train_labels,
        val_images=images["val"],
        val_labels=task.val_labels,
        test_images=images["test"],
        test_labels=task.test_labels,
        class_names=task.class_names,
        origin=origin,
    ).save(folder, images=False)


def _load(folder: Path, origin: str) -> Features:
    try:
        task = Task.load(folder)
        seconds = float(json.loads((folder / _SECONDS_FILE).read_text(encoding="utf-8")))
    except (TaskError, OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"the features in {folder} are damaged ({error}): remove the folder, and they are "
            "computed again"
        ) from error
    if getattr(task, "origin", None) != origin:
        raise InputError(
            f"{folder} has {task}, but not the features that were asked for: use another folder"
        )
    return Features(cast("FeatureTask", task), seconds)
