"""Durations for people: 0.4 s, 42 s, 3 min 20 s, 2 h 05 min; and back from what they type."""

import re

from trautoml.errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def duration(seconds: float) -> str:
    """Write a number of seconds the way people do."""
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 9.95:
        return f"{sign}{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{sign}{seconds:.0f} s"
    if round(seconds) < 3600:
        return f"{sign}{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{sign}{minutes // 60} h {minutes % 60:02d} min"


def parse_duration(text: str) -> float:
    """Read ``"90s"``, ``"10m"`` or ``"1.5h"`` as seconds.

    Raises
    ------
    InputError
        If it is none of these, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if found is None or float(found[1]) == 0:
        raise InputError(f"expected a time such as 90s, 10m or 1.5h, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]
