"""Data sets by the name that a user gives: "digits", or a folder of IDX files.

Must not know: what is done with them.
"""

from __future__ import annotations

from pathlib import Path

from worker.data import digits, idx
from worker.data.dataset import Dataset
from worker.data.idx import OnBadRows
from worker.errors import InvalidArgument


def image_size(data: str) -> tuple[int, int]:
    """(height, width) of the images, without reading them. Raises InvalidArgument."""
    return (digits.SIDE, digits.SIDE) if data == digits.NAME else idx.image_size(Path(data))


def load(data: str, *, classes: int, bad_rows: OnBadRows) -> Dataset:
    """Raises InvalidArgument."""
    if data != digits.NAME:
        return idx.load(Path(data), classes=classes, bad_rows=bad_rows)
    if classes != digits.CLASSES:
        raise InvalidArgument(f"classes {classes}", f"the digits have {digits.CLASSES}")
    return digits.load()
