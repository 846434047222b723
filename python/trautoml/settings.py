"""What is fixed for the life of a store."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trautoml.backbones import Backbone
from trautoml.errors import InputError
from trautoml.grouping import MarkovGrouper
from trautoml.spaces import CellSpace, ChainSpace, SearchSpace
from trautoml.store import Store

_SPACES: dict[str, type[SearchSpace]] = {
    "scratch": ChainSpace,
    "predefined": ChainSpace,
    "cells": CellSpace,
}
"""What each setting samples its probes from, and searches."""


@dataclass(frozen=True)
class Settings:
    """What is fixed for the life of a store: tasks only compare under equal settings.

    Parameters
    ----------
    seed : int
        Draws probes, presets, candidates and initial weights.
    probes : int
        Number of probes B.
    trials : int
        Trials T of each probe.
    probe_images : int
        Training images that one trial sees.
    grouping : dict
        Arguments of `MarkovGrouper`, other than the seed.
    setting : {"scratch", "predefined", "cells"}
        What is searched: a chain for the images; a chain on top of a frozen backbone, for its
        features of the images; or the cells that a network is stacked of. Default ``"scratch"``.
    backbone : dict
        Arguments of `Backbone`, in the setting ``"predefined"`` only.

    Raises
    ------
    InputError
        If a number is out of range, the setting unknown or the backbone not as it should be.
        `GroupingError`, one of its kind, for the grouping.
    """

    seed: int = 0
    probes: int = 6
    trials: int = 8
    probe_images: int = 4000
    grouping: dict[str, Any] = field(default_factory=dict)
    setting: str = "scratch"
    backbone: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.setting not in _SPACES:
            raise InputError(
                f"expected one of the settings {', '.join(_SPACES)}, got {self.setting!r}"
            )
        self._check_values()
        # Complete, so that defaults given and defaults left out compare equal.
        complete = {k: v for k, v in self.grouper().params.items() if k != "seed"}
        object.__setattr__(self, "grouping", complete)
        object.__setattr__(self, "backbone", self._complete_backbone())

    def _complete_backbone(self) -> dict[str, Any]:
        if self.setting != "predefined":
            if self.backbone:
                raise InputError(
                    f"a backbone ({self.backbone}) belongs to the setting predefined, but the "
                    f"setting is {self.setting}: change one of them"
                )
            return {}
        known = asdict(Backbone())
        if unknown := self.backbone.keys() - known.keys():
            raise InputError(
                f"expected backbone to have arguments of Backbone {sorted(known)}, got "
                f"{sorted(unknown)}"
            )
        return asdict(Backbone(**self.backbone))

    def _check_values(self) -> None:
        if self.seed > 2**63 - 1:
            raise InputError(f"expected a seed below 2**63, got {self.seed}")
        for name, least in (("seed", 0), ("probes", 1), ("trials", 1), ("probe_images", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} >= {least}, got {getattr(self, name)}")
        known = MarkovGrouper().params.keys() - {"seed"}
        if unknown := self.grouping.keys() - known:
            raise InputError(
                f"expected grouping to have arguments of MarkovGrouper {sorted(known)}, got "
                f"{sorted(unknown)}"
            )
        tests = self.grouping.get("alpha", 0.005) > 0
        if tests and self.trials <= self.probes:
            raise InputError(
                f"the test needs more trials than probes, got {self.trials} trials of "
                f"{self.probes} probes: raise trials above {self.probes}, take fewer probes, or "
                "switch the test off with alpha = 0"
            )

    @classmethod
    def of(cls, store: Store) -> "Settings | None":
        """Return the settings that a store was made with, or None for a new one."""
        stored = store.setting("settings")
        return None if stored is None else cls(**stored)

    def space(self) -> SearchSpace:
        """Make the search space of the setting."""
        return _SPACES[self.setting]()

    def grouper(self) -> MarkovGrouper:
        """Make a grouper that has seen nothing."""
        return MarkovGrouper(**self.grouping, seed=self.seed)


def agreed_settings(store: Store, wanted: Settings | None) -> Settings:
    """Return the store's settings, fixing them if it is new.

    Raises
    ------
    InputError
        If others are wanted than the store was made with.
    """
    settings = Settings.of(store)
    if settings is None:
        settings = wanted or Settings()
        store.add_setting("settings", asdict(settings))
        return settings
    if wanted is not None and wanted != settings:
        old, new = _flat(settings), _flat(wanted)
        differences = ", ".join(
            f"{name}: {old[name]} in the store, {new[name]} wanted"
            for name in old
            if old[name] != new[name]
        )
        raise InputError(
            f"the store {store.folder} was made with other settings ({differences}); tasks only "
            "compare under equal settings: leave the settings out, or start another store"
        )
    return settings


def _flat(settings: Settings) -> dict[str, Any]:
    values = asdict(settings)
    grouping: dict[str, Any] = values.pop("grouping")
    backbone = asdict(Backbone()) | values.pop("backbone")
    return values | grouping | {f"backbone {name}": value for name, value in backbone.items()}
