import logging
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from backbone_support import write_own_networks
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.transforms import functional as transforms

from trautoml.backbones import Backbone, BackboneClassifier, FrozenBackbone
from trautoml.classifier import ImageClassifier
from trautoml.errors import InputError, StoreError
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.torchvision_models import fill_weights

MEAN, SD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

ROUNDING = {"rtol": 2**-10, "atol": 1e-4}
"""Half precision has 11 bits; sums in another order may round to the next number."""


def drawn(n: int, shape: tuple[int, int, int] = (12, 12, 3), seed: int = 0) -> np.ndarray:
    """Smooth images: neighbouring pixels are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n, shape[2], 4, 4)))
    images = functional.interpolate(coarse, shape[:2], mode="bicubic").clamp(0, 255)
    return images.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More threads than processors make the smallest network slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with networks of a user's own."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.syspath_prepend(folder)
    return write_own_networks(folder)


@pytest.fixture
def shufflenet(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A network of torchvision with weights that are not its first ones, and their file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = models.shufflenet_v2_x0_5(num_classes=7).eval()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.1, 0.1)
                part.running_var.uniform_(0.3, 0.6)
    torch.save(network.state_dict(), tmp_path / "shufflenet.pth")
    return network, tmp_path / "shufflenet.pth"


def hooked(network: nn.Module, module: nn.Module, images: np.ndarray, side: int) -> np.ndarray:
    """What a module gives within the whole network, one image after another."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    for image in images:
        pixels = transforms.to_tensor(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
        pixels = transforms.resize(pixels, [side, side], antialias=True)
        with torch.inference_mode():
            network(transforms.normalize(pixels, MEAN, SD)[None])
    handle.remove()
    return torch.cat(seen).permute(0, 2, 3, 1).numpy()


# --- features ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32, 3), (12, 12, 3), (12, 20, 1), (50, 32, 3)])
def test_features_are_what_the_whole_network_computes_at_the_node(
    shufflenet: tuple[nn.Module, Path], tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    network, file = shufflenet
    frozen = Backbone("shufflenet_v2_x0_5", "stage2", 32, str(file)).freeze(tmp_path)
    images = drawn(5, shape)
    features = frozen.features(images, "cpu")
    assert features.dtype == np.float16
    assert features.shape == (5, *frozen.feature_shape) == (5, 4, 4, 48)
    expected = hooked(network, network.stage2, images, 32)
    assert expected.std() > 0.1
    np.testing.assert_allclose(features, expected, **ROUNDING)


def test_googlenet_is_cut_as_the_paper_cuts_it(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        network = models.googlenet(init_weights=False, transform_input=True).eval()
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
    save_file(network.state_dict(), tmp_path / "googlenet.safetensors")
    backbone = Backbone(side=32, weights=str(tmp_path / "googlenet.safetensors"))
    assert (backbone.name, backbone.node) == ("googlenet", "inception4e")
    frozen = backbone.freeze(tmp_path)
    assert frozen.feature_shape == (2, 2, 832)
    images = drawn(2)
    expected = hooked(network, network.inception4e, images, 32)
    assert expected.std() > 0.1
    np.testing.assert_allclose(frozen.features(images, "cpu"), expected, **ROUNDING)


def test_features_do_not_depend_on_what_else_is_in_the_call(
    shufflenet: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    frozen = Backbone("shufflenet_v2_x0_5", "stage2", 32, str(shufflenet[1])).freeze(tmp_path)
    images = drawn(70)  # more than two batches
    whole = frozen.features(images, "cpu")
    for size in (1, 13, 33):
        parts = [frozen.features(images[i : i + size], "cpu") for i in range(0, 70, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, **ROUNDING)
    assert np.array_equal(whole, frozen.features(images, "cpu"))
    assert frozen.features(images[:0], "cpu").shape == (0, 4, 4, 48)


def test_grey_images_are_as_good_as_grey_colours(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:Small", "blocks.0", 16, "none").freeze(tmp_path)
    grey = drawn(4, (12, 12, 1))
    np.testing.assert_allclose(
        frozen.features(grey, "cpu"), frozen.features(grey.repeat(3, 3), "cpu"), **ROUNDING
    )


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 2), np.uint8), np.zeros((8, 8, 3), np.uint8)],
)
def test_images_of_another_kind_are_refused(own: str, tmp_path: Path, images: np.ndarray) -> None:
    frozen = Backbone(f"{own}:Small", "stem", 16, "none").freeze(tmp_path)
    with pytest.raises(InputError, match=r"expected uint8 images \(N, H, W, C\) with C = 1 or 3"):
        frozen.features(images)


def test_a_node_behind_the_pooling_gives_maps_of_one_pixel(own: str, tmp_path: Path) -> None:
    for node, shape in (("pool", (1, 1, 8)), ("flatten", (1, 1, 8)), ("head", (1, 1, 5))):
        frozen = Backbone(f"{own}:Small", node, 32, "none").freeze(tmp_path / node)
        assert frozen.feature_shape == shape
        assert frozen.features(drawn(3), "cpu").shape == (3, *shape)


def changed(own: str, file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Backbone:
    """Give the small network weights that were changed."""
    backbone = Backbone(f"{own}:Small", "stem", 16, "none")
    state = load_file(backbone.freeze(file.parent / "first").folder / "backbone.safetensors")
    change(state)
    save_file(state, file)
    return replace(backbone, weights=str(file))


def test_features_beyond_half_precision_stay_finite(own: str, tmp_path: Path) -> None:
    def enlarge(state: dict[str, torch.Tensor]) -> None:
        state["stem.weight"] *= 1e6

    frozen = changed(own, tmp_path / "large.safetensors", enlarge).freeze(tmp_path)
    features = frozen.features(drawn(4), "cpu")
    assert features.max() == np.finfo(np.float16).max
    assert features.min() == np.finfo(np.float16).min


def test_an_image_that_gives_nan_has_features_of_zero(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:Stretched", "stem", 16, "none").freeze(tmp_path)
    images = drawn(4)
    expected = frozen.features(images, "cpu")
    assert expected.astype(float).std((1, 2, 3)).min() > 0.01
    images[1] = 77
    expected[1] = 0
    np.testing.assert_allclose(frozen.features(images, "cpu"), expected, **ROUNDING)


def test_the_network_is_never_trained(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:Small", "blocks.0", 16, "none").freeze(tmp_path)
    layer = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 1, "pool_stride": 1}
    spec = ModelSpec(
        "chain",
        {"layers": [layer], "dense": [], "batch_norm": True},
        Hyperparameters(0.1, 0.9, 1e-4, 16, 1.0),
    )
    head = ImageClassifier(spec, frozen.feature_shape, 2)
    whole = BackboneClassifier(frozen, head, (12, 12, 3)).train()
    before = {name: value.clone() for name, value in whole.backbone.state_dict().items()}
    whole(torch.from_numpy(drawn(8))).sum().backward()
    assert all(torch.equal(value, before[n]) for n, value in whole.backbone.state_dict().items())
    assert not any(parameter.requires_grad for parameter in whole.backbone.parameters())
    assert all(parameter.grad is not None for parameter in head.network[0].parameters())
    assert head.training
    assert not any(part.training for part in whole.backbone.modules())


# --- freezing ---------------------------------------------------------------------------------


def test_a_folder_is_self_contained(shufflenet: tuple[nn.Module, Path], tmp_path: Path) -> None:
    backbone = Backbone("shufflenet_v2_x0_5", "stage2", 32, str(shufflenet[1]))
    first = backbone.freeze(tmp_path / "new" / "folder")
    features = first.features(drawn(3), "cpu")
    shufflenet[1].unlink()
    for again in (backbone.freeze(first.folder), FrozenBackbone.load(first.folder)):
        assert again == first
        assert np.array_equal(again.features(drawn(3), "cpu"), features)
    assert [file.name for file in first.folder.iterdir()] == ["backbone.safetensors"]
    kept = load_file(first.folder / "backbone.safetensors")
    assert not any(name.startswith(("stage3", "fc")) for name in kept)


def test_the_digest_is_of_the_network_not_of_the_files(own: str, tmp_path: Path) -> None:
    backbone = Backbone(f"{own}:Small", "blocks.0", 16, "none")
    first = backbone.freeze(tmp_path / "first")
    assert len(bytes.fromhex(first.digest)) == 32
    state = load_file(first.folder / "backbone.safetensors")
    torch.save(state, tmp_path / "same.pth")
    save_file(state, tmp_path / "same.safetensors")
    state["stem.weight"][0, 0, 0, 0] += 1
    save_file(state, tmp_path / "other.safetensors")

    def digest(**changes: Any) -> str:
        name = "-".join(map(str, changes.values())).replace("/", "")
        return replace(backbone, **changes).freeze(tmp_path / name).digest

    for file in ("same.pth", "same.safetensors"):
        assert digest(weights=str(tmp_path / file)) == first.digest
    others = {
        digest(weights=str(tmp_path / "other.safetensors")),
        digest(node="blocks.0.2"),
        digest(side=17),
        digest(name=f"{own}:Kinds.small"),
    }
    assert len(others | {first.digest}) == 5


def test_weights_are_drawn_by_a_fixed_seed_with_a_warning_unless_they_are_the_users(
    own: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.get_rng_state()
    for name, node in (("squeezenet1_1", "features.4"), (f"{own}:Small", "blocks.0")):
        digests = set()
        for seed in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                frozen = Backbone(name, node, 32, "none").freeze(tmp_path / f"{node} {seed}")
            digests.add(frozen.digest)
            assert 0.01 < frozen.features(drawn(4), "cpu").std() < 100
        assert len(digests) == 1
    warning = (
        "backbone squeezenet1_1 is given no trained weights: features of an untrained network are "
        "poor"
    )
    assert caplog.record_tuples == [("trautoml", logging.WARNING, warning)] * 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_of_weights_is_the_same_from_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Backbone(weights="w.pth") == Backbone(weights=str(tmp_path / "w.pth"))


def test_a_folder_keeps_one_backbone(own: str, tmp_path: Path) -> None:
    backbone = Backbone(f"{own}:Small", "blocks.0", 16, "none")
    frozen = backbone.freeze(tmp_path)
    with pytest.raises(InputError, match=r"side=16.* but .*side=17.* asked for; use another"):
        replace(backbone, side=17).freeze(tmp_path)
    assert FrozenBackbone.load(tmp_path) == frozen


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_or_missing_file_is_a_store_error(
    own: str, tmp_path: Path, content: bytes | None
) -> None:
    backbone = Backbone(f"{own}:Small", "blocks.0", 16, "none")
    frozen = backbone.freeze(tmp_path)
    file = tmp_path / "backbone.safetensors"
    whole = file.read_bytes()
    if content is None:
        file.unlink()
        message = "there is no frozen backbone in .*put backbone.safetensors back"
    else:
        file.write_bytes(whole[: len(whole) // 2] if content else content)
        message = "backbone.safetensors is damaged .*restore it from a backup"
        with pytest.raises(StoreError, match=message):
            backbone.freeze(tmp_path)
    with pytest.raises(StoreError, match=message):
        FrozenBackbone.load(tmp_path)
    with pytest.raises(StoreError, match=message):
        frozen.network()


def test_a_file_that_the_system_refuses_is_a_store_error(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:Small", "blocks.0", 16, "none").freeze(tmp_path)
    file = tmp_path / "backbone.safetensors"
    file.unlink()
    file.mkdir()  # permissions would not hold off the superuser
    for read in (frozen.network, lambda: FrozenBackbone.load(tmp_path)):
        with pytest.raises(StoreError, match=r"safetensors can't be read .*mend its permissions"):
            read()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077])
def test_others_may_read_what_they_may_read_of_any_file(
    own: str, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        frozen = Backbone(f"{own}:Small", "blocks.0", 16, "none").freeze(tmp_path / "frozen")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    modes = [
        file.stat().st_mode for file in (frozen.folder / "backbone.safetensors", tmp_path / "plain")
    ]
    assert modes[0] == modes[1]


def test_safetensors_of_something_else_are_damaged(own: str, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "backbone.safetensors")
    with pytest.raises(StoreError, match="is damaged"):
        FrozenBackbone.load(tmp_path)


def test_a_frozen_backbone_is_small_on_its_way_to_a_worker(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:Small", "blocks.0", 16, "none").freeze(tmp_path)
    frozen.features(drawn(1), "cpu")
    pickled = pickle.dumps(frozen)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) == frozen  # noqa: S301 - its own bytes


def test_a_disk_that_fails_leaves_nothing(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        Backbone(f"{own}:Small", "blocks.0", 16, "none").freeze(tmp_path / "new")
    monkeypatch.undo()
    assert not (tmp_path / "new" / "backbone.safetensors").exists()


def test_weights_of_half_precision_are_computed_with_in_full(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:halved", "blocks.0", 16, "none").freeze(tmp_path)
    assert np.isfinite(frozen.features(drawn(2), "cpu")).all()


# --- weights of torchvision -------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's, and no network."""

    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.urlopen", fail)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_weights_that_cannot_be_downloaded_are_an_input_error_with_a_remedy(
    hub: Path, tmp_path: Path
) -> None:
    url = "https://download.pytorch.org/models/squeezenet1_1-"
    with pytest.raises(InputError, match=rf"no route.*fetch {url}.*name that file as.*{hub}"):
        Backbone("squeezenet1_1", "features.4", 32).freeze(tmp_path)
    assert not (tmp_path / "backbone.safetensors").exists()


def test_downloaded_weights_are_taken_from_torchs_cache(hub: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        network = models.squeezenet1_1().eval()
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    hub.mkdir(parents=True)
    torch.save(network.state_dict(), hub / url.rpartition("/")[2])
    frozen = Backbone("squeezenet1_1", "features.4", 32).freeze(tmp_path)
    images = drawn(2)
    expected = hooked(network, network.features[4], images, 32)
    np.testing.assert_allclose(frozen.features(images, "cpu"), expected, **ROUNDING)


def test_the_names_in_old_files_of_densenets_are_understood() -> None:
    layer = nn.Sequential()
    layer.add_module("denselayer2", nn.Sequential())
    layer.denselayer2.add_module("norm1", nn.BatchNorm2d(2))
    old = {
        f"denselayer2.norm.1.{name}": torch.full((2,), float(number))
        for number, name in enumerate(("weight", "bias", "running_mean", "running_var"))
    }
    fill_weights(layer, old)
    assert layer.denselayer2.norm1.running_var.tolist() == [3.0, 3.0]


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name of a backbone: expected a name, got ''"),
        ({"node": 3}, "node of a backbone: expected a name, got 3"),
        ({"weights": None}, "weights of a backbone: expected a name, got None"),
        ({"side": 7}, "whole number of pixels of at least 8, got 7"),
        ({"weights": "imagnet"}, r"expected \"imagenet\", \"none\" or a file .* got 'imagnet'"),
        ({"side": 64.0}, r"whole number of pixels of at least 8, got 64\.0"),
        ({"name": "__main__:make"}, "got '__main__:make'; put the function in a module of its own"),
        ({"name": "__main__:Kinds.small", "weights": "none"}, "other processes can import"),
    ],
)
def test_a_backbone_checks_its_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Backbone(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "googelnet"}, "no classification model 'googelnet': expected .* googlenet"),
        ({"name": "qqq"}, "such as googlenet or resnet50, or MODULE:FUNCTION"),
        ({"name": "fcn_resnet50"}, "no classification model 'fcn_resnet50'"),
        ({"node": "block.0"}, r"no node 'block\.0'; those it has, the likest first: blocks\.0, "),
        ({"node": "blocks.2"}, "no node 'blocks.2'"),
        ({"node": "block"}, "no node 'block'; those it has, the likest first: blocks, "),
        ({"name": "own_networks:TwoWays"}, "'blocks.0' in evaluation mode only.*another node"),
        ({"name": "own_networks:TwoWays", "node": "pool"}, "no node 'pool'; those it has.* stem"),
        ({"name": "own_networks:grey"}, r"can't take colour images of 16 x 16 .*RuntimeError"),
        ({"name": "own_networks:Pair", "node": "chunk"}, "can't take .* and give maps"),
        ({"name": "own_networks:Choosy"}, "can't be cut: torch.fx can't trace it"),
        ({"name": "own_networks:number"}, "expected a function that makes a .*Module, got 3"),
        ({"name": "own_networks:failing"}, "KeyError: 'no such thing'.*without arguments"),
        ({"name": "own_networks:none"}, "can't be imported and made .AttributeError"),
        ({"name": "no_such_module:none"}, "ModuleNotFoundError.*on PYTHONPATH"),
        ({"name": ":"}, "can't be imported and made"),
        ({"weights": "imagenet"}, "torchvision has no weights of backbone own_networks:Small"),
        ({"weights": "gone.pth"}, "there is no file of weights .*gone.pth"),
    ],
)
def test_mistakes_are_input_errors(
    own: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    backbone = Backbone(
        **{"name": f"{own}:Small", "node": "blocks.0", "side": 16} | {"weights": "none"} | change
    )
    with pytest.raises(InputError, match=message):
        backbone.freeze(tmp_path / "frozen")
    assert not (tmp_path / "frozen").exists()


def test_a_method_may_make_the_network(own: str, tmp_path: Path) -> None:
    assert Backbone(f"{own}:Kinds.small", "stem", 16, "none").freeze(tmp_path)


def test_images_too_small_for_the_network_are_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't take colour images of 8 x 8 .*another side"):
        Backbone("squeezenet1_1", "features.12", 8, "none").freeze(tmp_path)


class Touch:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("text", "can't be read as weights"),
        ("half", "can't be read as weights"),
        ("code", "can't be read as weights .*nothing else is unpickled"),
        ("list", "expected a state_dict, got a list"),
        ("missing", r"expected stem.weight of shape \(8, 3, 3, 3\), but there is none"),
        ("no tensor", r"expected stem.weight .* but there is none"),
        ("shape", r"expected stem.weight of shape \(8, 3, 3, 3\), but it has \(8, 3\)"),
        ("nan", "gives features that are NaN: its weights are damaged"),
    ],
)
def test_bad_files_of_weights_are_input_errors(
    own: str, tmp_path: Path, spoil: str, message: str
) -> None:
    backbone = Backbone(f"{own}:Small", "stem", 16, "none")
    state = load_file(backbone.freeze(tmp_path / "first").folder / "backbone.safetensors")
    file = tmp_path / "weights.pt"
    contents = {
        "code": {"stem.weight": Touch(tmp_path / "made")},
        "list": [1],
        "missing": {"weight": torch.zeros(2)},
        "no tensor": {"stem.weight": 3},
        "shape": {"stem.weight": torch.zeros(8, 3)},
        "nan": {name: torch.full_like(value, np.nan) for name, value in state.items()},
    }
    torch.save(contents.get(spoil, state), file)
    if spoil == "text":
        file.write_text("weights")
    elif spoil == "half":
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=message):
        replace(backbone, weights=str(file)).freeze(tmp_path / "frozen")
    assert not (tmp_path / "made").exists()


def test_half_a_safetensors_file_is_an_input_error(own: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    backbone = changed(own, file, lambda _: None)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="can't be read as weights"):
        backbone.freeze(tmp_path / "frozen")


def test_another_network_of_the_users_is_an_input_error(own: str, tmp_path: Path) -> None:
    frozen = Backbone(f"{own}:Small", "stem", 16, "none").freeze(tmp_path)
    moved = replace(frozen, backbone=replace(frozen.backbone, name=f"{own}:grey"))
    with pytest.raises(InputError, match="weights are of another network"):
        moved.network()
