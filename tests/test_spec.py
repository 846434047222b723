import json
import math
import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trautoml import spec as spec_module
from trautoml.errors import InputError, SpecError, TrautomlError
from trautoml.spaces import ChainSpace
from trautoml.spec import Hyperparameters, ModelSpec, register_architecture

LAYER = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
STRUCTURE = {"layers": [LAYER], "dense": [16], "batch_norm": True}
HYPER = Hyperparameters(
    learning_rate=0.05, momentum=0.9, weight_decay=1e-4, batch_size=16, init_sd=1.0
)
SPEC = ModelSpec("chain", STRUCTURE, HYPER)

samples = st.integers(0, 2**32 - 1).map(lambda s: ChainSpace().sample(np.random.default_rng(s)))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
structures = st.dictionaries(st.text(), json_values, max_size=4)


# --- JSON, equality, digest -------------------------------------------------------------------


@given(samples)
def test_json_round_trip_is_exact(spec: ModelSpec) -> None:
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert again.structure == spec.structure
    assert again.hyper == spec.hyper
    assert again.to_json() == spec.to_json()
    assert again.digest == spec.digest
    assert hash(again) == hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301


@given(st.text(), structures)
def test_any_json_structure_survives(architecture: str, structure: dict[str, Any]) -> None:
    spec = ModelSpec(architecture, structure, HYPER)
    again = ModelSpec.from_json(spec.to_json())
    assert (again.architecture, again.structure) == (architecture, structure)
    assert again == spec


def test_the_text_is_canonical_and_stable() -> None:
    assert SPEC.to_json() == (
        '{"architecture":"chain","hyper":{"batch_size":16,"init_sd":1.0,"learning_rate":0.05,'
        '"momentum":0.9,"weight_decay":0.0001},"structure":{"batch_norm":true,"dense":[16],'
        '"layers":[{"channels":8,"kernel":3,"pool_kernel":2,"pool_stride":2,"stride":1}]}}'
    )
    # Stored results are found by this name: it must not change between versions.
    assert SPEC.digest == "a36d00becad96d32"


def test_the_order_of_keys_and_the_kind_of_sequence_do_not_matter() -> None:
    other = {
        "batch_norm": True,
        "dense": (16,),
        "layers": (dict(reversed(LAYER.items())),),
    }
    assert ModelSpec("chain", other, HYPER) == SPEC
    assert ModelSpec("chain", other, HYPER).digest == SPEC.digest
    loose = json.dumps(json.loads(SPEC.to_json()), indent=3)
    assert ModelSpec.from_json(loose).digest == SPEC.digest


@pytest.mark.parametrize("as_type", [float, np.float64, np.int64, np.float32, np.int8])
def test_equal_numbers_of_other_types_are_the_same_spec(as_type: Any) -> None:
    hyper = Hyperparameters(
        learning_rate=as_type(1),
        momentum=as_type(0),
        weight_decay=as_type(0),
        batch_size=as_type(16),
        init_sd=as_type(2),
    )
    plain = Hyperparameters(1.0, 0.0, 0.0, 16, 2.0)
    spec = ModelSpec("chain", STRUCTURE, hyper)
    assert spec.to_json() == ModelSpec("chain", STRUCTURE, plain).to_json()
    assert type(hyper.batch_size) is int
    assert type(hyper.learning_rate) is float


def test_every_field_counts() -> None:
    others = [
        replace(SPEC, architecture="other"),
        replace(SPEC, structure={**STRUCTURE, "dense": []}),
        *(
            replace(SPEC, hyper=replace(HYPER, **change))
            for change in (
                {"learning_rate": math.nextafter(0.05, 1)},
                {"momentum": 0.8},
                {"weight_decay": 0.0},
                {"batch_size": 17},
                {"init_sd": 1.5},
            )
        ),
    ]
    assert len({SPEC, *others}) == len({s.digest for s in (SPEC, *others)}) == 8
    assert all(other != SPEC for other in others)
    assert SPEC.to_json() != SPEC


def test_a_spec_keeps_its_own_copy_of_the_structure() -> None:
    structure = json.loads(json.dumps(STRUCTURE))
    spec = ModelSpec("chain", structure, HYPER)
    structure["layers"].append(LAYER)
    assert spec == SPEC
    assert spec.digest == SPEC.digest


# --- what is refused --------------------------------------------------------------------------


def test_spec_errors_are_the_users_to_mend() -> None:
    assert issubclass(SpecError, InputError)
    assert issubclass(SpecError, TrautomlError)
    assert issubclass(SpecError, ValueError)


@pytest.mark.parametrize(
    "structure",
    [{"x": math.nan}, {"x": [math.inf]}, {"x": {1, 2}}, {"x": object()}, {"x": np.ones(2)},
     {("a", "b"): 1}, [1], "text", None],
)  # fmt: skip
def test_a_structure_that_is_not_json_is_refused(structure: Any) -> None:
    with pytest.raises(SpecError, match="structure of a spec must be"):
        ModelSpec("chain", structure, HYPER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in HYPER.__dataclass_fields__
          for value in (math.nan, math.inf, -math.inf, -1, None, "0.5", [1], True, 10**400)),
        ("learning_rate", 0), ("momentum", 1), ("momentum", 1.5), ("batch_size", 0),
        ("batch_size", 1.5), ("init_sd", 0),
    ],
)  # fmt: skip
def test_bad_hyperparameters_are_named(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"{field}: expected .*, got "):
        replace(HYPER, **{field: value})
    data = json.loads(SPEC.to_json())
    data["hyper"][field] = value
    with pytest.raises(SpecError, match=rf"{field}: expected .*, got "):
        ModelSpec.from_json(json.dumps(data))


def _without(key: str) -> str:
    data = json.loads(SPEC.to_json())
    del data[key]
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    ["", "{", "5", "null", "[]", "{}", '"chain"', "[" * 100_000, "9" * 5000,
     _without("architecture"), _without("structure"), _without("hyper"),
     SPEC.to_json().replace('"momentum":0.9,', ""),
     SPEC.to_json().replace('"momentum"', '"mom"'),
     SPEC.to_json().replace('"chain"', "null"),
     SPEC.to_json().replace("[16]", "[NaN]"),
     SPEC.to_json().replace("0.05", "1e999")],
)  # fmt: skip
def test_bad_json_is_a_spec_error_that_says_what_is_wanted(text: str) -> None:
    with pytest.raises(SpecError, match=r"expected|must be"):
        ModelSpec.from_json(text)


@given(st.text() | json_values.map(json.dumps))
def test_from_json_gives_a_spec_or_a_spec_error(text: str) -> None:
    with suppress(SpecError):
        ModelSpec.from_json(text)


# --- the registry -----------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    SPEC.build((8, 8, 1), 2)  # what ships is registered by now
    architectures = dict(spec_module._ARCHITECTURES)
    monkeypatch.setattr(spec_module, "_ARCHITECTURES", architectures)
    return architectures


def test_an_unknown_architecture_names_the_known_ones() -> None:
    unknown = replace(SPEC, architecture="chian")
    with pytest.raises(SpecError, match=r"'chian'; known: .*'chain'.*register_architecture"):
        unknown.build((8, 8, 1), 2)


@pytest.mark.usefixtures("registry")
def test_a_registered_architecture_is_built() -> None:
    @register_architecture("flat")
    def build(
        structure: Mapping[str, Any], image_shape: tuple[int, int, int], n_classes: int
    ) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(image_shape), n_classes, bias=structure["bias"])
        )

    network = ModelSpec("flat", {"bias": False}, HYPER).build((8, 9, 3), 4)
    assert network[1].weight.shape == (4, 8 * 9 * 3)
    assert network[1].bias is None
    assert callable(build)


def test_a_name_is_registered_once(registry: dict[str, Any]) -> None:
    before = registry["chain"]
    with pytest.raises(SpecError, match="'chain' is registered already; choose another name"):
        register_architecture("chain")(lambda structure, image_shape, n_classes: nn.Identity())
    assert registry["chain"] is before
