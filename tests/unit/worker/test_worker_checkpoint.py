"""Checkpoint files: what is written comes back, and nothing else is taken (FAULTS, bad input 24 in spirit)."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.wire.layout import Layout
from paramserver.wire.spec import (
    Codec,
    ModelSpec,
    NonFinite,
    OptimizerSpec,
    Reduction,
    TensorSpec,
    adam,
    momentum,
    scalar_names,
    sgd,
    slot_names,
)
from worker import checkpoint_files
from worker.checkpoint import Checkpoint, packed, unpacked
from worker.checkpoint_files import check_path, read, write
from worker.errors import CheckpointError, InvalidArgument
from worker.saving import needed_rates

SUFFIXES = [".safetensors", ".npz"]


def made(optimizer: OptimizerSpec | None = None, **more: Any) -> Checkpoint:
    tensors = (TensorSpec("file", (40, 50)), TensorSpec("scalar", ()), TensorSpec("ключ é", (3,)))
    spec = ModelSpec("m", tensors, optimizer or adam(0.003), 3, block_bytes=4096, **more)
    layout, random = Layout(spec), np.random.default_rng(5)
    flats = [
        random.standard_normal(layout.elements, dtype=np.float32) for _ in range(1 + len(slot_names(spec.optimizer)))
    ]
    return Checkpoint(
        spec=spec,
        step=17,
        weights=flats[0],
        slots=tuple(flats[1:]),
        scalars=random.random((layout.blocks, len(scalar_names(spec.optimizer)))),
        rates=((3, 0.5), (20, 0.25)),
        origin="cluster 00, model 1, generation 1",
    )


def same(left: Checkpoint, right: Checkpoint) -> bool:
    bits = [
        [one.weights.tobytes(), *(slot.tobytes() for slot in one.slots), one.scalars.tobytes()] for one in (left, right)
    ]
    said = [(one.spec, one.step, one.rates, one.origin) for one in (left, right)]
    return bits[0] == bits[1] and said[0] == said[1]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("optimizer", [sgd(0.1), momentum(0.1, nesterov=True), adam(0.1, weight_decay=0.01)])
def test_what_is_written_comes_back_bit_by_bit(tmp_path: Path, suffix: str, optimizer: OptimizerSpec) -> None:
    kept = made(optimizer, reduction=Reduction.SUM, non_finite=NonFinite.SKIP, log_codec=Codec.BF16)
    path = tmp_path / f"a{suffix}"
    assert write(path, kept) == path.stat().st_size
    assert same(read(path), kept)
    assert os.listdir(tmp_path) == [path.name]


def test_others_can_read_the_weights(tmp_path: Path) -> None:
    """By their names, with the libraries that everybody has."""
    from safetensors.numpy import load_file

    kept = made()
    write(tmp_path / "a.safetensors", kept)
    write(tmp_path / "a.npz", kept)
    expected = Layout(kept.spec).unflatten(kept.weights)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        for found in (load_file(tmp_path / "a.safetensors"), archive):
            for name, values in expected.items():
                assert found[name].shape == values.shape
                assert found[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_or_changed_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    """Every byte of the arrays is under a digest; what is not under one decides about nothing that is returned."""
    kept, path = made(), tmp_path / f"a{suffix}"
    write(path, kept)
    whole = path.read_bytes()
    random = np.random.default_rng(3)
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as refused:
            read(path)
        assert path.name in refused.value.cause
    unnoticed = 0
    for place in random.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            unnoticed += 1
            assert same(replace(read(path), origin=kept.origin), kept)
        except CheckpointError:
            unnoticed -= 1
    assert unnoticed < 30, "padding and members' dates, no more"


def changed(said: dict[str, Any], *where: Any) -> dict[str, Any]:
    *path, value = where
    place: Any = said
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind", "something else"), "no checkpoint of paramserver"),
        (("version", 2), "version 2, this program reads 1"),
        (("step", -1), "steps or digests that cannot be"),
        (("step", 2.5), "steps or digests that cannot be"),
        (("learning_rates", [[3, -1.0]]), "learning rate"),
        (("learning_rates", [[5, 0.1], [3, 0.1]]), "cannot be"),
        (("learning_rates", [["a", 0.1]]), "cannot be"),
        (("model", "name", "../up"), "no path"),
        (("model", "ranks", 10_000), "ranks"),
        (("model", "ranks", "2"), "numbers expected"),
        (("model", "optimizer", {"kind": "magic"}), "cannot be read"),
        (("model", "optimizer", "beta1", 1.5), "beta1"),
        (("model", "tensors", [["file", [1 << 40, 1 << 40]]]), "tensors"),
        (("model", "tensors", [["file", [40, 51]]]), "does not belong to it"),
        (("model", "block_bytes", 8192), "expected"),
        (("digests", {}), "digest differs"),
        (("model", None), "cannot be read"),
    ],
)
def test_a_description_that_is_wrong_is_refused(change: tuple[Any, ...], message: str) -> None:
    arrays, text = packed(made())
    with pytest.raises(CheckpointError, match=message):
        unpacked(arrays, json.dumps(changed(json.loads(text), *change)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda arrays: arrays.pop("scalar"), "'scalar' is missing"),
        (lambda arrays: arrays.update(more=np.zeros(3, np.float32)), "'more' does not belong to it"),
        (lambda arrays: arrays.update(scalar=np.float64(1.0)), r"expected \(\) float32, received \(\) float64"),
        (lambda arrays: arrays.update(file=arrays["file"].T), "expected"),
    ],
)
def test_arrays_that_are_wrong_are_refused(spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    arrays, text = packed(made())
    spoil(arrays)
    with pytest.raises(CheckpointError, match=message):
        unpacked(arrays, text)


def test_values_that_the_model_does_not_allow_are_refused() -> None:
    kept = made()
    kept.slots[1][2001] = np.nan
    with pytest.raises(CheckpointError, match="optimizer/second_moment/ключ é' element 0 is nan"):
        unpacked(*packed(kept))
    allowing = replace(kept, spec=replace(kept.spec, non_finite=NonFinite.ALLOW))
    assert same(unpacked(*packed(allowing)), allowing)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_foreign_files_are_refused(tmp_path: Path, suffix: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, w=np.zeros(3))
    else:
        save_file({"w": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of paramserver"):
        read(path)


def test_pickles_and_compressed_members_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write(path, made())
    with zipfile.ZipFile(path, "a") as archive, archive.open("evil.npy", "w") as member:
        np.lib.format.write_array(member, np.array([{}], object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"whole \.npz"):
        read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("/paramserver.npy", b"0" * 10_000)
    with pytest.raises(CheckpointError, match="compressed"):
        read(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    write(path, made())
    before = path.read_bytes()

    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "_sync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(path, replace(made(), step=18))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_paths_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name, reading, message in (
        ("a.pickle", False, "unknown kind"),
        ("none/a.npz", False, "does not exist"),
        ("folder.npz", False, "is a folder"),
        ("a.npz", True, "does not exist"),
        ("folder.npz", True, "not a file"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            check_path(tmp_path / name, reading=reading)

    def missing(_name: str) -> None:
        raise ImportError

    monkeypatch.setattr(checkpoint_files, "import_module", missing)
    with pytest.raises(InvalidArgument, match="safetensors is not installed; pip install"):
        check_path(tmp_path / "a.safetensors", reading=False)


def test_of_the_rates_those_are_kept_that_training_goes_on_with() -> None:
    asked = ((10, 0.1), (30, 0.3), (20, 0.2), (30, 0.4), (5, 0.5))
    assert needed_rates(asked, 20) == ((20, 0.2), (30, 0.4))
    assert needed_rates(asked, 4) == ((5, 0.5), (10, 0.1), (20, 0.2), (30, 0.4))
    assert needed_rates((), 4) == ()
