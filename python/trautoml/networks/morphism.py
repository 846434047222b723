"""Function-preserving steps from one chain network to a larger one.

After Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer" (ICLR 2016):
Net2WiderNet (`widen`, `widen_dense`) and Net2DeeperNet (`deepen`, `deepen_dense`). These four make
structures; `inherit` makes the weights that go with a step.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from trautoml.errors import SpecError
from trautoml.networks.chain import check_structure

Structure = Mapping[str, Any]
"""Structure of a chain: see `build_chain`."""


def widen(structure: Structure, layer: int, channels: int) -> dict[str, Any]:
    """Give convolution `layer` (from 0) more channels.

    Returns
    -------
    dict
        The new structure; the old one is left as it is.

    Raises
    ------
    SpecError
        If the structure is not a chain's, has no such layer, or `channels` is not above what the
        layer has.
    """
    child = _copied(structure, "layers", layer)
    old = child["layers"][layer]["channels"]
    child["layers"][layer]["channels"] = channels
    return _wider("channels", child, channels, old)


def widen_dense(structure: Structure, layer: int, units: int) -> dict[str, Any]:
    """Give dense layer `layer` (from 0; the last layer, of the classes, isn't one) more units.

    Returns
    -------
    dict
        The new structure; the old one is left as it is.

    Raises
    ------
    SpecError
        If the structure is not a chain's, has no such layer, or `units` is not above what the
        layer has.
    """
    child = _copied(structure, "dense", layer)
    old = child["dense"][layer]
    child["dense"][layer] = units
    return _wider("units", child, units, old)


def deepen(structure: Structure, layer: int, kernel: int) -> dict[str, Any]:
    """Insert a convolution that can be the identity after convolution `layer` and its pooling.

    It has as many channels, an odd `kernel`, stride 1 and no pooling.

    Returns
    -------
    dict
        The new structure; the old one is left as it is.

    Raises
    ------
    SpecError
        If the structure is not a chain's, has no such layer, or the kernel is not odd.
    """
    child = _copied(structure, "layers", layer)
    channels = child["layers"][layer]["channels"]
    identity = {"kernel": kernel, "channels": channels, "stride": 1}
    child["layers"].insert(layer + 1, {**identity, "pool_kernel": 1, "pool_stride": 1})
    check_structure(child)
    return child


def deepen_dense(structure: Structure, layer: int) -> dict[str, Any]:
    """Insert a dense layer that can be the identity, of as many units, after dense layer `layer`.

    Returns
    -------
    dict
        The new structure; the old one is left as it is.

    Raises
    ------
    SpecError
        If the structure is not a chain's, or has no such layer.
    """
    child = _copied(structure, "dense", layer)
    child["dense"].insert(layer + 1, child["dense"][layer])
    return child


@torch.no_grad()
def inherit(
    child: nn.Module,
    child_structure: Structure,
    parent: nn.Module,
    parent_structure: Structure,
    *,
    inputs: torch.Tensor,
    seed: int,
) -> None:
    """Give a network the weights with which it computes the same function as a smaller one.

    A wider layer repeats units drawn at random, and is the same in training mode too. An identity
    layer with batch normalisation takes away the moments of `inputs` and puts them back: in
    evaluation mode it is the identity for all images, in training mode for the batch `inputs`, and
    nearly so for batches like it.

    Parameters
    ----------
    child, parent : torch.nn.Module
        What `build_chain` made of the structures, for the same images and classes, on one device.
        Only the weights and running statistics of `child` are changed.
    child_structure, parent_structure : Mapping
        One step apart: see `widen`, `widen_dense`, `deepen`, `deepen_dense`.
    inputs : torch.Tensor
        Normalised images ``(N, C, H, W)``, on the device of the networks; at least one.
    seed : int
        Draws which units are repeated, and the shares of the repeated ones.

    Raises
    ------
    SpecError
        If a structure is not a chain's, or they are not one step apart.
    """
    step = _step(child_structure, parent_structure)
    old, new = _layers(parent), _layers(child)
    for i, layer in enumerate(old):
        if not (step.widens and i in {step.layer, step.layer + 1}):
            target = i if step.widens or i <= step.layer else i + 1
            new[target].load_state_dict(layer.state_dict())
    if step.widens:
        _repeat_units(new, old, step.layer, seed)
    else:
        identity = new[step.layer + 1]
        n_before = list(child.children()).index(identity[0])
        _make_identity(identity, list(parent.children())[:n_before], inputs)


class _Step(NamedTuple):
    widens: bool  # else it deepens
    layer: int  # among all layers with weights, convolutions first: which is widened or followed


def _step(child: Structure, parent: Structure) -> _Step:
    for structure in (child, parent):
        check_structure(structure)
    for step, structure in _steps_towards(child, parent):
        if structure == dict(child):
            return step
    raise SpecError(
        "expected structures one step apart (a layer widened, or an identity layer put in), got "
        f"{dict(parent)} and then {dict(child)}: take the steps one by one"
    )


def _steps_towards(child: Structure, parent: Structure) -> Iterator[tuple[_Step, dict[str, Any]]]:
    """Each step from `parent` that fits the sizes `child` has in one place, and where it leads."""
    layers, dense, n_layers = parent["layers"], parent["dense"], len(parent["layers"])
    for i, (old, new) in enumerate(zip(layers, child["layers"], strict=False)):
        if new["channels"] > old["channels"]:
            yield _Step(True, i), widen(parent, i, new["channels"])
    for i, (_, new) in enumerate(zip(layers, child["layers"][1:], strict=False)):
        yield _Step(False, i), deepen(parent, i, new["kernel"])
    for i, (old, new) in enumerate(zip(dense, child["dense"], strict=False)):
        if new > old:
            yield _Step(True, n_layers + i), widen_dense(parent, i, new)
    for i in range(len(dense)):
        yield _Step(False, n_layers + i), deepen_dense(parent, i)


def _layers(network: nn.Module) -> list[nn.Sequential]:
    """Group the modules with weights: each layer with its batch normalisation, if it has one."""
    layers: list[nn.Sequential] = []
    for module in network.children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers.append(nn.Sequential(module))
        elif isinstance(module, nn.BatchNorm2d):
            layers[-1].append(module)
    return layers


def _repeat_units(
    new: list[nn.Sequential], old: list[nn.Sequential], layer: int, seed: int
) -> None:
    """Net2WiderNet: repeat units of a layer and split their weights in the next one."""
    before, after = old[layer].state_dict(), old[layer + 1].state_dict()
    n_old, n_new = len(before["0.weight"]), len(new[layer].state_dict()["0.weight"])
    # A third entry, so that the stream is none of the trainer's: those are [seed, epoch].
    rng = np.random.default_rng([seed, layer, 1])
    unit = np.concatenate([np.arange(n_old), rng.integers(n_old, size=n_new - n_old)])
    # Unequal shares: copies with equal ones would get equal gradients and so stay equal for ever.
    share = rng.uniform(0.5, 1.5, n_new)
    share /= np.bincount(unit, weights=share)[unit]

    device, dtype = before["0.weight"].device, before["0.weight"].dtype
    source = torch.from_numpy(unit).to(device)
    new[layer].load_state_dict(
        {name: values[source] if values.ndim else values for name, values in before.items()}
    )
    # What comes of one unit is a block of inputs where a map is flattened before a dense layer.
    weight = after["0.weight"]
    blocks = weight.reshape(len(weight), n_old, -1)[:, source]
    shares = torch.from_numpy(share).to(device, dtype)[:, None]
    split = (blocks * shares).reshape(len(weight), -1, *weight.shape[2:])
    new[layer + 1].load_state_dict({**after, "0.weight": split})


def _make_identity(layer: nn.Sequential, before: list[nn.Module], inputs: torch.Tensor) -> None:
    """Net2DeeperNet: let a layer hand on what comes from `before`, of which nothing is negative."""
    weights = layer[0].state_dict()
    (nn.init.eye_ if isinstance(layer[0], nn.Linear) else nn.init.dirac_)(weights["weight"])
    if "bias" in weights:
        weights["bias"].zero_()
    for norm in layer:
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        # In training mode, as the layer will see them; of a copy, as that mode moves the running
        # statistics.
        maps = copy.deepcopy(nn.Sequential(*before)).train()(inputs)
        variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
        moments = {"running_mean": mean, "running_var": variance}
        affine = {"weight": torch.sqrt(variance + norm.eps), "bias": mean}
        norm.load_state_dict({**norm.state_dict(), **moments, **affine})


def _copied(structure: Structure, part: str, layer: int) -> dict[str, Any]:
    """Copy a structure, after a check that its part has that layer."""
    check_structure(structure)
    n = len(structure[part])
    if not isinstance(layer, int) or not 0 <= layer < n:
        raise SpecError(f"{part}: expected the number of one of {n} layers, from 0, got {layer!r}")
    layers = [dict(each) for each in structure["layers"]]
    return {**structure, "layers": layers, "dense": [*structure["dense"]]}


def _wider(name: str, child: dict[str, Any], size: int, old: int) -> dict[str, Any]:
    check_structure(child)
    if size <= old:
        raise SpecError(f"{name}: expected more than the {old} that the layer has, got {size}")
    return child
