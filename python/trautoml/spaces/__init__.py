"""Search spaces: what probes are sampled from and searches choose from."""

from trautoml.spaces._base import RandomChoice, SearchSpace
from trautoml.spaces.chain import ChainSpace

__all__ = ["ChainSpace", "RandomChoice", "SearchSpace"]
