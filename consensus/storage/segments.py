"""Segment files: their names, the spares made ready ahead of time, and recycling (RULES W4, W5).

Owns every file of the log folder that is not part of the log at the moment. Invariants: a segment number is given out
once and never again; a file under a new name is used only after its folder is synced; `take` either returns a file that
is allocated to its last byte or raises `StorageFull` with nothing changed. Must not know: records, groups.

`prepare` may run on another thread than the rest: a lock guards the lists, and the slow work is done outside it.
"""

from __future__ import annotations

import errno
import re
import threading
from dataclasses import dataclass

from consensus.storage.batches import aligned
from consensus.storage.errors import StorageFailed, StorageFull
from consensus.storage.interface import File, FileSystem

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of the disk, of a quota, of a limit on a file's size: space may come back, nothing was lost."""
_NAME = re.compile(r"([0-9a-f]{16})\.wal")


def segment_path(directory: str, number: int) -> str:
    return f"{directory}/{number:016x}.wal"


def is_segment(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def segment_numbers(filesystem: FileSystem, directory: str) -> list[int]:
    """Numbers of all segment files of the folder, spares included, in rising order."""
    matches = [_NAME.fullmatch(name) for name in filesystem.listdir(directory)]
    return sorted(int(match.group(1), 16) for match in matches if match)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file that is ready to become a segment. `capacity` in bytes. A `reserve` one is small, and only for records
    that must be written even when the disk is full."""

    number: int
    file: File
    capacity: int
    reserve: bool = False


class SegmentPool:
    """`spares_wanted` files of `segment_bytes`, and one of `reserve_bytes`, are kept ready; up to `retired_max` more
    that were retired are kept for recycling, or as many as the log has needed before, the rest is unlinked; on a full
    disk no more than `retired_max`."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: str,
        *,
        segment_bytes: int,
        reserve_bytes: int,
        spares_wanted: int,
        retired_max: int,
        next_number: int,
        unused: list[int],
    ) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._reserve_bytes = reserve_bytes
        self._spares_wanted = spares_wanted
        self._retired_max = retired_max
        self.retired_useful = 0
        """So many retired files the log will need again if it grows as it did before. Set by who retires them: a long
        log gives back all its segments at once, and making and zeroing new ones costs as much as writing the log."""
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._next_number = next_number
        self._retired: list[tuple[int, int]] = []
        self._spares: list[Prepared] = []
        self._reserve: Prepared | None = None
        self._closed = False
        self.full = False
        """The last attempt to make a file found no space. `prepare` clears it when there is some again."""
        self.unprepared = True
        """A file was taken or given back since `prepare` last looked."""
        for number in unused:
            self.retire(number, self._size(number))

    @property
    def next_number(self) -> int:
        """Above every number given out so far."""
        return self._next_number

    def take(self, needed_bytes: int, *, urgent: bool) -> Prepared:
        """A file of at least that capacity. On a full disk an `urgent` use gets the reserve."""
        self.unprepared = True
        with self._lock:
            if self._spares and needed_bytes <= self._spares[0].capacity:
                return self._spares.pop(0)
        try:
            return self._make(max(self._segment_bytes, aligned(needed_bytes)))
        except StorageFull:
            with self._lock:
                reserve = self._reserve
                if not urgent or reserve is None or needed_bytes > reserve.capacity:
                    raise
                self._reserve = None
                return reserve

    def give_back(self, prepared: Prepared) -> None:
        """Undo a `take` that nothing was written to."""
        with self._lock:
            if prepared.reserve:
                self._reserve = prepared
            else:
                self._spares.insert(0, prepared)

    def retire(self, number: int, capacity: int) -> None:
        """The segment's file is free to be used again under another number."""
        with self._lock:
            self._retired.append((number, capacity))
        self.unprepared = True

    def prepare(self) -> None:
        """Make what is missing. A full disk is not an error here: `full` says so, and `take` will if it matters. What
        is kept beyond need is removed then, and it is tried once more."""
        with self._preparing:
            self.unprepared = False
            for _ in range(2):
                try:
                    self._fill()
                    self.full = False
                except StorageFull:
                    pass
                keep = self._retired_max if self.full else max(self._retired_max, self.retired_useful)
                if not self._trim(keep) or not self.full:
                    return

    def _fill(self) -> None:
        if self._reserve is None:
            self._keep(self._make(self._reserve_bytes, reserve=True))
        while len(self._spares) < self._spares_wanted and not self._closed:
            self._keep(self._make(self._segment_bytes))

    def _keep(self, prepared: Prepared) -> None:
        with self._lock:
            if self._closed:
                prepared.file.close()
            elif prepared.reserve:
                self._reserve = prepared
            else:
                self._spares.append(prepared)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for prepared in [*self._spares, *([self._reserve] if self._reserve else [])]:
                prepared.file.close()
            self._spares.clear()
            self._reserve = None

    def _number(self) -> int:
        with self._lock:
            self._next_number += 1
            return self._next_number - 1

    def _make(self, capacity: int, *, reserve: bool = False) -> Prepared:
        number = self._number()
        path = segment_path(self._directory, number)
        try:
            file = self._recycle(capacity, path) or self._create(capacity, path)
            self._filesystem.sync_directory(self._directory)
        except StorageFull:
            self.full = True
            raise
        except OSError as error:
            raise StorageFailed(f"making segment {path} ready: {error}") from error
        return Prepared(number, file, capacity, reserve)

    def _recycle(self, capacity: int, path: str) -> File | None:
        with self._lock:
            found = next((entry for entry in self._retired if entry[1] == capacity), None)
            if found is None:
                return None
            self._retired.remove(found)
        try:
            self._filesystem.rename(segment_path(self._directory, found[0]), path)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self.retire(*found)
            raise StorageFull(f"no space to rename a segment in {self._directory}: {error}") from error
        return self._filesystem.open(path)

    def _create(self, capacity: int, path: str) -> File:
        file: File | None = None
        try:
            file = self._filesystem.open(path, create=True)
            file.preallocate(capacity)
            file.datasync()
            return file
        except OSError as error:
            if file is not None:
                file.close()
            if error.errno not in NO_SPACE:
                raise
            if file is not None:
                self._filesystem.unlink(path)
            raise StorageFull(f"no space for a segment of {capacity} bytes in {self._directory}: {error}") from error

    def _trim(self, keep: int) -> bool:
        """Oversized files, those of another configuration, half made ones and those over the bound go. Whether there
        were any."""
        with self._lock:
            wanted = [entry for entry in self._retired if entry[1] == self._segment_bytes][:keep]
            surplus = [number for number, capacity in self._retired if (number, capacity) not in wanted]
            self._retired = wanted
        for number in surplus:
            try:
                self._filesystem.unlink(segment_path(self._directory, number))
            except OSError as error:
                raise StorageFailed(f"removing segment {number}: {error}") from error
        return bool(surplus)

    def _size(self, number: int) -> int:
        file = self._filesystem.open(segment_path(self._directory, number))
        try:
            return file.size()
        finally:
            file.close()
