"""Frozen backbones: networks of torchvision's or the user's own, cut at a node, never trained.

A `Backbone` says which one. `Backbone.freeze` makes it once and keeps its weights in a file, from
which a `FrozenBackbone` computes features of images in any process.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from trautoml.classifier import Classifier, ImageClassifier
from trautoml.device import autocast, one_thread, resolve_device
from trautoml.errors import InputError, StoreError
from trautoml.images import MIN_SIDE
from trautoml.tensor_files import write_tensors
from trautoml.torchvision_models import (
    cut_network,
    draw_weights,
    fill_weights,
    given_weights,
    is_own,
    needed_weights,
    normalisation,
)

_log = logging.getLogger("trautoml")

WEIGHTS_FILE = "backbone.safetensors"
"""The file that a frozen backbone is kept in."""

BATCH = 32
"""Images that go through a backbone at a time."""


@dataclass(frozen=True)
class Backbone:
    """Which network, cut where, for images of which size, and with which weights.

    Parameters
    ----------
    name : str
        A classification model of `torchvision.models`; or ``"MODULE:FUNCTION"``, an importable
        function without arguments that makes a `torch.nn.Module` from (N, 3, H, W) images,
        normalised by the mean and standard deviation of ImageNet. Workers import it anew, so
        that it can't be in ``__main__``.
    node : str
        Where the network is cut, named as `torchvision.models.feature_extraction` does: a module,
        or an operation within one. Its output is (N, c, h, w), or (N, c) for maps of 1 x 1.
        Channels come first: of the (N, h, w, c) that some networks compute with (Swin's
        ``features``, say), rows would be taken for channels. Choose a node behind their
        permutation.
    side : int
        Height and width in pixels that images are brought to, bilinear: best those that the
        weights were trained at. At least 8.
    weights : str
        ``"imagenet"``: torchvision's best for the model, downloaded by torchvision. A file of
        the network's ``state_dict``, ``.safetensors`` or torch's ``.pt`` or ``.pth``,
        whose path is made absolute; what lies beyond the node is not read of it. ``"none"``: for
        a model of torchvision, drawn by a fixed seed, which is warned of, as its features are
        poor; for the user's function, those that it gives its network, trained or not.

    Raises
    ------
    InputError
        If a value is not as described; whether the network and the file are there is not checked.
    """

    name: str = "googlenet"
    node: str = "inception4e"
    side: int = 224
    weights: str = "imagenet"

    def __post_init__(self) -> None:
        for field in ("name", "node", "weights"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise InputError(f"{field} of a backbone: expected a name, got {value!r}")
        if type(self.side) is not int or self.side < MIN_SIDE:
            raise InputError(
                f"side of a backbone: expected a whole number of pixels of at least {MIN_SIDE}, "
                f"got {self.side!r}"
            )
        if self.name.startswith("__main__:"):
            raise InputError(
                "name of a backbone: expected a MODULE:FUNCTION that other processes can import, "
                f"got {self.name!r}; put the function in a module of its own"
            )
        if self.weights not in {"imagenet", "none"}:
            file = Path(self.weights).expanduser().absolute()
            if file.suffix not in {".safetensors", ".pt", ".pth"}:
                raise InputError(
                    'weights of a backbone: expected "imagenet", "none" or a file .safetensors, '
                    f".pt or .pth, got {self.weights!r}"
                )
            object.__setattr__(self, "weights", str(file))

    def freeze(self, folder: Path | str) -> "FrozenBackbone":
        """Make the network and keep its weights in a folder, unless they are there already.

        Parameters
        ----------
        folder : Path or str
            Gets ``backbone.safetensors``. Where it is there, it is taken, and neither a download
            nor the user's file of weights is needed any more.

        Returns
        -------
        FrozenBackbone

        Raises
        ------
        InputError
            If there is no such model, node or file; if the weights can't be downloaded, read or
            don't fit; if the network can't be cut there or can't take images of that side; or if
            the folder has another backbone.
        StoreError
            If the file in the folder is damaged or can't be read.
        OSError
            If the file can't be written.
        """
        file = Path(folder).expanduser().absolute() / WEIGHTS_FILE
        if not file.is_file():
            self._write(file)
        frozen = FrozenBackbone.load(file.parent)
        if frozen.backbone != self:
            raise InputError(
                f"{file} is of {frozen.backbone}, but {self} was asked for; use another folder"
            )
        return frozen

    def _write(self, file: Path) -> None:
        cut = cut_network(self.name, self.node)
        if self.weights != "none":
            fill_weights(cut, given_weights(self.name, self.weights))
        elif not is_own(self.name):
            _log.warning(
                "backbone %s is given no trained weights: features of an untrained network are "
                "poor",
                self.name,
            )
            draw_weights(cut)
        mean, sd = normalisation(self.name)
        shape = _feature_shape(FrozenNetwork(cut, self.side, mean, sd), self)
        about = {**asdict(self), "mean": mean, "sd": sd, "shape": shape}
        state = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in needed_weights(cut).items()
        }
        write_tensors(file, state, {"about": json.dumps(about)})


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone whose weights lie in a folder. Small to pickle; the network is read when needed.

    Attributes
    ----------
    backbone : Backbone
        What it was made of.
    folder : Path
        Where ``backbone.safetensors`` lies.
    digest : str
        SHA-256, in hex, of the weights, the cut, the side and the normalisation.
    feature_shape : tuple of int
        ``(h, w, c)`` of the features.
    """

    backbone: Backbone
    folder: Path
    digest: str
    feature_shape: tuple[int, int, int]

    @classmethod
    def load(cls, folder: Path | str) -> "FrozenBackbone":
        """Read what `Backbone.freeze` wrote.

        Raises
        ------
        StoreError
            If there is none, or its file is damaged or can't be read.
        """
        folder = Path(folder).expanduser().absolute()
        about, state = _read(folder)
        digest = hashlib.sha256()
        named = {key: about[key] for key in ("name", "node", "side", "mean", "sd")}
        digest.update(json.dumps(named, sort_keys=True).encode())
        for name in sorted(state):
            digest.update(f" {name} {state[name].dtype} {tuple(state[name].shape)} ".encode())
            digest.update(state[name].numpy().tobytes())
        backbone = Backbone(**{field.name: about[field.name] for field in fields(Backbone)})
        height, width, channels = about["shape"]
        return cls(backbone, folder, digest.hexdigest(), (height, width, channels))

    def network(self) -> "FrozenNetwork":
        """Build the network anew, on the CPU, with the weights of the file.

        Raises
        ------
        InputError
            If the user's function can't be imported any more, or makes another network.
        StoreError
            If the file has gone, is damaged or can't be read.
        """
        about, state = _read(self.folder)
        cut = cut_network(self.backbone.name, self.backbone.node)
        fill_weights(cut, state)
        return FrozenNetwork(cut, self.backbone.side, about["mean"], about["sd"])

    def features(
        self, images: npt.NDArray[np.uint8], device: str = "auto"
    ) -> npt.NDArray[np.float16]:
        """Compute features, in float16 and on one thread of a CPU.

        The network is kept in the process for the next call.

        Parameters
        ----------
        images : ndarray of uint8, shape (N, H, W, C)
            C is 1 or 3.
        device : str
            See `resolve_device`.

        Returns
        -------
        ndarray of float16, shape (N, h, w, c)

        Raises
        ------
        InputError
            If the images are of another kind, or the device is not there.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in {1, 3}:
            raise InputError(
                f"expected uint8 images (N, H, W, C) with C = 1 or 3, got {images.dtype} "
                f"{images.shape}; trautoml.images.as_images converts other kinds"
            )
        where = resolve_device(device)
        network = _placed(self, where)
        features = np.empty((len(images), *self.feature_shape), np.float16)
        with torch.inference_mode(), one_thread(where), autocast(where):
            for start in range(0, len(images), BATCH):
                rows = slice(start, start + BATCH)
                features[rows] = network(torch.tensor(images[rows], device=where)).cpu().numpy()
        return features


class FrozenNetwork(nn.Module):
    """A cut network with the preparation of its images; always in evaluation mode.

    Parameters
    ----------
    network : torch.nn.Module
        From ``(N, 3, side, side)`` to ``{"features": (N, c, h, w) or (N, c)}``.
    side : int
        Height and width that images are brought to.
    mean, sd : sequence of float, length 3
        What the network's colours are normalised by, in [0, 1].
    """

    mean: torch.Tensor
    inverse_sd: torch.Tensor

    def __init__(
        self, network: nn.Module, side: int, mean: tuple[float, ...], sd: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.side = side
        colours = (1, 3, 1, 1)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(colours))
        self.register_buffer("inverse_sd", 1 / (255 * torch.tensor(sd).view(colours)))
        self.requires_grad_(requires_grad=False).eval()

    def train(self, mode: bool = True) -> "FrozenNetwork":  # noqa: ARG002 - as in torch
        """Stay in evaluation mode: batch normalisation keeps its statistics."""
        return super().train(mode=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images ``(N, H, W, C)`` to float16 features ``(N, h, w, c)``, all finite.

        What float16 can't hold becomes its largest number. NaN becomes 0: it tells nothing, as when
        a network divides by the norm of an image without any contrast.
        """
        # One infinite feature would make every training on it diverge.
        most = torch.finfo(torch.float16).max
        features = self.maps(images).nan_to_num(0.0).clamp(-most, most)
        return features.to(torch.float16).permute(0, 2, 3, 1)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images ``(N, H, W, C)`` to what the node gives, float32 ``(N, c, h, w)``."""
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        if pixels.shape[2:] != (self.side, self.side):
            pixels = functional.interpolate(
                pixels, (self.side, self.side), mode="bilinear", antialias=True
            )
        # Subtracting the three means makes three channels of one that is grey.
        pixels = (pixels - self.mean) * self.inverse_sd
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        features: torch.Tensor = self.network(pixels)["features"]
        if features.ndim == 2:
            features = features[:, :, None, None]
        return features.float()


class BackboneClassifier(Classifier):
    """A classifier of features behind the backbone that they come from.

    Features are rounded to float16 as those that the classifier was trained and scored on.

    Parameters
    ----------
    frozen : FrozenBackbone
        Makes the features.
    head : ImageClassifier
        Maps them to logits.
    image_shape : tuple of int
        ``(H, W, C)`` of the images.
    """

    def __init__(
        self, frozen: FrozenBackbone, head: ImageClassifier, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__(image_shape, head.n_classes, BATCH)
        self.backbone = frozen.network()
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images ``(N, H, W, C)`` to logits ``(N, n_classes)``."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


@lru_cache(maxsize=1)
def _placed(frozen: FrozenBackbone, device: torch.device) -> FrozenNetwork:
    return frozen.network().to(device)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read what a frozen backbone is, and its weights."""
    file = folder / WEIGHTS_FILE
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads(stored.metadata()["about"])
            return about, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no frozen backbone in {folder}: put {WEIGHTS_FILE} back"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{file} can't be read ({error}): mend its permissions or its disk"
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{file} is damaged ({error}): restore it from a backup, or remove it and have it "
            "made again from the same weights"
        ) from error


def _feature_shape(network: FrozenNetwork, backbone: Backbone) -> tuple[int, int, int]:
    """Give ``(h, w, c)`` of the features, which are tried out on noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, backbone.side, backbone.side, 3), np.uint8)
    where = f"backbone {backbone.name} at {backbone.node}"
    try:
        with torch.inference_mode(), one_thread(torch.device("cpu")):
            features = network.maps(torch.from_numpy(noise))
        _, channels, height, width = features.shape
    except Exception as error:  # whatever a network comes to that is given what it can't take
        raise InputError(
            f"{where} can't take colour images of {backbone.side} x {backbone.side} and give maps "
            f"(N, c, h, w) or (N, c) ({type(error).__name__}: {error}); choose another side or node"
        ) from error
    if torch.isnan(features).any():
        raise InputError(f"{where} gives features that are NaN: its weights are damaged")
    return height, width, channels
