"""Networks of torchvision, or the user's own: made, cut at a node and given their weights.

torchvision is imported only when one is asked for. Nothing is unpickled but tensors.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from trautoml.classifier import borrowed_random_state
from trautoml.errors import InputError

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue in [0, 1]."""

_OPTIONS: dict[str, dict[str, Any]] = {
    # As torchvision sets them for its own weights. The heads beside the main path are used in
    # training only, and drawing weights as the paper does takes most of a minute.
    name: {"transform_input": True, "aux_logits": False, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}

_LISTED = 20
"""Nodes, at most, that an error message names."""

_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
"""Names in torchvision's files of DenseNet weights, which have a dot that the modules lack."""

_NOT_USED = "num_batches_tracked"
"""End of the names of what batch normalisation reads in training only; old files lack it."""


def is_own(name: str) -> bool:
    """Tell the name of a user's function, ``"MODULE:FUNCTION"``, from one of torchvision's."""
    return ":" in name


def cut_network(name: str, node: str) -> nn.Module:
    """Make a network up to a node.

    Parameters
    ----------
    name : str
        A classification model of `torchvision.models`, or ``"MODULE:FUNCTION"``.
    node : str
        A module or an operation, named as `torchvision.models.feature_extraction` does.

    Returns
    -------
    torch.nn.Module
        Gives ``{"features": what the node gives}``. Its weights are torch's own draws, or those
        of the user's function, by a fixed seed, and are named as in the whole network.

    Raises
    ------
    InputError
        If there is no such model or node, the network can't be traced, or the node is not on its
        way in training mode too.
    """
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = _build(name)
    try:
        training, evaluation = get_graph_node_names(model, suppress_diff_warning=True)
    except Exception as error:  # whatever code that can't be traced comes to
        raise InputError(
            f"backbone {name} can't be cut: torch.fx can't trace it ({type(error).__name__}: "
            f"{error}); expected a forward without control flow that depends on the images"
        ) from error
    _check_node(name, node, _with_modules(training), _with_modules(evaluation))
    cut = create_feature_extractor(model, {node: "features"}, suppress_diff_warning=True)
    return cast("nn.Module", cut)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of red, green and blue in [0, 1] that a network was trained with.

    Of torchvision's weights for its models, of ImageNet for the user's own.
    """
    if is_own(name):
        return _IMAGENET
    from torchvision import models

    preset = models.get_model_weights(name).DEFAULT.transforms()
    return tuple(preset.mean), tuple(preset.std)


def given_weights(name: str, weights: str) -> Mapping[str, Any]:
    """Read or download the weights of a whole network.

    Parameters
    ----------
    name : str
        The network.
    weights : str
        ``"imagenet"``, or a file ``.safetensors``, ``.pt`` or ``.pth``.

    Returns
    -------
    Mapping of str to torch.Tensor

    Raises
    ------
    InputError
        If they can't be downloaded, there is no such file or it can't be read.
    """
    if weights != "imagenet":
        return _read_file(Path(weights))
    if is_own(name):
        raise InputError(
            f"torchvision has no weights of backbone {name}: expected a file of weights, or "
            '"none" for those that its function gives it'
        )
    return _download(name)


def draw_weights(network: nn.Module) -> None:
    """Draw He's weights by a fixed seed: those of torch's layers fade in a deep network."""
    with borrowed_random_state() as generator:
        generator.manual_seed(0)
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


def needed_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Give the weights and statistics that a network computes with in evaluation mode."""
    state = network.state_dict()
    return {name: state[name] for name in state if not name.endswith(_NOT_USED)}


def fill_weights(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a cut network its weights out of those of the whole one.

    Raises
    ------
    InputError
        If one is missing or of another shape.
    """
    given = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in state.items()}
    needed = needed_weights(network)
    for name, tensor in needed.items():
        shape = getattr(given.get(name), "shape", None)
        if shape != tensor.shape:
            found = "there is none" if shape is None else f"it has {tuple(shape)}"
            raise InputError(
                f"the weights are of another network than the backbone: expected {name} of shape "
                f"{tuple(tensor.shape)}, but {found}; give those of this network"
            )
    network.load_state_dict({name: given[name] for name in needed}, strict=False)


def _build(name: str) -> nn.Module:
    """Make the whole network, its weights drawn by a fixed seed."""
    with borrowed_random_state() as generator:
        generator.manual_seed(0)
        return (_call(name) if is_own(name) else _torchvision_model(name)).float()


def _call(name: str) -> nn.Module:
    """Make a network by the user's function."""
    module, _, function = name.partition(":")
    try:
        make: Any = reduce(getattr, function.split("."), cast("Any", import_module(module)))
        made = make()
    except Exception as error:  # it is the user's code
        raise InputError(
            f"backbone {name} can't be imported and made ({type(error).__name__}: {error}); "
            "expected MODULE:FUNCTION, a function without arguments in a module that is installed "
            "or on PYTHONPATH"
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(
            f"backbone {name}: expected a function that makes a torch.nn.Module, got {made!r}"
        )
    return made


def _torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = ", ".join(get_close_matches(name, known, n=5)) or "googlenet or resnet50"
        raise InputError(
            f"torchvision has no classification model {name!r}: expected a name such as {close}, "
            "or MODULE:FUNCTION for a network of your own"
        )
    return cast("nn.Module", models.get_model(name, weights=None, **_OPTIONS.get(name, {})))


def _with_modules(operations: Sequence[str]) -> set[str]:
    """Give operations, and the modules that they are in, by name."""
    parts = [operation.split(".") for operation in operations]
    return {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


def _check_node(name: str, node: str, training: set[str], evaluation: set[str]) -> None:
    """Check that the network has the node in both modes: torchvision cuts both."""
    nodes = training & evaluation
    if node in evaluation - nodes:
        raise InputError(
            f"backbone {name} has node {node!r} in evaluation mode only, and can't be cut there: "
            "choose another node, or let its forward compute it in training mode too"
        )
    if node not in nodes:
        likeness = {known: SequenceMatcher(None, known, node).ratio() for known in nodes}
        listed = sorted(nodes, key=lambda known: (-likeness[known], known))
        rest = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        raise InputError(
            f"backbone {name} has no node {node!r}; those it has, the likest first: "
            f"{', '.join(listed[:_LISTED])}{rest}"
        )


def _download(name: str) -> Mapping[str, Any]:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # of the network, the disk or the file
        reason = " ".join(str(error).split())
        cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        raise InputError(
            f"torchvision's weights of {name} can't be downloaded ({reason}): check the network; "
            f"or fetch {weights.url} elsewhere and name that file as the weights, or put it at "
            f"{cached}"
        ) from error
    return cast("Mapping[str, Any]", state)


def _read_file(file: Path) -> Mapping[str, Any]:
    """Read a ``state_dict``, unpickling nothing but tensors."""
    if not file.is_file():
        raise InputError(f"there is no file of weights {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader that meets a broken file may raise anything
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{file} can't be read as weights ({reason}); expected a state_dict of tensors and "
            "nothing else, as nothing else is unpickled"
        ) from error
    if not isinstance(state, Mapping):
        raise InputError(f"{file}: expected a state_dict, got a {type(state).__name__}")
    return state
