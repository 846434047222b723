"""Reuse policies: given a decision, what to try before a search, if anything."""

from trautoml.reuse._base import ReusePolicy
from trautoml.reuse.paper import PaperPolicy

__all__ = ["PaperPolicy", "ReusePolicy"]
