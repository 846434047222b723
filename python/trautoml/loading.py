"""Tasks by name: a folder, a file, a demo task or a torchvision dataset, as a user calls it."""

from pathlib import Path
from typing import Any

from trautoml.demo_tasks import DEMO_TASKS
from trautoml.errors import TaskError
from trautoml.image_files import DEFAULT_SIDE, ImageSize
from trautoml.task import Task
from trautoml.torchvision_data import find_dataset


def load_task(
    spec: str,
    *,
    data_root: str | Path,
    image_size: ImageSize | None = None,
    max_side: int = DEFAULT_SIDE,
    seed: int = 0,
) -> Task:
    """Make the task that a user names on the command line.

    Parameters
    ----------
    spec : str
        ``WHAT`` or ``WHAT@FRACTION``, where WHAT is a folder or ``.npz`` file, else a demo task
        (``digits``, ``digits-rotated``, ``digits-background``), else the name of a torchvision
        dataset. A path that exists and has an ``@`` in it is taken as it is.
    data_root : str or Path
        Where torchvision's data lie or are downloaded to.
    image_size, max_side
        As in `Task.from_folder`, for folders and torchvision datasets. Arrays keep their size.
    seed : int, optional
        Seed of all draws.

    Returns
    -------
    Task

    Raises
    ------
    TaskError
        If nothing of that name is found (the message says what was tried), and as in the
        constructors.
    """
    options = {"image_size": image_size, "max_side": max_side, "seed": seed}

    def whole(what: str) -> Task:
        return _load_whole(what, data_root, seed, options)

    if spec and Path(spec).expanduser().exists():
        return whole(spec)
    what, at, share = spec.rpartition("@")
    if not at:
        return whole(spec)
    try:
        fraction = float(share)
    except ValueError:
        raise TaskError(
            f"{spec!r}: expected a number after '@', above 0 and at most 1, got {share!r}; "
            f"there is no file or folder of that whole name either"
        ) from None
    if not 0 < fraction <= 1:
        raise TaskError(f"{spec!r}: the fraction must be above 0 and at most 1, got {share}")
    return whole(what).subset(fraction, seed=seed)


def _load_whole(what: str, data_root: str | Path, seed: int, options: dict[str, Any]) -> Task:
    if not what:
        raise TaskError("no task named: expected a folder, a .npz file or a dataset's name")
    path = Path(what).expanduser()
    if path.is_dir():
        return Task.from_folder(path, **options)
    if path.exists():
        return Task.from_npz(path, seed=seed)
    if what.lower() in DEMO_TASKS:
        return DEMO_TASKS[what.lower()](seed)
    tried = (
        f"no task {what!r}: there is no file or folder {path.absolute()}, and the demo tasks are "
        f"{', '.join(DEMO_TASKS)}"
    )
    if path.suffix or len(path.parts) != 1:
        raise TaskError(tried)
    try:
        name = find_dataset(what)
    except TaskError as error:
        raise TaskError(f"{tried}; {error}") from None
    return Task.from_torchvision(name, root=data_root, **options)
