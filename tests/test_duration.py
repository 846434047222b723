import math
import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trautoml.duration import duration, parse_duration
from trautoml.errors import InputError


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (42.3, "42 s"),
        (59.49, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
        (-42, "-42 s"),
        (-7500, "-2 h 05 min"),
        (-0.01, "0.0 s"),
    ],
)
def test_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0.05, 1e7))
def test_written_durations_have_no_carry_left_and_read_back(seconds: float) -> None:
    text = duration(seconds)
    assert re.fullmatch(r"\d\.\d s|\d\d s|\d\d? min [0-5]\d s|\d+ h [0-5]\d min", text)
    shown = {"h": 60, "m": 1, "s": 1}[re.findall("[hms]", text)[0]]
    tolerance = 0.05 if "." in text else shown / 2
    assert parse_duration(text) == pytest.approx(seconds, abs=tolerance + 1e-6)


@given(st.floats(-1e7, 1e7))
def test_the_sign_goes_in_front(seconds: float) -> None:
    if duration(seconds) != "0.0 s":
        assert duration(-abs(seconds)) == f"-{duration(abs(seconds))}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        (" 90 s ", 90),
        ("0.5s", 0.5),
        ("10m", 600),
        ("10min", 600),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2 h 05 min", 7500),
        ("1h 1m 1s", 3661),
        ("90m 30s", 5430),
    ],
)
def test_parse_duration_takes_what_people_type(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "90", "s", "0s", "0h 0m", "-5s", "1e3s", "5 d", "5M", ".5h", "nans", "infs", "5m 1h",
     "5s 5s", "1,5h", "\u0663s", "9" * 400 + "s"],
)  # fmt: skip
def test_parse_duration_refuses_the_rest_and_shows_what_it_wants(text: str) -> None:
    with pytest.raises(
        InputError, match=r"expected a time such as 90s.*got " + re.escape(repr(text))
    ):
        parse_duration(text)


@given(st.text())
def test_parse_duration_gives_a_usable_time_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        assert 0 < parse_duration(text) < math.inf
