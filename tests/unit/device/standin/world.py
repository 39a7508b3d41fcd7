"""What the stand-in's modules share: streams and what waits on them, memory, faults.

Invariant: what was given to a stream runs as late as possible, or on streams that are early as soon as possible: either
way a result that is right for want of an accident is wrong. Must not know: arrays, kernels.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

SPOILED = 0xA5
"""Bytes of memory that nobody may read."""


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"cudaError{status}: injected")


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"
OutOfMemoryError.__module__ = "cupy.cuda.memory"


def unheld(array: np.ndarray) -> np.ndarray:
    """The same memory, which may go while this is in use."""
    assert array.flags.c_contiguous
    raw = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(raw, array.dtype).reshape(array.shape)


class Mark:
    """One record of an event."""

    def __init__(self, stream: Queue) -> None:
        self.stream = stream
        self.done = False


@dataclass(frozen=True)
class Wait:
    """The rest runs after `mark`."""

    mark: Mark


@dataclass(frozen=True)
class Work:
    what: str
    run: Callable[[], None]


class Queue:
    """What a stream was given and has not done. `early`: it does what it is given at once, up to the first thing that
    waits for another stream; otherwise nothing before somebody waits for it."""

    def __init__(self, world: World, early: bool) -> None:
        self._world = world
        self._given: deque[Mark | Wait | Work] = deque()
        self.early = early

    def give(self, what: str, work: Callable[[], None]) -> None:
        self._put(Work(what, work))

    def mark(self) -> Mark:
        mark = Mark(self)
        self._put(mark)
        return mark

    def wait(self, mark: Mark) -> None:
        self._put(Wait(mark))

    def run(self, until: Mark | None = None) -> None:
        """Until all is done, or `until` is; what it waits for is done first."""
        with self._world.lock:
            self._until(until)
            self._world.advance()

    def _until(self, until: Mark | None) -> None:
        while self._given and not (until is not None and until.done):
            mark = self._blocked()
            if mark is None:
                self._next()
            else:
                mark.stream._until(mark)

    def _blocked(self) -> Mark | None:
        """By what its next one waits for, where that is not done. Nothing else of the queue is held on to: letting go
        of an array may run it."""
        head = self._given[0]
        return head.mark if isinstance(head, Wait) and not head.mark.done else None

    def advance(self) -> bool:
        """What an early one does by itself; whether it did anything."""
        did = False
        while self._given and self._blocked() is None:
            self._next()
            did = True
        return did

    def _put(self, one: Mark | Wait | Work) -> None:
        with self._world.lock:
            self._given.append(one)
            if self.early:
                self._world.advance()

    def _next(self) -> None:
        one = self._given.popleft()
        if isinstance(one, Mark):
            one.done = True
        elif isinstance(one, Work):
            self._world.executing(one.what)
            one.run()


class World:
    def __init__(self, *, compiled: bool = False, early: Collection[int] = ()) -> None:
        """`early`: which streams are, by the order in which they were made, from 0."""
        self._early = frozenset(early)
        self.lock = threading.RLock()
        self.compiled = compiled
        """Kernels are their source, made functions by a C compiler; otherwise NumPy says what they do."""
        self.counts: Counter[str] = Counter()
        """Of calls and of what was executed ("launch gather", "execute gather", "copy pageable", ...)."""
        self.limit: int | None = None
        """Bytes of the device's memory."""
        self.used = 0
        self.lost: Exception | None = None
        """Raised by every call from now on."""
        self._faults: dict[str, list[tuple[int, Exception]]] = {}
        self._gone: list[Any] = []
        """Memory that was let go: kept, so that reading it is no crash of the tests, and spoiled."""
        self._pointers = itertools.count(0x1000)
        self.queues: dict[int, Queue] = {}
        self.pinned: list[tuple[int, int]] = []
        """(address, bytes)"""
        self.current = threading.local()

    # --- faults

    def fail(self, what: str, error: Exception, after: int = 0) -> None:
        """Call number `after` (from 0, from now) of `what` raises, once; where that is "execute <kernel>", the device
        is lost when the kernel runs, which the next call tells."""
        self._faults.setdefault(what, []).append((self.counts[what] + after, error))

    def called(self, what: str) -> None:
        with self.lock:
            if self.lost is not None:
                raise self.lost
            if (error := self._due(what)) is not None:
                raise error

    def executing(self, what: str) -> None:
        if (error := self._due(f"execute {what}")) is not None:
            self.lost = error
        if self.lost is not None:
            raise self.lost

    def _due(self, what: str) -> Exception | None:
        number = self.counts[what]
        self.counts[what] += 1
        faults = self._faults.get(what, [])
        for one in faults:
            if one[0] == number:
                faults.remove(one)
                return one[1]
        return None

    # --- streams

    def queue(self, pointer: int) -> Queue:
        with self.lock:
            if pointer not in self.queues:
                self.queues[pointer] = Queue(self, len(self.queues) - 1 in self._early)  # the first is the null stream
            return self.queues[pointer]

    def advance(self) -> None:
        with self.lock:
            while any(queue.advance() for queue in self.queues.values() if queue.early):
                pass

    def pointer(self) -> int:
        return next(self._pointers)

    # --- memory

    def allocate(self, size: int) -> Memory:
        self.called("malloc")
        with self.lock:
            if self.limit is not None and self.used + size > self.limit:
                raise OutOfMemoryError(size, self.used, self.limit)
            self.used += size
        memory = Memory(size)
        weakref.finalize(memory, self._let_go, memory.bytes, size)
        return memory

    def _let_go(self, content: np.ndarray, size: int) -> None:
        with self.lock:
            self.used -= size
        content.fill(SPOILED)
        self._gone.append(content)

    def pinned_array(self, elements: int, dtype: np.dtype) -> np.ndarray:
        """Copies know it by its address, as a device does, and keep nothing alive."""
        room = np.full(elements * dtype.itemsize, SPOILED, np.uint8)
        place = (room.ctypes.data, room.nbytes)
        self.pinned.append(place)
        array = unheld(room).view(dtype)
        weakref.finalize(array, self._unpinned, place, room)
        return array

    def _unpinned(self, place: tuple[int, int], room: np.ndarray) -> None:
        self.pinned.remove(place)
        room.fill(SPOILED)
        self._gone.append(room)

    def is_gone(self, address: int) -> bool:
        """It is of memory that was let go."""
        return any(0 <= address - one.ctypes.data < one.nbytes for one in self._gone)

    def is_pinned(self, array: np.ndarray) -> bool:
        at = array.ctypes.data
        return any(start <= at and at + array.nbytes <= start + size for start, size in self.pinned)


class Memory:
    """Of the device."""

    def __init__(self, size: int) -> None:
        # As aligned as CUDA's: codecs read 16 bytes at once.
        room = np.empty(size + 512, np.uint8)
        start = -room.ctypes.data % 512
        self.bytes = room[start : start + size]
        self.bytes.fill(SPOILED)
