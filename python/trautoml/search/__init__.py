"""Searchers: any method that turns a task into a model spec."""

from trautoml.search._base import SearchBudget, Searcher, SearchProgress, SearchResult, TrialRecord
from trautoml.search.hyperband import HyperbandSearcher

__all__ = [
    "HyperbandSearcher",
    "SearchBudget",
    "SearchProgress",
    "SearchResult",
    "Searcher",
    "TrialRecord",
]
