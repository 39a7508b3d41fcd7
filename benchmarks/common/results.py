"""Where results go: standard output, and a file if one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(result: dict[str, Any], out: str | None) -> None:
    text = json.dumps(result, indent=2)
    print(text, flush=True)
    if out is not None:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def percentile(values: list[float], fraction: float) -> float | None:
    """Nearest rank, two digits; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 2)
