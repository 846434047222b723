"""The architectures that ship; importing this package registers them."""

from trautoml.networks.cells import build_cells
from trautoml.networks.chain import build_chain
from trautoml.networks.supernet import SuperNetwork

__all__ = ["SuperNetwork", "build_cells", "build_chain"]
