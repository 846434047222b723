"""What a measurement was made on."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path


def processor() -> str:
    """Name the processor as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def conditions(workers: int) -> str:
    """Date, code, machine and workers, as results state them."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    code = subprocess.run(  # noqa: S603 - a fixed command
        git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return (
        f"{datetime.now(timezone.utc):%Y-%m-%d}, code {code.stdout.strip() or 'unknown'}, "
        f"{processor()}, {os.cpu_count()} cores, {workers} workers of one thread"
    )
