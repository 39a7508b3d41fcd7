"""Images and labels in IDX files, as MNIST and its relatives come (yann.lecun.com/exdb/mnist): one folder with
train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is or
with gzip (.gz).

A file: two zero bytes, the kind of number (8: unsigned bytes), how many dimensions, their sizes (32 bits, the highest
byte first), the values. Invariants: no memory is allocated for a size before it was compared with a limit and with the
size of the file; a damaged file is refused whole; of rows that are bad (no known label, cut off, without their other
half) either none is taken silently or all are counted and named. Must not know: networks, servers.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from worker.data.dataset import BadRows, Dataset, Images, dataset
from worker.errors import InvalidArgument

FILES = {
    "training": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "held out": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
BYTES_MAX = 1 << 30
"""Of one file's values, unpacked."""
SIDE_MAX = 1024
"""Pixels of an image's height or width."""
NAMED_MAX = 5
"""Bad rows of a kind that are named."""
PIXEL_MAX = 255
_UNSIGNED_BYTES = 8
_READ_BYTES = 1 << 20
_GZIP_RATIO_MAX = 1040
"""Deflate cannot pack better than 1032 to 1."""

OnBadRows = Literal["refuse", "skip"]
BAD_ROWS: tuple[OnBadRows, ...] = ("refuse", "skip")


@dataclass(frozen=True, slots=True)
class _Header:
    sizes: tuple[int, ...]

    @property
    def length(self) -> int:
        return 4 + 4 * len(self.sizes)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.sizes[1:], dtype=object)) if len(self.sizes) > 1 else 1

    @property
    def value_bytes(self) -> int:
        return self.sizes[0] * self.row_bytes


def load(folder: Path, *, classes: int, bad_rows: OnBadRows = "refuse") -> Dataset:
    """Raises InvalidArgument, which names the file, what was expected and what came. `bad_rows`: "refuse" raises when
    there is one, "skip" leaves them out and lists them in `Dataset.bad_rows`."""
    parts: list[Images] = []
    bad: list[BadRows] = []
    for images_name, labels_name in FILES.values():
        images, some = _pair(_find(folder, images_name), _find(folder, labels_name), classes)
        parts.append(images)
        bad += some
    if bad and bad_rows == "refuse":
        raise InvalidArgument(
            f"data {folder}: " + "; ".join(map(str, bad)),
            "repair the files, give the number of classes if it is not right, or leave these rows out with "
            "--bad-rows skip",
        )
    training, held_out = parts
    for what, images in zip(FILES, parts, strict=True):
        if not len(images):
            raise InvalidArgument(f"data {folder}: no good {what} row is left", "are these the right files?")
    if training.pixels.shape[1:] != held_out.pixels.shape[1:]:
        sizes = " but ".join(" x ".join(map(str, images.pixels.shape[1:])) for images in parts)
        raise InvalidArgument(f"data {folder}: training images are {sizes} those held out", "use files of one data set")
    return dataset(str(folder), training, held_out, classes=classes, pixel_max=PIXEL_MAX, bad_rows=tuple(bad))


def image_size(folder: Path) -> tuple[int, int]:
    """(height, width), from the header of the training images. Raises InvalidArgument as `load` does."""
    path = _find(folder, FILES["training"][0])
    with _opened(path) as file:
        _, height, width = _header(file, path, 3).sizes
    return height, width


def _find(folder: Path, name: str) -> Path:
    """Also under the name that some archives give it, with a dot for the second dash."""
    if not folder.is_dir():
        raise InvalidArgument(f"data {folder}: no such folder", "give digits, or a folder with IDX files such as MNIST")
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise InvalidArgument(
        f"data {folder}: no {name} or {name}.gz", "a data set is four files: " + ", ".join(sum(FILES.values(), ()))
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Its values, unpacked. What a file can do wrong while it is read ends as InvalidArgument."""
    try:
        with path.open("rb") as plain:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=plain, mode="rb") as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield plain
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidArgument(f"{path}: damaged gzip file: {error}", "copy or download it again") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}", "can this user read it?") from None


def _header(file: BinaryIO, path: Path, dimensions: int) -> _Header:
    magic = file.read(4)
    expected = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if magic != expected:
        hint = "is it the file that its name says?"
        if magic[:2] == b"\x1f\x8b":
            hint = "it is packed with gzip: add .gz to its name"
        elif len(magic) == 4 and magic[:2] == b"\0\0" and magic[3] == dimensions:
            hint = "only unsigned bytes (8) are read"
        raise InvalidArgument(
            f"{path}: magic number 0x{magic.hex() or '-'}: expected 0x{expected.hex()} "
            f"(unsigned bytes in {dimensions} dimension{'s' * (dimensions > 1)})",
            hint,
        )
    words = file.read(4 * dimensions)
    if len(words) < 4 * dimensions:
        raise InvalidArgument(f"{path}: ends within its header", "copy or download it again")
    sizes = tuple(int(size) for size in np.frombuffer(words, ">u4"))
    if sizes[0] < 1:
        raise InvalidArgument(f"{path}: number of rows 0: expected at least 1", "is it the file that its name says?")
    for field, size in zip(("height", "width"), sizes[1:], strict=False):
        if not 1 <= size <= SIDE_MAX:
            raise InvalidArgument(f"{path}: {field} {size}: expected 1 to {SIDE_MAX} pixels", "scale the images down")
    return _Header(sizes)


def _values(path: Path, dimensions: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Whole rows that are there, and how many the header says there are."""
    with _opened(path) as file:
        header = _header(file, path, dimensions)
        size = os.stat(path).st_size
        declared = " x ".join(map(str, header.sizes))
        if header.value_bytes > BYTES_MAX:
            raise InvalidArgument(
                f"{path}: {declared} values are {header.value_bytes} bytes: expected at most {BYTES_MAX}",
                "take fewer rows",
            )
        packed = path.suffix == ".gz"
        if packed and header.value_bytes > size * _GZIP_RATIO_MAX:
            raise InvalidArgument(
                f"{path}: {declared} values cannot be packed into its {size} bytes", "its header is damaged"
            )
        if not packed and size > header.length + header.value_bytes:
            raise _too_long(path, declared, header.length + header.value_bytes)
        room = header.value_bytes if packed else min(header.value_bytes, size - header.length)
        values = np.empty(room, np.uint8)
        filled = 0
        while filled < room and (count := file.readinto(values[filled : filled + _READ_BYTES].data)):  # type: ignore[attr-defined]
            filled += count
        if packed and file.read(1):  # to the end, where gzip's own checksum is
            raise _too_long(path, declared, header.length + header.value_bytes)
    whole = filled // header.row_bytes
    return values[: whole * header.row_bytes].reshape(whole, *header.sizes[1:]), header.sizes[0]


def _too_long(path: Path, declared: str, expected: int) -> InvalidArgument:
    return InvalidArgument(
        f"{path}: goes on behind the {declared} values that its header names (expected {expected} bytes)",
        "its header or its end is damaged; copy or download it again",
    )


def _pair(images: Path, labels: Path, classes: int) -> tuple[Images, list[BadRows]]:
    """The rows that have a whole image and a label from 0 to classes - 1, and those that do not."""
    pixels, images_declared = _values(images, 3)
    named, labels_declared = _values(labels, 1)
    bad: list[BadRows] = []
    for path, there, declared in ((images, len(pixels), images_declared), (labels, len(named), labels_declared)):
        if there < declared:
            bad.append(_bad(path, np.arange(there, min(declared, there + NAMED_MAX)), declared - there, "cut off"))
    if images_declared != labels_declared:
        few, more = sorted((images_declared, labels_declared))
        path, missing = (images, "label") if images_declared > labels_declared else (labels, "image")
        bad.append(_bad(path, np.arange(few, min(more, few + NAMED_MAX)), more - few, f"without {missing}"))
    count = min(len(pixels), len(named))
    pixels, named = pixels[:count], named[:count]
    wrong = named >= classes
    if wrong.any():
        places = np.flatnonzero(wrong)
        bad.append(_bad(labels, places[:NAMED_MAX], len(places), f"with a label outside 0 to {classes - 1}"))
        pixels, named = pixels[~wrong], named[~wrong]
    return Images(pixels, named.astype(np.int64)), bad


def _bad(path: Path, first: npt.NDArray[np.int64], count: int, why: str) -> BadRows:
    return BadRows(path.name, count, tuple(int(row) for row in first), why)
