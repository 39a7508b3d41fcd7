"""Files of a few lines that are read and replaced as a whole.

Invariant: whenever a machine stops, the file there is the one before or the new one, whole. Must not know: what is in
them.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.core.interface import Payload
from consensus.storage.interface import FileSystem

TEMPORARY = ".temporary"


def read_small(filesystem: FileSystem, path: str, bytes_max: int) -> bytes:
    """At most so much of it. Raises `OSError`."""
    file = filesystem.open(path)
    try:
        return file.pread(min(file.size(), bytes_max), 0)
    finally:
        file.close()


def replace_small(filesystem: FileSystem, folder: str, name: str, parts: Sequence[Payload]) -> None:
    """Durable when it returns. Raises `OSError`, with the one before still there unless the disk failed at the end."""
    path = f"{folder}/{name}"
    temporary = path + TEMPORARY
    if filesystem.exists(temporary):
        filesystem.unlink(temporary)
    file = filesystem.open(temporary, create=True)
    try:
        file.pwrite(parts, 0)
        file.datasync()
    finally:
        file.close()
    filesystem.rename(temporary, path)
    filesystem.sync_directory(folder)
