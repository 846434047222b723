"""Search spaces: what probes are sampled from and searches choose from."""

from trautoml.spaces._base import RandomChoice, SearchSpace
from trautoml.spaces.cells import CellSpace
from trautoml.spaces.chain import ChainSpace
from trautoml.spaces.layers import LayerSpace

__all__ = ["CellSpace", "ChainSpace", "LayerSpace", "RandomChoice", "SearchSpace"]
