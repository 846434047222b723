"""Durations for people: 0.4 s, 42 s, 3 min 20 s, 2 h 05 min; and back from what they type."""

import math
import re

from trautoml.errors import InputError

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_TIME = re.compile(
    rf"\s*(?:{_NUMBER}\s*h)?\s*(?:{_NUMBER}\s*m(?:in)?)?\s*(?:{_NUMBER}\s*s)?\s*", re.ASCII
)


def duration(seconds: float) -> str:
    """Write a number of seconds the way people do."""
    sign, seconds = ("-" if round(seconds, 1) < 0 else ""), abs(seconds)
    if seconds < 9.95:
        return f"{sign}{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{sign}{seconds:.0f} s"
    if round(seconds) < 3600:
        return f"{sign}{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{sign}{minutes // 60} h {minutes % 60:02d} min"


def parse_duration(text: str) -> float:
    """Read ``"90s"``, ``"10m"``, ``"1.5h"`` or ``"1 h 05 min"`` as seconds.

    Raises
    ------
    InputError
        If it is none of these, or not a finite number above 0.
    """
    found = _TIME.fullmatch(text)
    hours, minutes, seconds = map(float, found.groups("0")) if found else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total < math.inf:
        raise InputError(f"expected a time such as 90s, 10m, 1.5h or 1h30m, got {text!r}")
    return total
