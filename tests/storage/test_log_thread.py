"""The log and the threads that drive it, together."""

import threading

from consensus.runtime.threads import ThreadLogWriter
from consensus.storage.interface import File
from consensus.storage.memory import MemoryFileSystem
from tests.storage.logs import append, indexes, open_log, reopen, span


class SlowToMake(MemoryFileSystem):
    """A disk on which a new file takes until `gate` is set: zeroing a segment is real work."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.making = threading.Event(), threading.Event()
        self.gate.set()

    def open(self, path: str, *, create: bool = False) -> File:
        if create and not self.gate.is_set():
            self.making.set()
            self.gate.wait(10)
        return super().open(path, create=create)


def test_an_append_after_a_pause_does_not_wait_for_a_file_that_is_made_ready() -> None:
    """The thread of the log made spare files ready itself when nothing came for 100 ms, and waited for the thread whose
    work that is: appends stood still until a whole segment was zeroed, and leaders took their disk for stalled."""
    disk = SlowToMake()
    wal, _ = open_log(disk)
    idled, durable = threading.Event(), threading.Event()
    cover = wal.idle

    def idle() -> None:
        idled.set()
        cover()

    wal.idle = idle  # type: ignore[method-assign]
    writer = ThreadLogWriter(wal, lambda report: report(), idle_ms=20)
    disk.gate.clear()
    try:
        for first in (1, 41):  # More than a segment: the spare one is taken.
            writer.submit(append(1, first, first + 39, size=900), lambda: None)
        assert disk.making.wait(5)
        assert idled.wait(5)
        writer.submit(append(1, 81, 81), durable.set)
        assert durable.wait(5)
        assert not disk.gate.is_set()
    finally:
        disk.gate.set()
        assert writer.close()
    assert indexes(reopen(disk), 1) == span(1, 81)
