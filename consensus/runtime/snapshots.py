"""Writing a group's snapshots, and releasing the log they cover.

Owns when a snapshot is due and the order of its steps: the state captured on its lane, at once; written piece by piece
on the files lane while apply goes on; the file made durable and renamed; its record made durable in the log; only then
the log is released (RULES W6, HAZARDS 24). Invariants: one snapshot at a time on a node; a snapshot that an installed
one overtook is never recorded; apply that waits for the writer (its memory budget is used up) goes on when the writer
did, or when it is given up for making no progress; whatever ends a snapshot also releases its capture and removes its
file. Must not know: how snapshots travel.

The writer is paced, and lets the log go first: a piece waits for a moment without anything to be flushed, but not for
ever, and not while apply waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from consensus.core.interface import Core, GroupId, SnapshotMeta
from consensus.runtime.interface import APPLY_LANE
from consensus.runtime.machine import AppliedBatch, Capture, MachineHost
from consensus.runtime.pacing import Pace
from consensus.runtime.services import FILES_LANE, Services
from consensus.storage.errors import StorageFull
from consensus.storage.interface import GroupAppend, SnapshotWriter


class _Step(Enum):
    MORE = 1
    WRITTEN = 2
    NO_SPACE = 3


@dataclass(slots=True)
class _Work:
    """A snapshot being written."""

    number: int
    capture: Capture
    progress_ms: int
    busy: bool = False
    """A job for it is on the files lane."""
    written: bool = False
    over: bool = False
    # On the files lane only:
    writer: SnapshotWriter | None = None
    piece_bytes: int = 0
    """Size of the last piece."""


class SnapshotWriting:
    """Of one group. `kept_for` says from which index on a peer will need the log, or None. `resume`: have apply go on
    with what waits."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        core: Core,
        machine: MachineHost,
        kept_for: Callable[[], int | None],
        recorded: Callable[[SnapshotMeta], None],
        changed: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._services = services
        self._group = group
        self._core = core
        self._machine = machine
        self._kept_for = kept_for
        self._on_recorded = recorded
        self._changed = changed
        """The core may have something to do."""
        self._resume = resume
        self._pace = Pace(services.options.snapshot_bytes_per_s)
        self._sizes: deque[tuple[int, int]] = deque()
        """(index, bytes) of applied entries that may still stand in the log."""
        self._since_bytes = 0
        self._wanted = False
        self._not_before_ms = 0
        self._number = 0
        """Of the last one begun."""
        self._work: _Work | None = None
        self._applying_waits = False
        self._waits_since_ms = 0
        self.active = False
        self.releases_log = True
        """While the state is in doubt the log stays: who is behind computes from it what nobody else may tell him."""
        self.written = 0
        """Snapshots recorded in this life."""

    # --- when -------------------------------------------------------------------------------------------------------

    def applied(self, batch: AppliedBatch) -> None:
        self._sizes.extend(batch.sizes)
        self._since_bytes += sum(size for _, size in batch.sizes)
        if self._since_bytes > self._services.options.snapshot_due_bytes(batch.state_bytes):
            self.want()
        if batch.waits:
            self._hold_up(progress=bool(batch.sizes))
        else:
            self._applying_waits = False
            self._waits_since_ms = 0

    def want(self) -> None:
        """Write one as soon as the node has time for it."""
        if self._wanted or self.active or self._services.clock.now_ms() < self._not_before_ms:
            return
        self._wanted = True
        self._services.writing.acquire(self._begin)

    def _begin(self) -> bool:
        if not self._wanted:
            return False
        self._wanted = False
        self.active = True
        self._since_bytes = 0
        self._number += 1
        number = self._number
        self._services.run(
            APPLY_LANE, lambda: self._machine.capture(number), lambda capture: self._captured(number, capture)
        )
        return True

    # --- writing ----------------------------------------------------------------------------------------------------

    def _captured(self, number: int, capture: Capture | None) -> None:
        if not self.active or number != self._number:
            self._release(number)  # Given up meanwhile.
            return
        if capture is None:
            self._end()
            return
        self._work = _Work(number, capture, self._services.clock.now_ms())
        self._next(self._work)

    def _release(self, number: int) -> None:
        self._services.lanes.run(APPLY_LANE, lambda: self._machine.release(number), lambda _: None)

    def _next(self, work: _Work) -> None:
        """Write a piece, unless something else goes first; then a tick will."""
        if work.over or work.busy or work.written or not self._may_write(work):
            return
        work.busy = True
        self._services.run(FILES_LANE, lambda: self._write_piece(work), lambda step: self._piece_done(work, step))

    def _may_write(self, work: _Work) -> bool:
        now_ms = self._services.clock.now_ms()
        if not self._pace.may(now_ms):
            return False
        patience_ms = self._services.options.snapshot_yield_ms
        if self._applying_waits or now_ms - work.progress_ms >= patience_ms:
            return True
        return not self._services.log_busy()

    def _write_piece(self, work: _Work) -> _Step:
        """On the files lane."""
        work.piece_bytes = 0
        if work.over:
            return _Step.MORE
        try:
            if work.writer is None:
                work.writer = self._services.store.create(self._group, work.capture.meta)
            for chunk in work.capture.chunks:
                work.writer.write(chunk)
                work.piece_bytes += chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
                if work.piece_bytes >= self._services.options.snapshot_piece_bytes:
                    return _Step.MORE
        except StorageFull:
            return _Step.NO_SPACE
        return _Step.WRITTEN

    def _piece_done(self, work: _Work, step: _Step) -> None:
        work.busy = False
        if work.over:
            return
        now_ms = self._services.clock.now_ms()
        work.progress_ms = now_ms
        self._pace.took(work.piece_bytes, now_ms)
        if step is _Step.NO_SPACE:
            self._give_up("snapshot_no_space")
            return
        if step is _Step.WRITTEN:
            work.written = True
            self._release(work.number)
        if self._applying_waits:
            self._applying_waits = False
            self._resume()
        if step is _Step.WRITTEN:
            self._services.run(FILES_LANE, lambda: _commit(work), lambda meta: self._file_durable(work, meta))
        else:
            self._next(work)

    def _hold_up(self, *, progress: bool) -> None:
        """Apply waits for the writer."""
        now_ms = self._services.clock.now_ms()
        if progress or not self._waits_since_ms:
            self._waits_since_ms = now_ms
        self._applying_waits = True
        if self._work is None or self._work.written:
            # It ended while the batch was under way.
            self._applying_waits = False
            self._resume()
        else:
            self._next(self._work)

    def tick(self, now_ms: int) -> None:
        work = self._work
        if work is None:
            return
        wait_ms = self._services.options.snapshot_wait_ms
        if self._applying_waits and now_ms - max(work.progress_ms, self._waits_since_ms) >= wait_ms:
            self._give_up("snapshot_too_slow")
        else:
            self._next(work)

    def _give_up(self, reason: str) -> None:
        """No snapshot now; another try later."""
        options, now_ms = self._services.options, self._services.clock.now_ms()
        self._services.dropped[reason] += 1
        self._not_before_ms = now_ms + options.snapshot_retry_ms
        self.cancel()

    def cancel(self) -> None:
        """Leave off what is being written, if anything: its capture and its file are gone soon."""
        self._wanted = False
        work, self._work = self._work, None
        if work is not None and not work.over:
            work.over = True
            if not work.written:
                self._release(work.number)
            self._services.lanes.run(FILES_LANE, lambda: _abort(work), lambda _: None)
        if self._applying_waits:
            self._applying_waits = False
            self._resume()
        if self.active:
            self._end()

    # --- recording --------------------------------------------------------------------------------------------------

    def _file_durable(self, work: _Work, meta: SnapshotMeta | None) -> None:
        if work.over:
            return
        self._work = None
        if meta is None:
            self._give_up("snapshot_no_space")
            return
        if self._core.status().snapshot_index > meta.index:
            # A snapshot of the leader's came in between. Its record must stay the last one.
            self._end()
            return
        self.record(meta, lambda: self._was_recorded(work.number))

    def record(self, meta: SnapshotMeta, done: Callable[[], None]) -> None:
        """The file is durable: make its record durable, then release the log that it covers."""

        def recorded() -> None:
            with self._services.input() as running:
                if running:
                    self._recorded(meta, done)

        self._services.writer.submit(GroupAppend(group=self._group, install=meta), recorded)

    def _recorded(self, meta: SnapshotMeta, done: Callable[[], None]) -> None:
        """One of the same index replaces the one before: that one's file may be damaged."""
        if self._core.status().snapshot_index > meta.index:
            done()
            return
        keep_from = self._keep_from(meta)
        self._core.compact(meta, keep_from=keep_from)
        self.forget_below(keep_from)
        self._services.writer.release(self._group, keep_from)
        self.written += 1
        done()
        self._on_recorded(meta)

    def _was_recorded(self, number: int) -> None:
        """It may have been given up meanwhile, and another one begun."""
        if self.active and number == self._number:
            self._end()

    def _end(self) -> None:
        self.active = False
        self._services.writing.release()
        self._changed()

    def _keep_from(self, meta: SnapshotMeta) -> int:
        """The first index that stays in the log: a tail for peers that lag a little, more while one is being sent a
        snapshot (HAZARDS 25), each within its bound."""
        if not self.releases_log:
            return self._core.status().first_index
        options = self._services.options
        needed = self._kept_for()
        keep_from, held = meta.index + 1, 0
        for index, size in reversed(self._sizes):
            if index > meta.index:
                continue
            held += size
            wanted = needed is not None and index >= needed
            if held > (options.transfer_keep_bytes_max if wanted else options.keep_bytes_max):
                break
            keep_from = index
        return keep_from

    def forget_below(self, index: int) -> None:
        """Entries below `index` left the log."""
        while self._sizes and self._sizes[0][0] < index:
            self._sizes.popleft()

    def restored(self, meta: SnapshotMeta) -> None:
        """The state was replaced."""
        self.forget_below(meta.index + 1)
        self._since_bytes = 0

    def stop(self) -> None:
        """No step that is on its way goes on."""
        self._applying_waits = False
        self.cancel()


# --- on the files lane ----------------------------------------------------------------------------------------------


def _commit(work: _Work) -> SnapshotMeta | None:
    """None: no space."""
    if work.writer is None or work.over:
        return None
    try:
        return work.writer.commit()
    except StorageFull:
        return None


def _abort(work: _Work) -> None:
    if work.writer is not None:
        work.writer.abort()
    close = getattr(work.capture.chunks, "close", None)
    if close is not None:
        close()
