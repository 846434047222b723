"""The architectures that ship; importing this package registers them."""

from trautoml.networks.chain import build_chain

__all__ = ["build_chain"]
