"""Writes a report's file: with pictures where matplotlib is there, without them where it is not.

Must not know: what is in it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from paramserver.lab.chaos.report.page import NO_PICTURES, page
from paramserver.lab.chaos.result import ChaosResult


def write(result: ChaosResult, path: Path) -> str:
    """Returns what to tell about it; empty when it has everything."""
    if find_spec("matplotlib") is None:
        path.write_text(page(result, ()))
        return NO_PICTURES
    from paramserver.lab.chaos.report.pictures import drawn

    path.write_text(page(result, drawn(result)))
    return ""
