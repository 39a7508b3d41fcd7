"""IDX files: what is read, and what each wrong file gets before memory is spent on it."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.worker.idx_files import packed, write
from worker.data import idx, sources
from worker.errors import InvalidArgument

TRAIN_IMAGES, TRAIN_LABELS = idx.FILES["training"]
HELD_OUT_IMAGES, HELD_OUT_LABELS = idx.FILES["held out"]
PIXELS = np.random.default_rng(1).integers(0, 256, (12, 9, 8), np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, PIXELS, LABELS, held_out=4)
    return tmp_path


def test_files_as_they_are(folder: Path) -> None:
    data = idx.load(folder, classes=10)
    assert np.array_equal(data.training.pixels, PIXELS)
    assert data.training.labels.tolist() == LABELS.tolist()
    assert (len(data.held_out), data.image, data.bad_rows) == (4, (9, 8), ())
    assert idx.image_size(folder) == sources.image_size(str(folder)) == (9, 8)
    assert data.mean == pytest.approx((PIXELS / 255).mean())
    assert data.deviation == pytest.approx((PIXELS / 255).std())
    assert sources.load(str(folder), classes=10, bad_rows="refuse").digest() == data.digest()


def test_gzip_and_the_other_way_to_write_a_name(folder: Path) -> None:
    plain = idx.load(folder, classes=10)
    for name in (TRAIN_IMAGES, HELD_OUT_LABELS):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    (folder / TRAIN_LABELS).rename(folder / "train-labels.idx1-ubyte")
    again = idx.load(folder, classes=10)
    assert again.digest() == plain.digest()
    assert idx.image_size(folder) == (9, 8)


def test_no_folder_and_no_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"no such folder; give digits, or a folder with IDX files"):
        idx.load(tmp_path / "nowhere", classes=10)
    with pytest.raises(InvalidArgument, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        sources.image_size(str(tmp_path))
    with pytest.raises(InvalidArgument, match=r"classes 9; the digits have 10"):
        sources.load("digits", classes=9, bad_rows="refuse")


WRONG: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "labels as images": (TRAIN_IMAGES, lambda _: packed(LABELS), r"magic number 0x00000801: expected 0x00000803"),
    "empty": (TRAIN_LABELS, lambda _: b"", r"magic number 0x-: expected 0x00000801"),
    "random": (HELD_OUT_IMAGES, lambda _: b"\x89PNG\r\n\x1a\n", r"t10k-images.*0x89504e47.*is it the file"),
    "floats": (TRAIN_IMAGES, lambda old: old[:2] + b"\x0d" + old[3:], r"0x00000d03.*only unsigned bytes"),
    "packed without saying so": (TRAIN_LABELS, gzip.compress, r"packed with gzip: add \.gz"),
    "cut in its header": (TRAIN_IMAGES, lambda old: old[:9], "ends within its header"),
    "no rows": (TRAIN_LABELS, lambda _: packed(LABELS[:0]), "number of rows 0: expected at least 1"),
    "no height": (TRAIN_IMAGES, lambda _: packed(PIXELS[:, :0]), "height 0: expected 1 to 1024"),
    "huge width": (TRAIN_IMAGES, lambda old: old[:12] + b"\xff" * 4 + old[16:], "width 4294967295: expected 1 to"),
    "too many rows": (TRAIN_IMAGES, lambda old: old[:4] + b"\xff" * 4 + old[8:], r"bytes: expected at most 1073741824"),
    "too long": (TRAIN_LABELS, lambda old: old + b"x", r"goes on behind the 12 values .*expected 20 bytes"),
}


@pytest.mark.parametrize(("name", "change", "told"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_whatever_the_policy(
    folder: Path, name: str, change: Callable[[bytes], bytes], told: str
) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    for policy in idx.BAD_ROWS:
        with pytest.raises(InvalidArgument, match=told) as caught:
            idx.load(folder, classes=10, bad_rows=policy)
        assert str(path) in str(caught.value)


def test_damaged_gzip_is_refused(folder: Path) -> None:
    whole = gzip.compress((folder / TRAIN_IMAGES).read_bytes())
    (folder / TRAIN_IMAGES).unlink()
    path = folder / f"{TRAIN_IMAGES}.gz"
    flipped = bytearray(whole)
    flipped[-5] ^= 1  # of the checksum at the end
    for wrong in (whole[:-20], bytes(flipped), b"not gzip at all", whole[:-8]):
        path.write_bytes(wrong)
        with pytest.raises(InvalidArgument, match=r"ubyte\.gz: damaged gzip file"):
            idx.load(folder, classes=10, bad_rows="skip")


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that cannot be true for the file's size costs no memory; what lies behind its values is left."""
    (folder / TRAIN_IMAGES).unlink()
    path = folder / f"{TRAIN_IMAGES}.gz"
    monkeypatch.setattr(idx.np, "empty", lambda *_: pytest.fail("memory was allocated"))
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 1000, 1000, 1000)))
    with pytest.raises(InvalidArgument, match="cannot be packed into its"):
        idx.load(folder, classes=10)
    monkeypatch.undo()
    path.write_bytes(gzip.compress(packed(PIXELS) + bytes(10_000_000)))
    read: list[int] = []
    plain = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        read.append(size or 0)
        return plain(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(InvalidArgument, match="goes on behind"):
        idx.load(folder, classes=10)
    assert sum(read) < 1000


def test_bad_rows_are_counted_and_named(folder: Path) -> None:
    wrong = LABELS.copy()
    wrong[[2, 3, 4, 5, 6, 9]] = 10, 255, 11, 12, 13, 99
    (folder / TRAIN_LABELS).write_bytes(packed(wrong))
    told = r"train-labels-idx1-ubyte: 6 rows with a label outside 0 to 9: 2, 3, 4, 5, 6, \.\.\."
    with pytest.raises(InvalidArgument, match=told) as caught:
        idx.load(folder, classes=10)
    assert "--bad-rows skip" in caught.value.hint
    data = idx.load(folder, classes=10, bad_rows="skip")
    assert [(row.count, row.first) for row in data.bad_rows] == [(6, (2, 3, 4, 5, 6))]
    good = [0, 1, 7, 8, 10, 11]
    assert data.training.labels.tolist() == LABELS[good].tolist()
    assert np.array_equal(data.training.pixels, PIXELS[good])
    assert len(idx.load(folder, classes=256).training) == 12


def test_rows_that_are_cut_off_or_lack_their_other_half(folder: Path) -> None:
    (folder / TRAIN_IMAGES).write_bytes(packed(PIXELS)[: 16 + 9 * 72 + 5])  # nine rows and a piece of one
    (folder / HELD_OUT_LABELS).write_bytes(packed(LABELS[:3]))
    with pytest.raises(InvalidArgument) as caught:
        idx.load(folder, classes=10)
    assert "train-images-idx3-ubyte: 3 rows cut off: 9, 10, 11" in caught.value.cause
    assert "t10k-images-idx3-ubyte: 1 row without label: 3" in caught.value.cause
    data = idx.load(folder, classes=10, bad_rows="skip")
    assert (len(data.training), len(data.held_out)) == (9, 3)
    (folder / TRAIN_IMAGES).write_bytes(packed(PIXELS)[:20])
    with pytest.raises(InvalidArgument, match="no good training row is left"):
        idx.load(folder, classes=10, bad_rows="skip")


def test_two_data_sets_in_one_folder(folder: Path) -> None:
    (folder / HELD_OUT_IMAGES).write_bytes(packed(PIXELS[:4, :8]))
    with pytest.raises(InvalidArgument, match="training images are 9 x 8 but 8 x 8 those held out"):
        idx.load(folder, classes=10)


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(InvalidArgument, match=r"Permission denied; can this user read it"):
        idx.load(folder, classes=10)
