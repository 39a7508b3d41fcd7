"""Whether the life before this one may have forgotten what it acknowledged before it was synced (RULES W8).

Owns the file `life`: one line of JSON, one line with its CRC32C. Under durability `replicated` it says in which boot of
the machine the folder is in use, or that the folder was closed in order. Invariants: "in use" is durable before the
first acknowledgement of a life, "closed" only after everything was synced; another boot than the one named, or a file
that can't be read, counts as a crash of the machine, and every group that may have acknowledged something is marked
forgetful, durably, before the file changes. Must not know: what the log holds, who syncs when.
"""

from __future__ import annotations

import contextlib
import errno
import json

from consensus.storage.checksum import crc32c
from consensus.storage.errors import StorageFailed, StorageFull, UnknownFormat
from consensus.storage.interface import FileSystem, Identity, Recovery
from consensus.storage.options import WalOptions
from consensus.storage.smallfiles import read_small, replace_small
from consensus.storage.wal import Wal

FORMAT_VERSION = 1
FILE_BYTES_MAX = 4096
UNKNOWN_BOOT = "unknown"
"""A boot that no other one equals, not even itself."""
_FILE = "life"
_DOUBT = "life.doubt"


def open_log(
    filesystem: FileSystem,
    folder: str,
    identity: Identity,
    options: WalOptions | None = None,
    *,
    replicated: bool = False,
) -> tuple[Wal, Recovery]:
    """`Wal.open` of the log in a data folder, under either durability, whichever the life before had. Raises what that
    raises."""
    doubt = forgotten(filesystem, folder)
    wal, recovery = Wal.open(filesystem, f"{folder}/wal", identity, options, forgotten=doubt)
    _begin(filesystem, folder, replicated=replicated)
    return wal, recovery


def forgotten(filesystem: FileSystem, folder: str) -> str:
    """Why entries that were acknowledged may be gone; empty when none can be."""
    if filesystem.exists(f"{folder}/{_DOUBT}"):
        return "the disk failed while acknowledged entries were not synced"
    boot = _read(filesystem, f"{folder}/{_FILE}")
    if boot in ("", filesystem.boot_id()) and boot != UNKNOWN_BOOT:
        return ""  # Closed in order, never used so, or the process alone died: what it wrote is in the page cache.
    return "the machine stopped while acknowledged entries may not have been synced (durability replicated)"


def end(filesystem: FileSystem, folder: str) -> None:
    """Everything is synced, and nothing will be written any more: nothing can be forgotten."""
    if filesystem.exists(f"{folder}/{_FILE}"):
        _write(filesystem, folder, "")


def doubt(filesystem: FileSystem, folder: str) -> None:
    """A write or a sync failed. Need not be durable: in another boot the file `life` says enough, and in this one the
    name is seen. As good as a disk that fails allows, so nothing is raised."""
    with contextlib.suppress(OSError):
        if filesystem.exists(f"{folder}/{_FILE}"):
            filesystem.open(f"{folder}/{_DOUBT}", create=True).close()


def _begin(filesystem: FileSystem, folder: str, *, replicated: bool) -> None:
    """What was forgotten is marked durably, and the rest is synced: a new life may begin."""
    path, boot = f"{folder}/{_FILE}", filesystem.boot_id()
    try:
        if replicated and _read(filesystem, path) != boot:
            _write(filesystem, folder, boot)
        elif replicated:
            filesystem.sync_directory(folder)  # Who wrote it may have failed before its name was durable.
        elif not replicated and filesystem.exists(path):
            filesystem.unlink(path)
            filesystem.sync_directory(folder)
        if filesystem.exists(f"{folder}/{_DOUBT}"):
            filesystem.unlink(f"{folder}/{_DOUBT}")
            filesystem.sync_directory(folder)
    except OSError as error:
        raise StorageFailed(f"writing {path}: {error}") from error


def _read(filesystem: FileSystem, path: str) -> str:
    """The boot in which the folder was in use; empty when it was closed, or there is no file. One that is damaged names
    no boot that there could be."""
    try:
        if not filesystem.exists(path):
            return ""
        raw = read_small(filesystem, path, FILE_BYTES_MAX)
    except OSError as error:
        raise StorageFailed(f"reading {path}: {error}") from error
    line, _, crc = raw.partition(b"\n")
    checksum = crc32c(line + b"\n")
    if crc != f"{checksum:08x}\n".encode():
        return UNKNOWN_BOOT
    content = json.loads(line)
    if content.get("format") != FORMAT_VERSION:
        raise UnknownFormat(f"{path} has format {content.get('format')}; this build knows {FORMAT_VERSION}")
    return str(content["boot"])


def _write(filesystem: FileSystem, folder: str, boot: str) -> None:
    path = f"{folder}/{_FILE}"
    line = json.dumps({"boot": boot, "format": FORMAT_VERSION}, sort_keys=True).encode() + b"\n"
    try:
        replace_small(filesystem, folder, _FILE, [line, f"{crc32c(line):08x}\n".encode()])
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFull(f"no space for {path}") from error
        raise StorageFailed(f"writing {path}: {error}") from error
