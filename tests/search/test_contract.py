"""Every searcher that ships keeps the contract."""

from trautoml.search import (
    BayesianSearcher,
    DartsSearcher,
    EnasSearcher,
    HyperbandSearcher,
    MetaQnnSearcher,
    NasRlSearcher,
    Net2NetSearcher,
    RandomSearcher,
    SearchBudget,
    Searcher,
    make_searcher,
)
from trautoml.search.registry import _SHIPPED
from trautoml.spaces import CellSpace, ChainSpace
from trautoml.testing import SearcherContract


class TestRandom(SearcherContract):
    def searcher(self) -> Searcher:
        return RandomSearcher(seed=1)


class TestHyperband(SearcherContract):
    def searcher(self) -> Searcher:
        return HyperbandSearcher(seed=1, slots=4)


class TestGaussianProcess(SearcherContract):
    budget = SearchBudget(trials=9, epochs=2)

    def searcher(self) -> Searcher:
        return BayesianSearcher(model="gp", seed=1)


class TestParzenEstimators(SearcherContract):
    budget = SearchBudget(trials=12, epochs=2)

    def searcher(self) -> Searcher:
        return BayesianSearcher(model="tpe", seed=1)


class TestMetaQnn(SearcherContract):
    def searcher(self) -> Searcher:
        return MetaQnnSearcher(seed=1)


class TestNasRl(SearcherContract):
    def searcher(self) -> Searcher:
        return NasRlSearcher(seed=1)


class TestNet2Net(SearcherContract):
    # Two rounds of children.
    budget = SearchBudget(trials=7, epochs=2)

    def searcher(self) -> Searcher:
        return Net2NetSearcher(seed=1, slots=2)


class TestEnas(SearcherContract):
    budget = SearchBudget(trials=3, epochs=2)

    def searcher(self) -> Searcher:
        return EnasSearcher(seed=1, nodes=1)


class TestDarts(SearcherContract):
    budget = SearchBudget(trials=3, epochs=2)

    def searcher(self) -> Searcher:
        return DartsSearcher(seed=1, nodes=1)


SUITES = [
    TestRandom,
    TestHyperband,
    TestGaussianProcess,
    TestParzenEstimators,
    TestMetaQnn,
    TestNasRl,
    TestNet2Net,
    TestEnas,
    TestDarts,
]


def test_every_searcher_that_ships_is_here() -> None:
    spaces = {"enas": CellSpace(), "darts": CellSpace()}
    shipped = {type(make_searcher(name, spaces.get(name, ChainSpace()))) for name in _SHIPPED}
    assert {type(suite().searcher()) for suite in SUITES} == shipped
