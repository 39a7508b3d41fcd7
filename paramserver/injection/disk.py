"""A file system on which things go wrong, over the real one (`consensus.storage.interface.FileSystem`).

Invariants: reading is never disturbed; what is refused has not been written; a failed sync is told once, and what it
should have made durable stays written, as far as the kernel goes. Must not know: formats, who asked for it.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Sequence

from consensus.core.interface import Payload
from consensus.storage.interface import File, FileSystem

SLOW_MS_MAX = 60_000.0


class DiskFaults:
    """What is wrong now; changed on one thread, looked at on all that write."""

    def __init__(self) -> None:
        self.slow_ms = 0.0
        """Before each write, preallocation and sync."""
        self.full = False
        """What would allocate space is refused: making files, making them longer."""
        self.sync_errors = 0
        """So many syncs of files fail, then no more."""
        self.counts: Counter[str] = Counter()
        """How often each came true."""
        self._lock = threading.Lock()
        self._changed = threading.Event()

    def set(self, *, slow_ms: float | None = None, full: bool | None = None, sync_errors: int | None = None) -> None:
        """None: as it is. Who waits for a slow disk goes on."""
        with self._lock:
            self.slow_ms = self.slow_ms if slow_ms is None else slow_ms
            self.full = self.full if full is None else full
            self.sync_errors = self.sync_errors if sync_errors is None else sync_errors
            self._changed.set()
            self._changed = threading.Event()

    def before_write(self) -> None:
        changed = self._changed
        if self.slow_ms:
            self.counts["slow"] += 1
            changed.wait(self.slow_ms / 1000)

    def before_sync(self, path: str) -> None:
        self.before_write()
        with self._lock:
            if not self.sync_errors:
                return
            self.sync_errors -= 1
            self.counts["sync_errors"] += 1
        raise OSError(errno.EIO, "injected: the sync failed", path)

    def refuse_growth(self, path: str) -> None:
        if self.full:
            self.counts["full"] += 1
            raise OSError(errno.ENOSPC, "injected: no space left", path)


class FaultyFile:
    def __init__(self, file: File, path: str, faults: DiskFaults) -> None:
        self._file = file
        self._path = path
        self._faults = faults

    def pwrite(self, buffers: Sequence[Payload], offset: int) -> None:
        self._faults.before_write()
        if self._faults.full and offset + sum(memoryview(one).nbytes for one in buffers) > self._file.size():
            self._faults.refuse_growth(self._path)
        self._file.pwrite(buffers, offset)

    def pread(self, length: int, offset: int) -> bytes:
        return self._file.pread(length, offset)

    def size(self) -> int:
        return self._file.size()

    def preallocate(self, length: int) -> None:
        self._faults.before_write()
        if length > self._file.size():
            self._faults.refuse_growth(self._path)
        self._file.preallocate(length)

    def datasync(self) -> None:
        self._faults.before_sync(self._path)
        self._file.datasync()

    def close(self) -> None:
        self._file.close()


class FaultyFileSystem:
    """`FileSystem` whose writes meet `faults`."""

    def __init__(self, filesystem: FileSystem, faults: DiskFaults) -> None:
        self._filesystem = filesystem
        self._faults = faults

    def open(self, path: str, *, create: bool = False) -> File:
        if create and not self._filesystem.exists(path):
            self._faults.refuse_growth(path)
        return FaultyFile(self._filesystem.open(path, create=create), path, self._faults)

    def exists(self, path: str) -> bool:
        return self._filesystem.exists(path)

    def listdir(self, path: str) -> list[str]:
        return self._filesystem.listdir(path)

    def mkdir(self, path: str) -> None:
        if not self._filesystem.exists(path):
            self._faults.refuse_growth(path)
        self._filesystem.mkdir(path)

    def rename(self, source: str, target: str) -> None:
        self._filesystem.rename(source, target)

    def unlink(self, path: str) -> None:
        self._filesystem.unlink(path)

    def sync_directory(self, path: str) -> None:
        self._faults.before_write()
        self._filesystem.sync_directory(path)

    def boot_id(self) -> str:
        return self._filesystem.boot_id()
