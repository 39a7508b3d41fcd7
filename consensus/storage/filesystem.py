"""The real file system behind the seam, and the lock on a data folder.

Owns file descriptors and the details of Linux: gathered writes cut at IOV_MAX, short writes, zero-filled
preallocation, `fdatasync`, fsync of folders, `flock`. Invariant: a call does all it says or raises `OSError`; nothing
is retried after an error. Must not know: formats.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence

from consensus.core.interface import Payload
from consensus.storage.errors import IdentityMismatch
from consensus.storage.interface import File

BUFFERS_MAX = 1024
"""Buffers of one system call (IOV_MAX of Linux)."""
ZEROS_BYTES = 1 << 20
"""Zeros written at a time when a file is preallocated."""
SYNC_BYTES = 8 << 20
"""And made durable at a time: no sync of the log waits behind a whole file of them."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class OsFile:
    """An open descriptor. Not for use by several threads at once."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path

    def pwrite(self, buffers: Sequence[Payload], offset: int) -> None:
        for start in range(0, len(buffers), BUFFERS_MAX):
            offset = self._write_all(list(buffers[start : start + BUFFERS_MAX]), offset)

    def _write_all(self, buffers: list[Payload], offset: int) -> int:
        while buffers:
            written = os.pwritev(self._descriptor, buffers, offset)
            if written == 0 and any(len(buffer) for buffer in buffers):
                raise OSError(errno.EIO, "wrote nothing", self.path)
            offset += written
            buffers = _rest(buffers, written)
        return offset

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        while length > sum(map(len, parts)):
            done = sum(map(len, parts))
            data = os.pread(self._descriptor, length - done, offset + done)
            if not data:
                break
            parts.append(data)
        return b"".join(parts)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def preallocate(self, length: int) -> None:
        os.posix_fallocate(self._descriptor, 0, length)
        # Written zeros, not only allocated extents: a sync into unwritten extents costs a journal commit each time.
        zeros = bytes(ZEROS_BYTES)
        for offset in range(0, length, ZEROS_BYTES):
            self._write_all([memoryview(zeros)[: min(ZEROS_BYTES, length - offset)]], offset)
            if (offset + ZEROS_BYTES) % SYNC_BYTES == 0:
                self.datasync()

    def datasync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _rest(buffers: list[Payload], written: int) -> list[Payload]:
    """What is left of `buffers` once `written` bytes of them are out."""
    for position, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[position + 1 :]]
        written -= len(buffer)
    return []


class OsFileSystem:
    """`FileSystem` on Linux."""

    def open(self, path: str, *, create: bool = False) -> File:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return OsFile(os.open(path, flags, 0o600), path)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def mkdir(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self.mkdir(parent)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
        self.sync_directory(parent)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def boot_id(self) -> str:
        try:
            with open(BOOT_ID, encoding="ascii") as file:
                return file.read(64).strip() or "unknown"
        except (OSError, UnicodeDecodeError):
            return "unknown"


class ReadOnlyFileSystem(OsFileSystem):
    """For looking at a folder that may be in use: what would change anything raises `OSError(EROFS)`."""

    def open(self, path: str, *, create: bool = False) -> File:
        if create:
            raise OSError(errno.EROFS, "only looked at", path)
        return OsFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)

    def mkdir(self, path: str) -> None:
        raise OSError(errno.EROFS, "only looked at", path)

    def rename(self, source: str, target: str) -> None:
        raise OSError(errno.EROFS, "only looked at", source)

    def unlink(self, path: str) -> None:
        raise OSError(errno.EROFS, "only looked at", path)


def in_use(directory: str) -> bool:
    """Whether a process holds the folder's lock. Nothing is changed."""
    try:
        descriptor = os.open(os.path.join(directory, "lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


class DirectoryLock:
    """Holds `<directory>/lock` exclusively until `release` or the end of the process. Raises `IdentityMismatch` when
    another process holds it: two processes on one folder would write one log."""

    def __init__(self, directory: str) -> None:
        OsFileSystem().mkdir(directory)
        path = os.path.join(directory, "lock")
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise IdentityMismatch(
                f"data folder {directory!r} is in use by another process; "
                "stop it first, or give this node a folder of its own"
            ) from None

    def release(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
