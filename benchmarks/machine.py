"""What a figure depends on, kept beside it."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    except OSError:
        names = {}
    simd = next((kind for kind in ("avx512f", "avx2") if kind in names.get("flags", "").split()), "neither")
    packages = ("torch", "transformers", "numpy", "tokenizers")
    return {
        "date": date.today().isoformat(),
        "cpu": names.get("model name", platform.machine()),
        "simd": simd,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
