"""ModelSpec, what a search returns, and the registry of architectures that can build one."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trautoml.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[[Mapping[str, Any], tuple[int, int, int], int], "nn.Module"]
"""``builder(structure, (H, W, C), n_classes)`` gives a network from images to logits."""

_ARCHITECTURES: dict[str, Builder] = {}


def register_architecture(name: str) -> Callable[[Builder], Builder]:
    """Register the decorated builder, so that specs may name it.

    Raises
    ------
    SpecError
        If another builder already has that name.
    """

    def add(builder: Builder) -> Builder:
        if name in _ARCHITECTURES:
            raise SpecError(f"architecture {name!r} is registered already; choose another name")
        _ARCHITECTURES[name] = builder
        return builder

    return add


def custom_architectures() -> dict[str, Builder]:
    """Give the registered builders that don't ship, so that another process can adopt them."""
    return {
        name: builder
        for name, builder in _ARCHITECTURES.items()
        if not str(getattr(builder, "__module__", "")).startswith("trautoml.")
    }


def adopt_architectures(builders: Mapping[str, Builder]) -> None:
    """Register what `custom_architectures` gave in another process, in place of older ones."""
    _ARCHITECTURES.update(builders)


@dataclass(frozen=True)
class Hyperparameters:
    """Everything of a model spec that is not its architecture.

    Parameters
    ----------
    learning_rate : float
        Initial learning rate, above 0; it falls to 0 along half a cosine.
    momentum : float
        Nesterov momentum in [0, 1).
    weight_decay : float
        L2 penalty, at least 0.
    batch_size : int
        Images a step, at least 1.
    init_sd : float
        Standard deviation of the initial weights, in units of He's ``sqrt(2 / fan_in)``.

    Raises
    ------
    SpecError
        If a value is not a number or lies outside its range.
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    batch_size: int
    init_sd: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            try:
                number = math.nan if isinstance(value, str | bytes | bool) else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise SpecError(f"{field.name}: expected a finite number, got {value!r}")
            # One type per field, so that equal values give equal JSON: 1 and 1.0, or NumPy's.
            object.__setattr__(self, field.name, number)
        valid = {
            "learning_rate": ("above 0", self.learning_rate > 0),
            "momentum": ("in [0, 1)", 0 <= self.momentum < 1),
            "weight_decay": ("of at least 0", self.weight_decay >= 0),
            "batch_size": (
                "whole and of at least 1",
                self.batch_size >= 1 and self.batch_size == int(self.batch_size),
            ),
            "init_sd": ("above 0", self.init_sd > 0),
        }
        for name, (wanted, ok) in valid.items():
            if not ok:
                raise SpecError(f"{name}: expected a number {wanted}, got {getattr(self, name)!r}")
        object.__setattr__(self, "batch_size", int(self.batch_size))


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """An architecture with its hyper-parameters; weights are not part of it.

    Parameters
    ----------
    architecture : str
        Name of a registered architecture, for example ``"chain"``.
    structure : Mapping
        What that architecture's builder reads; JSON values only. It is copied.
    hyper : Hyperparameters
        How to train it.

    Raises
    ------
    SpecError
        If `structure` is not a mapping of JSON values.
    """

    architecture: str
    structure: Mapping[str, Any]
    hyper: Hyperparameters

    def __post_init__(self) -> None:
        if not isinstance(self.structure, Mapping):
            raise SpecError(f"the structure of a spec must be a mapping, got {self.structure!r}")
        try:
            text = json.dumps(dict(self.structure), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise SpecError(f"the structure of a spec must be JSON: {error}") from error
        # A copy: what the caller does to the original must not change a spec or its digest.
        object.__setattr__(self, "structure", json.loads(text))

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        hyper = {field.name: getattr(self.hyper, field.name) for field in fields(self.hyper)}
        return json.dumps(
            {"architecture": self.architecture, "structure": self.structure, "hyper": hyper},
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Read what `to_json` wrote.

        Raises
        ------
        SpecError
            If the text is not the JSON of a model spec.
        """
        try:
            data = json.loads(text)
            architecture = data["architecture"]
            if not isinstance(architecture, str):
                raise SpecError(f"architecture: expected a name, got {architecture!r}")
            return cls(
                architecture=architecture,
                structure=data["structure"],
                hyper=Hyperparameters(**data["hyper"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(
                "expected the JSON of a model spec with architecture, structure and hyper, "
                f"got {text[:80]!r} ({type(error).__name__}: {error})"
            ) from error

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that name this spec."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def build(self, image_shape: tuple[int, int, int], n_classes: int) -> "nn.Module":
        """Build the network for images ``(H, W, C)``; its weights are not yet drawn.

        Returns
        -------
        torch.nn.Module
            Maps float images ``(N, C, H, W)`` to logits ``(N, n_classes)``.

        Raises
        ------
        SpecError
            If no architecture of that name is registered, or it can't be built from the structure.
        """
        import trautoml.networks  # noqa: F401 - registers the architectures that ship

        if self.architecture not in _ARCHITECTURES:
            raise SpecError(
                f"unknown architecture {self.architecture!r}; known: {sorted(_ARCHITECTURES)}. "
                "Register it with trautoml.spec.register_architecture before it is used"
            )
        return _ARCHITECTURES[self.architecture](self.structure, image_shape, n_classes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelSpec) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.digest)
