"""Writing a group's snapshots, and releasing the log they cover.

Owns when a snapshot is due and the order of its steps: the state into a file on the state machine's lane (the group's
applies wait: stop-the-world is fine for now); the file made durable and renamed on the files lane; its record made
durable in the log; only then the log is released (RULES W6, HAZARDS 24). Invariants: one snapshot at a time on a node;
a snapshot that an installed one overtook is never recorded; files are deleted when nothing reads them. Must not know:
how snapshots travel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from consensus.core.interface import Core, GroupId, SnapshotMeta
from consensus.runtime.machine import AppliedBatch, MachineHost, WrittenState
from consensus.runtime.services import FILES_LANE, Services
from consensus.storage.errors import StorageFull
from consensus.storage.interface import GroupAppend


class SnapshotWriting:
    """Of one group. `kept_for` says from which index on a peer will need the log, or None."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        core: Core,
        machine: MachineHost,
        lane: str,
        kept_for: Callable[[], int | None],
        recorded: Callable[[SnapshotMeta], None],
        changed: Callable[[], None],
    ) -> None:
        self._services = services
        self._group = group
        self._core = core
        self._machine = machine
        self._lane = lane
        self._kept_for = kept_for
        self._on_recorded = recorded
        self._changed = changed
        """The core may have something to do."""
        self._sizes: deque[tuple[int, int]] = deque()
        """(index, bytes) of applied entries that may still stand in the log."""
        self._since_bytes = 0
        self._wanted = False
        self._not_before_ms = 0
        self.active = False
        self.written = 0
        """Snapshots recorded in this life."""

    def applied(self, batch: AppliedBatch) -> None:
        self._sizes.extend(batch.sizes)
        self._since_bytes += sum(size for _, size in batch.sizes)
        options = self._services.options
        due = max(options.snapshot_log_multiple * batch.state_bytes, options.snapshot_log_bytes_min)
        if self._since_bytes > due:
            self.want()

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
        store = self._services.store
        self._services.run(self._lane, lambda: self._machine.write(store), self._state_written)
        return True

    def _state_written(self, state: WrittenState | None) -> None:
        if state is None:
            self._no_space()
            return

        def commit() -> SnapshotMeta | None:
            try:
                return state.writer.commit()
            except StorageFull:
                return None

        self._services.run(FILES_LANE, commit, self._file_durable)

    def _no_space(self) -> None:
        self._services.dropped["snapshot_no_space"] += 1
        self._not_before_ms = self._services.clock.now_ms() + self._services.options.snapshot_retry_ms
        self._end()

    def _file_durable(self, meta: SnapshotMeta | None) -> None:
        if meta is None:
            self._no_space()
            return
        if self._core.status().snapshot_index >= meta.index:
            # A snapshot of the leader's came in between. Its record must stay the last one.
            self._end()
            return

        def recorded() -> None:
            with self._services.input() as running:
                if running:
                    self._recorded(meta)

        self._services.writer.submit(GroupAppend(group=self._group, install=meta), recorded)

    def _recorded(self, meta: SnapshotMeta) -> None:
        if self._core.status().snapshot_index < meta.index:
            keep_from = self._keep_from(meta)
            self._core.compact(meta, keep_from=keep_from)
            self.forget_below(keep_from)
            self._services.writer.release(self._group, keep_from)
            self.written += 1
            self._end()
            self._on_recorded(meta)
            return
        self._end()

    def _end(self) -> None:
        self.active = False
        self._services.writing.release()
        self._changed()

    def _keep_from(self, meta: SnapshotMeta) -> int:
        """The first index that stays in the log: a tail for peers that lag a little, more while one is being sent a
        snapshot (HAZARDS 25), each within its bound."""
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
        self._wanted = False
        if self.active:
            self.active = False
            self._services.writing.release()
