import json
import math

import numpy as np
import pytest

from trautoml.errors import GroupingError
from trautoml.grouping import Decision

DECISION = Decision("split", 2, 0.9, np.array([-math.inf, -0.1]), 7.5, 1e-300, 1)


def test_strict_json_round_trip():
    text = json.dumps(DECISION.to_dict(), allow_nan=False)
    back = Decision.from_dict(json.loads(text))
    assert back == DECISION
    assert hash(back) == hash(DECISION)
    assert back.log_posterior.dtype == np.float64


def test_value_equality_and_immutability():
    other = Decision("split", 2, 0.9, np.array([-math.inf, -0.2]), 7.5, 1e-300, 1)
    assert other != DECISION
    assert DECISION != "split"
    with pytest.raises(AttributeError):
        DECISION.group = 3
    with pytest.raises(ValueError, match="read-only"):
        DECISION.log_posterior[0] = 0.0


def test_what_is_no_decision():
    with pytest.raises(GroupingError, match="expected kind"):
        Decision("merged", 0, 1.0, np.empty(0))
    for broken in ({}, DECISION.to_dict() | {"group": None}):
        with pytest.raises(GroupingError, match=r"Decision\.to_dict"):
            Decision.from_dict(broken)
