"""A replica whose state is not to be trusted gets another one's (RULES D1).

Owns why, and the way back: nothing is applied any more; a mark on the disk says so to the next life; the replica hands
over leadership and does not campaign; it asks its leader for a snapshot that goes at least as far as the state went,
takes it although the log lacks nothing, and applies on from there what its own log, which is sound, has handed out
meanwhile. Invariants: it votes, appends and acknowledges all the time; nothing is served from its state (the listener
sees to that) until the new one is in; the mark goes only when the new snapshot's record is durable, so the old one can
never come back. Must not know: why states can be compared, what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from consensus.core.errors import NotLeader, TransferRefused
from consensus.core.interface import Core, GroupId, ReplicaId, Role, SnapshotMeta, SnapshotOffer
from consensus.runtime.interface import APPLY_LANE
from consensus.runtime.machine import MachineHost, Unreadable
from consensus.runtime.services import FILES_LANE, Services
from consensus.runtime.snapshots import SnapshotWriting
from consensus.storage.errors import StorageFull
from consensus.transport.interface import SnapshotChunk, SnapshotRequest

_log = logging.getLogger(__name__)


class Rebuilding:
    """Of one group. `fit`: told when that changes. `rebuilt`: the state was replaced by that snapshot's."""

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        replica: ReplicaId,
        core: Core,
        machine: MachineHost,
        writing: SnapshotWriting,
        send: Callable[[SnapshotRequest], None],
        fit: Callable[[], None],
        rebuilt: Callable[[SnapshotMeta], None],
        resume: Callable[[], None],
        handed_out: int,
    ) -> None:
        self._services = services
        self._group = group
        self._replica = replica
        self._core = core
        self._machine = machine
        self._writing = writing
        self._send = send
        self._on_fit = fit
        self._on_rebuilt = rebuilt
        self._resume = resume
        self.reason = ""
        """Why the state is not to be trusted; empty when it is."""
        self._at_least: int | None = None
        """The new state must go that far; None until it is known."""
        self._asked_ms: int | None = None
        self._arrived: SnapshotMeta | None = None
        """A whole file, to be put into the state machine as soon as the log was handed out that far."""
        self._loading = False
        self._handed_out = handed_out

    @property
    def active(self) -> bool:
        return bool(self.reason)

    # --- beginning --------------------------------------------------------------------------------------------------

    def begin(self, reason: str) -> None:
        """The state was found wrong."""
        if self.reason:
            return
        self._doubt(reason)
        self._services.run(APPLY_LANE, self._machine.hold, self._holds)

    def begin_without_state(self, reason: str, snapshot: SnapshotMeta) -> None:
        """The replica starts, and an earlier life left the mark. The state machine holds already."""
        self._doubt(reason)
        self._holds(snapshot.index)

    def _doubt(self, reason: str) -> None:
        self.reason = reason
        _log.error("group %d: this replica neither leads nor serves until it is rebuilt: %s", self._group, reason)
        self._services.dropped["states_distrusted"] += 1
        self._writing.cancel()
        store = self._services.store

        def mark() -> None:
            try:
                store.distrust(self._group, reason)
            except StorageFull:
                _log.error("group %d: no space to note that; a restart would not know", self._group)

        self._services.lanes.run(FILES_LANE, mark, lambda _: None)
        self._on_fit()

    def _holds(self, index: int) -> None:
        self._at_least = index

    # --- while it lasts ---------------------------------------------------------------------------------------------

    def handed_out(self, index: int) -> None:
        """The core handed out entries up to there; they wait behind the state that is to come."""
        self._handed_out = index
        self._load_when_possible()

    def wants(self, meta: SnapshotMeta) -> bool:
        """Whether chunks of that snapshot are welcome, although the log holds all that it stands for."""
        return bool(self.reason) and self._arrived is None and meta.index >= (self._at_least or 0)

    @property
    def has_arrived(self) -> bool:
        return self._arrived is not None

    def tick(self, now_ms: int, *, receiving: bool) -> None:
        """`receiving`: a snapshot is on its way and moves. One that was broken off is asked for again: the log lacks
        nothing, so nobody but this replica knows that it is still needed."""
        if not self.reason or self._at_least is None:
            return
        status = self._core.status()
        if status.role is Role.LEADER:
            self._hand_over()
            return
        late = self._asked_ms is None or now_ms - self._asked_ms >= self._services.options.rebuild_ask_ms
        if self._arrived is not None or receiving or not status.leader or not late:
            return
        self._asked_ms = now_ms
        self._send(
            SnapshotRequest(
                sender=self._replica,
                to=status.leader,
                term=status.term,
                incarnation=self._services.incarnation,
                index=self._at_least,
            )
        )

    def _hand_over(self) -> None:
        """Whoever can be reached; what the core does by itself for a disk that stands still may not be enough: it keeps
        a leader without which there is no quorum, but this one's vote stays."""
        status = self._core.status()
        if status.transferee:
            return
        for peer in sorted(status.match, key=lambda peer: -status.match[peer]):
            try:
                self._core.transfer(peer)
                return
            except (NotLeader, TransferRefused):
                continue

    # --- the new state ----------------------------------------------------------------------------------------------

    def arrived(self, meta: SnapshotMeta, chunk: SnapshotChunk) -> None:
        """A whole snapshot that `wants` said yes to lies here as a file."""
        before = self._core.status()
        self._core.step(
            SnapshotOffer(
                sender=chunk.sender, to=self._replica, term=chunk.term, incarnation=chunk.incarnation, meta=meta
            )
        )
        if before.commit_index < meta.index <= self._core.status().snapshot_index:
            return  # The log ends below it: the core has it installed, and `replaced` follows.
        if self._core.status().commit_index < meta.index:
            return  # Not taken, because the leader changed meanwhile; it will be asked for again.
        self._arrived = meta
        self._load_when_possible()

    def _load_when_possible(self) -> None:
        meta, store = self._arrived, self._services.store
        if meta is None or self._loading or self._handed_out < meta.index:
            return
        self._loading = True
        self._services.run(
            APPLY_LANE, lambda: self._machine.restore(store, meta), lambda unreadable: self._loaded(meta, unreadable)
        )

    def _loaded(self, meta: SnapshotMeta, unreadable: Unreadable | None) -> None:
        self._loading = False
        self._arrived = None
        if unreadable is not None:
            self._services.dropped["snapshot_unreadable"] += 1
            _log.error("group %d: snapshot %s can't be used: %s", self._group, meta.snapshot_id, unreadable.problem)
            return
        self._core.applied(meta.index)
        self._writing.restored(meta)
        self._writing.record(meta, self.recorded)
        self._end()
        self._on_rebuilt(meta)
        self._resume()

    def replaced(self, meta: SnapshotMeta) -> None:
        """A snapshot was installed in the ordinary way: its record is durable, and it is in the state machine."""
        self._handed_out = max(self._handed_out, meta.index)
        if self.reason and self._at_least is not None:
            # Otherwise the state machine was told to hold only after that.
            self._arrived = None
            self._end()
            self.recorded()

    def recorded(self) -> None:
        """No earlier snapshot of this node can come back."""
        store = self._services.store
        self._services.lanes.run(FILES_LANE, lambda: store.trust(self._group), lambda _: None)

    def _end(self) -> None:
        _log.warning("group %d: this replica is rebuilt, and takes part in full again", self._group)
        self.reason, self._at_least, self._asked_ms = "", None, None
        self._on_fit()
