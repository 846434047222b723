"""The paper's chain space: layers, kernels, channels, strides, pooling, dense layers, training."""

from typing import Any

from trautoml.errors import SpecError
from trautoml.spaces._base import Choice, GivenChoice, SearchSpace
from trautoml.spec import Hyperparameters, ModelSpec


class ChainSpace(SearchSpace):
    """Chains of 1 to 4 convolutions and 0 to 2 dense layers, with their hyper-parameters.

    Every layer halves its map at least once, by its stride or by its pooling: this bounds the
    cost of the dearest network that the space can emit.
    """

    def define(self, choice: Choice) -> ModelSpec:
        """Choose structure and hyper-parameters; widths and batch sizes are powers of two."""
        n_layers = choice.suggest_int("n_layers", 1, 4)
        n_dense = choice.suggest_int("n_dense", 0, 2)
        structure = {
            "layers": [self._layer(choice, i) for i in range(n_layers)],
            "dense": [
                2 ** choice.suggest_int(f"dense{i}_log2_units", 5, 8) for i in range(n_dense)
            ],
            "batch_norm": choice.suggest_categorical("batch_norm", [True, False]),
        }
        hyper = Hyperparameters(
            learning_rate=choice.suggest_float("learning_rate", 5e-3, 0.3, log=True),
            momentum=choice.suggest_float("momentum", 0.5, 0.95),
            weight_decay=choice.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
            batch_size=2 ** choice.suggest_int("log2_batch_size", 4, 7),
            init_sd=choice.suggest_float("init_sd", 0.3, 2.0, log=True),
        )
        return ModelSpec("chain", structure, hyper)

    def params_of(self, spec: ModelSpec) -> dict[str, Any] | None:
        """See `SearchSpace.params_of`."""
        if spec.architecture != "chain":
            return None
        try:
            params = self._params_of(spec)
            return params if self.define(GivenChoice(params)) == spec else None
        except (SpecError, KeyError, TypeError, AttributeError):  # not one that can be built
            return None

    @staticmethod
    def _params_of(spec: ModelSpec) -> dict[str, Any]:
        layers, dense = spec.structure["layers"], spec.structure["dense"]
        params: dict[str, Any] = {
            "n_layers": len(layers),
            "n_dense": len(dense),
            "batch_norm": spec.structure["batch_norm"],
            "learning_rate": spec.hyper.learning_rate,
            "momentum": spec.hyper.momentum,
            "weight_decay": spec.hyper.weight_decay,
            "log2_batch_size": _log2(spec.hyper.batch_size),
            "init_sd": spec.hyper.init_sd,
        }
        params |= {f"dense{i}_log2_units": _log2(units) for i, units in enumerate(dense)}
        for i, layer in enumerate(layers):
            halving = "halving_" if layer["stride"] == 1 else ""
            params |= {
                f"conv{i}_stride": layer["stride"],
                f"conv{i}_{halving}pool_kernel": layer["pool_kernel"],
                f"conv{i}_kernel": layer["kernel"],
                f"conv{i}_log2_channels": _log2(layer["channels"]),
            }
            if not halving:
                params[f"conv{i}_pool_stride"] = layer["pool_stride"]
        return params

    @staticmethod
    def _layer(choice: Choice, i: int) -> dict[str, Any]:
        stride = choice.suggest_categorical(f"conv{i}_stride", [1, 2])
        if stride == 1:
            pool_kernel = choice.suggest_categorical(f"conv{i}_halving_pool_kernel", [2, 3])
            pool_stride = 2
        else:
            pool_kernel = choice.suggest_categorical(f"conv{i}_pool_kernel", [1, 2, 3])
            pool_stride = choice.suggest_categorical(f"conv{i}_pool_stride", [1, 2])
        return {
            "kernel": choice.suggest_categorical(f"conv{i}_kernel", [3, 5]),
            "channels": 2 ** choice.suggest_int(f"conv{i}_log2_channels", 3, 6),
            "stride": stride,
            "pool_kernel": pool_kernel,
            "pool_stride": pool_stride,
        }


def _log2(size: int) -> int:
    return size.bit_length() - 1
