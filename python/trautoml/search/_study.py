"""Optuna's studies, as searchers open them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from trautoml.database import tune


@contextmanager
def open_study(name: str, *, storage: str | None, **options: Any) -> Iterator[optuna.Study]:
    """Open a fresh study that maximises, quietly.

    One that a killed run left is replaced: its trainings are remembered by the engine, so going
    through them again costs nothing and decides the same.

    Parameters
    ----------
    name : str
        Of the study.
    storage : str or None
        URL of the database for Optuna's records; None keeps them in memory.
    **options
        Sampler and pruner, as `optuna.create_study` takes them.
    """
    opened = None if storage is None else _open_storage(storage)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if opened is not None and name in optuna.get_all_study_names(opened):
            optuna.delete_study(study_name=name, storage=opened)
        yield optuna.create_study(study_name=name, storage=opened, direction="maximize", **options)
    finally:
        optuna.logging.set_verbosity(verbosity)
        if opened is not None:
            opened.remove_session()
            opened.engine.dispose()


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    storage = optuna.storages.RDBStorage(url)
    storage.engine.dispose()  # the connections that Optuna has opened by now are not tuned
    tune(storage.engine)
    return storage
