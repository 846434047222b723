"""Every searcher that ships keeps the contract."""

from trautoml.search import HyperbandSearcher, SearchBudget, Searcher
from trautoml.search.bayesian import BayesianSearcher
from trautoml.search.darts import DartsSearcher
from trautoml.search.enas import EnasSearcher
from trautoml.search.metaqnn import MetaQnnSearcher
from trautoml.search.nas_rl import NasRlSearcher
from trautoml.search.random_search import RandomSearcher
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


class TestEnas(SearcherContract):
    budget = SearchBudget(trials=3, epochs=2)

    def searcher(self) -> Searcher:
        return EnasSearcher(seed=1, nodes=1)


class TestDarts(SearcherContract):
    budget = SearchBudget(trials=3, epochs=2)

    def searcher(self) -> Searcher:
        return DartsSearcher(seed=1, nodes=1)
