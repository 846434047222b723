"""Which device to use, and how."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from trautoml.errors import InputError


def resolve_device(device: str) -> torch.device:
    """Turn ``"auto"`` into CUDA where it is present, else the CPU.

    Raises
    ------
    InputError
        If the device is unknown or not present.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f'expected device "auto", "cpu" or "cuda[:N]", got {device!r}') from error
    if found.type not in {"cpu", "cuda"}:
        raise InputError(f'expected device "auto", "cpu" or "cuda[:N]", got {device!r}')
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f'device {device!r} was asked for, but torch sees no CUDA; use "cpu"')
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} was asked for, but torch sees only {torch.cuda.device_count()}"
        )
    return found


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Use one torch thread on a CPU: faster for small networks, and the same result everywhere."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def autocast(device: torch.device) -> torch.autocast:
    """Use bfloat16 on CUDA devices that compute in it, and full precision elsewhere."""
    # bfloat16 has the range of float32, so no loss scaling is needed.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_has_bfloat16(device))


@lru_cache
def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # emulated, it would be slower than full precision
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
