"""A file system in memory that can lose what was not synced, fail and flip bits. Ships for the simulator and tests.

Owns what is durable and what only the page cache holds. Invariants: after `crash` a file holds what was synced, plus,
when torn, any of the 512-byte sectors written since; a name made, renamed or removed without a sync of its folder may
be undone, in order; a failed sync drops the dirty pages from what a later sync would write, as Linux does (HAZARDS 22).
Nothing here is random but through the injected source. Must not know: formats.
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.core.interface import Payload, Randomness
from consensus.storage.interface import File

SECTOR_BYTES = 512


class PowerLost(BaseException):
    """The simulated machine stopped in the middle of an IO call. Not an `Exception`: no handler may go on from it."""


@dataclass(slots=True)
class FaultPlan:
    """What goes wrong, and when. IO calls are counted from 1 in `calls`; all but `exists`, `listdir`, `size`, `pread`
    and `close` count."""

    calls: int = 0
    fail_call: int = 0
    """The call with this number raises `OSError(fail_errno)` (0: none); a failed sync has synced nothing."""
    fail_errno: int = errno.EIO
    stop_call: int = 0
    """Power goes at the call with this number: a write may be done in part, anything else is not done; `PowerLost`."""
    fail_syncs: int = 0
    """So many of the next `datasync` calls fail."""
    capacity_bytes: int = 1 << 62
    """Files can't grow beyond this altogether: ENOSPC."""
    fired: bool = False


@dataclass(slots=True)
class _Inode:
    volatile: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: list[tuple[int, int]] = field(default_factory=list)
    """Ranges [start, end) written since the last sync, in order."""

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.volatile):
            self.volatile.extend(bytes(end - len(self.volatile)))
        self.volatile[offset:end] = data
        self.dirty.append((offset, end))

    def flush(self, start: int, end: int) -> None:
        if end > len(self.durable):
            self.durable.extend(bytes(end - len(self.durable)))
        self.durable[start:end] = self.volatile[start:end]

    def sync(self) -> None:
        for start, end in self.dirty:
            self.flush(start, end)
        self.dirty.clear()

    def lose(self, random: Randomness, *, torn: bool) -> None:
        """Power is gone: some of the dirty sectors may have reached the disk."""
        for start, end in self.dirty if torn else ():
            fate = random.randrange(0, 4)
            if fate == 0:
                continue
            stop = end if fate == 1 else random.randrange(start, end + 1)
            if fate < 3:
                self.flush(start, stop)
                continue
            for sector in range(start - start % SECTOR_BYTES, end, SECTOR_BYTES):
                if random.randrange(0, 2):
                    self.flush(max(start, sector), min(end, sector + SECTOR_BYTES))
        self.dirty.clear()
        self.volatile = bytearray(self.durable)


class MemoryFile:
    """An open file. After a crash or a kill it raises `OSError(EBADF)`: its process is gone."""

    def __init__(self, filesystem: MemoryFileSystem, path: str, inode: _Inode) -> None:
        self._filesystem = filesystem
        self._path = path
        self._inode = inode
        self._life = filesystem.life

    def pwrite(self, buffers: Sequence[Payload], offset: int) -> None:
        data = b"".join(buffers)
        self._alive()
        if self._filesystem.stops("pwrite", self._path):
            if not self._filesystem.dead:
                self._inode.write(data, offset)
            raise PowerLost(f"while writing {self._path}")
        self._filesystem.grow(max(0, offset + len(data) - len(self._inode.volatile)), self._path)
        self._inode.write(data, offset)

    def pread(self, length: int, offset: int) -> bytes:
        self._alive()
        return bytes(self._inode.volatile[offset : offset + length])

    def size(self) -> int:
        self._alive()
        return len(self._inode.volatile)

    def preallocate(self, length: int) -> None:
        self._alive()
        self._filesystem.check("preallocate", self._path)
        self._filesystem.grow(max(0, length - len(self._inode.volatile)), self._path)
        self._inode.write(bytes(length), 0)

    def datasync(self) -> None:
        self._alive()
        try:
            self._filesystem.check("datasync", self._path)
        except OSError:
            self._inode.dirty.clear()
            raise
        self._inode.sync()

    def close(self) -> None:
        return None

    def _alive(self) -> None:
        if self._life != self._filesystem.life:
            raise OSError(errno.EBADF, "the process that opened it is gone", self._path)


class MemoryFileSystem:
    """`FileSystem` in memory. Folders need no syncing; names in them do."""

    def __init__(self) -> None:
        self.faults = FaultPlan()
        self.life = 0
        self._boot = 0
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._unsynced: list[tuple[str, dict[str, _Inode | None]]] = []
        self._folders: set[str] = {"", "/"}

    # --- FileSystem ----------------------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> File:
        self.check("open", path)
        path = posixpath.normpath(path)
        if path not in self._names:
            if not create or posixpath.dirname(path) not in self._folders:
                raise FileNotFoundError(errno.ENOENT, "no such file or folder", path)
            inode = _Inode()
            self._names[path] = inode
            self._unsynced.append((posixpath.dirname(path), {path: inode}))
        return MemoryFile(self, path, self._names[path])

    def exists(self, path: str) -> bool:
        path = posixpath.normpath(path)
        return path in self._names or path in self._folders

    def listdir(self, path: str) -> list[str]:
        path = posixpath.normpath(path)
        if path not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        found = [name for name in [*self._names, *self._folders] if posixpath.dirname(name) == path and name != path]
        return sorted(posixpath.basename(name) for name in found)

    def mkdir(self, path: str) -> None:
        self.check("mkdir", path)
        path = posixpath.normpath(path)
        while path not in self._folders:
            self._folders.add(path)
            path = posixpath.dirname(path)

    def rename(self, source: str, target: str) -> None:
        self.check("rename", source)
        source, target = posixpath.normpath(source), posixpath.normpath(target)
        if source not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        inode = self._names.pop(source)
        self._names[target] = inode
        self._unsynced.append((posixpath.dirname(target), {source: None, target: inode}))

    def unlink(self, path: str) -> None:
        self.check("unlink", path)
        path = posixpath.normpath(path)
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        del self._names[path]
        self._unsynced.append((posixpath.dirname(path), {path: None}))

    def sync_directory(self, path: str) -> None:
        self.check("sync_directory", path)
        path = posixpath.normpath(path)
        for folder, change in self._unsynced:
            if folder == path:
                self._make_durable(change)
        self._unsynced = [entry for entry in self._unsynced if entry[0] != path]

    def boot_id(self) -> str:
        return f"boot {self._boot}"

    # --- faults --------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """The process is gone, the machine stays: nothing written is lost."""
        self.life += 1

    def crash(self, random: Randomness, torn: bool = True) -> None:
        """Power is gone: what was not synced is lost, or, when `torn`, in parts there."""
        self.life += 1
        self._boot += 1
        kept = random.randrange(0, len(self._unsynced) + 1) if torn else 0
        for _, change in self._unsynced[:kept]:
            self._make_durable(change)
        self._unsynced.clear()
        for inode in {id(inode): inode for inode in [*self._names.values(), *self._durable_names.values()]}.values():
            inode.lose(random, torn=torn)
        self._names = dict(self._durable_names)

    def flip_bit(self, path: str, offset: int, bit: int = 0) -> None:
        """A bit rots, on the disk and in the cache."""
        inode = self._names[posixpath.normpath(path)]
        inode.volatile[offset] ^= 1 << bit
        if offset < len(inode.durable):
            inode.durable[offset] ^= 1 << bit

    def read(self, path: str) -> bytes:
        """A file's bytes as a process sees them, not counted as IO."""
        return bytes(self._names[posixpath.normpath(path)].volatile)

    def read_durable(self, path: str) -> bytes:
        """What a power cut would surely leave of it."""
        return bytes(self._names[posixpath.normpath(path)].durable)

    def is_folder(self, path: str) -> bool:
        return posixpath.normpath(path) in self._folders

    def overwrite(self, path: str, data: bytes, offset: int = 0) -> None:
        """Put bytes there, durably, behind everybody's back."""
        inode = self._names[posixpath.normpath(path)]
        inode.write(data, offset)
        inode.sync()

    def used_bytes(self) -> int:
        return sum(len(inode.volatile) for inode in self._names.values())

    # --- for MemoryFile ------------------------------------------------------------------------------------------

    def stops(self, what: str, path: str) -> bool:
        """Count a call. True: power goes during it. Raises `OSError` when it is the one to fail."""
        faults = self.faults
        faults.calls += 1
        if faults.stop_call and faults.calls >= faults.stop_call:
            faults.fired = True
            return True
        if faults.calls == faults.fail_call:
            faults.fired = True
            raise OSError(faults.fail_errno, f"injected into {what}", path)
        if what == "datasync" and faults.fail_syncs > 0:
            faults.fail_syncs -= 1
            faults.fired = True
            raise OSError(errno.EIO, "injected into datasync", path)
        return False

    @property
    def dead(self) -> bool:
        """Power went at an earlier call than this one."""
        return 0 < self.faults.stop_call < self.faults.calls

    def check(self, what: str, path: str) -> None:
        if self.stops(what, path):
            raise PowerLost(f"at {what} of {path}")

    def grow(self, more_bytes: int, path: str) -> None:
        if more_bytes and self.used_bytes() + more_bytes > self.faults.capacity_bytes:
            self.faults.fired = True
            raise OSError(errno.ENOSPC, "no space left", path)

    def _make_durable(self, change: dict[str, _Inode | None]) -> None:
        for name, inode in change.items():
            if inode is None:
                self._durable_names.pop(name, None)
            else:
                self._durable_names[name] = inode
