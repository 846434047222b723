"""Searchers: any method that turns a task into a model spec."""

from trautoml.search._base import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.search._proposing import Proposal, Proposer, ProposingSearcher
from trautoml.search.bayesian import BayesianSearcher
from trautoml.search.darts import DartsSearcher
from trautoml.search.enas import EnasSearcher
from trautoml.search.hyperband import HyperbandSearcher
from trautoml.search.metaqnn import MetaQnnSearcher
from trautoml.search.nas_rl import NasRlSearcher
from trautoml.search.net2net import Net2NetSearcher
from trautoml.search.random_search import RandomSearcher
from trautoml.search.registry import make_searcher, searcher_names

__all__ = [
    "BayesianSearcher",
    "DartsSearcher",
    "EnasSearcher",
    "HyperbandSearcher",
    "MetaQnnSearcher",
    "NasRlSearcher",
    "Net2NetSearcher",
    "Proposal",
    "Proposer",
    "ProposingSearcher",
    "RandomSearcher",
    "SearchBudget",
    "SearchProgress",
    "SearchResult",
    "Searcher",
    "TrialRecord",
    "make_searcher",
    "searcher_names",
]
