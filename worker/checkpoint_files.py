"""Checkpoints as files: safetensors and .npz.

Owns how a file comes to be and is read. Invariants: under its name there is the whole file or what was there before:
a temporary file beside it, synced, renamed, the folder synced; no pickle is written or read; a file that is cut,
damaged or foreign is a CheckpointError. Must not know: models, clusters.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from worker.checkpoint import TEXT_BYTES_MAX, Arrays, Checkpoint, packed, unpacked
from worker.errors import CheckpointError, InvalidArgument

SAFETENSORS, NPZ = ".safetensors", ".npz"
TEXT = "paramserver"
"""Key of the text in a safetensors header; in .npz the member `/paramserver`, a name that no tensor can have."""
_TEXT_MEMBER = f"/{TEXT}"


def check_path(path: str | os.PathLike[str], *, reading: bool) -> Path:
    """Before anything is done for it. Raises InvalidArgument."""
    found = Path(path)
    if found.suffix not in (SAFETENSORS, NPZ):
        raise InvalidArgument(
            f"{str(found)!r}: a file of an unknown kind", f"expected a name in {SAFETENSORS} or {NPZ}"
        )
    if found.suffix == SAFETENSORS:
        _safetensors()
    if reading:
        if not found.is_file():
            raise InvalidArgument(
                f"{str(found)!r} is not a file" if found.exists() else f"{str(found)!r} does not exist"
            )
        return found
    if found.is_dir():
        raise InvalidArgument(f"{str(found)!r} is a folder", "name a file in it")
    if not found.parent.is_dir():
        raise InvalidArgument(f"the folder {str(found.parent)!r} does not exist", "make it first")
    if not os.access(found.parent, os.W_OK):
        raise InvalidArgument(f"the folder {str(found.parent)!r} may not be written to")
    return found


def write(path: Path, checkpoint: Checkpoint) -> int:
    """The file, atomically; what was there before is replaced. Its size in bytes. Raises CheckpointError."""
    arrays, text = packed(checkpoint)
    try:
        with _replacing(path) as temporary:
            if path.suffix == SAFETENSORS:
                _safetensors().save_file(arrays, temporary, metadata={TEXT: text})
            else:
                _write_npz(temporary, arrays, text)
            size = temporary.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r} could not be written: {error.strerror or error}", "nothing was changed"
        ) from None
    return size


def read(path: Path) -> Checkpoint:
    """Checked in full. Raises CheckpointError, which names the file."""
    try:
        arrays, text = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_npz(path)
        return unpacked(arrays, text)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error.cause}", error.hint) from None
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} could not be read: {error.strerror or error}") from None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        os.close(number)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# --- safetensors ----------------------------------------------------------------------------------------------------


def _safetensors() -> Any:
    try:
        return import_module("safetensors.numpy")
    except ImportError:
        raise InvalidArgument(
            "safetensors is not installed",
            "pip install 'paramserver[checkpoint]', or take .npz, which needs nothing",
        ) from None


def _read_safetensors(path: Path) -> tuple[Arrays, str]:
    _safetensors()
    library = import_module("safetensors")
    try:
        with library.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(TEXT)
            if text is None:
                raise CheckpointError("it is no checkpoint of paramserver", "expected a file that `model.save` wrote")
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except library.SafetensorError as error:
        raise CheckpointError(f"it is no whole safetensors file: {str(error)[:200]}", "the file is damaged") from None
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"it cannot be read: {str(error)[:200]}", "the file is damaged, or foreign") from None


# --- .npz -----------------------------------------------------------------------------------------------------------


def _write_npz(path: Path, arrays: Arrays, text: str) -> None:
    """As `np.savez` does; that one takes names as keywords, and a tensor may be called `file`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in (*arrays.items(), (_TEXT_MEMBER, np.frombuffer(text.encode(), np.uint8))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _read_npz(path: Path) -> tuple[Arrays, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{_TEXT_MEMBER}.npy" not in archive.namelist():
                raise CheckpointError("it is no checkpoint of paramserver", "expected a file that `model.save` wrote")
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if any(archive.getinfo(name).compress_type != zipfile.ZIP_STORED for name in archive.namelist()):
                raise CheckpointError("it is compressed, which no checkpoint of paramserver is")
            with archive.open(f"{_TEXT_MEMBER}.npy") as member:
                raw = _array(member)
            if raw.dtype != np.uint8 or raw.nbytes > TEXT_BYTES_MAX:
                raise CheckpointError("its description is no text")
            arrays: Arrays = {}
            for name in names:
                if name != _TEXT_MEMBER:
                    with archive.open(f"{name}.npy") as member:
                        arrays[name] = _array(member)
            return arrays, raw.tobytes().decode()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"it is no whole .npz file: {str(error)[:200]}", "the file is damaged") from None


def _array(member: Any) -> Any:
    file: BinaryIO = member
    return np.lib.format.read_array(file, allow_pickle=False)
