"""The file `directory` of a data folder: what group 0 last told this node of the others, so that it finds them again at
its next start.

Format: "paramserver directory 1", a line with the CRC32C of the rest in hexadecimal, then a serialized `Directory`.
Invariants: replaced whole and durably (temporary file, fsync, rename, fsync of the folder); one that can't be read
is refused, never guessed. It is no vote and no promise: losing it costs the way to nodes that came later, until one of
them calls. Must not know: what is done with it.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from consensus.storage.errors import StorageFailed, StorageFull, UnknownFormat
from consensus.storage.interface import FileSystem
from consensus.storage.segments import NO_SPACE
from consensus.storage.smallfiles import read_small, replace_small
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.checksum import crc32c

HEAD = b"paramserver directory 1\n"
FILE_BYTES_MAX = 4 << 20
_FILE = "directory"


def load(filesystem: FileSystem, folder: str) -> pb.Directory | None:
    """None: group 0 has not told anything yet. Raises `UnknownFormat`, `StorageFailed`."""
    path = f"{folder}/{_FILE}"
    try:
        if not filesystem.exists(path):
            return None
        raw = read_small(filesystem, path, FILE_BYTES_MAX)
    except OSError as error:
        raise StorageFailed(f"reading {path}: {error}") from error
    crc, _, content = raw.removeprefix(HEAD).partition(b"\n")
    if not raw.startswith(HEAD) or crc != f"{crc32c(content):08x}".encode():
        raise UnknownFormat(f"{path} can't be read; remove it: this node asks the others again")
    try:
        return pb.Directory.FromString(content)
    except DecodeError:
        raise UnknownFormat(f"{path} can't be read; remove it: this node asks the others again") from None


def save(filesystem: FileSystem, folder: str, directory: pb.Directory) -> None:
    """Durable when it returns. Raises `StorageFull`, with the one before still there, and `StorageFailed`."""
    content = directory.SerializeToString(deterministic=True)
    path = f"{folder}/{_FILE}"
    try:
        replace_small(filesystem, folder, _FILE, [HEAD, f"{crc32c(content):08x}\n".encode(), content])
    except OSError as error:
        if error.errno in NO_SPACE:
            raise StorageFull(f"no space for {path}: {error}") from error
        raise StorageFailed(f"writing {path}: {error}") from error
