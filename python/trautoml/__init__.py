"""Transferable AutoML for image classification: model sharing over grouped datasets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trautoml.automl import TransferAutoML
    from trautoml.callbacks import Callbacks
    from trautoml.outcome import Outcome
    from trautoml.search import SearchBudget
    from trautoml.settings import Settings
    from trautoml.spec import ModelSpec
    from trautoml.store import Store
    from trautoml.task import Task

__version__ = "0.1.0"

__all__ = [
    "Callbacks",
    "ModelSpec",
    "Outcome",
    "SearchBudget",
    "Settings",
    "Store",
    "Task",
    "TransferAutoML",
]

_HOMES = {
    "Callbacks": "callbacks",
    "ModelSpec": "spec",
    "Outcome": "outcome",
    "SearchBudget": "search",
    "Settings": "settings",
    "Store": "store",
    "Task": "task",
    "TransferAutoML": "automl",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a name is imported when it is first used.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"trautoml.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'trautoml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
