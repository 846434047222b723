from importlib.metadata import EntryPoint

import pytest

from trautoml.errors import InputError
from trautoml.search import (
    BayesianSearcher,
    DartsSearcher,
    EnasSearcher,
    HyperbandSearcher,
    MetaQnnSearcher,
    NasRlSearcher,
    Net2NetSearcher,
    RandomSearcher,
    Searcher,
    make_searcher,
    registry,
    searcher_names,
)
from trautoml.spaces import CellSpace, ChainSpace, SearchSpace

CLASSES = {
    "hyperband": HyperbandSearcher,
    "gp": BayesianSearcher,
    "tpe": BayesianSearcher,
    "metaqnn": MetaQnnSearcher,
    "nas-rl": NasRlSearcher,
    "net2net": Net2NetSearcher,
    "enas": EnasSearcher,
    "darts": DartsSearcher,
    "random": RandomSearcher,
}
ONLY = {"metaqnn": ChainSpace, "net2net": ChainSpace, "enas": CellSpace, "darts": CellSpace}


def test_every_searcher_of_the_paper_has_its_name() -> None:
    assert searcher_names() == list(CLASSES)


@pytest.mark.parametrize("space", [ChainSpace(), CellSpace(), CellSpace(nodes=2)])
@pytest.mark.parametrize("name", CLASSES)
def test_a_searcher_is_made_for_its_space_or_refused(name: str, space: SearchSpace) -> None:
    if not isinstance(space, ONLY.get(name, SearchSpace)):
        kind = "cells" if ONLY[name] is CellSpace else "chains"
        with pytest.raises(InputError, match=f"{name} searches {kind}"):
            make_searcher(name, space)
        return
    made = make_searcher(name, space, seed=3, storage="sqlite://")
    assert type(made) is CLASSES[name]
    assert made.seed == 3
    assert getattr(made, "storage", "sqlite://") == "sqlite://"
    assert getattr(made, "model", name) == name
    assert getattr(made, "space", space) is space
    if isinstance(space, CellSpace):
        assert getattr(made, "nodes", space.nodes) == space.nodes


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="no searcher 'magic': expected one of hyperband, gp, tpe"):
        make_searcher("magic", ChainSpace())


# --- other packages' --------------------------------------------------------------------------


def make(space: SearchSpace, *, seed: int, storage: str | None) -> Searcher:
    return RandomSearcher(space, seed=seed + 1)


def make_nothing(space: SearchSpace, *, seed: int, storage: str | None) -> object:
    return object()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "theirs": f"{__name__}:make",
        "hyperband": f"{__name__}:make",  # those that ship can't be replaced
        "gone": "no_such_module:make",
        "raises": "math:sqrt",
        "nothing": f"{__name__}:make_nothing",
    }
    found = [EntryPoint(name, value, registry.ENTRY_POINTS) for name, value in points.items()]
    monkeypatch.setattr(
        registry, "entry_points", lambda group: found if group == "trautoml.searchers" else []
    )


@pytest.mark.usefixtures("registered")
def test_a_package_registers_its_own() -> None:
    assert searcher_names() == [*CLASSES, "gone", "nothing", "raises", "theirs"]
    made = make_searcher("theirs", ChainSpace(), seed=4)
    assert isinstance(made, RandomSearcher)
    assert made.seed == 5
    assert isinstance(make_searcher("hyperband", ChainSpace()), HyperbandSearcher)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "no_such_module:make can't be made"),
        ("raises", "math:sqrt can't be made"),
        ("nothing", "an object with a method search"),
    ],
)
def test_one_that_does_not_work_is_named(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_searcher(name, ChainSpace())
