"""A disk that stands still, from the writer's thread to the core (HAZARDS 16, FAULTS 11)."""

import random
import threading
from collections.abc import Callable

from consensus.core.interface import Configuration, Status
from consensus.runtime import NodeRuntime, RuntimeOptions
from consensus.runtime.threads import ThreadLogWriter
from consensus.storage.checksum import crc32c
from consensus.storage.interface import Identity
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.wal import Wal
from consensus.transport.memory import MemoryNetwork
from tests.unit.runtime.cluster import CLUSTER, Clock, Journal, Lanes, Listener

TICK_MS = 10


class Posted:
    """`post` that collects; what was posted runs when the test says so."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._arrived = threading.Condition()

    def post(self, call: Callable[[], None]) -> None:
        with self._arrived:
            self._calls.append(call)
            self._arrived.notify_all()

    def run_next(self) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._calls, 5), "the writer's thread reported nothing"
            calls, self._calls = self._calls, []
        for call in calls:
            call()


def test_a_sync_that_hangs_in_the_thread_reaches_the_core_and_its_end_does_too() -> None:
    disk, posted, clock, lanes = MemoryFileSystem(), Posted(), Clock(), Lanes()
    wal, recovery = Wal.open(disk, "wal", Identity(cluster=CLUSTER, node=1, node_uuid=b"1" * 16))
    gate, hangs, sync = threading.Event(), threading.Event(), wal.sync

    def held() -> None:
        hangs.set()
        assert gate.wait(10)
        sync()

    gate.set()
    wal.sync = held  # type: ignore[method-assign]
    writer = ThreadLogWriter(wal, posted.post)
    options = RuntimeOptions(storage_stall_ms=200)
    runtime = NodeRuntime(
        node=1,
        recovery=recovery,
        writer=writer,
        snapshots=SnapshotFiles(disk, "snapshots"),
        lanes=lanes,
        transport=MemoryNetwork().transport(1),
        clock=clock,
        random=random.Random,
        options=options,
    )
    handle = runtime.add_group(
        group=1,
        replica=1,
        configuration=Configuration((1,)),
        nodes={1: 1},
        machine=Journal(),
        listener=Listener(),
    )
    runtime.start()

    def status() -> Status:
        core = handle.status().core
        assert core is not None
        return core

    def tick(ms: int) -> None:
        for _ in range(ms // TICK_MS):
            clock.now += TICK_MS
            runtime.tick()
            while lanes.work():
                pass

    while not handle.ready_to_serve:
        tick(TICK_MS)
        if runtime._writer.busy:
            posted.run_next()
    gate.clear()
    hangs.clear()
    handle.propose(b"x", crc32c(b"x"), lambda _: None)
    tick(TICK_MS)
    assert hangs.wait(5)
    tick(200 - TICK_MS)
    assert not status().storage_stalled, "within the bound a disk is only slow"
    tick(2 * TICK_MS)
    assert status().storage_stalled
    gate.set()
    posted.run_next()
    tick(TICK_MS)
    assert not status().storage_stalled
    writer.close()
