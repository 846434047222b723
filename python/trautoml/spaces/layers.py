"""MetaQNN's space: a network is a walk over layers (Baker, Gupta, Naik & Raskar, ICLR 2017)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from trautoml.spec import Hyperparameters, ModelSpec

_HYPER = Hyperparameters(
    learning_rate=0.05, momentum=0.9, weight_decay=1e-4, batch_size=64, init_sd=1.0
)
"""MetaQNN searches layers only; these train chains with batch normalisation well."""

_BINS = (8, 4)
"""Largest sides of a small and of a smallest representation."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of stride 1 with batch normalisation."""

    kernel: int
    channels: int


@dataclass(frozen=True)
class Pooling:
    """A max pooling."""

    kernel: int
    stride: int

    def side(self, side: int) -> int:
        """Side of what comes out, by the padding of `build_chain`."""
        return (side + 2 * ((self.kernel - 1) // 2) - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class Dense:
    """A dense layer, the `count`-th in a row."""

    units: int
    count: int


@dataclass(frozen=True)
class Termination:
    """The softmax layer."""


Layer: TypeAlias = Convolution | Pooling | Dense | Termination

_CONVOLUTIONS = [Convolution(kernel, c) for kernel in (1, 3, 5) for c in (8, 16, 32, 64)]
_POOLINGS = [Pooling(2, 2), Pooling(3, 2)]
_UNITS = (32, 64, 128, 256)
_MAX_DENSE = 2


@dataclass(frozen=True)
class LayerState:
    """What the choice of the next layer may depend on.

    Attributes
    ----------
    last : Layer or None
        The layer before; None at the start.
    depth : int
        Layers so far.
    size_bin : int
        Of the representation: 0 above 8 pixels a side, 1 from 8 on, 2 from 4 on.
    """

    last: Layer | None
    depth: int
    size_bin: int


class Step(NamedTuple):
    """One step of a walk: where it was, what was allowed there, and what was taken."""

    state: LayerState
    actions: tuple[Layer, ...]
    action: Layer


class LayerSpace:
    """Walks from the image to the softmax layer, each of which is a chain of its own.

    States, actions and constraints are those of the paper (section 4.1 and Table 1): the state is
    the last layer, its depth and the bin of the representation's size; pooling never follows
    pooling; from a dense layer it goes on to a dense layer that is no wider, of which there are two
    at most, or to termination; dense layers need a small representation. As in the paper, the same
    action from the same state may lead to different bins, for these don't tell the true size.

    It differs in this:

    - Sizes are those of networks for CPUs: 8 to 64 channels (512), dense layers of 32 to 256 units
      (512), poolings of kernel 2 or 3 and stride 2 (also kernel 5 and stride 3), 8 layers (12).
    - A side of 8 counts as small, and one of 4 as smallest, so that images of 28 and 32 pixels are
      alike; dense layers follow from 8 on.
    - While the side is above 8, convolution and pooling alternate, and only the depth limit ends a
      walk. So each convolution has its map halved, as in `ChainSpace`, until convolutions follow
      each other on at most 8 × 8 pixels: this bounds the cost of the dearest network.
    - A pooling that would leave less than 2 pixels a side is not allowed: `build_chain` would leave
      it out, and two walks would be the same network.
    - The first layer is a convolution. Before the softmax or dense layers maps are averaged to
      4 × 4, not to one pixel. There is batch normalisation, and no dropout.

    Parameters
    ----------
    side : int
        Height or width of the images, whichever is smaller.
    max_depth : int
        Layers, at most. Default 8.
    """

    def __init__(self, side: int, max_depth: int = 8) -> None:
        self.side = side
        self.max_depth = max_depth

    def walk(self, choose: Callable[[LayerState, Sequence[Layer]], Layer]) -> tuple[Step, ...]:
        """Walk from the start to termination, where `choose` takes one of the allowed layers."""
        steps: list[Step] = []
        last: Layer | None = None
        side = self.side
        while not isinstance(last, Termination):
            state = LayerState(last, len(steps), sum(side <= bound for bound in _BINS))
            actions = self._actions(state, side)
            last = choose(state, actions)
            steps.append(Step(state, actions, last))
            if isinstance(last, Pooling):
                side = last.side(side)
        return tuple(steps)

    def _actions(self, state: LayerState, side: int) -> tuple[Layer, ...]:
        last = state.last
        if state.depth == self.max_depth:
            return (Termination(),)
        if isinstance(last, Dense):
            count = last.count + 1
            units = [u for u in _UNITS if u <= last.units] if count <= _MAX_DENSE else []
            return (*(Dense(u, count) for u in units), Termination())
        poolings = [p for p in _POOLINGS if isinstance(last, Convolution) and p.side(side) >= 2]
        if last is None or side > _BINS[0]:
            return tuple(poolings or _CONVOLUTIONS)
        return (*_CONVOLUTIONS, *poolings, *(Dense(u, 1) for u in _UNITS), Termination())

    def spec(self, walk: Sequence[Step]) -> ModelSpec:
        """Build the chain of a walk.

        It is trained with learning rate 0.05, momentum 0.9, weight decay 1e-4 and batches of 64,
        from weights of one He unit: MetaQNN does not search these.
        """
        layers: list[dict[str, Any]] = []
        dense = []
        for layer in (step.action for step in walk):
            if isinstance(layer, Convolution):
                layers.append(
                    {
                        "kernel": layer.kernel,
                        "channels": layer.channels,
                        "stride": 1,
                        "pool_kernel": 1,
                        "pool_stride": 1,
                    }
                )
            elif isinstance(layer, Pooling):
                layers[-1] |= {"pool_kernel": layer.kernel, "pool_stride": layer.stride}
            elif isinstance(layer, Dense):
                dense.append(layer.units)
        return ModelSpec("chain", {"layers": layers, "dense": dense, "batch_norm": True}, _HYPER)

    def walk_of(self, spec: ModelSpec) -> tuple[Step, ...] | None:
        """Tell the walk that amounts to a spec; None if none does."""
        if spec.architecture != "chain":
            return None
        waiting: list[Layer] = []
        for layer in spec.structure["layers"]:
            waiting.append(Convolution(layer["kernel"], layer["channels"]))
            if layer["pool_kernel"] > 1:
                waiting.append(Pooling(layer["pool_kernel"], layer["pool_stride"]))
        waiting += [Dense(units, i) for i, units in enumerate(spec.structure["dense"], 1)]
        waiting.append(Termination())
        waiting.reverse()

        def follow(_: LayerState, actions: Sequence[Layer]) -> Layer:
            return waiting.pop() if waiting[-1] in actions else Termination()

        walk = self.walk(follow)
        return walk if not waiting and self.spec(walk) == spec else None
