"""Small IDX files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from worker.data import idx


def packed(values: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(
    folder: Path,
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    held_out: int,
) -> None:
    """A data set of four files; the first `held_out` rows are those held out, too."""
    for (images_name, labels_name), count in zip(idx.FILES.values(), (len(labels), held_out), strict=True):
        (folder / images_name).write_bytes(packed(pixels[:count]))
        (folder / labels_name).write_bytes(packed(labels[:count]))
