"""Searchers by name: those that ship, and those that other packages register."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from trautoml.errors import InputError
from trautoml.search._base import Searcher
from trautoml.search.bayesian import BayesianSearcher
from trautoml.search.darts import DartsSearcher
from trautoml.search.enas import EnasSearcher
from trautoml.search.hyperband import HyperbandSearcher
from trautoml.search.metaqnn import MetaQnnSearcher
from trautoml.search.nas_rl import NasRlSearcher
from trautoml.search.net2net import Net2NetSearcher
from trautoml.search.random_search import RandomSearcher
from trautoml.spaces import CellSpace, ChainSpace, SearchSpace

ENTRY_POINTS = "trautoml.searchers"
"""Group in which a package registers its own: ``name = "module:factory"``."""

Space = TypeVar("Space", bound=SearchSpace)

SearcherFactory = Callable[..., Searcher]
"""``factory(space, seed=int, storage=str or None)`` makes a searcher of that space."""


def searcher_names() -> list[str]:
    """Name the searchers that there are, those that ship first."""
    return [*_SHIPPED, *sorted(_registered().keys() - _SHIPPED.keys())]


def make_searcher(
    name: str, space: SearchSpace, *, seed: int = 0, storage: str | None = None
) -> Searcher:
    """Make a searcher by its name.

    Parameters
    ----------
    name : str
        One of `searcher_names`.
    space : SearchSpace
        What it is to search.
    seed : int
        Draws candidates and initial weights.
    storage : str, optional
        URL of a database for records; not every searcher keeps some.

    Raises
    ------
    InputError
        If there is no such searcher, it can't be loaded, or it doesn't search this space.
    """
    if name in _SHIPPED:
        return _SHIPPED[name](space, seed=seed, storage=storage)
    registered = _registered()
    if name not in registered:
        raise InputError(f"no searcher {name!r}: expected one of {', '.join(searcher_names())}")
    try:
        made = registered[name].load()(space, seed=seed, storage=storage)
    except InputError:
        raise
    except Exception as error:  # whatever another package's code comes to
        raise InputError(
            f"searcher {name!r} of {registered[name].value} can't be made "
            f"({type(error).__name__}: {error}): mend or remove the package that registers it"
        ) from error
    if not callable(getattr(made, "search", None)):
        raise InputError(
            f"searcher {name!r}: expected {registered[name].value} to make an object with a method "
            f"search, got {made!r}; mend the package that registers it"
        )
    return made  # type: ignore[no-any-return]


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _metaqnn(space: SearchSpace, *, seed: int, storage: str | None) -> Searcher:  # noqa: ARG001
    _check_space("metaqnn", space, ChainSpace)
    return MetaQnnSearcher(seed=seed)


def _net2net(space: SearchSpace, *, seed: int, storage: str | None) -> Searcher:  # noqa: ARG001
    _check_space("net2net", space, ChainSpace)
    return Net2NetSearcher(space, seed=seed)


def _enas(space: SearchSpace, *, seed: int, storage: str | None) -> Searcher:  # noqa: ARG001
    return EnasSearcher(seed=seed, nodes=_check_space("enas", space, CellSpace).nodes)


def _darts(space: SearchSpace, *, seed: int, storage: str | None) -> Searcher:  # noqa: ARG001
    return DartsSearcher(seed=seed, nodes=_check_space("darts", space, CellSpace).nodes)


def _check_space(name: str, space: SearchSpace, wanted: type[Space]) -> Space:
    if not isinstance(space, wanted):
        kind, other = ("cells", "chains") if wanted is CellSpace else ("chains", "cells")
        remedy = "take" if wanted is CellSpace else "leave out"
        raise InputError(
            f"{name} searches {kind}, but this store is for {other}: {remedy} the setting "
            "cells, in a store of its own, or take another searcher"
        )
    return space


_SHIPPED: dict[str, SearcherFactory] = {
    "hyperband": HyperbandSearcher,
    "gp": lambda space, **options: BayesianSearcher(space, model="gp", **options),
    "tpe": lambda space, **options: BayesianSearcher(space, model="tpe", **options),
    "metaqnn": _metaqnn,
    "nas-rl": lambda space, *, seed, storage: NasRlSearcher(space, seed=seed),  # noqa: ARG005
    "net2net": _net2net,
    "enas": _enas,
    "darts": _darts,
    "random": lambda space, *, seed, storage: RandomSearcher(space, seed=seed),  # noqa: ARG005
}
